"""Use case: the jobs that this process runs, and the progress that it sends while sockets want it.

A start, a report of the provider and a retry are sent at once. The progress of running jobs is also written to Redis,
at most once a second, for the snapshots of other processes. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from pipeline.assets.asset import to_timestamp
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.hold import BACKGROUND
from pipeline.hooks import Attribute
from pipeline.queue.job import Finish, Job, Outcome
from pipeline.queue.job_lookup import REPORT_SECONDS
from pipeline.queue.queue import JobQueue

WRITE_SECONDS = 1.0
# Between two frames of one job.
REPORT_EVERY_SECONDS = 0.5
# Called with the job, the event, and whether other processes get it too.
SendEvent = Callable[[Job, Mapping[str, Any], bool], None]


class RunningJob:
    """One job that this process runs: the AnalysisListener of its analysis (hooks/job_protocols.py)."""

    def __init__(self, reports: ProgressReports, job: Job) -> None:
        self.job = job
        self.provider: str | None = None
        self.share: float | None = None
        self._reports = reports
        self._sent_at = 0.0

    def shown(self) -> dict[str, Any]:
        """Return attempt, provider and share."""
        return {"attempt": self.job.attempt, "provider": self.provider, "share": self.share}

    def asked(self, provider: str) -> None:
        """A provider has been asked."""
        self.provider, self.share = provider, None
        event = _event("asset_started", self.job, attempt=self.job.attempt, provider=provider)
        self._reports.send(self.job, event)

    def reported(self, share: float | None, partial: Mapping[str, Attribute]) -> None:
        """The provider has reported its share of work done, and the attributes that it knows already."""
        self.share = share
        now = asyncio.get_running_loop().time()
        if now - self._sent_at >= REPORT_EVERY_SECONDS:
            self._sent_at = now
            event = _event("asset_progress", self.job, share=share)
            if partial:
                event["partial"] = {name: asdict(attribute) for name, attribute in partial.items()}
            self._reports.send(self.job, event)


class ProgressReports:
    """The jobs that this process runs."""

    def __init__(self, queue: JobQueue, send: SendEvent, longest_delay_seconds: float) -> None:
        """send: sends an event to the sockets that want progress
        longest_delay_seconds: no job is delayed for longer
        """
        self._queue = queue
        self._send = send
        self._longest_delay_seconds = longest_delay_seconds
        self._running: dict[str, RunningJob] = {}
        self._written: dict[str, tuple[float, dict[str, Any]]] = {}
        self._watched = asyncio.Event()
        queue.on_watched = self._watched.set

    def running(self, job_id: str) -> dict[str, Any] | None:
        """Return attempt, provider and share of a job that this process runs, None for any other job."""
        job = self._running.get(job_id)
        return job.shown() if job is not None else None

    @contextmanager
    def analysis(self, job: Job) -> Iterator[RunningJob]:
        """Yield the listener of the job's analysis; the job counts as running until the end."""
        running = self._running[job.id] = RunningJob(self, job)
        try:
            yield running
        finally:
            # This process may have claimed the same job again before this run ended.
            if self._running.get(job.id) is running:
                del self._running[job.id]
                self._written.pop(job.id, None)

    def retrying(self, finish: Finish) -> None:
        """Send that an attempt failed and another one follows."""
        if finish.outcome is Outcome.RETRY and not finish.refunds_attempt:
            delay = timedelta(seconds=min(finish.delay_ms / 1000, self._longest_delay_seconds))
            members = {"reason": finish.error, "nextAt": to_timestamp(utc_now() + delay)}
            self.send(finish.job, _event("asset_retrying", finish.job, attempt=finish.job.attempt, **members))

    def send(self, job: Job, event: Mapping[str, Any]) -> None:
        """Send an event of the job, unless it is a reanalysis: its asset has a result already."""
        if job.group != BACKGROUND:
            self._send(job, event, self._queue.is_watched)

    async def run(self) -> None:
        """Write the progress of running jobs while sockets want it, for ever."""
        while True:
            await self._watched.wait()
            if not self._queue.is_watched:
                self._watched.clear()
                continue
            await asyncio.sleep(WRITE_SECONDS)
            await self._write()

    async def _write(self) -> None:
        now = asyncio.get_running_loop().time()
        changed = {}
        for job_id, job in self._running.items():
            written_at, before = self._written.get(job_id, (0.0, {}))
            if job.shown() != before or now - written_at > REPORT_SECONDS / 3:
                changed[job_id] = job.shown()
        if not changed:
            return
        try:
            await self._queue.report(changed)
        except DependencyUnavailable:
            return
        self._written |= {job_id: (now, each) for job_id, each in changed.items() if job_id in self._running}


def _event(name: str, job: Job, **members: Any) -> dict[str, Any]:
    return {"event": name, "assetId": str(job.data.get("assetId", "")), **members}
