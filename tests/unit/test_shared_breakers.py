"""What a process tells the others of the providers it asks, what it takes over, and what it leaves to them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.hold import Avoided, ProviderReport, ProviderState, Hold
from pipeline.hooks.breaker import Breaker, SharedBreakers
from tests.clock import Clock

FAILURES, LONGEST_SECONDS = 3, 15.0
LANES = {"lego": ("acme", "other"), "sneaker": ("acme",), "": ("other",)}


class Shared:
    """The breakers of two providers, as one process has them."""

    def __init__(self) -> None:
        self.breakers = {name: Breaker(FAILURES, LONGEST_SECONDS) for name in ("acme", "other")}
        self.holds = SharedBreakers(self.breakers, LANES)

    def states(self) -> list[tuple[str, ProviderState]]:
        return [(report.provider, report.state) for report in self.holds.reports()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.of_breakers(monkeypatch)


@pytest.fixture
def shared(clock: Clock) -> Shared:
    return Shared()


def test_findings_are_kept_until_they_are_told(shared: Shared) -> None:
    """A step that fails is repeated with the same; what was found while it was under way is told next."""
    shared.breakers["acme"].unreachable("AI service unavailable", "ConnectionRefusedError: no")
    told = shared.holds.reports()
    away = ProviderReport(
        "acme", ProviderState.AWAY, LONGEST_SECONDS, "AI service unavailable", "ConnectionRefusedError: no"
    )
    assert told == (away,)
    assert shared.holds.reports() == told
    shared.breakers["other"].busy(8, "AI service is busy", "HTTP 429")
    shared.holds.adopt(told, [Hold("acme", 1, 1)])
    assert shared.holds.reports() == (ProviderReport("other", ProviderState.BUSY, 8, "AI service is busy", "HTTP 429"),)


def test_newer_finding_replaces_what_it_contradicts(shared: Shared, clock: Clock) -> None:
    """Away and answered cancel each other; that it is busy stands beside both. One told meanwhile stays."""
    acme = shared.breakers["acme"]
    acme.unreachable("AI service unavailable")
    under_way = shared.holds.reports()
    clock.now += 1
    assert acme.lets_through()
    acme.answered()
    assert shared.states() == [("acme", ProviderState.ANSWERED)]
    shared.holds.adopt(under_way, [Hold("acme", 1, 1)])
    assert shared.states() == [("acme", ProviderState.ANSWERED)]
    acme.busy(5, "AI service is busy")
    assert shared.states() == [("acme", ProviderState.ANSWERED), ("acme", ProviderState.BUSY)]


def test_adopting_touches_each_provider_by_name(shared: Shared) -> None:
    """A hold of a provider that this process does not know is nothing to it; one that is not named is released."""
    shared.holds.adopt((), [Hold("acme", 9, 0, "AI service is busy"), Hold("of another version", 9)])
    assert [each.is_held for each in shared.breakers.values()] == [True, False]
    shared.holds.adopt((), [])
    assert not any(each.is_held for each in shared.breakers.values())


@pytest.mark.parametrize(
    ("away", "lanes"),
    [
        (("acme",), ["sneaker"]),
        (("other",), [""]),
        (("acme", "other"), ["lego", "sneaker", ""]),
    ],
    ids="+".join,
)
def test_lanes_of_which_nothing_can_be_reached_are_left_to_others(
    shared: Shared, clock: Clock, away: tuple[str, ...], lanes: list[str]
) -> None:
    """Only those: a lane with another provider is worked on. Then a single job tries, and no more for a while."""
    assert shared.holds.avoid() == Avoided()
    for name in away:
        shared.breakers[name].unreachable("AI service unavailable")
    assert shared.holds.avoid() == Avoided(lanes, left_seconds=1)
    clock.now += 1
    assert shared.holds.avoid() == Avoided(is_trying=True)
    shared.holds.begin_try()
    assert shared.holds.avoid() == Avoided(lanes, left_seconds=1)
    assert [shared.breakers[away[0]].lets_through() for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    "hold_it",
    [lambda breaker: breaker.busy(9, "Busy"), lambda breaker: breaker.failed("No")],
    ids=["busy", "failed once"],
)
def test_nothing_is_left_to_others_for_long_without_need(
    shared: Shared, clock: Clock, hold_it: Callable[[Breaker], None]
) -> None:
    """A hold that ends by itself needs nobody to try; one failure is none."""
    hold_it(shared.breakers["acme"])
    clock.now += 10
    assert shared.holds.avoid() == Avoided()
