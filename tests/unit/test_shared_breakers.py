"""The state of providers that processes share: reports to the others, holds from them, and lanes left to them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.hold import Avoided, ProviderReport, ProviderState, Hold
from pipeline.hooks.breaker import Breaker, SharedBreakers
from tests.clock import Clock

FAILURES, LONGEST_SECONDS = 3, 15.0
LANES = {"lego": ("acme", "other"), "sneaker": ("acme",), "": ("other",)}


class Sharing:
    """The breakers of two providers, as one process has them."""

    def __init__(self) -> None:
        self.breakers = {name: Breaker(FAILURES, LONGEST_SECONDS) for name in ("acme", "other")}
        self.holds = SharedBreakers(self.breakers, LANES)

    def states(self) -> list[tuple[str, ProviderState]]:
        """Return the provider and the state of each report."""
        return [(report.provider, report.state) for report in self.holds.reports()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.of_breakers(monkeypatch)


@pytest.fixture
def shared(clock: Clock) -> Sharing:
    return Sharing()


def test_report_is_repeated_until_it_is_sent(shared: Sharing) -> None:
    """A failed step is repeated with the same reports; a report made during a step is sent with the next one."""
    shared.breakers["acme"].unreachable("AI service unavailable", "ConnectionRefusedError: no")
    reports = shared.holds.reports()
    away = ProviderReport(
        "acme", ProviderState.AWAY, LONGEST_SECONDS, "AI service unavailable", "ConnectionRefusedError: no"
    )
    assert reports == (away,)
    assert shared.holds.reports() == reports
    shared.breakers["other"].busy(8, "AI service is busy", "HTTP 429")
    shared.holds.adopt(reports, [Hold("acme", 1, 1)])
    assert shared.holds.reports() == (ProviderReport("other", ProviderState.BUSY, 8, "AI service is busy", "HTTP 429"),)


def test_newer_report_replaces_the_one_it_contradicts(shared: Sharing, clock: Clock) -> None:
    """AWAY and ANSWERED replace each other, BUSY is reported in addition; a report made during a step stays."""
    acme = shared.breakers["acme"]
    acme.unreachable("AI service unavailable")
    in_progress = shared.holds.reports()
    clock.now += 1
    assert acme.lets_through()
    acme.answered()
    assert shared.states() == [("acme", ProviderState.ANSWERED)]
    shared.holds.adopt(in_progress, [Hold("acme", 1, 1)])
    assert shared.states() == [("acme", ProviderState.ANSWERED)]
    acme.busy(5, "AI service is busy")
    assert shared.states() == [("acme", ProviderState.ANSWERED), ("acme", ProviderState.BUSY)]


def test_adopt_holds_and_releases_providers_by_name(shared: Sharing) -> None:
    """A hold of an unknown provider is ignored; a provider without a hold is released."""
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
def test_lanes_without_a_reachable_provider_are_left_to_others(
    shared: Sharing, clock: Clock, away: tuple[str, ...], lanes: list[str]
) -> None:
    """A lane with another provider is not left. After the wait one job tries the provider, and no second job."""
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
    "hold_provider",
    [lambda breaker: breaker.busy(9, "Busy"), lambda breaker: breaker.failed("No")],
    ids=["busy", "failed once"],
)
def test_short_hold_leaves_no_lane_to_others(
    shared: Sharing, clock: Clock, hold_provider: Callable[[Breaker], None]
) -> None:
    """A hold that ends by itself needs no trial job; one failure is not a hold."""
    hold_provider(shared.breakers["acme"])
    clock.now += 10
    assert shared.holds.avoid() == Avoided()
