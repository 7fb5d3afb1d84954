"""Held providers in a chain: which errors hold a provider, for how long, and what its photos do meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.errors import DependencyUnavailable, JobError, RetryableJobError
from pipeline.hooks import Analysis, AnalyzeRequest
from tests.clock import Clock
from tests.fake_plugins import make_analysis, make_request
from tests.unit.provider_chains import (
    BUSY,
    FAILED,
    INVALID,
    REFUSED,
    UNREACHABLE,
    Chain,
    ask,
    fail,
    failure,
    is_held,
    no_image,
    open_chain,
)


@pytest.fixture
def chain(io_loop: IOLoop) -> Iterator[Chain]:
    yield from open_chain(io_loop)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.of_breakers(monkeypatch)


@pytest.mark.gen_test
async def test_provider_that_fails_in_a_row_is_held_and_the_next_asked(chain: Chain, clock: Clock) -> None:
    """After BREAKER_FAILURES failures photos use the next provider at once; each photo that skips the first counts."""
    manager = chain.open("first", "second", breaker_failures=3)
    chain.answers["first"] = FAILED
    await fail(manager, 2)
    assert await ask(manager) == "second", "the photo whose failure holds the first goes to the second"
    del chain.asked[:]
    assert [await ask(manager) for _ in range(4)] == ["second"] * 4
    assert chain.asked == ["second"] * 4
    assert is_held(chain, "first")
    assert chain.managers.count("pipeline_plugin_skipped_total", "provider", "first") == 4


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (UNREACHABLE, "AI service unavailable"),
        (BUSY, "AI service is busy"),
        (ConnectionRefusedError("no"), "AI service unavailable"),
        (DependencyUnavailable("it is unreachable"), "AI service unavailable"),
    ],
    ids=["unreachable", "busy", "a bare network error", "a dependency"],
)
@pytest.mark.gen_test
async def test_provider_that_cannot_be_reached_is_held_at_once(chain: Chain, answer: Any, reason: str) -> None:
    """One call that does not reach the provider holds it, also the last one of a chain; later photos wait."""
    manager = chain.open("only")
    chain.answers["only"] = answer
    with capture_logs() as logs:
        first = await failure(manager)
        later = await failure(manager)
    assert chain.asked == ["only"]
    for error in (first, later):
        assert (error.message, error.spends_attempt, error.provider) == (reason, False, "only")
    (held,) = (line for line in logs if line["event"] == "plugin_held")
    assert (held["kind"], held["plugin"], held["method"], held["reason"]) == ("provider", "only", "analyze", reason)
    assert held["cause"].startswith(type(answer).__name__) and held["leftMs"] > 0


@pytest.mark.fault("E5")
@pytest.mark.gen_test
async def test_provider_without_a_free_thread_is_held(chain: Chain) -> None:
    """A photo that waited in vain for a thread spends no attempt, and the provider is held."""
    managers = chain.managers
    manager = managers.open(
        providers={"only": managers.hang}, concurrency=1, pool_threads=1, provider_timeout_seconds=0.2
    )
    assert (await failure(manager)).spends_attempt
    error = await failure(manager)
    assert (error.message, error.spends_attempt, error.provider) == ("AI service is busy", False, "only")
    assert is_held(chain, "only")


@pytest.mark.gen_test
async def test_success_and_refusal_end_a_row_of_failures(chain: Chain, clock: Clock) -> None:
    """A success or a refusal of a photo resets the count of failures: a provider that refuses a photo works."""
    manager = chain.open("first", "second", breaker_failures=3)
    for answer in (make_analysis("first"), REFUSED):
        chain.answers["first"] = FAILED
        await fail(manager, 2)
        chain.answers["first"] = answer
        await ask(manager)
    chain.answers["first"] = FAILED
    await fail(manager, 2)
    assert not is_held(chain, "first")


@pytest.mark.gen_test
async def test_held_provider_is_tried_by_one_photo_at_a_time(chain: Chain, clock: Clock) -> None:
    """After its wait one photo tries the held provider while others use the next one; a success releases it."""
    manager = chain.open("first", "second", breaker_failures=1)
    chain.answers["first"] = FAILED
    assert await ask(manager) == "second"
    clock.now += 0.9
    assert await ask(manager) == "second"
    assert chain.asked == ["first", "second", "second"]
    clock.now += 0.2
    released = asyncio.Event()

    async def slow(request: AnalyzeRequest) -> Analysis:
        await released.wait()
        return make_analysis("first")

    chain.answers["first"] = slow
    photos = [asyncio.create_task(ask(manager)) for _ in range(3)]
    assert [await photo for photo in photos[1:]] == ["second", "second"]
    released.set()
    with capture_logs() as logs:
        assert await photos[0] == "first"
    assert [(line["event"], line["plugin"]) for line in logs] == [("plugin_released", "first")]
    assert not is_held(chain, "first")
    assert await ask(manager) == "first"


@pytest.mark.gen_test
async def test_waits_between_tries_double_up_to_the_longest(chain: Chain, clock: Clock) -> None:
    """One failure of a tried provider starts the next wait, and the photo goes to the next provider."""
    manager = chain.open("first", "second", breaker_failures=2, breaker_probe_seconds=5)
    chain.answers["first"] = FAILED
    await fail(manager)
    assert await ask(manager) == "second"
    for seconds in (1, 2, 4, 5, 5):
        del chain.asked[:]
        clock.now += seconds - 0.1
        assert await ask(manager) == "second"
        clock.now += 0.2
        assert [await ask(manager), await ask(manager)] == ["second", "second"]
        assert chain.asked == ["second", "first", "second", "second"]


@pytest.mark.gen_test
async def test_photo_that_redis_picks_tries_a_held_provider_at_any_time(chain: Chain, clock: Clock) -> None:
    """The job that Redis picked for a try asks the named provider before its wait is over, and no other held one."""
    manager = chain.open("first", "second")
    chain.answers |= {"first": UNREACHABLE, "second": UNREACHABLE}
    assert (await failure(manager)).provider == "second"
    assert (await failure(manager, tries="first")).provider
    assert chain.asked == ["first", "second", "first"]
    chain.answers = {}
    analysis = await manager.analyze(make_request(), no_image, "second")
    assert analysis.brand.value == "second"
    assert is_held(chain, "first") and not is_held(chain, "second")


@pytest.mark.gen_test
async def test_chain_whose_providers_are_all_held_spends_no_attempt(chain: Chain) -> None:
    """The photo waits and its owner gets the reason; other chains whose provider is not held are asked as before."""
    manager = chain.open("first", "second", "third", ai_provider="first,second", ai_provider_by_category="lego=third")
    chain.answers |= {"first": BUSY, "second": UNREACHABLE}
    await failure(manager)
    del chain.asked[:]
    error = await failure(manager)
    assert chain.asked == [] and (error.spends_attempt, error.provider) == (False, "first")
    assert error.message == "AI service is busy"
    assert await ask(manager, "lego") == "third"


@pytest.mark.parametrize("names", [("busy", "other"), ("other", "busy")], ids=["before it", "after it"])
@pytest.mark.parametrize("fault", [REFUSED, FAILED], ids=["refused", "failed"])
@pytest.mark.gen_test
async def test_photo_does_not_fail_while_a_provider_has_not_tried_it(
    chain: Chain, names: tuple[str, str], fault: JobError
) -> None:
    """A photo waits for a busy provider after a refusal or a failure of the other one, also at the last attempt.

    It spends no attempt. The error names no provider, because only this photo waits for the busy one.
    """
    manager = chain.open(*names)
    chain.answers |= {"busy": BUSY, "other": fault}
    for asked in (list(names), ["other"]):
        with pytest.raises(RetryableJobError) as caught:
            await ask(manager, attempt=3)
        error = caught.value
        assert chain.asked == asked
        assert (error.message, error.spends_attempt, error.provider) == (BUSY.message, False, "")
        assert error.__cause__ is fault
        del chain.asked[:]
    assert not is_held(chain, "other")


@pytest.mark.gen_test
async def test_busy_provider_is_held_for_as_long_as_it_asked(chain: Chain, clock: Clock) -> None:
    """One Retry-After holds the provider for its time, a second at least; after that all photos use it."""
    manager = chain.open("first", "second")
    chain.answers["first"] = BUSY
    await ask(manager)
    chain.answers = {}
    clock.now += 119
    assert await ask(manager) == "second"
    clock.now += 2
    assert await asyncio.gather(ask(manager), ask(manager)) == ["first", "first"]
    chain.answers["first"] = RetryableJobError("busy", retry_after_seconds=0)
    await ask(manager)
    clock.now += 0.9
    assert await ask(manager) == "second"


@pytest.mark.gen_test
async def test_log_has_one_line_when_a_busy_provider_is_held_and_released(chain: Chain, clock: Clock) -> None:
    """Several busy replies in a row make one line for the hold and one for its end; the next hold makes new lines."""
    manager = chain.open("only")
    with capture_logs() as logs:
        for _ in range(2):
            for chain.answers["only"] in (BUSY, BUSY, make_analysis()):
                await asyncio.gather(ask(manager), return_exceptions=True)
                clock.now += 121
    events = [line["event"] for line in logs if line["event"].startswith("plugin_")]
    assert events == ["plugin_held", "plugin_released"] * 2


@pytest.mark.fault("E1")
@pytest.mark.gen_test
async def test_last_provider_is_not_held_for_failures(chain: Chain, clock: Clock) -> None:
    """The last provider of a chain is asked for every photo, also if it fails for every photo."""
    manager = chain.open("first", "second", breaker_failures=1)
    chain.answers |= {"first": FAILED, "second": FAILED}
    await fail(manager, 4)
    assert chain.asked == ["first", "second", "second", "second", "second"]
    assert is_held(chain, "first") and not is_held(chain, "second")


@pytest.mark.gen_test
async def test_only_provider_is_not_held_for_any_kind_of_failure(chain: Chain, clock: Clock) -> None:
    """The only provider is asked for every photo after any failure; neither the gauge nor the log says it is held."""
    manager = chain.open("only", breaker_failures=2, provider_timeout_seconds=0.05)
    answers = (FAILED, REFUSED, INVALID, ValueError("a bug"), TimeoutError(), lambda request: asyncio.Event().wait())
    for chain.answers["only"] in answers:
        with capture_logs() as logs:
            await fail(manager, 3)
        assert {line["event"] for line in logs} == {"provider_failed"} and not is_held(chain, "only")
    assert len(chain.asked) == 3 * len(answers)


@pytest.mark.fault("E25")
@pytest.mark.gen_test
async def test_each_failure_of_a_provider_is_logged_once_with_its_trace(chain: Chain) -> None:
    """The line has the plugin, the category, the message for the owner, the cause and the traceback."""
    manager = chain.open("first", "second")
    bug = KeyError("brand")
    chain.answers |= {"first": REFUSED, "second": bug}
    with capture_logs() as logs:
        error = await failure(manager, "lego")
    assert error.__cause__ is bug
    failed = [line for line in logs if line["event"] == "provider_failed"]
    assert [(line["plugin"], line["category"], line["error"], line["cause"], line["log_level"]) for line in failed] == [
        ("first", "lego", REFUSED.message, f"PermanentJobError: {REFUSED.message}", "warning"),
        ("second", "lego", "AI service failed", "KeyError: 'brand'", "warning"),
    ]
    assert all(line["exc_info"] for line in failed)
