"""The clock of the service: it follows Redis TIME, avoids steps back, and reports a wrong clock of the machine."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from pipeline.clock import LONGEST_ROUND_TRIP_SECONDS, SKEW_SECONDS, Clock, Reading, boot_seconds
from pipeline.errors import DependencyUnavailable
from tests.clock import Clock as ManualClock

NOON = 1_769_860_800.0


class Machine:
    """A machine with its own clock, and a Redis with another one."""

    def __init__(self, wall: float = NOON, redis: float = NOON) -> None:
        self.boot = ManualClock()
        self.wall_ahead = wall - self.boot.now
        self.redis_ahead = redis - self.boot.now
        self.clock = Clock(lambda: self.boot.now + self.wall_ahead, self.boot)

    def measure(self, *, request_seconds: float = 0.0, reply_seconds: float = 0.0) -> None:
        """Ask Redis for its time; the request and the reply take these seconds."""
        asked_at = self.boot.now
        self.boot.now += request_seconds
        seconds = self.boot.now + self.redis_ahead
        self.boot.now += reply_seconds
        self.clock.learn(Reading(seconds, asked_at, self.boot.now))

    @property
    def redis(self) -> float:
        """Redis TIME now."""
        return self.boot.now + self.redis_ahead


def test_first_reply_sets_the_clock() -> None:
    """Before the first reply of Redis the clock is that of the machine; after it the clock of Redis counts."""
    machine = Machine(wall=NOON + 3600)
    assert (machine.clock.is_measured, machine.clock.now(), machine.clock.skew_seconds) == (False, NOON + 3600, 0)
    machine.measure()
    assert (machine.clock.is_measured, machine.clock.now(), machine.clock.skew_seconds) == (True, NOON, 3600)
    machine.wall_ahead -= 7200
    machine.boot.now += 100
    assert machine.clock.now() == NOON + 100
    machine.measure()
    assert (machine.clock.now(), machine.clock.skew_seconds) == (NOON + 100, -3600)


@pytest.mark.parametrize(("request_seconds", "reply_seconds"), [(0.2, 0.2), (0.4, 0.0), (0.0, 0.4)])
def test_error_of_the_clock_is_half_the_round_trip_at_most(request_seconds: float, reply_seconds: float) -> None:
    """For any share of the request and the reply in the round trip the error is at most half of it."""
    machine = Machine(wall=NOON - 60)
    machine.measure(request_seconds=request_seconds, reply_seconds=reply_seconds)
    assert machine.clock.now() == pytest.approx(machine.redis, abs=0.2001)


def test_slow_reply_is_not_used() -> None:
    """A reply with a long round trip is too inexact, also if it is the first one."""
    machine = Machine(wall=NOON + 3600)
    machine.measure(reply_seconds=LONGEST_ROUND_TRIP_SECONDS + 0.01)
    assert not machine.clock.is_measured


def test_difference_within_the_error_of_a_measurement_changes_nothing() -> None:
    """Replies with different round trips do not move the clock."""
    machine = Machine()
    machine.measure()
    machine.measure(request_seconds=0.3)
    machine.measure(reply_seconds=0.3)
    assert machine.clock.now() == machine.redis


def test_clock_follows_forwards_at_once() -> None:
    """A clock that is behind, for example after the machine was suspended, is right after the next reply."""
    machine = Machine()
    machine.measure()
    machine.redis_ahead += 600
    machine.measure()
    assert machine.clock.now() == machine.redis


def test_clock_goes_back_slowly() -> None:
    """After a failover to a Redis whose clock is behind, each instant is later than the one before.

    After ten seconds the clock is right.
    """
    machine = Machine()
    machine.measure()
    machine.redis_ahead -= SKEW_SECONDS
    seen = [machine.clock.now()]
    machine.measure()
    for _ in range(101):
        machine.boot.now += 0.1
        seen.append(machine.clock.now())
    assert all(later > earlier for earlier, later in pairwise(seen))
    assert machine.clock.now() == pytest.approx(machine.redis, abs=1e-6)


def test_clock_that_is_far_ahead_goes_back_at_once() -> None:
    """A step of an hour is made at once: slow steps would take two hours, while other processes are right already."""
    machine = Machine()
    machine.measure()
    machine.redis_ahead -= 3600
    machine.measure()
    assert machine.clock.now() == machine.redis


@pytest.mark.parametrize(("skew", "side"), [(6.0, "6.0 s ahead of"), (-3600.0, "3600.0 s behind"), (4.9, None)])
def test_check_says_how_wrong_the_clock_of_the_machine_is(skew: float, side: str | None) -> None:
    """From a difference of 5 s on, ahead or behind, readiness names the difference and what to do."""
    machine = Machine(wall=NOON + skew)
    machine.measure()
    if side is None:
        asyncio.run(machine.clock.check())
        return
    with pytest.raises(DependencyUnavailable, match=f"clock is {side} Redis TIME; let NTP set both"):
        asyncio.run(machine.clock.check())


def test_skew_is_logged_when_it_begins_and_ends(logs: list[Any]) -> None:
    """The begin and the end of a difference have one log line each; measurements between them have none."""
    machine = Machine(wall=NOON + 60)
    for wall in (60, 60, 0, 0, -60, -60):
        machine.wall_ahead = machine.redis_ahead + wall
        machine.measure()
    shown = [(line["event"], line["skewSeconds"]) for line in logs]
    assert shown == [("clock_skewed", 60), ("clock_right", 0), ("clock_skewed", -60)]


def test_clock_continues_while_redis_is_unreachable() -> None:
    """The last measured difference counts, and the clock continues to ask Redis."""
    machine, asked = Machine(wall=NOON + 3600), asyncio.Event()
    machine.measure()

    async def unreachable() -> Reading:
        asked.set()
        raise DependencyUnavailable("The queue cannot be reached")

    async def follow() -> None:
        following = asyncio.create_task(machine.clock.follow(unreachable))
        await asked.wait()
        await asyncio.sleep(0)
        assert not following.done()
        following.cancel()

    asyncio.run(follow())
    machine.boot.now += 100
    assert machine.clock.now() == machine.redis


def test_boot_clock_goes_forward() -> None:
    """The clock since the boot of the machine needs no setting and no network."""
    assert boot_seconds() < boot_seconds()
