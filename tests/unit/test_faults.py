"""Exceptions of plugins: the text for operators, the error and the cost for the job, and whether the plugin is held."""

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
    """Return the error with this cause."""
    error.__cause__ = cause
    return error


@pytest.mark.fault("P1")
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NotReady("no licence"), "NotReady: no licence"),
        (caused(NotReady("NATS cannot be reached"), TimeoutError()), "NATS cannot be reached (TimeoutError)"),
        (caused(NotReady("token=hidden is invalid"), REFUSED),
         "token=*** is invalid (ConnectionRefusedError: Connection refused)"),
        (caused(NotReady(str(REFUSED)), REFUSED), "ConnectionRefusedError: Connection refused"),
        (caused(NotReady("NATS: TimeoutError"), TimeoutError()), "NATS: TimeoutError"),
        (caused(RuntimeError("odd"), KeyError("a")), "RuntimeError: odd (KeyError: 'a')"),
        (caused(RuntimeError(), KeyError("a")), "RuntimeError (KeyError: 'a')"),
    ],
    ids=lambda each: repr(each)[:40],
)  # fmt: skip
def test_text_for_operators_has_the_message_and_its_cause(error: Exception, expected: str) -> None:
    """The text has the message of the author and the cause, each once, without secrets and of limited length."""
    assert plugin_error_text(error) == expected
    assert len(plugin_error_text(caused(NotReady("x" * 999), TimeoutError()))) == 300


@pytest.mark.parametrize(
    ("raised", "message", "spends_attempt", "remark"),
    [
        (RetryableJobError("It is closed"), "It is closed", True, "the message of the plugin"),
        (caused(RetryableJobError("It is closed"), REFUSED), "It is closed", False, "the cause decides"),
        (caused(RetryableJobError("No", spends_attempt=True), REFUSED), "No", True, "the plugin decides first"),
        (caused(RetryableJobError("No"), TimeoutError()), "No", True, "the plugin was called"),
        (RetryableJobError("Slow down", retry_after_seconds=3), "Slow down", False, "busy"),
        (RetryableJobError("No", retry_after_seconds=3, spends_attempt=True), "No", True, "the plugin decides first"),
        (DependencyUnavailable("Our Redis is down"), "AI service unavailable", False, "a dependency is down"),
        (REFUSED, "AI service unavailable", False, "a network error without a wrapper"),
        (PluginBusy("no thread"), "AI service is busy", False, "no thread got the photo"),
        (PluginOverrun("90 s"), "AI service timed out", True, "the plugin worked on the photo"),
        (TimeoutError(), "AI service failed", True, "an unknown error is not permanent"),
        (KeyError("secret"), "AI service failed", True, "the text of an unknown error is not shown"),
    ],
    ids=lambda each: repr(each)[:60],
)
def test_job_error_says_what_the_attempt_costs(
    raised: Exception, message: str, spends_attempt: bool, remark: str
) -> None:
    """An attempt is spent if the plugin got the photo; else the error names the provider for which the job waits."""
    error = faults.job_error(raised, "acme", "AI service")
    assert isinstance(error, RetryableJobError)
    assert (error.message, error.spends_attempt) == (message, spends_attempt), remark
    assert error.provider == ("" if spends_attempt else "acme")


def test_job_error_leaves_a_refusal_as_it_is() -> None:
    """A permanent error stays permanent for any cause."""
    refusal = caused(PermanentJobError("No product"), REFUSED)
    assert faults.job_error(refusal, "acme", "AI service") is refusal


@pytest.mark.parametrize(
    ("raised", "counts", "found", "is_held"),
    [
        (REFUSED, False, [ProviderState.AWAY], True),
        (PluginBusy("no thread"), False, [ProviderState.AWAY], True),
        (DependencyUnavailable("Our Redis is down"), False, [ProviderState.AWAY], True),
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
def test_recorded_failure_holds_a_provider_that_no_job_should_call_now(
    raised: Exception, counts: bool, found: list[ProviderState], is_held: bool
) -> None:
    """A provider that cannot be reached is held at once.

    A provider with a next one in its chain (`counts`) is held after a number of failures, here one.
    """
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
def test_any_answer_releases_a_tried_provider(
    raised: Exception, releases: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any answer to a try releases a held provider; a timeout is no answer."""
    clock = Clock.of_breakers(monkeypatch)
    breaker = Breaker(5, 15)
    breaker.unreachable("AI service unavailable")
    clock.now += 1
    assert breaker.lets_through()
    error: JobError = faults.job_error(raised, "acme", "AI service")
    faults.record_failure(breaker, error, raised, counts=False)
    assert breaker.is_held is not releases


def test_error_of_a_held_provider_has_its_name_and_reason() -> None:
    """The owner of the job gets the reason and the log the cause, as if this job had called the provider."""
    breaker = Breaker(5, 15)
    breaker.busy(5, "AI service is busy", "Answer: HTTP 429 from ai.example")
    error = faults.held_error("acme", breaker)
    assert (error.message, error.spends_attempt, error.provider) == ("AI service is busy", False, "acme")
    assert cause_of(error) == "Held: Answer: HTTP 429 from ai.example"
