"""Bounds: when a bound is reached, how often its number is read, and what counts between two reads."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.errors import DependencyUnavailable
from pipeline.usecases import bounds
from pipeline.usecases.bounds import Bound, in_words
from tests.clock import Clock


class Counted:
    """A counted number. reads: how often the bound has read it."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.reads = 0
        self.is_unreachable = False
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def read(self, name: str) -> int:
        self.reads += 1
        await self.may_answer.wait()
        if self.is_unreachable:
            raise DependencyUnavailable("unreachable")
        return self.number


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that bounds use instead of that of the event loop."""
    clock = Clock()
    monkeypatch.setattr(bounds, "_now", clock)
    return clock


@pytest.mark.gen_test
async def test_bound_counts_what_all_processes_add(clock: Clock) -> None:
    """An item that this process adds counts at once; at the bound the number is read before an item is refused."""
    counted = Counted(7)
    bound = Bound(10, 1000, counted.read)
    for _ in range(3):
        assert await bound.reached("anna") is None
        bound.add("anna")
    assert counted.reads == 1
    counted.number = 8  # other processes have removed items
    assert await bound.reached("anna") is None and counted.reads == 2
    counted.number = 12
    clock.now += 1
    assert await bound.reached("anna") == 12 and await bound.reached("anna") == 12 and counted.reads == 3
    assert await bound.reached("ben") == 12 and counted.reads == 4
    counted.number = 9
    clock.now += 1
    assert await bound.reached("anna") is None


@pytest.mark.gen_test
async def test_number_far_from_its_bound_is_read_seldom(clock: Clock) -> None:
    """A number is cached while other processes cannot have reached the bound, half a minute at most."""
    counted = Counted()
    bound = Bound(10_000, 1000, counted.read)
    for _ in range(100):
        assert await bound.reached("anna") is None
        clock.now += 0.1
    assert counted.reads == 1
    clock.now += 1
    assert await bound.reached("anna") is None and counted.reads == 2
    far = Bound(10**9, 1000, counted.read)
    await far.reached("anna")
    clock.now += bounds.LONGEST_CACHED_SECONDS + 0.1
    await far.reached("anna")
    assert counted.reads == 4


@pytest.mark.gen_test
async def test_nothing_is_refused_while_the_number_cannot_be_read(clock: Clock) -> None:
    """No item is refused while the store is unreachable or slow; many questions at the same time cause one read."""
    counted = Counted(99)
    bound = Bound(10, 1000, counted.read)
    counted.is_unreachable = True
    assert await bound.reached("anna") is None
    clock.now += 1
    counted.is_unreachable = False
    counted.may_answer.clear()
    assert await asyncio.gather(*(bound.reached("anna") for _ in range(50))) == [None] * 50
    assert counted.reads == 2
    counted.may_answer.set()
    assert await bound.reached("anna") == 99


@pytest.mark.gen_test
async def test_bound_applies_soon_after_an_outage(clock: Clock) -> None:
    """A number that could not be read is read after a second, for any distance to the bound, and not before."""
    counted = Counted(10**6)
    bound = Bound(10**6, 1000, counted.read)
    assert await bound.reached("anna") == 10**6
    counted.is_unreachable = True
    clock.now += 1
    assert [await bound.reached("anna") for _ in range(9)] == [None] * 9 and counted.reads == 2
    counted.is_unreachable = False
    clock.now += 1
    assert await bound.reached("anna") == 10**6


@pytest.mark.gen_test
async def test_no_bound_reads_nothing(clock: Clock) -> None:
    """A bound of 0 means no bound."""
    counted = Counted(99)
    assert await Bound(0, 1000, counted.read).reached("anna") is None and counted.reads == 0


@pytest.mark.gen_test
async def test_numbers_of_many_users_are_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of the user that was asked for first is forgotten when there are too many."""
    monkeypatch.setattr(bounds, "NAMES_AT_MOST", 100)
    counted = Counted()
    bound = Bound(10, 1000, counted.read)
    for number in range(1000):
        await bound.reached(f"user-{number}")
    assert len(bound._numbers) == 100


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2_340_000, "2.3 MB"), (1_000_000_000, "1.0 GB")],
)
def test_bytes_in_words(number: int, words: str) -> None:
    """A size has a unit that people read easily."""
    assert in_words(number) == words
