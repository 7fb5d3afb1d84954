"""Breakers: what holds a plugin, for how long, who may try it, and what other processes have found."""

from __future__ import annotations

import pytest

from pipeline.hold import ProviderState, Hold
from pipeline.hooks.breaker import Breaker
from tests.clock import Clock

FAILURES, LONGEST_SECONDS = 3, 15.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.of_breakers(monkeypatch)


class SupervisedTask:
    """A breaker and all that it has said."""

    def __init__(self) -> None:
        self.changes: list[bool] = []
        self.found: list[tuple[ProviderState, float]] = []
        self.breaker = Breaker(FAILURES, LONGEST_SECONDS, self.changes.append)
        self.breaker.on_state = lambda state, seconds: self.found.append((state, seconds))

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.breaker.failed("The hook failed", "KeyError: 'x'")


@pytest.fixture
def watched(clock: Clock) -> SupervisedTask:
    return SupervisedTask()


# what holds it


def test_one_that_says_when_to_try_it_again_is_tried_then(watched: SupervisedTask, clock: Clock) -> None:
    """Each time: nothing doubles, and the other processes hear the same. A far longer wait is told again."""
    for seconds in (2.0, 2.0, 2.0, 60.0):
        assert watched.breaker.lets_through()
        watched.breaker.unreachable("Not ready", "NotReady: no licence", seconds)
        assert watched.breaker.left_seconds == seconds and watched.breaker.is_held
        clock.now += seconds
    assert watched.found == [
        (ProviderState.AWAY, 2),
        (ProviderState.TRIED, 2),
        (ProviderState.TRIED, 2),
        (ProviderState.TRIED, 60),
    ]
    assert watched.changes == [True, True] and watched.breaker.is_held, "until it answers"


def test_new_breaker_lets_everything_through(watched: SupervisedTask) -> None:
    """Nothing is known against the plugin, and its success is no news."""
    assert all(watched.breaker.lets_through() for _ in range(10))
    watched.breaker.answered()
    assert not watched.breaker.is_held and watched.breaker.left_seconds == 0
    assert (watched.changes, watched.found) == ([], [])


def test_failures_in_a_row_hold_it(watched: SupervisedTask) -> None:
    """The last of so many; any success before that begins the count anew."""
    for _ in range(4):
        watched.fail(FAILURES - 1)
        watched.breaker.answered()
    assert watched.breaker.lets_through() and not watched.changes
    watched.fail(FAILURES)
    assert not watched.breaker.lets_through()
    assert (watched.changes, watched.found) == ([True], [(ProviderState.AWAY, LONGEST_SECONDS)])
    assert (watched.breaker.reason, watched.breaker.cause) == ("The hook failed", "KeyError: 'x'")


def test_one_call_that_could_not_be_made_holds_it(watched: SupervisedTask) -> None:
    """Whatever asks it next would find the same."""
    watched.breaker.unreachable("AI service unavailable", "ConnectionRefusedError: no")
    assert not watched.breaker.lets_through() and watched.breaker.is_held
    assert (watched.changes, watched.found) == ([True], [(ProviderState.AWAY, LONGEST_SECONDS)])


@pytest.mark.parametrize(
    ("asked", "held", "remark"),
    [
        (30.0, 30.0, "for as long as it says"),
        (0.0, 1.0, "who wants to be asked again at once is believed only so far"),
        (-5.0, 1.0, "nor is a time that has passed"),
    ],
)
def test_busy_holds_it_for_so_long_and_ends_by_itself(
    watched: SupervisedTask, clock: Clock, asked: float, held: float, remark: str
) -> None:
    """Nobody tries it meanwhile; then everybody may ask it at once."""
    watched.breaker.busy(asked, "AI service is busy", "HTTP 429")
    assert watched.found == [(ProviderState.BUSY, held)], remark
    clock.now += held - 0.1
    assert not watched.breaker.lets_through() and watched.breaker.is_held
    clock.now += 0.2
    assert not watched.breaker.is_held
    assert all(watched.breaker.lets_through() for _ in range(3))


def test_longer_of_two_busy_times_stands(watched: SupervisedTask, clock: Clock) -> None:
    """Of calls that were under way together one was told 10 s and the next 1 s."""
    watched.breaker.busy(10, "AI service is busy")
    watched.breaker.busy(1, "AI service is busy")
    assert watched.breaker.left_seconds == 10
    clock.now += 9
    watched.breaker.busy(10, "AI service is busy")
    assert watched.breaker.left_seconds == 10


def test_success_does_not_end_the_time_it_asked_for(watched: SupervisedTask, clock: Clock) -> None:
    """A call that had begun before says nothing of those that would begin now."""
    watched.breaker.busy(10, "AI service is busy")
    watched.breaker.answered()
    assert not watched.breaker.lets_through() and watched.changes == [True]
    clock.now += 11
    watched.breaker.answered()
    assert watched.changes == [True, False]


# who tries it


def test_single_calls_try_it_after_waits_that_double(watched: SupervisedTask, clock: Clock) -> None:
    """1, 2, 4, 8, 15, 15 s; one call each time, however many want to."""
    watched.breaker.unreachable("AI service unavailable")
    for seconds in (1, 2, 4, 8, 15, 15):
        clock.now += seconds - 0.1
        assert not watched.breaker.lets_through()
        clock.now += 0.2
        assert [watched.breaker.lets_through() for _ in range(3)] == [True, False, False]
        watched.breaker.unreachable("AI service unavailable")
        clock.now -= 0.1
    assert watched.found == [(ProviderState.AWAY, LONGEST_SECONDS)] + [(ProviderState.TRIED, LONGEST_SECONDS)] * 6
    assert watched.changes == [True]


def test_first_answer_releases_it(watched: SupervisedTask, clock: Clock) -> None:
    """The next hold begins with the first wait again, and with a whole row of failures."""
    for _ in range(2):
        watched.fail(FAILURES)
        clock.now += 1
        assert watched.breaker.lets_through()
        watched.breaker.answered()
        assert not watched.breaker.is_held and watched.breaker.lets_through()
    assert watched.changes == [True, False] * 2
    assert [found for found, _ in watched.found] == [ProviderState.AWAY, ProviderState.ANSWERED] * 2


def test_failure_of_a_call_that_began_before_the_hold_changes_nothing(watched: SupervisedTask, clock: Clock) -> None:
    """Five at once find the provider away: that is one report, and no reason to wait for 15 s."""
    for _ in range(5):
        watched.breaker.unreachable("AI service unavailable")
    assert watched.breaker.left_seconds == 1 and len(watched.found) == 1


def test_one_who_tries_and_is_told_to_wait_has_reached_it(watched: SupervisedTask, clock: Clock) -> None:
    """From away to busy: after that time everybody may ask it, not only single calls."""
    watched.breaker.unreachable("AI service unavailable")
    clock.now += 1
    assert watched.breaker.lets_through()
    watched.breaker.busy(3, "AI service is busy")
    clock.now += 2.9
    assert not watched.breaker.lets_through()
    clock.now += 0.2
    assert all(watched.breaker.lets_through() for _ in range(3))


def test_try_that_never_ends_is_followed_by_another(watched: SupervisedTask, clock: Clock) -> None:
    """A call that was cancelled says nothing; after the same wait the next one tries."""
    watched.breaker.unreachable("AI service unavailable")
    for _ in range(3):
        clock.now += 1
        assert watched.breaker.lets_through()


def test_try_that_redis_chose_leaves_no_other_behind(watched: SupervisedTask, clock: Clock) -> None:
    """The worker counted the claimed job as its own try as well; with its failure both are over."""
    watched.breaker.unreachable("AI service unavailable")
    clock.now += 1
    watched.breaker.begin_try()
    watched.breaker.tries()
    assert not watched.breaker.lets_through()
    watched.breaker.unreachable("AI service unavailable")
    assert watched.found[-1] == (ProviderState.TRIED, LONGEST_SECONDS)
    assert watched.breaker.left_seconds == 2 and not watched.breaker.lets_through()


# what holds it for all processes


def hold(left_seconds: float, wait_seconds: float = 0) -> Hold:
    return Hold("acme", left_seconds, wait_seconds, "AI service is busy", "HTTP 429")


def test_hold_of_all_is_obeyed_and_said_to_nobody(watched: SupervisedTask, clock: Clock) -> None:
    """Who found it has logged and told it. Its reason is what jobs hear of it here too."""
    watched.breaker.adopt(hold(10))
    assert not watched.breaker.lets_through() and watched.breaker.is_held and watched.breaker.left_seconds == 10
    assert (watched.breaker.reason, watched.breaker.cause) == ("AI service is busy", "HTTP 429")
    clock.now += 11
    assert watched.breaker.lets_through()
    assert (watched.changes, watched.found) == ([], [])


def test_hold_with_tries_ends_only_by_an_answer(watched: SupervisedTask, clock: Clock) -> None:
    """Only the jobs that Redis picks try it, whatever the time; the answer to one is told and obeyed at once."""
    watched.breaker.adopt(hold(1, wait_seconds=1))
    clock.now += 3600
    assert not watched.breaker.lets_through()
    watched.breaker.tries()
    watched.breaker.answered()
    assert watched.breaker.lets_through() and not watched.breaker.is_held
    assert watched.found == [(ProviderState.ANSWERED, 0)]


def test_process_that_found_it_goes_on_holding_it_when_others_do_not(watched: SupervisedTask, clock: Clock) -> None:
    """It alone cannot reach the provider, so it tries on its own, without asking anew each time."""
    watched.breaker.unreachable("AI service unavailable")
    watched.breaker.adopt(None)
    assert not watched.breaker.lets_through() and watched.breaker.is_held_here
    clock.now += 1
    assert [watched.breaker.lets_through() for _ in range(3)] == [True, False, False]
    watched.breaker.answered()
    assert watched.changes == [True, False]


def test_held_by_all_it_is_not_tried_by_each_process(watched: SupervisedTask, clock: Clock) -> None:
    """A hundred processes would be a hundred calls: the job that tries is Redis' to pick."""
    watched.breaker.unreachable("AI service unavailable")
    watched.breaker.adopt(hold(1, wait_seconds=1))
    clock.now += 10
    watched.breaker.begin_try()
    assert not watched.breaker.lets_through()
    watched.breaker.tries()
    watched.breaker.answered()
    assert watched.changes == [True, False] and watched.breaker.lets_through()


def test_answer_of_another_process_is_adopted(watched: SupervisedTask, clock: Clock) -> None:
    """What this process did not find itself ends as it came."""
    watched.breaker.adopt(hold(1, wait_seconds=1))
    watched.breaker.adopt(None)
    assert watched.breaker.lets_through() and watched.breaker.left_seconds == 0
