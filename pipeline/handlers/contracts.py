"""The contracts as this installation keeps them: the files of contracts/ with the version that runs, the address at
which it is reached and the categories of CATEGORIES. Pure.
"""

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
    contract = _kept("analyze-queue.openapi.json", categories)
    if _can_be_called(public_url):
        contract["servers"] = [{"url": public_url}]
    return _written(contract)


@cache
def asyncapi(categories: tuple[str, ...], public_url: str) -> bytes:
    """Return the contract of sockets and streams, the event's schema within it.

    public_url: of the service, without a / at its end.
    """
    contract = _kept("rooms.asyncapi.json", categories)
    contract["components"]["schemas"] |= named_schemas("AssetProcessed", _read("asset-processed-event.schema.json"))
    address = urlsplit(public_url)
    for server in contract["servers"].values() if _can_be_called(public_url) else ():
        server |= {"host": address.netloc, "description": "This service."}
        server["protocol"] += "s" if address.scheme == "https" else ""
        if address.path:
            server["pathname"] = address.path
    return _written(contract)


def _can_be_called(url: str) -> bool:
    """Return whether clients can call this address. Where a process listens on all of its machine, and PUBLIC_URL says
    nothing, the contracts keep what is in their files.
    """
    return urlsplit(url).hostname not in EVERY_ADDRESS


def named_schemas(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema and its definitions, each under its title, as the components of a contract have them."""
    named = {name: {key: value for key, value in schema.items() if key[0] != "$"} | {"title": name}}
    named |= {each["title"]: each for each in schema["$defs"].values()}
    text = json.dumps(named)
    for key, each in schema["$defs"].items():
        text = text.replace(f'"#/$defs/{key}"', f'"{SCHEMAS}{each["title"]}"')
    renamed: dict[str, Any] = json.loads(text)
    return renamed


def with_categories(contract: Any, categories: Sequence[str]) -> Any:
    """Return the contract with these categories wherever its file has the default ones, in examples too."""
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


def _kept(name: str, categories: tuple[str, ...]) -> dict[str, Any]:
    contract: dict[str, Any] = with_categories(_read(name), categories)
    contract["info"]["version"] = __version__
    return contract


def _written(contract: dict[str, Any]) -> bytes:
    return json.dumps(contract, indent=2, ensure_ascii=False).encode()
