"""The claims of a worker and their leases: renewed in one call, ended in time when a renewal fails.

The same loop puts back jobs whose lease ran out on any process, and removes finished jobs past retention. Runs on the
event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

import structlog

from pipeline.errors import DependencyUnavailable
from pipeline.queue_metrics import QueueMetrics
from pipeline.queue.claim import Claim
from pipeline.queue.job import Job
from pipeline.queue.queue import JobQueue

log = structlog.get_logger(__name__)

# Renewals during one lease: two in a row may fail.
RENEWALS_PER_LEASE = 3
# A job ends this part of its lease before the lease does, so that the next process never starts beside this one.
LEASE_MARGIN = 0.2
# Finished jobs past retention are removed at every 12th renewal.
TRIM_EVERY = 12
# How late a job may be cancelled; far less than LEASE_MARGIN of any useful lease.
ENFORCE_SECONDS = 0.05


class Leases:
    """The leases of one worker.

    claims: by lease, from the step that brought a job to the step that acknowledges it.
    """

    def __init__(
        self,
        queue: JobQueue,
        metrics: QueueMetrics,
        *,
        lease_seconds: float,
        renew_seconds: float,
        on_answer: Callable[[], None],
    ) -> None:
        """on_answer: called when Redis has replied."""
        self.claims: dict[str, Claim] = {}
        self._queue = queue
        self._metrics = metrics
        self._lease_seconds = lease_seconds
        self._renew_seconds = renew_seconds
        self._on_answer = on_answer
        metrics.job_running_seconds.set_function(self.longest_running_seconds)

    def add(self, job: Job, asked_at: float) -> Claim:
        """Add the claim of a job that a step has brought. asked_at: when the step was sent, in loop time."""
        claim = self.claims[job.lease] = Claim(job, self._lease_end(asked_at))
        return claim

    def release_all(self) -> None:
        """Cancel every running job; each is handed back without counting its attempt."""
        for claim in self.claims.values():
            claim.is_released = True
            claim.end()

    def cancel(self, job_id: str) -> None:
        """Cancel the job if it runs here; its outcome is CANCELLED then."""
        for claim in self.claims.values():
            if claim.job.id == job_id:
                claim.cancel()

    async def renew_forever(self) -> None:
        """Prolong the leases; put back jobs whose lease ran out; remove jobs past retention."""
        for number in itertools.count():
            try:
                await self._renew()
                if recovered := await self._queue.recover():
                    self._metrics.jobs_recovered.inc(len(recovered))
                    log.warning("jobs_recovered", jobIds=recovered)
                if number % TRIM_EVERY == 0:
                    await self._queue.trim()
                self._on_answer()
            except DependencyUnavailable:
                pass  # the claiming coroutine logs it; in a long outage each job ends at its own deadline
            await asyncio.sleep(self._renew_seconds)

    async def enforce_forever(self) -> None:
        """End the jobs whose time is over or whose lease is lost."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(ENFORCE_SECONDS)
            for claim in self.claims.values():
                claim.enforce(loop.time())

    async def _renew(self) -> None:
        if not self.claims:
            return
        asked_at = asyncio.get_running_loop().time()
        claims = dict(self.claims)
        renewal = await self._queue.renew(list(claims))
        lost, cancelled = set(renewal.lost), set(renewal.cancelled)
        for lease, claim in claims.items():
            if lease in lost:
                claim.is_lost = True
                claim.end()
            elif lease in cancelled:
                claim.cancel()
            else:
                claim.renewed(self._lease_end(asked_at))

    def _lease_end(self, asked_at: float) -> float:
        return asked_at + self._lease_seconds * (1 - LEASE_MARGIN)

    def longest_running_seconds(self) -> float:
        """Return how long the oldest running job has run, 0 when none runs."""
        now = time.monotonic()
        running = (claim.started_at for claim in self.claims.values() if claim.started_at and not claim.ended_at)
        return now - min(running, default=now)
