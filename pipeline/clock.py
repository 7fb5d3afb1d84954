"""The time of the service: the one source of every instant that leaves the process or is compared with an instant of
another process.

Machines' own clocks differ, some are wrong and some jump. All processes use the same Redis, so Redis TIME is the
service's time: asked for every 5 s, and continued by the boot clock between two answers and while Redis is away. Before
the first answer it is the machine's own clock.

The clock goes forwards to Redis TIME at once. When Redis TIME is behind it by up to 5 s (after a failover to a server
whose clock differs), the clock runs at half speed until it is right, so that no instant is given twice. When Redis TIME
is behind by more (the clock of the Redis server was wrong and has been set), the clock goes back at once, as the clocks
of all other processes do.

There is one clock for the whole process, as there is one machine's own clock. Durations are measured by the monotonic
clock. Log lines and traces have the machine's own time, as everything else that is logged on that machine. Pure: the
call to Redis is an argument.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

import structlog

from pipeline.errors import DependencyUnavailable

log = structlog.get_logger(__name__)

MEASURE_SECONDS = 5.0
# How far the machine's clock may be off in a process that is ready, and the largest step back that is made slowly.
SKEW_SECONDS = 5.0
# The error of a measurement is half its round trip at most.
LONGEST_ROUND_TRIP_SECONDS = 1.0
# Unlike the monotonic clock it goes on while the machine is suspended. Linux only.
BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_seconds() -> float:
    """Return seconds that no clock setting changes, from an unknown start."""
    return time.clock_gettime(BOOT_CLOCK)


class Reading(NamedTuple):
    """Redis TIME in seconds since 1970, and the boot clock when it was asked for and when the answer came."""

    seconds: float
    asked_at: float
    answered_at: float


class _Course(NamedTuple):
    """offset: Redis TIME minus the boot clock. lead: how far ahead of Redis the clock was at the instant `since`."""

    offset: float
    lead: float
    since: float


class Clock:
    """The time in UTC, as Redis has it. Safe from any thread."""

    def __init__(self, wall: Callable[[], float] = time.time, boot: Callable[[], float] = boot_seconds) -> None:
        """wall: the machine's own clock in seconds since 1970; only tests set it.
        boot: see `boot_seconds`; only tests set it.
        """
        self._wall = wall
        self._boot = boot
        # Replaced in one step, so that another thread never reads half a change.
        self._course: _Course | None = None
        # How far the machine's own clock was ahead of Redis TIME at the last answer; below 0: behind.
        self.skew_seconds = 0.0

    @property
    def is_measured(self) -> bool:
        """False until Redis has first answered: the time is that of the machine's own clock."""
        return self._course is not None

    def now(self) -> float:
        """Return the time in seconds since 1970."""
        course = self._course
        if course is None:
            return self._wall()
        boot = self._boot()
        return boot + course.offset + max(0.0, course.lead - (boot - course.since) / 2)

    def learn(self, reading: Reading) -> None:
        """Follow Redis TIME; a reading that took too long is ignored."""
        trip_seconds = reading.answered_at - reading.asked_at
        if trip_seconds > LONGEST_ROUND_TRIP_SECONDS:
            return
        offset = reading.seconds - (reading.asked_at + reading.answered_at) / 2
        boot = self._boot()
        self._note_skew(self._wall() - boot - offset)
        # A difference within the error of the measurement is ignored.
        if self._course is None or abs(offset - self._course.offset) > trip_seconds / 2:
            lead = self.now() - boot - offset
            is_slow = self._course is not None and 0 < lead <= SKEW_SECONDS
            self._course = _Course(offset, lead if is_slow else 0.0, boot)

    async def measure(self, ask: Callable[[], Awaitable[Reading]]) -> None:
        """Ask Redis for the time and follow it; DependencyUnavailable when Redis is away."""
        self.learn(await ask())

    async def follow(self, ask: Callable[[], Awaitable[Reading]]) -> None:
        """Follow Redis for ever, from the last answer on while it is away."""
        while True:
            with suppress(DependencyUnavailable):
                await self.measure(ask)
            await asyncio.sleep(MEASURE_SECONDS)

    async def check(self) -> None:
        """Return while the machine's own clock is right; DependencyUnavailable says how far it is off."""
        if _is_off(skew := self.skew_seconds):
            side = "ahead of" if skew > 0 else "behind"
            raise DependencyUnavailable(
                f"This machine's clock is {abs(skew):.1f} s {side} Redis TIME; let NTP set both machines' clocks"
            )

    def _note_skew(self, skew_seconds: float) -> None:
        """Store the skew; log when the machine's clock begins to be wrong and when it is right again."""
        was_off, self.skew_seconds = _is_off(self.skew_seconds), skew_seconds
        if _is_off(skew_seconds) and not was_off:
            log.warning("clock_skewed", skewSeconds=round(skew_seconds, 3))
        elif was_off and not _is_off(skew_seconds):
            log.info("clock_right", skewSeconds=round(skew_seconds, 3))


def _is_off(skew_seconds: float) -> bool:
    return abs(skew_seconds) > SKEW_SECONDS


CLOCK = Clock()


def utc_now() -> datetime:
    """Return the present in UTC, cut to the milliseconds that documents and events carry."""
    now = datetime.fromtimestamp(CLOCK.now(), UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)
