"""Use case: the progress of an unfinished photo: queued, running, before its next attempt, or held.

The asset store knows only that a photo is unfinished. The rest comes from snapshots of the queue: at most one a second,
however many requests there are, and none without requests. The jobs of this process need no snapshot. Runs on the event
loop.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import structlog

from pipeline.assets.asset import Asset, AssetStatus, to_timestamp
from pipeline.errors import DependencyUnavailable
from pipeline.hold import Hold
from pipeline.queue.job import JobState, Mode
from pipeline.queue.job_lookup import OTHERS_AT_MOST
from pipeline.queue.queue import JobQueue
from pipeline.queue.snapshot import UNKNOWN, JobInfo, Snapshot
from pipeline.texts import cause_of
from pipeline.usecases.image_urls import ImageUrls

log = structlog.get_logger(__name__)

EVERY_SECONDS = 1.0
# A reply that shows progress waits no longer than this for Redis.
LONGEST_SECONDS = 0.5
# After a request for a job, every snapshot includes the job for so long.
ASKED_SECONDS = 10.0
PAUSED = "The queue is paused"
NOTHING: Mapping[str, Any] = {
    **dict.fromkeys(("state", "position", "etaSeconds", "attempt", "provider", "reason", "nextAt", "share"))
}


class Subject(NamedTuple):
    """The fields of an unfinished asset that its progress needs.

    starts: how often its job has started, as far as this process knows
    """

    asset_id: str
    job_id: str
    category: str
    starts: int = 0

    @classmethod
    def of(cls, asset: Asset) -> Subject:
        """Return the subject of an asset."""
        return cls(asset.id, asset.processing_job_id, asset.category, asset.starts)


class Progress:
    """Makes the progress of unfinished assets."""

    def __init__(
        self,
        queue: JobQueue,
        lanes: Mapping[str, Sequence[str]],
        urls: ImageUrls,
        running: Callable[[str], Mapping[str, Any] | None] = lambda job_id: None,
    ) -> None:
        """lanes: the providers of each category, of which any one is enough; "" is for all other categories
        running: returns attempt, provider and share of a job that this process runs, None for any other job
        """
        self._queue = queue
        self._lanes = lanes
        self._urls = urls
        self._running = running
        # The last snapshot, None when it failed, and when it was requested, in loop time.
        self._last: Snapshot | None = None
        self.taken_at = -math.inf
        self._next: asyncio.Task[None] | None = None
        # Jobs that a snapshot includes only by name, and when each was last requested.
        self._named: dict[str, float] = {}

    async def shown(self, assets: Sequence[Asset]) -> list[dict[str, Any]]:
        """Return the assets as clients see them, each with its progress, null for one that is not being processed.

        Waits up to a second for the next snapshot; without Redis the progress is made from the assets alone.
        """
        subjects = {asset.id: Subject.of(asset) for asset in assets if asset.status is AssetStatus.PROCESSING}
        elsewhere = [each.job_id for each in subjects.values() if self._running(each.job_id) is None]
        snapshot = await self.snapshot(elsewhere) if elsewhere else None
        progress = {asset_id: self.describe(each, snapshot) for asset_id, each in subjects.items()}
        urls = await self._urls.of(assets)
        return [asset.to_json(urls, progress.get(asset.id)) for asset in assets]

    async def snapshot(self, job_ids: Sequence[str] = (), *, insists: bool = True) -> Snapshot | None:
        """Return a snapshot that is a second old at most; None while Redis is away.

        job_ids: jobs that the snapshot has to include
        insists: wait for a snapshot that includes all of them; otherwise the next one does
        """
        now = asyncio.get_running_loop().time
        # Twice: a snapshot that is under way was requested before these jobs.
        for _ in range(2 if insists else 1):
            is_fresh = self._next is None and now() - self.taken_at < EVERY_SECONDS
            if is_fresh and self._last is None:
                return None  # Redis has just failed to answer
            self._named |= {job_id: now() for job_id in job_ids if job_id in self._named}
            missing = [job_id for job_id in job_ids if self._last is None or self._last.info(job_id) is None]
            # A snapshot includes only so many jobs by name; the others are not waited for.
            named = missing[: max(0, OTHERS_AT_MOST - len(self._named))]
            if is_fresh and not named:
                break
            self._named |= {job_id: now() for job_id in named}
            if self._next is None:
                self._next = asyncio.create_task(self._take(), name="snapshot of the queue")
            await asyncio.shield(self._next)
        return self._last

    async def recent(self) -> Snapshot | None:
        """Return a snapshot that is two seconds old at most, at once if there is one; None while Redis is away."""
        age_seconds = asyncio.get_running_loop().time() - self.taken_at
        return self._last if self._last is not None and age_seconds < 2 * EVERY_SECONDS else await self.snapshot()

    async def _take(self) -> None:
        now = asyncio.get_running_loop().time
        try:
            await asyncio.sleep(self.taken_at + EVERY_SECONDS - now())
            self.taken_at = now()
            self._named = {job_id: at for job_id, at in self._named.items() if at > now() - ASKED_SECONDS}
            async with asyncio.timeout(LONGEST_SECONDS):
                self._last = await self._queue.snapshot(list(self._named))
        except (DependencyUnavailable, TimeoutError) as error:
            if self._last is not None:
                log.warning("snapshot_failed", cause=cause_of(error))
            self._last = None
        finally:
            self._next = None

    def describe(self, subject: Subject, snapshot: Snapshot | None) -> dict[str, Any]:
        """Return the asset's progress: schema Progress in contracts/analyze-queue.openapi.json."""
        if (running := self._running(subject.job_id)) is not None:
            return {**NOTHING, "state": "running", **running}
        info = snapshot.info(subject.job_id) if snapshot is not None else None
        if snapshot is None or info is None or info.state is None:
            # The job has started and not ended, or it has never started.
            state = "running" if subject.starts and info is not UNKNOWN else "queued"
            return {**NOTHING, "state": state, "attempt": subject.starts or None}
        if info.state is JobState.DELAYED:
            state = "held" if info.is_given_back else "retrying"
            return self._progress(subject, info, state=state, reason=info.error, next_at=info.due_at)
        if info.state is JobState.WAITING:
            return self._describe_waiting(subject, info, snapshot)
        report = info.report if info.report.get("attempt") == info.attempt else {}
        progress = self._progress(subject, info, state="running")
        return progress | {name: report.get(name) for name in ("provider", "share")}

    def _describe_waiting(self, subject: Subject, info: JobInfo, snapshot: Snapshot) -> dict[str, Any]:
        if (hold := self._hold_of(subject.category, snapshot)) is not None:
            # Other jobs pass a held job, so its position means nothing.
            next_at = snapshot.taken_at + timedelta(seconds=hold.left_seconds)
            info = replace(info, position=None)
            return self._progress(subject, info, state="held", reason=hold.reason, next_at=next_at)
        if snapshot.mode is Mode.PAUSED:
            return self._progress(subject, info, state="held", reason=PAUSED)
        return self._progress(subject, info, state="queued") | {"etaSeconds": eta_seconds(info.position, snapshot)}

    def _progress(
        self, subject: Subject, info: JobInfo, *, state: str, reason: str = "", next_at: datetime | None = None
    ) -> dict[str, Any]:
        return {
            **NOTHING,
            "state": state,
            "position": info.position,
            "attempt": info.attempt or subject.starts or None,
            "reason": reason or None,
            "nextAt": to_timestamp(next_at),
        }

    def _hold_of(self, category: str, snapshot: Snapshot) -> Hold | None:
        """Return the hold that ends first if all providers of the category are held, else None."""
        if not snapshot.holds:
            return None
        held = {hold.provider: hold for hold in snapshot.holds}
        names = self._lanes.get(category) or self._lanes.get("", ())
        if not names or any(name not in held for name in names):
            return None
        return min((held[name] for name in names), key=lambda hold: hold.left_seconds)


def eta_seconds(position: int | None, snapshot: Snapshot) -> int | None:
    """Return in how many seconds a job at that position will end, at the pace of the last minute; None if unknown."""
    if position is None or not snapshot.ended_in_last_minute:
        return None
    return math.ceil(position * 60 / snapshot.ended_in_last_minute)
