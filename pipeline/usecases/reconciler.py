"""Use case: jobs that Redis has lost are restored.

The asset store has the truth, and Redis is an index of the work to do. The reconciler restores what the store has and
Redis does not: jobs of unfinished assets in order of submission, dead letters, undelivered events, and the pause of the
queue. The job ids stay the same, so that restoring twice does no harm. A job that is in the wrong list of Redis is
repaired too. A search runs when the process starts, when Redis comes back or was wiped, and regularly. A lock in Redis
lets one process at a time do it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from pipeline.assets.store import AssetStore
from pipeline.clock import CLOCK, utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.metrics import Metrics
from pipeline.queue.job import Mode
from pipeline.queue.calls import ForeignQueue
from pipeline.queue.queue import JobQueue
from pipeline.usecases.job_records import Cursor
from pipeline.usecases.pause import Pause

log = structlog.get_logger(__name__)

# How often assets are searched whose job got lost.
RECONCILE_SECONDS = 30.0
# Assets younger than this are left alone by that search: their enqueue may be under way.
RECONCILE_AGE_SECONDS = 60.0
PAGE = 200
# The regular search reads so many pages a round, and continues there in the next round.
PAGES_PER_ROUND = 25
# A process whose clock is ahead makes assets of the future; an urgent search must not miss them.
CLOCKS_APART = timedelta(days=1)
LOOK_SECONDS = 5.0
URGENT_LOCK_SECONDS = 5.0
RETRY_SECONDS = 1.0


class Source(Protocol):
    """A part of the asset store that knows which jobs there have to be; job_records.py has them."""

    async def repair(self, before: datetime, after: Cursor | None, limit: int) -> tuple[int, Cursor | None]:
        """Restore the missing jobs of one page; return how many, and the cursor of the next page, None at the end."""


class LockHeld(Exception):
    """Another process does an urgent search; this process has to search after it."""


class Reconciler:
    """Restores the jobs of one queue; `request` asks for a search at once."""

    def __init__(
        self,
        store: AssetStore,
        queue: JobQueue,
        sources: Sequence[Source],
        metrics: Metrics,
        *,
        every_seconds: float = RECONCILE_SECONDS,
        age_seconds: float = RECONCILE_AGE_SECONDS,
        purge: Callable[[], Awaitable[object]],
        owns_redis: bool = False,
        on_foreign: Callable[[str], None] = lambda reason: None,
        after: JobQueue | None = None,
    ) -> None:
        """age_seconds: the regular search skips younger jobs, which may be being enqueued
        purge: removes old records from the store; called after each regular search
        owns_redis: Redis is embedded, so a queue of another store in it belongs to a store that is gone
        on_foreign: called with the reason when the queue belongs to another asset store
        after: a queue that this store has to own first: if two stores shared a Redis, each might own one of two queues,
            and both services would end
        """
        self._store = store
        self._queue = queue
        self._sources = sources
        self._metrics = metrics
        self._every_seconds = every_seconds
        self._age = timedelta(seconds=age_seconds)
        self._purge = purge
        self._owns_redis = owns_redis
        self._on_foreign = on_foreign
        self._after = after
        self._pause = Pause(store, queue)
        self._owner = ""
        self._id = secrets.token_hex(8)
        self._requested = asyncio.Event()
        # A job may have got lost while no process was there to notice.
        self._requested.set()
        self._cursors: dict[Source, Cursor | None] = dict.fromkeys(sources)

    def request(self) -> None:
        """Search everything soon: jobs may be missing."""
        self._requested.set()

    async def run(self) -> None:
        """Search for ever."""
        loop = asyncio.get_running_loop()
        next_search_at = loop.time()
        while True:
            is_urgent = self._requested.is_set()
            self._requested.clear()
            try:
                is_urgent = await self.look() or is_urgent
                if is_urgent or loop.time() >= next_search_at:
                    await self._search(is_urgent)
                    next_search_at = loop.time() + self._every_seconds
            except ForeignQueue as error:
                self._on_foreign(error.message)
            except (DependencyUnavailable, LockHeld):
                # Jobs may have got lost meanwhile, and the reply that reported a wipe may be lost too.
                self._requested.set()
                await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                async with asyncio.timeout(min(LOOK_SECONDS, self._every_seconds)):
                    await self._requested.wait()
            except TimeoutError:
                pass

    async def look(self) -> bool:
        """Write the owner of the queue, and whether it is paused, to Redis; return True when Redis had lost that.

        ForeignQueue when another asset store owns the queue. No job is claimed before the first call has returned, so
        that every result has an instant of the clock that this call has measured.
        """
        if not CLOCK.is_measured:
            await CLOCK.measure(self._queue.time)
        is_paused = await self._pause.is_set()
        self._owner = self._queue.owner = self._owner or await self._store.identity()
        if self._after is not None and await self._after.owned_by() != self._owner:
            raise DependencyUnavailable(f"The queue {self._after.name} is not ours yet")
        owned = await self._queue.own(self._owner, is_paused=is_paused, takes_over=self._owns_redis)
        if owned.now is Mode.FOREIGN:
            raise ForeignQueue(
                "Redis holds the queue of another asset store. Give each installation a QUEUE_PREFIX of its own or, if "
                f"that store is gone for good, remove the key {self._queue.owner_key} from Redis"
            )
        if owned.is_old_pause:
            await self._pause.set()
        elif (owned.now is Mode.PAUSED) != is_paused:
            await self._pause.enforce()
        if is_paused and owned.before is not Mode.PAUSED:
            log.warning("pause_restored", queue=self._queue.name)
        return owned.before in (Mode.UNOWNED, Mode.FOREIGN)

    async def _search(self, is_urgent: bool) -> None:
        # The lock of a regular search lasts until the next one is due: one search per period over all processes.
        name, seconds = ("urgent", URGENT_LOCK_SECONDS) if is_urgent else ("slow", self._every_seconds)
        if not await self._queue.acquire_lock(name, self._id, seconds):
            if is_urgent:
                raise LockHeld
            return
        self._metrics.reconciler_searches.labels("urgent" if is_urgent else "regular").inc()
        for source in self._sources:
            try:
                await self._search_in(source, is_urgent, name, seconds)
            except DependencyUnavailable:
                raise
            except Exception:
                # The border of one source: its failure must not stop the other sources.
                log.exception("source_failed", queue=self._queue.name, source=type(source).__name__)
        if not is_urgent:
            await self._purge()

    async def _search_in(self, source: Source, is_urgent: bool, lock: str, seconds: float) -> None:
        if is_urgent:
            await self._repair_pages(source, utc_now() + CLOCKS_APART, None, lock, seconds)
            return
        cursor, before = self._cursors[source], utc_now() - self._age
        self._cursors[source] = await self._repair_pages(source, before, cursor, lock, seconds, PAGES_PER_ROUND)

    async def _repair_pages(
        self,
        source: Source,
        before: datetime,
        after: Cursor | None,
        lock: str,
        seconds: float,
        pages: int | None = None,
    ) -> Cursor | None:
        """Restore the jobs of the pages after a cursor; return the cursor of the next page, None at the end.

        pages: how many pages, None: all
        """
        count = 0
        try:
            while pages is None or pages > 0:
                restored, after = await source.repair(before, after, PAGE)
                self._metrics.reconciled.inc(restored)
                count += restored
                if after is None:
                    return None
                pages = None if pages is None else pages - 1
                await self._queue.acquire_lock(lock, self._id, seconds)
            return after
        finally:
            if count:
                log.warning("jobs_reconciled", queue=self._queue.name, count=count)
