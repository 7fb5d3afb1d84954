"""The clock of the service: follows Redis TIME, goes back as little as it can, and says when the machine's is off."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from pipeline.clock import LONGEST_ROUND_TRIP_SECONDS, SKEW_SECONDS, Clock, Reading, boot_seconds
from pipeline.errors import DependencyUnavailable
from tests.clock import Clock as Hand

NOON = 1_769_860_800.0


class Machine:
    """A machine with a clock of its own, and a Redis with another one."""

    def __init__(self, wall: float = NOON, redis: float = NOON) -> None:
        self.boot = Hand()
        self.wall_ahead = wall - self.boot.now
        self.redis_ahead = redis - self.boot.now
        self.clock = Clock(lambda: self.boot.now + self.wall_ahead, self.boot)

    def measure(self, *, there: float = 0.0, back: float = 0.0) -> None:
        """Ask Redis for its time. there, back: how many seconds question and answer are on their way."""
        asked_at = self.boot.now
        self.boot.now += there
        seconds = self.boot.now + self.redis_ahead
        self.boot.now += back
        self.clock.learn(Reading(seconds, asked_at, self.boot.now))

    @property
    def redis(self) -> float:
        """Redis TIME now."""
        return self.boot.now + self.redis_ahead


def test_first_answer_decides() -> None:
    """Until Redis has answered the machine's own clock is all there is; from then on it does not matter."""
    machine = Machine(wall=NOON + 3600)
    assert (machine.clock.is_measured, machine.clock.now(), machine.clock.skew_seconds) == (False, NOON + 3600, 0)
    machine.measure()
    assert (machine.clock.is_measured, machine.clock.now(), machine.clock.skew_seconds) == (True, NOON, 3600)
    machine.wall_ahead -= 7200
    machine.boot.now += 100
    assert machine.clock.now() == NOON + 100
    machine.measure()
    assert (machine.clock.now(), machine.clock.skew_seconds) == (NOON + 100, -3600)


@pytest.mark.parametrize(("there", "back"), [(0.2, 0.2), (0.4, 0.0), (0.0, 0.4)])
def test_half_the_round_trip_is_accounted_for(there: float, back: float) -> None:
    """However the time on the way is shared by question and answer, the error is half of it at most."""
    machine = Machine(wall=NOON - 60)
    machine.measure(there=there, back=back)
    assert machine.clock.now() == pytest.approx(machine.redis, abs=0.2001)


def test_slow_answer_is_not_used() -> None:
    """An answer that was long on its way says too little, also when it would be the first."""
    machine = Machine(wall=NOON + 3600)
    machine.measure(back=LONGEST_ROUND_TRIP_SECONDS + 0.01)
    assert not machine.clock.is_measured


def test_difference_within_the_error_of_a_measurement_changes_nothing() -> None:
    """Answers that are on their way for different times do not make the clock go to and fro."""
    machine = Machine()
    machine.measure()
    machine.measure(there=0.3)
    machine.measure(back=0.3)
    assert machine.clock.now() == machine.redis


def test_clock_follows_forwards_at_once() -> None:
    """Time that was missed, by a suspended machine for example, is made good at the next answer."""
    machine = Machine()
    machine.measure()
    machine.redis_ahead += 600
    machine.measure()
    assert machine.clock.now() == machine.redis


def test_clock_goes_back_slowly() -> None:
    """After a failover to a server whose clock is behind no instant comes twice, and soon the clock is right."""
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
    """An hour would take two to be made good slowly, and all other processes have gone back meanwhile."""
    machine = Machine()
    machine.measure()
    machine.redis_ahead -= 3600
    machine.measure()
    assert machine.clock.now() == machine.redis


@pytest.mark.parametrize(("skew", "side"), [(6.0, "6.0 s ahead of"), (-3600.0, "3600.0 s behind"), (4.9, None)])
def test_check_says_how_far_the_machine_is_off(skew: float, side: str | None) -> None:
    """Readiness names the clock from 5 s on, in either direction, and what to do."""
    machine = Machine(wall=NOON + skew)
    machine.measure()
    if side is None:
        asyncio.run(machine.clock.check())
        return
    with pytest.raises(DependencyUnavailable, match=f"clock is {side} Redis TIME; let NTP set both"):
        asyncio.run(machine.clock.check())


def test_skew_is_logged_when_it_begins_and_ends(logs: list[Any]) -> None:
    """One line each, however often it is measured meanwhile."""
    machine = Machine(wall=NOON + 60)
    for wall in (60, 60, 0, 0, -60, -60):
        machine.wall_ahead = machine.redis_ahead + wall
        machine.measure()
    shown = [(line["event"], line["skewSeconds"]) for line in logs]
    assert shown == [("clock_skewed", 60), ("clock_right", 0), ("clock_skewed", -60)]


def test_clock_goes_on_while_redis_is_away() -> None:
    """What was learned last holds; the next answer is asked for all the same."""
    machine, asked = Machine(wall=NOON + 3600), asyncio.Event()
    machine.measure()

    async def away() -> Reading:
        asked.set()
        raise DependencyUnavailable("The queue cannot be reached")

    async def follow() -> None:
        following = asyncio.create_task(machine.clock.follow(away))
        await asked.wait()
        await asyncio.sleep(0)
        assert not following.done()
        following.cancel()

    asyncio.run(follow())
    machine.boot.now += 100
    assert machine.clock.now() == machine.redis


def test_boot_clock_goes_forward() -> None:
    """It needs no setting and no network."""
    assert boot_seconds() < boot_seconds()
