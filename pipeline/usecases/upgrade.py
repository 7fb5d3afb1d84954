"""Use case: documents of version 0.1 are upgraded while the service runs. Runs on the event loop.

The service can read the old documents, so nothing waits for this. A lock in Redis lets one process at a time do it, a
page at a time. The progress is stored in the asset store, so that the next process continues there. A process of
version 0.1 that still runs may write more old documents; those stay as they are.
"""

from __future__ import annotations

import asyncio
import random
import secrets

import structlog

from pipeline.assets.asset import SCHEMA
from pipeline.assets.asset_parts import guess_backend
from pipeline.assets.store import SCHEMA_KIND, AssetStore, Record
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.queue.queue import JobQueue
from pipeline.texts import cause_of
from pipeline.usecases.storages_in_use import StoragesInUse

log = structlog.get_logger(__name__)

PROGRESS = "upgrade"
LOCK, LOCK_SECONDS = "upgrade", 60.0
PAGE = 200
# Low priority: 2,000 documents a second at most.
REST_SECONDS = 0.1
RETRY_SECONDS = (20.0, 40.0)
GUESSED = "object"


class Upgrade:
    """Upgrades old documents, once."""

    def __init__(self, store: AssetStore, queue: JobQueue, in_use: StoragesInUse, unknown_backend: str) -> None:
        """unknown_backend: the storage of images whose URL is neither Cloudinary's nor this service's"""
        self._store = store
        self._queue = queue
        self._in_use = in_use
        self._unknown_backend = unknown_backend
        self._id = secrets.token_hex(8)
        self._guessed: set[str] = set()

    async def run(self) -> None:
        """Upgrade all documents of version 0.1; return when none is left."""
        while True:
            try:
                if await self.upgrade():
                    return
            except DependencyUnavailable as error:
                log.warning("upgrade_postponed", cause=cause_of(error))
            await asyncio.sleep(random.uniform(*RETRY_SECONDS))

    async def upgrade(self) -> bool:
        """Continue where the last process ended; return True when all is done, False when another process does it."""
        records = await self._store.records(SCHEMA_KIND, limit=10)
        progress = next((each.data for each in records if each.id == PROGRESS and each.data["version"] == SCHEMA), {})
        if progress.get("isDone"):
            return True
        after: str | None = progress.get("after", "")
        count = progress.get("count", 0)
        while after is not None:
            if not await self._queue.acquire_lock(LOCK, self._id, LOCK_SECONDS):
                return False
            changed, after = await self._store.upgrade(after, limit=PAGE, backend_of=self._backend_of)
            await self._in_use.note(self._guessed)
            count += changed
            data = {"version": SCHEMA, "after": after, "count": count, "isDone": after is None}
            await self._store.put_record(Record(SCHEMA_KIND, PROGRESS, utc_now(), data))
            if after is not None:
                await asyncio.sleep(REST_SECONDS)
        if count:
            log.info("assets_upgraded", count=count)
        return True

    def _backend_of(self, public_id: str, url: str) -> str:
        guessed = guess_backend(public_id, url)
        backend = self._unknown_backend if guessed == GUESSED else guessed
        self._guessed.add(backend)
        return backend
