"""Use case: what Redis has lost comes back.

The asset store holds the truth and Redis is an index of the work to do. Whatever the store says there has to be in one
queue, and Redis does not know, is put back, under the same job ids, so that doing it twice does no harm: jobs of
unfinished assets in order of submission, dead letters, undelivered events, and that the queue is paused. A job that
Redis knows but that is not where its state says is put back too. It runs when the process starts, when Redis comes back
or turns out to have been wiped, and slowly all the time. One process at a time, by a lease in Redis.
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
from pipeline.queue.queue import ForeignQueue, JobQueue
from pipeline.usecases.job_records import Cursor
from pipeline.usecases.pause import Pause

log = structlog.get_logger(__name__)

# How often assets are searched whose job got lost.
RECONCILE_SECONDS = 30.0
# Assets younger than this are left alone by that search: their enqueue may be under way.
RECONCILE_AGE_SECONDS = 60.0
PAGE = 200
# The slow search looks at so many pages a round and goes on from there in the next.
PAGES_PER_ROUND = 25
# A process whose clock runs ahead makes assets of the future; an urgent search must not miss them.
CLOCKS_APART = timedelta(days=1)
LOOK_SECONDS = 5.0
URGENT_TURN_SECONDS = 5.0
AGAIN_SECONDS = 1.0


class Source(Protocol):
    """A part of the asset store that says which jobs there have to be; job_records.py has them."""

    async def repair(self, before: datetime, after: Cursor | None, limit: int) -> tuple[int, Cursor | None]:
        """Put back what is missing of one page; return how many, and where to go on, None at the end."""


class LockHeld(Exception):
    """Another process is at an urgent search; ours has to come after it."""


class Reconciler:
    """Searches and mends for one queue; `request` asks for a search at once."""

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
        """age_seconds: the slow search leaves younger things alone, their enqueue may be under way.

        purge: removes from the store what is too old to be of use; called now and then. owns_redis: no other process
        uses this Redis, so a queue of another store in it is one that is gone. on_foreign: called with the reason when
        the queue belongs to another asset store. after: a queue that has to be ours first: of two stores that meet in
        one Redis each would otherwise take one of two queues, and both would end.
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
        """Search everything soon: a job may be missing."""
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
                # Whatever was away, something may have got lost meanwhile: also the answer that told of a wipe.
                self._requested.set()
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            try:
                async with asyncio.timeout(min(LOOK_SECONDS, self._every_seconds)):
                    await self._requested.wait()
            except TimeoutError:
                pass

    async def look(self) -> bool:
        """Make Redis say whose queue this is and whether it is paused; return True when it had lost that.

        ForeignQueue when another asset store has the queue. Before the first call has returned nothing is claimed, so
        no result of this process carries an instant of its machine's own clock.
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
        # The slow turn is kept until the next search is due: one search per period in the whole fleet.
        name, seconds = ("urgent", URGENT_TURN_SECONDS) if is_urgent else ("slow", self._every_seconds)
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
                # The border of one source: what it cannot read must not keep back what the others know.
                log.exception("source_failed", queue=self._queue.name, source=type(source).__name__)
        if not is_urgent:
            await self._purge()

    async def _search_in(self, source: Source, is_urgent: bool, turn: str, seconds: float) -> None:
        if is_urgent:
            await self._look_through(source, utc_now() + CLOCKS_APART, None, turn, seconds)
            return
        place, before = self._cursors[source], utc_now() - self._age
        self._cursors[source] = await self._look_through(source, before, place, turn, seconds, PAGES_PER_ROUND)

    async def _look_through(
        self,
        source: Source,
        before: datetime,
        after: Cursor | None,
        turn: str,
        seconds: float,
        pages: int | None = None,
    ) -> Cursor | None:
        """Mend so many pages (None: all) after that place; return where to go on, None at the end."""
        found = 0
        try:
            while pages is None or pages > 0:
                restored, after = await source.repair(before, after, PAGE)
                self._metrics.reconciled.inc(restored)
                found += restored
                if after is None:
                    return None
                pages = None if pages is None else pages - 1
                await self._queue.acquire_lock(turn, self._id, seconds)
            return after
        finally:
            if found:
                log.warning("jobs_reconciled", queue=self._queue.name, count=found)
