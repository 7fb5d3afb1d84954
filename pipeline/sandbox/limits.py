"""The limits of one call in a child: memory and processor time. The parent limits the wall clock."""

from __future__ import annotations

import math
import resource
from contextlib import suppress
from pathlib import Path

MEGABYTE = 1024 * 1024
# Beyond the limit of one call: packages that are imported later, and memory that earlier calls have not freed.
ROOM_MB = 1024
STATM = Path("/proc/self/statm")
in_force: Limits | None = None  # in a child, during a call


def allow(cpu_seconds: float) -> None:
    """Limit the running call to so much processor time from now on, unless its limit is nearer.

    Outside a child it does nothing.
    """
    if in_force:
        in_force.allow(cpu_seconds)


class Limits:
    """Limits of one call after the other."""

    def __init__(self, memory_mb: int) -> None:
        """memory_mb: how much the address space may grow in one call."""
        self._memory = memory_mb * MEGABYTE
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = address_space() + self._memory + ROOM_MB * MEGABYTE
        self._most = most if hard == resource.RLIM_INFINITY else min(most, hard)

    def begin(self, cpu_seconds: float) -> None:
        """Begin a call: beyond cpu_seconds the process is ended, beyond its memory allocations fail."""
        global in_force
        in_force = self
        self._latest = math.inf
        self._latest = self.allow(cpu_seconds)
        self._limit_memory(min(address_space() + self._memory, self._most))

    def allow(self, cpu_seconds: float) -> int:
        """Limit the call to so much from now on, at most to what it began with; return the CPU second of its end."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = min(self._latest, math.ceil(used.ru_utime + used.ru_stime + cpu_seconds))
        resource.setrlimit(resource.RLIMIT_CPU, (int(soft), resource.getrlimit(resource.RLIMIT_CPU)[1]))
        return int(soft)

    def end(self) -> None:
        """Lift the limits, so that the reply can be sent."""
        global in_force
        in_force = None
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
        self._limit_memory(self._most)

    def _limit_memory(self, soft: int) -> None:
        # Where the size cannot be read (macOS) it cannot be limited either.
        if STATM.exists():
            resource.setrlimit(resource.RLIMIT_AS, (soft, self._most))


def address_space() -> int:
    """Return the size of this process's address space in bytes, 0 where the system does not show it."""
    with suppress(OSError):
        return int(STATM.read_text().split()[0]) * resource.getpagesize()
    return 0
