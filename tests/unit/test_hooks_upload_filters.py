"""Filters of uploads: refusals, errors and holds, and filters without which no upload is accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.errors import DependencyUnavailable, NotReady, RetryableJobError, ValidationError
from pipeline.hooks import Analysis, UploadFacts
from tests.clock import Clock
from tests.fake_plugins import ManagerFactory
from tests.unit.hook_modules import (
    ERRORS,
    IMPL,
    REFUSAL,
    SKIPPED,
    RecordingObserver,
    analyze,
    break_down,
    make_upload,
    open_managers,
    refuse,
    upload_filter,
)


@pytest.fixture
def managers(io_loop: IOLoop) -> Iterator[ManagerFactory]:
    """A factory of managers; the test closes what it built."""
    yield from open_managers(io_loop)


@pytest.mark.gen_test
async def test_filter_refuses_an_upload_with_its_own_error(managers: ManagerFactory) -> None:
    """The ValidationError of a filter reaches the client unchanged, and no later filter is asked."""
    asked: list[str] = []
    manager = managers.open(
        upload_filter("after", asked), upload_filter("refuses", asked, refuse), upload_filter("before", asked)
    )
    with pytest.raises(ValidationError) as caught:
        await manager.validate_upload(make_upload())
    assert caught.value is REFUSAL
    assert asked == ["before", "refuses"]
    assert managers.count(ERRORS, "hook", "refuses") == 0, "a refusal is no error"


@pytest.mark.parametrize("kind", ["raises", "hangs"])
@pytest.mark.gen_test
async def test_broken_filter_refuses_nothing(managers: ManagerFactory, kind: str) -> None:
    """An upload continues if a filter raises an error or takes too long; the failure is logged and counted."""
    asked: list[str] = []
    broken = upload_filter("broken", asked, break_down if kind == "raises" else managers.hang)
    manager = managers.open(upload_filter("after", asked), broken, hook_timeout_seconds=0.05)
    with capture_logs() as logs:
        await manager.validate_upload(make_upload())
    assert asked == ["broken", "after"]
    assert [line["hook"] for line in logs if line["event"] == "hook_failed"] == ["validate_upload"]
    assert managers.count(ERRORS, "hook", "broken") == 1


@pytest.mark.gen_test
async def test_broken_filter_is_held_and_refusals_are_no_failures(managers: ManagerFactory) -> None:
    """A filter that fails in a row is held; a filter that refuses uploads works and is not held."""
    asked: list[str] = []
    answers = {"broken": break_down}
    manager = managers.open(
        upload_filter("broken", asked, lambda upload: answers["broken"](upload)), breaker_failures=2
    )
    for _ in range(5):
        await manager.validate_upload(make_upload())
    assert len(asked) == 2 and managers.count(SKIPPED, "hook", "broken") == 3
    changing = upload_filter("changing", asked, lambda upload: answers["changing"](upload))
    manager = managers.open(changing, breaker_failures=2)
    for _ in range(3):
        answers["changing"] = break_down
        await manager.validate_upload(make_upload())
        answers["changing"] = refuse
        with pytest.raises(ValidationError):
            await manager.validate_upload(make_upload())


@pytest.mark.gen_test
async def test_held_filter_is_released_by_an_answer(
    managers: ManagerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One upload tries the held filter; after its first answer, also a refusal, it is asked about every upload."""
    clock = Clock.of_breakers(monkeypatch)
    asked: list[str] = []
    answers: dict[str, Callable[[UploadFacts], Any]] = {"changing": break_down}
    changing = upload_filter("changing", asked, lambda upload: answers["changing"](upload))
    manager = managers.open(changing, breaker_failures=1)
    await manager.validate_upload(make_upload())
    answers["changing"] = refuse
    await manager.validate_upload(make_upload())
    assert len(asked) == 1
    clock.now += 1.1
    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(ValidationError):
                await manager.validate_upload(make_upload())
    assert [(line["event"], line["method"]) for line in logs] == [("plugin_released", "validate_upload")]


@pytest.mark.fault("P1")
@pytest.mark.gen_test
async def test_a_required_filter_that_fails_lets_nothing_pass(
    managers: ManagerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a required filter fails or is held, uploads are refused and results wait."""
    clock = Clock.of_breakers(monkeypatch)
    asked: list[str] = []
    answers: dict[str, Callable[..., Any]] = {"policy": break_down}

    def transform_analysis(analysis: Analysis) -> None:
        answers["policy"](analysis)

    policy = upload_filter("policy", asked, lambda upload: answers["policy"](upload))
    policy.transform_analysis = IMPL(transform_analysis)
    manager = managers.open(policy, breaker_failures=2, filters_required=("policy",), breaker_probe_seconds=8)
    seconds = []
    for _ in range(4):
        with pytest.raises(DependencyUnavailable, match="Uploads cannot be checked now") as refused:
            await manager.validate_upload(make_upload())
        seconds.append(refused.value.retry_after_seconds)
        with pytest.raises(DependencyUnavailable, match="Results cannot be checked now"):
            await analyze(manager)
    assert len(asked) == 2 and seconds == [5, 1, 1, 1], "the seconds until it is tried"
    clock.now += 1.1
    answers["policy"] = lambda _: None
    await manager.validate_upload(make_upload())
    assert (await analyze(manager)).brand.value == "Nike"


def caused_by_timeout(error: Exception) -> Exception:
    """Return the error with a TimeoutError as its cause."""
    error.__cause__ = TimeoutError()
    return error


@pytest.mark.fault("P1")
@pytest.mark.parametrize(
    ("error", "seconds", "reason"),
    [
        (DependencyUnavailable("It is busy", retry_after_seconds=30), (30, 30), "It is busy (DependencyUnavailable)"),
        (
            caused_by_timeout(RetryableJobError("It is busy", retry_after_seconds=29.5)),
            (30, 30),
            "It is busy (TimeoutError)",
        ),
        (RetryableJobError("Later", retry_after_seconds=9, spends_attempt=True), (9, 9), "Later (RetryableJobError)"),
        (
            caused_by_timeout(NotReady("It cannot be reached", 30)),
            (30, 30),
            "Not ready (It cannot be reached (TimeoutError))",
        ),
        (caused_by_timeout(DependencyUnavailable("It is down")), (1, 2), "It is down (TimeoutError)"),
        (ConnectionRefusedError("no"), (1, 2), "The hook failed (ConnectionRefusedError: no)"),
    ],
    ids=lambda each: repr(each)[:30],
)
@pytest.mark.gen_test
async def test_a_required_filter_that_names_a_time_or_cannot_be_reached_is_held_at_once(
    managers: ManagerFactory, monkeypatch: pytest.MonkeyPatch, error: Exception, seconds: tuple[int, int], reason: str
) -> None:
    """One error with a time, or one unreachable call, holds a required filter; clients get this time as Retry-After.

    Without a time the wait doubles. The status of the plugin shows the message of its author.
    """
    clock, asked = Clock.of_breakers(monkeypatch), list[str]()

    def raise_error(_: Any) -> None:
        raise error

    manager = managers.open(upload_filter("gate", asked, raise_error), filters_required=("gate",))
    (gate,) = (each for each in manager.all if each.name == "gate")
    for number, wait in enumerate(seconds, start=1):
        for _ in range(3):
            with pytest.raises(DependencyUnavailable, match="Uploads cannot be checked now") as refused:
                await manager.validate_upload(make_upload())
            assert refused.value.retry_after_seconds == wait
        assert (gate.status.state, gate.status.reason, len(asked)) == ("held", f"validate_upload: {reason}", number)
        clock.now += wait


@pytest.mark.gen_test
async def test_has_upload_filters_is_true_only_with_a_filter_of_uploads(managers: ManagerFactory) -> None:
    """Without a filter of uploads the service does not collect the facts of an upload."""
    assert not managers.open(RecordingObserver().module("watch")).has_upload_filters
    assert managers.open(upload_filter("one", [])).has_upload_filters
