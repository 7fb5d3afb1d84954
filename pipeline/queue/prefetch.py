"""How many jobs a worker claims ahead of its slots: as many as it will start within ten milliseconds by its own pace.

Redis and the slots would otherwise wait for each other at every job that is over in no time. Jobs that take their time
gain nothing by it and would only wait in the memory of one process while others are idle: of those none is claimed
ahead. Pure.
"""

from __future__ import annotations

from collections import deque

AHEAD_SECONDS = 0.01
AHEAD_AT_MOST = 40
# The pace is that of the slowest of so many jobs.
REMEMBERED = 16
# A job that has waited in memory for so long is given back: the jobs before it are slower than those of a moment ago.
LATE_SECONDS = 0.05


class Prefetch:
    """The pace of one worker's jobs."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)

    def ended(self, seconds: float) -> None:
        """A job has ended that took so long."""
        self._seconds.append(seconds)

    def count(self, running_seconds: float) -> int:
        """Return how many jobs may be claimed ahead. running_seconds: how long the slowest job has run that has yet to
        end.
        """
        if len(self._seconds) < REMEMBERED:
            return 0
        slowest = max(running_seconds, *self._seconds)
        return AHEAD_AT_MOST if slowest <= 0 else min(AHEAD_AT_MOST, int(self._slots * AHEAD_SECONDS / slowest))
