"""Use case: documents of version 0.1 are brought to the form of today while the service runs. Runs on the event loop.

They are understood as they are, so nothing waits for this. One process at a time does it, by a lease in Redis, a page
at a time, and keeps in the asset store how far it is: whoever has the lease next goes on there. A process of version
0.1 that still runs beside may write more of them; those stay as they are.
"""

from __future__ import annotations

import asyncio
import random
import secrets

import structlog

from pipeline.assets.asset import SCHEMA, guess_backend
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
# It is a guest: 2,000 documents a second at most.
REST_SECONDS = 0.1
AGAIN_SECONDS = (20.0, 40.0)
GUESSED = "object"


class Upgrade:
    """Brings old documents up to date, once."""

    def __init__(self, store: AssetStore, queue: JobQueue, in_use: StoragesInUse, unknown_backend: str) -> None:
        """unknown_backend: which storage holds images whose URL is none of Cloudinary's or our own."""
        self._store = store
        self._queue = queue
        self._in_use = in_use
        self._unknown_backend = unknown_backend
        self._id = secrets.token_hex(8)
        self._guessed: set[str] = set()

    async def run(self) -> None:
        """Return when no document of version 0.1 is left."""
        while True:
            try:
                if await self.upgrade():
                    return
            except DependencyUnavailable as error:
                log.warning("upgrade_postponed", cause=cause_of(error))
            await asyncio.sleep(random.uniform(*AGAIN_SECONDS))

    async def upgrade(self) -> bool:
        """Go on where the last process ended; return whether all is done, False when another process is at it."""
        record = await self._store.records(SCHEMA_KIND, limit=10)
        place = next((each.data for each in record if each.id == PROGRESS and each.data["version"] == SCHEMA), {})
        if place.get("isDone"):
            return True
        after: str | None = place.get("after", "")
        count = place.get("count", 0)
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
