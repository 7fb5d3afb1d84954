"""Use case: an asset whose job is lost gets it again.

The asset store holds the truth and Redis is an index of the work to do. Everything in `processing` whose job Redis
does not know is enqueued again, oldest first, under the same job id, so that doing it twice does no harm. It runs at
start, when Redis comes back or turns out to have been wiped, and slowly all the time. One process at a time, by a
lease in Redis. A job that Redis knows but that is not where its state says is put back too.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog

from pipeline.assets.asset import Asset, job_data, made_at_ms, utc_now
from pipeline.assets.store import AssetStore
from pipeline.errors import DependencyUnavailable
from pipeline.metrics import Metrics
from pipeline.queue.job import NewJob
from pipeline.queue.queue import JobQueue

log = structlog.get_logger(__name__)

PAGE = 200
# The slow search looks at so many pages a round and goes on from there in the next.
PAGES_PER_ROUND = 25
# A process whose clock runs ahead makes assets of the future; an urgent search must not miss them.
CLOCKS_APART = timedelta(days=1)
LOOK_SECONDS = 5.0
URGENT_TURN_SECONDS = 5.0
AGAIN_SECONDS = 1.0


Place = tuple[datetime, str]


class TurnTaken(Exception):
    """Another process is at an urgent search; ours has to come after it."""


class Reconciler:
    """Searches and mends; `request` asks for a search at once."""

    def __init__(
        self,
        store: AssetStore,
        queue: JobQueue,
        metrics: Metrics,
        *,
        every_seconds: float = 30,
        age_seconds: float = 60,
        keep_keys_seconds: float = 86_400,
        is_fair: bool = False,
    ) -> None:
        """age_seconds: the slow search leaves younger assets alone, their enqueue may be under way. is_fair: users take
        turns.
        """
        self._store = store
        self._queue = queue
        self._metrics = metrics
        self._every_seconds = every_seconds
        self._age = timedelta(seconds=age_seconds)
        self._keep_keys = timedelta(seconds=keep_keys_seconds)
        self._is_fair = is_fair
        self._id = secrets.token_hex(8)
        self._requested = asyncio.Event()
        self._place: Place | None = None

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
                is_urgent = await self._queue.mark_generation() or is_urgent
                if is_urgent or loop.time() >= next_search_at:
                    await self._search(is_urgent)
                    next_search_at = loop.time() + self._every_seconds
            except (DependencyUnavailable, TurnTaken):
                # Whatever was away, something may have got lost meanwhile: also the answer that told of a wipe.
                self._requested.set()
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            except Exception:
                # Nothing known comes here, but a process that searches no more must not look alive.
                log.exception("reconciling_failed")
                await asyncio.sleep(self._every_seconds)
            try:
                async with asyncio.timeout(min(LOOK_SECONDS, self._every_seconds)):
                    await self._requested.wait()
            except TimeoutError:
                pass

    async def _search(self, is_urgent: bool) -> None:
        # The slow turn is kept until the next search is due: one search per period in the whole fleet.
        name, seconds = ("urgent", URGENT_TURN_SECONDS) if is_urgent else ("slow", self._every_seconds)
        if not await self._queue.take_turn(name, self._id, seconds):
            if is_urgent:
                raise TurnTaken
            return
        self._metrics.reconciler_searches.labels("urgent" if is_urgent else "regular").inc()
        if is_urgent:
            await self._look_through(utc_now() + CLOCKS_APART, None, name, seconds)
            return
        self._place = await self._look_through(utc_now() - self._age, self._place, name, seconds, PAGES_PER_ROUND)
        await self._store.purge_keys(utc_now() - self._keep_keys)

    async def _look_through(
        self, before: datetime, after: Place | None, turn: str, seconds: float, pages: int | None = None
    ) -> Place | None:
        """Mend so many pages (None: all) after that place; return where to go on, None at the end."""
        found = 0
        try:
            while pages is None or pages > 0:
                page = await self._store.unfinished_before(before, limit=PAGE, after=after)
                found += await self._mend(page)
                if len(page) < PAGE:
                    return None
                after = (page[-1].created_at, page[-1].id)
                pages = None if pages is None else pages - 1
                await self._queue.take_turn(turn, self._id, seconds)
            return after
        finally:
            if found:
                log.warning("jobs_reconciled", count=found)

    async def _mend(self, assets: Sequence[Asset]) -> int:
        # A job that ended while its asset did not is either being acknowledged just now or was not about this owner.
        ended_before = utc_now() - self._age
        found = await self._queue.restore(
            [
                NewJob(
                    asset.processing_job_id,
                    job_data(asset),
                    group=asset.user_id if self._is_fair else "",
                    lane=asset.category,
                    revive=asset.updated_at < ended_before,
                    submitted_at_ms=made_at_ms(asset.processing_job_id),
                )
                for asset in assets
            ]
        )
        self._metrics.reconciled.inc(found)
        return found
