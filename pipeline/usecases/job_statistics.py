"""Use case: the counters behind the charts of the last hour, day and week, for operators without Prometheus.

Each process counts its jobs and writes the sums to the asset store every few seconds, as records of its own. So a write
needs no read; the charts add the records of all processes. A process that is killed loses the counts since its last
write. Cancelled jobs are only counted as enqueued. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog

from pipeline.assets.asset import AssetStatus, to_timestamp
from pipeline.assets.store import AssetStore, Record
from pipeline.clock import CLOCK
from pipeline.errors import DependencyUnavailable
from pipeline.instants import instant_of
from pipeline.queue.job import Finish, Job, Outcome
from pipeline.queue.queue import JobQueue
from pipeline.texts import cause_of
from pipeline.usecases.job_counts import COUNTS, JobCounts, bucket_of, percentile_ms

log = structlog.get_logger(__name__)

MINUTE = 60
# By the length of a time step, in seconds: how long its records are kept, a little longer than their chart.
RETENTION_SECONDS = {60: 2 * 3600, 600: 26 * 3600, 3600: 8 * 86_400}
# A chart: the length of its steps in seconds, their number, and for how many seconds the chart is cached.
WINDOWS = {"1h": (60, 60, 5), "24h": (600, 144, 30), "7d": (3600, 168, 30)}
KINDS = tuple(f"tally {step}" for step in RETENTION_SECONDS)
WRITE_SECONDS = 15.0
# A write that takes longer is repeated with the next one.
WRITE_AT_MOST_SECONDS = 10.0
# So few that reading a page blocks the event loop only for a few milliseconds.
PAGE = 100


@dataclass(slots=True)
class _Sum:
    """The counts of one record.

    id: random, so that no process overwrites the record of another
    """

    counts: JobCounts = field(default_factory=JobCounts)
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    is_written: bool = False


class JobStatistics:
    """The counters of one process, and the charts of all of them."""

    def __init__(self, store: AssetStore, queue: JobQueue, *, now: Callable[[], float] = CLOCK.now) -> None:
        """queue: the one whose jobs are counted
        now: seconds since 1970; only tests pass another clock
        """
        self._store = store
        self._queue = queue
        self._now = now
        # Counts since the last write, by minute.
        self._unwritten: dict[int, JobCounts] = {}
        self._sums: dict[tuple[int, int], _Sum] = {}
        self._writing = asyncio.Lock()
        self._charts: dict[str, tuple[float, dict[str, Any]]] = {}
        self._reading = asyncio.Lock()

    def count_enqueued(self) -> None:
        """Count a job that was enqueued."""
        self._open().enqueued += 1

    def count_start(self, job: Job) -> None:
        """Count how long a job has waited for its first start."""
        if (wait_seconds := job.first_wait_seconds) is not None:
            self._open().waits[bucket_of(wait_seconds)] += 1

    def count_attempt(self, finish: Finish, seconds: float) -> None:
        """Count how long an attempt took, and whether another one follows."""
        is_over = finish.outcome in (Outcome.COMPLETED, Outcome.FAILED)
        if is_over or finish.outcome is Outcome.RETRY and not finish.refunds_attempt:
            counts = self._open()
            counts.retried += not is_over
            counts.runs[bucket_of(seconds)] += 1

    def count_end(self, status: AssetStatus) -> None:
        """Count how a job has ended."""
        counts = self._open()
        counts.completed += status is AssetStatus.ACTIVE
        counts.partial += status is AssetStatus.PARTIAL
        counts.failed += status is AssetStatus.FAILED

    def _open(self) -> JobCounts:
        minute = int(self._now()) // MINUTE
        counts = self._unwritten.get(minute)
        if counts is None:
            counts = self._unwritten[minute] = JobCounts()
        return counts

    async def run(self) -> None:
        """Write the counts every few seconds, for ever."""
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            await self._note_waiting()
            try:
                async with asyncio.timeout(WRITE_AT_MOST_SECONDS):
                    await self.write()
            except (DependencyUnavailable, TimeoutError) as error:
                log.warning("tallies_postponed", cause=cause_of(error))

    async def close(self, seconds: float) -> None:
        """Write the last counts, within that time. Called when `run` has ended."""
        try:
            async with asyncio.timeout(seconds):
                await self.write()
        except (DependencyUnavailable, TimeoutError) as error:
            log.warning("tallies_lost", cause=cause_of(error))

    async def _note_waiting(self) -> None:
        try:
            stats = await self._queue.stats()
        except DependencyUnavailable:
            return
        if waiting := stats.waiting + stats.delayed:
            counts = self._open()
            counts.waiting = max(counts.waiting, waiting)

    async def write(self) -> None:
        """Write the new counts. DependencyUnavailable while the store is away: the next call writes them."""
        async with self._writing:
            for minute in list(self._unwritten):
                counts = self._unwritten.pop(minute)
                for step in RETENTION_SECONDS:
                    each = self._sums.setdefault((step, minute * MINUTE // step * step), _Sum())
                    each.counts.add(counts)
                    each.is_written = False
            self._drop_old()
            changed = [item for item in self._sums.items() if not item[1].is_written]
            # At the same time, so that they share a commit.
            await asyncio.gather(*(self._put(step, start, each) for (step, start), each in changed))

    async def _put(self, step: int, start: int, each: _Sum) -> None:
        await self._store.put_record(Record(_kind(step), each.id, _instant(start), each.counts.to_data()))
        each.is_written = True

    def _drop_old(self) -> None:
        """Drop the counts of past steps that are written, and counts that no chart shows any more."""
        now = self._now()
        for (step, start), each in list(self._sums.items()):
            is_over = each.is_written and start + step <= now
            if is_over or start < now - RETENTION_SECONDS[step]:
                del self._sums[step, start]

    async def chart(self, window: str) -> dict[str, Any]:
        """Return a chart: schema Charts in contracts/analyze-queue.openapi.json.

        window: one of WINDOWS
        DependencyUnavailable when the store is away.
        """
        async with self._reading:
            read_at, chart = self._charts.get(window, (float("-inf"), {}))
            clock = asyncio.get_running_loop().time()
            if clock - read_at > WINDOWS[window][2]:
                chart = await self._read(window)
                self._charts[window] = clock, chart
            return chart

    async def _read(self, window: str) -> dict[str, Any]:
        await self.write()
        step, count, _ = WINDOWS[window]
        first = (int(self._now()) // step - count + 1) * step
        points = {first + number * step: JobCounts() for number in range(count)}
        after, is_last = (_instant(first), ""), False
        while not is_last:
            page = await self._store.records(_kind(step), limit=PAGE, after=after)
            for record in page:
                _add(points, record)
            is_last = len(page) < PAGE
            after = (page[-1].at, page[-1].id) if page else after
        return {"window": window, "stepSeconds": step, "points": [_shown(*point) for point in points.items()]}

    async def purge(self) -> None:
        """Remove records that no chart shows any more."""
        for step, seconds in RETENTION_SECONDS.items():
            await self._store.purge_records(_kind(step), _instant(self._now()) - timedelta(seconds=seconds))


def _kind(step: int) -> str:
    return f"tally {step}"


def _instant(seconds: float) -> datetime:
    return instant_of(int(seconds) * 1000)


def _add(points: dict[int, JobCounts], record: Record) -> None:
    point = points.get(int(record.at.timestamp()))
    if point is None:
        return
    try:
        point.add(JobCounts.of(record.data))
    except (ValueError, TypeError, AttributeError) as error:
        log.warning("tally_damaged", tallyId=record.id, cause=cause_of(error))


def _shown(start: int, counts: JobCounts) -> dict[str, Any]:
    return {
        "at": to_timestamp(_instant(start)),
        **{name: getattr(counts, name) for name in COUNTS},
        "waitP50Ms": percentile_ms(counts.waits, 0.5),
        "waitP95Ms": percentile_ms(counts.waits, 0.95),
        "runP50Ms": percentile_ms(counts.runs, 0.5),
        "runP95Ms": percentile_ms(counts.runs, 0.95),
        "waiting": counts.waiting,
    }
