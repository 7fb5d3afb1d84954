"""The small values of plugins (PluginStore in context_api.py): the checks for every store, and a store in memory.

usecases/plugin_values.py has the store of the service.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from pipeline.hooks.context_api import MAX_VALUE_BYTES

MAX_KEY_LENGTH = 200


def checked(key: str, value: Any) -> str:
    """Return the value as JSON; ValueError when the value or its key cannot be stored."""
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_LENGTH or not key.isprintable():
        raise ValueError(f"a key is 1 to {MAX_KEY_LENGTH} printable characters")
    try:
        text = json.dumps(value, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the value of {key!r} is not JSON: {error}") from None
    if len(text) > MAX_VALUE_BYTES:
        raise ValueError(f"the value of {key!r} has more than {MAX_VALUE_BYTES} bytes")
    return text


class MemoryValues:
    """A PluginStore that ends with the process: for the suites, and for commands."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[str, str]] = {}

    async def get(self, key: str) -> Any:
        """See PluginStore."""
        return json.loads(self._values[key][0]) if key in self._values else None

    async def put(self, key: str, value: Any, *, user_id: str = "") -> None:
        """See PluginStore."""
        text = checked(key, value)
        self._values.pop(key, None)
        self._values[key] = text, user_id

    async def put_first(self, key: str, value: Any, *, user_id: str = "") -> Any:
        """See PluginStore."""
        if key not in self._values:
            await self.put(key, value, user_id=user_id)
        return await self.get(key)

    async def delete(self, *keys: str) -> None:
        """See PluginStore."""
        for key in keys:
            self._values.pop(key, None)

    async def list(self) -> AsyncIterator[tuple[str, Any]]:
        """See PluginStore."""
        for key, (text, _) in [*self._values.items()]:
            yield key, json.loads(text)

    async def of_user(self, user_id: str) -> AsyncIterator[tuple[str, Any]]:
        """See PluginStore."""
        for key, (text, owner) in [*self._values.items()]:
            if owner == user_id:
                yield key, json.loads(text)
