"""The contracts as this installation keeps them: the files of contracts/, with the categories of CATEGORIES. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from pipeline.settings import DEFAULT_CATEGORIES

EVENT_SCHEMA = b'{ "$ref": "./asset-processed-event.schema.json" }'
LISTED = ", ".join(DEFAULT_CATEGORIES)


@cache
def openapi(categories: tuple[str, ...]) -> bytes:
    """Return the contract of the HTTP API."""
    return _kept(_read("analyze-queue.openapi.json"), categories)


@cache
def asyncapi(categories: tuple[str, ...]) -> bytes:
    """Return the contract of sockets and streams, the event's schema within it."""
    event = _read("asset-processed-event.schema.json")
    return _kept(_read("rooms.asyncapi.json").replace(EVENT_SCHEMA, event), categories)


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


def _read(name: str) -> bytes:
    return resources.files("pipeline.contracts").joinpath(name).read_bytes()


def _kept(content: bytes, categories: tuple[str, ...]) -> bytes:
    if categories == DEFAULT_CATEGORIES:
        return content
    changed = with_categories(json.loads(content), categories)
    return json.dumps(changed, indent=2, ensure_ascii=False).encode()
