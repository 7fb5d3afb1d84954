"""How many jobs a worker prefetches beside those for its slots: as many as it will start within ten milliseconds.

Without it Redis and the slots would wait for each other at every short job. Long jobs are not prefetched: they would
gain nothing and wait in the memory of one process while other processes are idle. Pure.
"""

from __future__ import annotations

from collections import deque

PREFETCH_SECONDS = 0.01
PREFETCH_AT_MOST = 40
# The pace is that of the slowest of the last 16 jobs.
REMEMBERED = 16
# A prefetched job that has waited for so long is given back: the jobs before it have become slower.
LATE_SECONDS = 0.05


class Prefetch:
    """The pace of one worker's jobs."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)

    def ended(self, seconds: float) -> None:
        """Remember how long a job took."""
        self._seconds.append(seconds)

    def count(self, running_seconds: float) -> int:
        """Return how many jobs may be prefetched. running_seconds: how long the slowest running job has run."""
        if len(self._seconds) < REMEMBERED:
            return 0
        slowest = max(running_seconds, *self._seconds)
        return (
            PREFETCH_AT_MOST if slowest <= 0 else min(PREFETCH_AT_MOST, int(self._slots * PREFETCH_SECONDS / slowest))
        )
