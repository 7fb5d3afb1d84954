"""What a plugin's exception means: what the job is told and what it costs, and who is held."""

from __future__ import annotations

import pytest

from pipeline.errors import (
    DependencyUnavailable,
    JobError,
    NotReady,
    PermanentJobError,
    RetryableJobError,
    SandboxLimit,
    plugin_error_text,
)
from pipeline.hold import ProviderState
from pipeline.hooks import faults
from pipeline.hooks.breaker import Breaker
from pipeline.hooks.running_calls import PluginBusy, PluginOverrun
from pipeline.texts import cause_of
from tests.clock import Clock

REFUSED = ConnectionRefusedError("Connection refused")


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


# what operators are told


@pytest.mark.fault("P1")
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NotReady("no licence"), "NotReady: no licence"),
        (caused(NotReady("NATS cannot be reached"), TimeoutError()), "NATS cannot be reached (TimeoutError)"),
        (caused(NotReady("token=hidden is no good"), REFUSED),
         "token=*** is no good (ConnectionRefusedError: Connection refused)"),
        (caused(NotReady(str(REFUSED)), REFUSED), "ConnectionRefusedError: Connection refused"),
        (caused(NotReady("NATS: TimeoutError"), TimeoutError()), "NATS: TimeoutError"),
        (caused(RuntimeError("odd"), KeyError("a")), "RuntimeError: odd (KeyError: 'a')"),
        (caused(RuntimeError(), KeyError("a")), "RuntimeError (KeyError: 'a')"),
    ],
    ids=lambda each: repr(each)[:40],
)  # fmt: skip
def test_words_are_the_authors_and_what_they_came_from(error: Exception, expected: str) -> None:
    """Said once, masked and of bounded length."""
    assert plugin_error_text(error) == expected
    assert len(plugin_error_text(caused(NotReady("x" * 999), TimeoutError()))) == 300


# what the job is told


@pytest.mark.parametrize(
    ("raised", "message", "spends_attempt", "remark"),
    [
        (RetryableJobError("It is closed"), "It is closed", True, "its own words"),
        (caused(RetryableJobError("It is closed"), REFUSED), "It is closed", False, "its cause says more"),
        (caused(RetryableJobError("No", spends_attempt=True), REFUSED), "No", True, "but not against its word"),
        (caused(RetryableJobError("No"), TimeoutError()), "No", True, "it was asked"),
        (RetryableJobError("Slow down", retry_after_seconds=3), "Slow down", False, "busy"),
        (RetryableJobError("No", retry_after_seconds=3, spends_attempt=True), "No", True, "its word again"),
        (DependencyUnavailable("Our Redis is away"), "AI service unavailable", False, "what it leans on is away"),
        (REFUSED, "AI service unavailable", False, "bare"),
        (PluginBusy("no thread"), "AI service is busy", False, "nobody took the photo"),
        (PluginOverrun("90 s"), "AI service timed out", True, "it worked at this photo"),
        (TimeoutError(), "AI service failed", True, "unknown is not permanent"),
        (KeyError("secret"), "AI service failed", True, "and shows nothing of its inside"),
    ],
    ids=lambda each: repr(each)[:60],
)
def test_job_error_says_what_the_attempt_costs(
    raised: Exception, message: str, spends_attempt: bool, remark: str
) -> None:
    """An attempt is spent when the work was tried; otherwise the error names whom the job waits for."""
    error = faults.job_error(raised, "acme", "AI service")
    assert isinstance(error, RetryableJobError)
    assert (error.message, error.spends_attempt) == (message, spends_attempt), remark
    assert error.provider == ("" if spends_attempt else "acme")


def test_job_error_leaves_a_refusal_as_it_is() -> None:
    """Permanent is permanent, whatever it came from."""
    refusal = caused(PermanentJobError("No product"), REFUSED)
    assert faults.job_error(refusal, "acme", "AI service") is refusal


# who is held


@pytest.mark.parametrize(
    ("raised", "counts", "found", "is_held"),
    [
        (REFUSED, False, [ProviderState.AWAY], True),
        (PluginBusy("no thread"), False, [ProviderState.AWAY], True),
        (DependencyUnavailable("Our Redis is away"), False, [ProviderState.AWAY], True),
        (DependencyUnavailable("It is busy", retry_after_seconds=30), False, [ProviderState.BUSY], True),
        (NotReady("no licence", 30), False, [ProviderState.AWAY], True),
        (RetryableJobError("Slow down", retry_after_seconds=3), False, [ProviderState.BUSY], True),
        (KeyError("a bug"), False, [], False),
        (KeyError("a bug"), True, [ProviderState.AWAY], True),
        (PluginOverrun("90 s"), True, [ProviderState.AWAY], True),
        (PluginOverrun("90 s"), False, [], False),
        (PermanentJobError("No product"), True, [], False),
        (SandboxLimit("Reading the photo takes too long", "time"), True, [], False),
    ],
    ids=lambda each: repr(each)[:40],
)
def test_note_holds_whom_nobody_else_should_ask_now(
    raised: Exception, counts: bool, found: list[ProviderState], is_held: bool
) -> None:
    """At once who could not be asked; after so many failures (here one) who has another beside it."""
    breaker, seen = Breaker(1, 15), []
    breaker.on_state = lambda each, seconds: seen.append(each)
    faults.record_failure(breaker, faults.job_error(raised, "acme", "AI service"), raised, counts=counts)
    assert (seen, breaker.is_held) == (found, is_held)
    if is_held:
        assert breaker.cause.startswith(type(raised).__name__)


@pytest.mark.parametrize(
    ("raised", "releases"),
    [
        (KeyError("500"), True),
        (PermanentJobError("No product"), True),
        (PluginOverrun("90 s"), False),
        (SandboxLimit("Reading the photo takes too long", "time"), False),
    ],
    ids=repr,
)
def test_bad_answer_shows_that_the_provider_is_there(
    raised: Exception, releases: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who tries a held provider and has an answer, whatever it is, releases it; silence is none."""
    clock = Clock.of_breakers(monkeypatch)
    breaker = Breaker(5, 15)
    breaker.unreachable("AI service unavailable")
    clock.now += 1
    assert breaker.lets_through()
    error: JobError = faults.job_error(raised, "acme", "AI service")
    faults.record_failure(breaker, error, raised, counts=False)
    assert breaker.is_held is not releases


def test_held_says_whom_the_job_waits_for_and_why() -> None:
    """The owner hears the reason, the log the cause, as if this job had asked itself."""
    breaker = Breaker(5, 15)
    breaker.busy(5, "AI service is busy", "Answer: HTTP 429 from ai.example")
    error = faults.held_error("acme", breaker)
    assert (error.message, error.spends_attempt, error.provider) == ("AI service is busy", False, "acme")
    assert cause_of(error) == "Held: Answer: HTTP 429 from ai.example"
