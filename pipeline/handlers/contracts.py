"""The contracts of this installation: the files of contracts/ with its version, address and categories. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from pipeline import __version__
from pipeline.settings import DEFAULT_CATEGORIES

EVERY_ADDRESS = ("0.0.0.0", "::")
SCHEMAS = "#/components/schemas/"
LISTED = ", ".join(DEFAULT_CATEGORIES)


@cache
def openapi(categories: tuple[str, ...], public_url: str) -> bytes:
    """Return the contract of the HTTP API.

    public_url: of the service, without a / at its end.
    """
    contract = _adapted("analyze-queue.openapi.json", categories)
    if _can_be_called(public_url):
        contract["servers"] = [{"url": public_url}]
    return _as_json(contract)


@cache
def asyncapi(categories: tuple[str, ...], public_url: str) -> bytes:
    """Return the contract of sockets and streams, with the event's schema.

    public_url: of the service, without a / at its end.
    """
    contract = _adapted("rooms.asyncapi.json", categories)
    contract["components"]["schemas"] |= named_schemas("AssetProcessed", _read("asset-processed-event.schema.json"))
    address = urlsplit(public_url)
    for server in contract["servers"].values() if _can_be_called(public_url) else ():
        server |= {"host": address.netloc, "description": "This service."}
        server["protocol"] += "s" if address.scheme == "https" else ""
        if address.path:
            server["pathname"] = address.path
    return _as_json(contract)


def _can_be_called(url: str) -> bool:
    """Return whether clients can call this address.

    They cannot call 0.0.0.0, the address of a process that listens on all interfaces without a PUBLIC_URL; the
    contracts then have the servers of their files.
    """
    return urlsplit(url).hostname not in EVERY_ADDRESS


def named_schemas(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema and its definitions by their titles, as components of a contract."""
    named = {name: {key: value for key, value in schema.items() if key[0] != "$"} | {"title": name}}
    named |= {each["title"]: each for each in schema["$defs"].values()}
    text = json.dumps(named)
    for key, each in schema["$defs"].items():
        text = text.replace(f'"#/$defs/{key}"', f'"{SCHEMAS}{each["title"]}"')
    renamed: dict[str, Any] = json.loads(text)
    return renamed


def with_categories(contract: Any, categories: Sequence[str]) -> Any:
    """Return the contract with these categories in place of the default ones, in examples too."""
    if isinstance(contract, list):
        is_enum = contract == list(DEFAULT_CATEGORIES)
        return list(categories) if is_enum else [with_categories(each, categories) for each in contract]
    if isinstance(contract, str):
        return contract.replace(LISTED, ", ".join(categories))
    if not isinstance(contract, dict):
        return contract
    changed = {name: with_categories(value, categories) for name, value in contract.items()}
    if contract.get("category") in DEFAULT_CATEGORIES and contract["category"] not in categories:
        changed["category"] = categories[0]
    return changed


def _read(name: str) -> dict[str, Any]:
    contract: dict[str, Any] = json.loads(resources.files("pipeline.contracts").joinpath(name).read_bytes())
    return contract


def _adapted(name: str, categories: tuple[str, ...]) -> dict[str, Any]:
    contract: dict[str, Any] = with_categories(_read(name), categories)
    contract["info"]["version"] = __version__
    return contract


def _as_json(contract: dict[str, Any]) -> bytes:
    return json.dumps(contract, indent=2, ensure_ascii=False).encode()
