"""Use case: which storages hold images of ours, noted in the asset store, so that none is forgotten after a restart.

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
# Of the storages that images have been moved away from; "seconds" in its data: how long the URLs of these may work.
LEFT_KIND = "storage that was left"
AT_MOST = 100
AGAIN_SECONDS = 10.0


class InUse(Protocol):
    """What tells which storages are in use; hooks/manager.py has it."""

    @property
    def backends(self) -> Sequence[str]:
        """The names of the storages in use, the current one first."""


class Openable(InUse, Protocol):
    """What is needed of the storages; hooks/manager.py has it."""

    async def open_storages(self, names: Iterable[str]) -> None:
        """Get these storages ready; those that cannot be had are told of elsewhere."""


class StoragesInUse:
    """The storages that hold images."""

    def __init__(self, store: AssetStore, storages: Openable) -> None:
        self._store = store
        self._storages = storages
        self._noted: set[str] = set()

    async def run(self) -> None:
        """Note the current storage, and get those of before ready; return when that is done."""
        while True:
            try:
                await self.note(self._storages.backends[:1])
                await self._storages.open_storages(await names_in_use(self._store))
                return
            except DependencyUnavailable as error:
                log.info("storages_unknown", cause=cause_of(error))
                await asyncio.sleep(AGAIN_SECONDS)

    async def note(self, backends: Iterable[str]) -> None:
        """Keep in mind that these hold images."""
        for name in {*backends} - self._noted - {""}:
            await self._store.put_record(Record(KIND, name, utc_now(), {}))
            self._noted.add(name)


async def names_in_use(store: AssetStore) -> Sequence[str]:
    """Return the names of all storages that hold images, or did."""
    return [record.id for record in await store.records(KIND, limit=AT_MOST)]


async def all_in_use(store: AssetStore, storage: InUse) -> Sequence[str]:
    """Return the storages that are in use, and those that hold images or did; the current one first."""
    return list(dict.fromkeys((*storage.backends, *await names_in_use(store))))


async def note_left(store: AssetStore, backend: str, url_seconds: int) -> None:
    """Keep in mind that images were moved away from there until now, whose URLs work for so long."""
    await store.put_record(Record(LEFT_KIND, backend, utc_now(), {"seconds": url_seconds}))


async def left_lately(store: AssetStore, now: datetime) -> Collection[str]:
    """Return the storages whose images must stay though no asset names them: URLs of them may still work."""
    left = await store.records(LEFT_KIND, limit=AT_MOST)
    return {record.id for record in left if record.at + timedelta(seconds=record.data["seconds"]) > now}


async def left_ever(store: AssetStore) -> Collection[str]:
    """Return the storages that images were ever moved away from."""
    return {record.id for record in await store.records(LEFT_KIND, limit=AT_MOST)}


async def forget_storage(store: AssetStore, backend: str) -> None:
    """Forget a storage that holds no image of ours any more, so that its settings may go."""
    await store.delete_records(KIND, backend)
    await store.delete_records(LEFT_KIND, backend)
