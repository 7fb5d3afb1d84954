"""Breakers: what holds a plugin, for how long, which calls try a held plugin, and holds that other processes report."""

from __future__ import annotations

import pytest

from pipeline.hold import ProviderState, Hold
from pipeline.hooks.breaker import Breaker
from tests.clock import Clock

FAILURES, LONGEST_SECONDS = 3, 15.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.of_breakers(monkeypatch)


class RecordedBreaker:
    """A breaker and all that it has reported.

    changes: True for each start of a hold, False for each end.
    found: the states that it reports to other processes, with their seconds.
    """

    def __init__(self) -> None:
        self.changes: list[bool] = []
        self.found: list[tuple[ProviderState, float]] = []
        self.breaker = Breaker(FAILURES, LONGEST_SECONDS, self.changes.append)
        self.breaker.on_state = lambda state, seconds: self.found.append((state, seconds))

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.breaker.failed("The hook failed", "KeyError: 'x'")


@pytest.fixture
def recorded(clock: Clock) -> RecordedBreaker:
    return RecordedBreaker()


def test_plugin_that_sets_its_wait_is_tried_after_it(recorded: RecordedBreaker, clock: Clock) -> None:
    """Each wait is the one that the plugin sets and is reported to other processes; it does not double.

    A far longer wait is reported as a new hold.
    """
    for seconds in (2.0, 2.0, 2.0, 60.0):
        assert recorded.breaker.lets_through()
        recorded.breaker.unreachable("Not ready", "NotReady: no licence", seconds)
        assert recorded.breaker.left_seconds == seconds and recorded.breaker.is_held
        clock.now += seconds
    assert recorded.found == [
        (ProviderState.AWAY, 2),
        (ProviderState.TRIED, 2),
        (ProviderState.TRIED, 2),
        (ProviderState.TRIED, 60),
    ]
    assert recorded.changes == [True, True] and recorded.breaker.is_held, "held until it answers"


def test_new_breaker_lets_everything_through(recorded: RecordedBreaker) -> None:
    """A new breaker holds nothing, and a success changes and reports nothing."""
    assert all(recorded.breaker.lets_through() for _ in range(10))
    recorded.breaker.answered()
    assert not recorded.breaker.is_held and recorded.breaker.left_seconds == 0
    assert (recorded.changes, recorded.found) == ([], [])


def test_failures_in_a_row_hold_it(recorded: RecordedBreaker) -> None:
    """The plugin is held after FAILURES failures in a row; a success before that resets the count."""
    for _ in range(4):
        recorded.fail(FAILURES - 1)
        recorded.breaker.answered()
    assert recorded.breaker.lets_through() and not recorded.changes
    recorded.fail(FAILURES)
    assert not recorded.breaker.lets_through()
    assert (recorded.changes, recorded.found) == ([True], [(ProviderState.AWAY, LONGEST_SECONDS)])
    assert (recorded.breaker.reason, recorded.breaker.cause) == ("The hook failed", "KeyError: 'x'")


def test_one_unreachable_call_holds_it(recorded: RecordedBreaker) -> None:
    """One call that cannot reach the plugin is enough: the next call could not reach it either."""
    recorded.breaker.unreachable("AI service unavailable", "ConnectionRefusedError: no")
    assert not recorded.breaker.lets_through() and recorded.breaker.is_held
    assert (recorded.changes, recorded.found) == ([True], [(ProviderState.AWAY, LONGEST_SECONDS)])


@pytest.mark.parametrize(
    ("asked", "held", "remark"),
    [
        (30.0, 30.0, "the time that it asks for"),
        (0.0, 1.0, "a second at least, if it asks for no time"),
        (-5.0, 1.0, "a second at least, if it asks for a time in the past"),
    ],
)
def test_busy_holds_it_for_its_time_and_then_ends(
    recorded: RecordedBreaker, clock: Clock, asked: float, held: float, remark: str
) -> None:
    """No call tries a busy plugin during its time; after that all calls may use it at once."""
    recorded.breaker.busy(asked, "AI service is busy", "HTTP 429")
    assert recorded.found == [(ProviderState.BUSY, held)], remark
    clock.now += held - 0.1
    assert not recorded.breaker.lets_through() and recorded.breaker.is_held
    clock.now += 0.2
    assert not recorded.breaker.is_held
    assert all(recorded.breaker.lets_through() for _ in range(3))


def test_longer_of_two_busy_times_counts(recorded: RecordedBreaker, clock: Clock) -> None:
    """Two calls run at the same time: one reply asks for 10 s, the next for 1 s; the plugin is held for 10 s."""
    recorded.breaker.busy(10, "AI service is busy")
    recorded.breaker.busy(1, "AI service is busy")
    assert recorded.breaker.left_seconds == 10
    clock.now += 9
    recorded.breaker.busy(10, "AI service is busy")
    assert recorded.breaker.left_seconds == 10


def test_success_does_not_end_the_busy_time(recorded: RecordedBreaker, clock: Clock) -> None:
    """A call that began before the hold does not end the hold by its success."""
    recorded.breaker.busy(10, "AI service is busy")
    recorded.breaker.answered()
    assert not recorded.breaker.lets_through() and recorded.changes == [True]
    clock.now += 11
    recorded.breaker.answered()
    assert recorded.changes == [True, False]


def test_single_calls_try_it_after_waits_that_double(recorded: RecordedBreaker, clock: Clock) -> None:
    """After 1, 2, 4, 8, 15 and 15 s one call tries the plugin; other calls at the same time do not."""
    recorded.breaker.unreachable("AI service unavailable")
    for seconds in (1, 2, 4, 8, 15, 15):
        clock.now += seconds - 0.1
        assert not recorded.breaker.lets_through()
        clock.now += 0.2
        assert [recorded.breaker.lets_through() for _ in range(3)] == [True, False, False]
        recorded.breaker.unreachable("AI service unavailable")
        clock.now -= 0.1
    assert recorded.found == [(ProviderState.AWAY, LONGEST_SECONDS)] + [(ProviderState.TRIED, LONGEST_SECONDS)] * 6
    assert recorded.changes == [True]


def test_first_answer_releases_it(recorded: RecordedBreaker, clock: Clock) -> None:
    """After a release the next hold needs FAILURES failures and begins with the first wait."""
    for _ in range(2):
        recorded.fail(FAILURES)
        clock.now += 1
        assert recorded.breaker.lets_through()
        recorded.breaker.answered()
        assert not recorded.breaker.is_held and recorded.breaker.lets_through()
    assert recorded.changes == [True, False] * 2
    assert [found for found, _ in recorded.found] == [ProviderState.AWAY, ProviderState.ANSWERED] * 2


def test_failure_of_a_call_that_began_before_the_hold_changes_nothing(recorded: RecordedBreaker, clock: Clock) -> None:
    """Five calls at the same time cannot reach the provider: that is one report, and the wait is 1 s, not 15 s."""
    for _ in range(5):
        recorded.breaker.unreachable("AI service unavailable")
    assert recorded.breaker.left_seconds == 1 and len(recorded.found) == 1


def test_try_that_finds_it_busy_has_reached_it(recorded: RecordedBreaker, clock: Clock) -> None:
    """An unreachable plugin becomes a busy one: after its time all calls may use it, not only single calls."""
    recorded.breaker.unreachable("AI service unavailable")
    clock.now += 1
    assert recorded.breaker.lets_through()
    recorded.breaker.busy(3, "AI service is busy")
    clock.now += 2.9
    assert not recorded.breaker.lets_through()
    clock.now += 0.2
    assert all(recorded.breaker.lets_through() for _ in range(3))


def test_try_that_never_ends_is_followed_by_another(recorded: RecordedBreaker, clock: Clock) -> None:
    """A cancelled try has no result; after the same wait the next call tries."""
    recorded.breaker.unreachable("AI service unavailable")
    for _ in range(3):
        clock.now += 1
        assert recorded.breaker.lets_through()


def test_try_that_redis_chose_ends_the_try_of_the_worker(recorded: RecordedBreaker, clock: Clock) -> None:
    """The worker counts the claimed job as its own try too; the failure of the job ends both."""
    recorded.breaker.unreachable("AI service unavailable")
    clock.now += 1
    recorded.breaker.begin_try()
    recorded.breaker.tries()
    assert not recorded.breaker.lets_through()
    recorded.breaker.unreachable("AI service unavailable")
    assert recorded.found[-1] == (ProviderState.TRIED, LONGEST_SECONDS)
    assert recorded.breaker.left_seconds == 2 and not recorded.breaker.lets_through()


def hold(left_seconds: float, wait_seconds: float = 0) -> Hold:
    return Hold("acme", left_seconds, wait_seconds, "AI service is busy", "HTTP 429")


def test_hold_of_another_process_is_adopted_and_not_reported(recorded: RecordedBreaker, clock: Clock) -> None:
    """A hold that another process found has its reason here too; only that process logs and reports it."""
    recorded.breaker.adopt(hold(10))
    assert not recorded.breaker.lets_through() and recorded.breaker.is_held and recorded.breaker.left_seconds == 10
    assert (recorded.breaker.reason, recorded.breaker.cause) == ("AI service is busy", "HTTP 429")
    clock.now += 11
    assert recorded.breaker.lets_through()
    assert (recorded.changes, recorded.found) == ([], [])


def test_hold_with_tries_ends_only_by_an_answer(recorded: RecordedBreaker, clock: Clock) -> None:
    """At any time only the jobs that Redis picks try it; the answer to one ends the hold and is reported at once."""
    recorded.breaker.adopt(hold(1, wait_seconds=1))
    clock.now += 3600
    assert not recorded.breaker.lets_through()
    recorded.breaker.tries()
    recorded.breaker.answered()
    assert recorded.breaker.lets_through() and not recorded.breaker.is_held
    assert recorded.found == [(ProviderState.ANSWERED, 0)]


def test_process_that_found_it_holds_it_when_others_do_not(recorded: RecordedBreaker, clock: Clock) -> None:
    """A process that alone cannot reach the provider holds it and tries it alone, one call at a time."""
    recorded.breaker.unreachable("AI service unavailable")
    recorded.breaker.adopt(None)
    assert not recorded.breaker.lets_through() and recorded.breaker.is_held_here
    clock.now += 1
    assert [recorded.breaker.lets_through() for _ in range(3)] == [True, False, False]
    recorded.breaker.answered()
    assert recorded.changes == [True, False]


def test_hold_of_all_processes_is_tried_by_a_job_that_redis_picks(recorded: RecordedBreaker, clock: Clock) -> None:
    """No process tries it on its own: a hundred processes would make a hundred calls."""
    recorded.breaker.unreachable("AI service unavailable")
    recorded.breaker.adopt(hold(1, wait_seconds=1))
    clock.now += 10
    recorded.breaker.begin_try()
    assert not recorded.breaker.lets_through()
    recorded.breaker.tries()
    recorded.breaker.answered()
    assert recorded.changes == [True, False] and recorded.breaker.lets_through()


def test_answer_of_another_process_is_adopted(recorded: RecordedBreaker, clock: Clock) -> None:
    """A hold that another process found ends when that process reports its end."""
    recorded.breaker.adopt(hold(1, wait_seconds=1))
    recorded.breaker.adopt(None)
    assert recorded.breaker.lets_through() and recorded.breaker.left_seconds == 0
