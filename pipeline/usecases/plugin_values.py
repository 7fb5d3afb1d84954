"""Use case: plugins store small values in the asset store.

So the values are backed up and moved with the rest, and erased with their user. Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from pipeline.assets.store import AssetStore, Record
from pipeline.clock import utc_now
from pipeline.hooks.values import checked

# The prefix of the kind of these records; the plugin's name follows.
KIND = "plugin:"
PAGE = 100


class PluginValues:
    """The PluginStore of one plugin; see there."""

    def __init__(self, store: AssetStore, name: str) -> None:
        self._store = store
        self._kind = f"{KIND}{name}"

    async def get(self, key: str) -> Any:
        """See PluginStore."""
        record = await self._store.find_record(self._kind, key)
        return record.data.get("value") if record else None

    async def put(self, key: str, value: Any, *, user_id: str = "") -> None:
        """See PluginStore."""
        checked(key, value)
        await self._store.put_record(Record(self._kind, key, utc_now(), {"value": value}, user_id=user_id))

    async def put_first(self, key: str, value: Any, *, user_id: str = "") -> Any:
        """See PluginStore."""
        checked(key, value)
        record = await self._store.insert_record(Record(self._kind, key, utc_now(), {"value": value}, user_id=user_id))
        return record.data.get("value")

    async def delete(self, *keys: str) -> None:
        """See PluginStore."""
        await self._store.delete_records(self._kind, *keys)

    async def list(self) -> AsyncIterator[tuple[str, Any]]:
        """See PluginStore."""
        after: tuple[datetime, str] | None = None
        while page := await self._store.records(self._kind, limit=PAGE, after=after):
            for record in page:
                yield record.id, record.data.get("value")
            after = page[-1].at, page[-1].id

    async def of_user(self, user_id: str) -> AsyncIterator[tuple[str, Any]]:
        """See PluginStore."""
        for record in await self._store.records_of(user_id, kinds=[self._kind]):
            yield record.id, record.data.get("value")
