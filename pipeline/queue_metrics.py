"""The series of one queue, ready to be counted on. Safe from any thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import nan
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.metrics import Metrics

QUEUE_STATES = ("waiting", "active", "delayed", "completed", "failed", "background")
ATTEMPTS = ("1", "2", "3", "more")
JOB_OUTCOMES = ("completed", "retried", "postponed", "parked", "failed", "released", "cancelled", "lost")


class QueueMetrics:
    """The series of one queue. Made by Metrics.of_queue.

    providers: the providers, or durable notifiers, that its jobs call.
    """

    def __init__(self, metrics: Metrics, queue: str, providers: Iterable[str]) -> None:
        self.jobs_enqueued = metrics.jobs_enqueued.labels(queue)
        self.jobs_claimed = metrics.jobs_claimed.labels(queue)
        self.jobs_recovered = metrics.jobs_recovered.labels(queue)
        self.leases_lost = metrics.leases_lost.labels(queue)
        self.job_wait_seconds = metrics.job_wait_seconds.labels(queue)
        self.job_running_seconds = metrics.job_running_seconds.labels(queue)
        self.slots = metrics.slots.labels(queue)
        self.slots_busy = metrics.slots_busy.labels(queue)
        self.job_seconds = {outcome: metrics.job_seconds.labels(queue, outcome) for outcome in JOB_OUTCOMES}
        self.jobs_finished = {outcome: metrics.jobs_finished.labels(queue, outcome) for outcome in JOB_OUTCOMES}
        self._attempts = {attempt: metrics.job_attempts.labels(queue, attempt) for attempt in ATTEMPTS}
        self._depth = {state: metrics.queue_depth.labels(queue, state) for state in QUEUE_STATES}
        self._oldest_seconds = metrics.queue_oldest_seconds.labels(queue)
        self._paused = metrics.queue_paused.labels(queue)
        self._held = {each: metrics.provider_held_seconds.labels(queue, each) for each in providers}

    def started(self, attempt: int) -> None:
        """Count a start.

        attempt: from 1.
        """
        self._attempts[str(attempt) if attempt <= 3 else "more"].inc()

    def show(
        self,
        counts: dict[str, int],
        *,
        oldest_ready_seconds: float,
        is_paused: bool,
        held_seconds: Mapping[str, float],
    ) -> None:
        """Show the state of the queue in Redis.

        counts: jobs by state, all of QUEUE_STATES.
        oldest_ready_seconds: the wait of the oldest job that could start now.
        is_paused: no process claims jobs.
        held_seconds: how long each held provider is still not asked.
        """
        for state, gauge in self._depth.items():
            gauge.set(counts[state])
        self._oldest_seconds.set(oldest_ready_seconds)
        self._paused.set(is_paused)
        for provider, gauge in self._held.items():
            gauge.set(held_seconds.get(provider, 0))

    def show_unknown(self) -> None:
        """Show NaN, not the last numbers, while Redis does not answer."""
        for gauge in (*self._depth.values(), self._oldest_seconds, self._paused, *self._held.values()):
            gauge.set(nan)
