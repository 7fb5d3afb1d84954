"""When claiming stops because what all jobs lean on seems to be down.

The breaker of the whole queue is kept in Redis, by lua/step.lua; each process has one more of its own, on the loop.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog
from prometheus_client import Gauge

from pipeline.queue.job import Finish, Verdict

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a queue stops claiming because what all its jobs lean on seems to be down.

    failures: so many in a row, each of another job than the one before, open it. Then one job at a time is let through,
    after first_probe_seconds and then waits that double up to longest_probe_seconds, until one succeeds.
    """

    failures: int = 10
    first_probe_seconds: float = 1
    longest_probe_seconds: float = 15

    def next_wait(self, seconds: float) -> float:
        """Return the wait for the probe after one that was waited for so long."""
        return min(2 * seconds, self.longest_probe_seconds)


class OwnBreaker:
    """The queue's breaker for one process alone: what only this process cannot reach must not cost the jobs it
    draws.
    """

    def __init__(self, breaker: Breaker, gauge: Gauge) -> None:
        self._breaker = breaker
        self._gauge = gauge
        self._failures = 0
        self._last_failed = ""
        self._wait_seconds = 0.0  # between probes; 0 while closed
        self._probe_at = 0.0
        gauge.set(0)

    @property
    def is_open(self) -> bool:
        """True while only single jobs are tried."""
        return self._wait_seconds > 0

    def judge(self, finish: Finish) -> None:
        """Take in how a job ended."""
        if finish.verdict is Verdict.GOOD:
            if self.is_open:
                log.warning("own_breaker_closed")
                self._gauge.set(0)
            self._failures, self._last_failed, self._wait_seconds = 0, "", 0.0
        elif finish.verdict is Verdict.BAD and finish.job.id != self._last_failed:
            self._failures, self._last_failed = self._failures + 1, finish.job.id
            if self._failures >= self._breaker.failures and not self.is_open:
                log.warning("own_breaker_opened", failures=self._failures)
                self._gauge.set(1)
                self._wait(self._breaker.first_probe_seconds)

    def limit(self, free: int) -> int:
        """Return for how many of the free slots jobs may be claimed now."""
        if not self.is_open:
            return free
        return 0 if self.wait_ms else min(free, 1)

    def probed(self) -> None:
        """A job was claimed while open: the next one waits longer."""
        self._wait(self._breaker.next_wait(self._wait_seconds))

    @property
    def wait_ms(self) -> int:
        """Milliseconds until the next probe; 0 when it is due or none is needed."""
        return max(0, round((self._probe_at - asyncio.get_running_loop().time()) * 1000)) if self.is_open else 0

    def _wait(self, seconds: float) -> None:
        self._wait_seconds, self._probe_at = seconds, asyncio.get_running_loop().time() + seconds
