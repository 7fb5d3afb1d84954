"""Use case: which storages have images, recorded in the asset store, so that none is forgotten after a restart.

Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from pipeline.assets.store import AssetStore, Record
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

KIND = "storage"
# The kind of records of storages that images have left; "seconds" in the data: how long URLs of these may work.
LEFT_KIND = "storage that was left"
AT_MOST = 100
RETRY_SECONDS = 10.0


class InUse(Protocol):
    """Knows the storages in use; hooks/manager.py has it."""

    @property
    def backends(self) -> Sequence[str]:
        """The names of the storages in use, the current one first."""


class Openable(InUse, Protocol):
    """Opens storages; hooks/manager.py has it."""

    async def open_storages(self, names: Iterable[str]) -> None:
        """Open these storages; a storage that cannot be opened is logged elsewhere."""


class StoragesInUse:
    """The storages that have images."""

    def __init__(self, store: AssetStore, storages: Openable) -> None:
        self._store = store
        self._storages = storages
        self._noted: set[str] = set()

    async def run(self) -> None:
        """Record the current storage, and open the earlier ones; return when that is done."""
        while True:
            try:
                await self.note(self._storages.backends[:1])
                await self._storages.open_storages(await names_in_use(self._store))
                return
            except DependencyUnavailable as error:
                log.info("storages_unknown", cause=cause_of(error))
                await asyncio.sleep(RETRY_SECONDS)

    async def note(self, backends: Iterable[str]) -> None:
        """Record that these storages have images."""
        for name in {*backends} - self._noted - {""}:
            await self._store.put_record(Record(KIND, name, utc_now(), {}))
            self._noted.add(name)


async def names_in_use(store: AssetStore) -> Sequence[str]:
    """Return the names of all storages that have, or had, images."""
    return [record.id for record in await store.records(KIND, limit=AT_MOST)]


async def all_in_use(store: AssetStore, storage: InUse) -> Sequence[str]:
    """Return the storages in use, and those that have, or had, images; the current one first."""
    return list(dict.fromkeys((*storage.backends, *await names_in_use(store))))


async def record_storage_left(store: AssetStore, backend: str, url_seconds: int) -> None:
    """Record that images were moved away from that storage until now, whose URLs work for so long."""
    await store.put_record(Record(LEFT_KIND, backend, utc_now(), {"seconds": url_seconds}))


async def storages_left_lately(store: AssetStore, now: datetime) -> Collection[str]:
    """Return the storages whose images must stay though no asset names them: their URLs may still work."""
    left = await store.records(LEFT_KIND, limit=AT_MOST)
    return {record.id for record in left if record.at + timedelta(seconds=record.data["seconds"]) > now}


async def storages_left(store: AssetStore) -> Collection[str]:
    """Return the storages that images have ever been moved away from."""
    return {record.id for record in await store.records(LEFT_KIND, limit=AT_MOST)}


async def forget_storage(store: AssetStore, backend: str) -> None:
    """Forget a storage that has no images any more, so that its settings can be removed."""
    await store.delete_records(KIND, backend)
    await store.delete_records(LEFT_KIND, backend)
