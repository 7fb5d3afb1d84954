"""Providers in chains and by category: who is asked for which photo, when the next one is, and who is held."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.errors import (
    ConfigurationError,
    DependencyUnavailable,
    JobError,
    PermanentJobError,
    RetryableJobError,
)
from pipeline.hooks import Analysis, AnalyzeRequest, Attribute, Usage
from pipeline.hooks.manager import PluginManager, build_plugins
from pipeline.hooks.job_protocols import CallUsage
from pipeline.metrics import Metrics
from pipeline.settings import DEFAULT_CATEGORIES, Settings
from pipeline.testing import RecordingRooms
from tests.clock import Clock
from tests.fake_plugins import Analyze, ManagerFactory, make_analysis, make_request

REFUSED = PermanentJobError("AI service rejected the image (HTTP 422)")
FAILED = RetryableJobError("AI service unavailable")
BUSY = RetryableJobError("AI service is busy", retry_after_seconds=120)
UNREACHABLE = RetryableJobError("AI service unavailable", spends_attempt=False)


class Chain:
    """Providers that answer with their own name as brand, or as told; `asked` has their names in order."""

    def __init__(self, managers: ManagerFactory) -> None:
        self.managers = managers
        self.asked: list[str] = []
        self.requests: list[AnalyzeRequest] = []
        self.answers: dict[str, Any] = {}

    def provider(self, name: str) -> Analyze:
        async def analyze(request: AnalyzeRequest) -> Any:
            self.asked.append(name)
            self.requests.append(request)
            answer = self.answers.get(name, make_analysis(name))
            if isinstance(answer, Exception):
                raise answer
            return await answer(request) if callable(answer) else answer

        return analyze

    def open(self, *names: str, **settings: Any) -> PluginManager:
        return self.managers.open(providers={name: self.provider(name) for name in names}, **settings)


@pytest.fixture
def chain(io_loop: IOLoop) -> Iterator[Chain]:
    managers = ManagerFactory()
    with capture_logs():  # the console's way to print exceptions is slow
        yield Chain(managers)
    io_loop.run_sync(managers.close)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.of_breakers(monkeypatch)


async def no_image() -> bytes:
    raise AssertionError("nobody asked for the image")


async def ask(manager: PluginManager, category: str = "sneaker", **fields: Any) -> str:
    """Return the name of the provider whose result it is."""
    return (await manager.analyze(make_request(category, **fields), no_image)).brand.value


# who is next, and when


INVALID = Analysis(brand=Attribute("a", 7))


@pytest.mark.parametrize(
    ("answer", "attempt", "goes_on"),
    [
        (REFUSED, 1, True),  # another model may know what to do with it
        (FAILED, 1, False),  # its own backoff comes first
        (FAILED, 2, False),
        (FAILED, 3, True),  # the alternative is a failed job
        (FAILED, 7, True),
        (ValueError("a bug"), 2, False),
        (ValueError("a bug"), 3, True),
        (RetryableJobError("again", max_attempts=2), 1, False),
        (RetryableJobError("again", max_attempts=2), 2, True),  # it would not be asked a third time
        (RetryableJobError("again", max_attempts=9), 3, True),  # nor would anybody a fourth
        (INVALID, 1, False),
        (INVALID, 2, True),
        (BUSY, 1, True),  # nobody waits for it while another is free
        (UNREACHABLE, 1, True),
        (ConnectionRefusedError("a plugin that wraps nothing"), 1, True),
    ],
    ids=lambda each: repr(each)[:45],
)
@pytest.mark.gen_test
async def test_next_provider_is_asked_when_the_one_before_is_through(
    chain: Chain, answer: Any, attempt: int, goes_on: bool
) -> None:
    """For good refused, busy, or failed at the job's last attempt: then the next; else the job is tried again."""
    manager = chain.open("first", "second")
    chain.answers["first"] = answer
    with capture_logs() as logs:
        if goes_on:
            assert await ask(manager, attempt=attempt) == "second"
        else:
            with pytest.raises(RetryableJobError):
                await ask(manager, attempt=attempt)
    assert chain.asked == (["first", "second"] if goes_on else ["first"])
    passed_over = [line["plugin"] for line in logs if line["event"] == "provider_passed_over"]
    assert passed_over == (["first"] if goes_on else [])


@pytest.mark.parametrize("job_attempts", [1, 2, 5])
@pytest.mark.gen_test
async def test_last_attempt_is_the_one_the_settings_say(chain: Chain, job_attempts: int) -> None:
    """JOB_ATTEMPTS decides from when on the next provider is asked after a failure."""
    manager = chain.open("first", "second", job_attempts=job_attempts)
    chain.answers["first"] = FAILED
    for attempt in range(1, job_attempts):
        with pytest.raises(RetryableJobError):
            await ask(manager, attempt=attempt)
    assert await ask(manager, attempt=job_attempts) == "second"


@pytest.mark.gen_test
async def test_chain_is_asked_in_order_to_its_end(chain: Chain) -> None:
    """AI_PROVIDER gives the order; who answers ends the chain, and when all refuse the last one's word stands."""
    manager = chain.open("b", "a", "c", "d")
    last = PermanentJobError("No product in the image")
    chain.answers |= {"b": REFUSED, "a": REFUSED}
    assert await ask(manager) == "c"
    assert chain.asked == ["b", "a", "c"]
    chain.answers |= {"c": REFUSED, "d": last}
    with pytest.raises(PermanentJobError) as caught:
        await ask(manager)
    assert caught.value is last


@pytest.mark.gen_test
async def test_first_success_asks_nobody_else(chain: Chain) -> None:
    """A chain costs nothing while all is well."""
    assert await ask(chain.open("first", "second")) == "first"
    assert chain.asked == ["first"]


@pytest.mark.gen_test
async def test_name_twice_in_a_chain_is_asked_once(chain: Chain) -> None:
    """Who refused an image is not shown it again."""
    manager = chain.open("a", "b", ai_provider="a,a,b", ai_provider_by_category="lego=b+b")
    chain.answers |= {"a": REFUSED, "b": REFUSED}
    with pytest.raises(PermanentJobError):
        await ask(manager)
    with pytest.raises(PermanentJobError):
        await ask(manager, "lego")
    assert chain.asked == ["a", "b", "b"]


@pytest.mark.gen_test
async def test_missing_image_is_not_the_providers_fault(chain: Chain) -> None:
    """An image that cannot be read says nothing of who wanted to see it: nobody is held for it."""
    provider = chain.provider("first")
    provider.needs_image = True  # type: ignore[attr-defined]
    manager = chain.managers.open(providers={"first": provider, "second": chain.provider("second")}, breaker_failures=1)

    async def unreadable() -> bytes:
        raise DependencyUnavailable("Image storage unavailable")

    with pytest.raises(DependencyUnavailable):
        await manager.analyze(make_request(), unreadable)
    assert chain.asked == []
    assert chain.managers.count("pipeline_plugin_held", "provider", "first") == 0


@pytest.mark.gen_test
async def test_only_providers_that_want_the_image_get_it(chain: Chain) -> None:
    """The photo is read for those that say so, whatever their place in the chain."""
    wants = chain.provider("wants")
    wants.needs_image = True  # type: ignore[attr-defined]
    names = ("before", "wants", "after")
    functions = {name: wants if name == "wants" else chain.provider(name) for name in names}
    manager = chain.managers.open(providers=functions)
    chain.answers |= {"before": REFUSED, "wants": REFUSED}

    async def read_image() -> bytes:
        return b"photo"

    await manager.analyze(make_request(), read_image)
    assert [request.image for request in chain.requests] == [None, b"photo", None]


# time


@pytest.mark.gen_test
async def test_each_provider_is_given_what_is_left_of_the_jobs_time(chain: Chain) -> None:
    """A chain must not outlast the job: its later members get less, and know it."""
    manager = chain.open("first", "second", job_timeout_seconds=10, provider_timeout_seconds=9.4)

    async def refuse_slowly(request: AnalyzeRequest) -> None:
        await asyncio.sleep(0.2)  # the time it takes is the point
        raise REFUSED

    chain.answers["first"] = refuse_slowly
    assert await ask(manager) == "second"
    first, second = (request.timeout_seconds for request in chain.requests)
    assert first == pytest.approx(9.4) and 9 < second < 9.32


@pytest.mark.gen_test
async def test_provider_that_would_have_no_time_is_not_asked(chain: Chain) -> None:
    """Less than a second is no time for a photo: the error there is ends the attempt."""
    manager = chain.open("first", "second", job_timeout_seconds=1.2, provider_timeout_seconds=0.3, job_attempts=1)
    chain.answers["first"] = lambda request: asyncio.Event().wait()
    with pytest.raises(RetryableJobError, match="AI service timed out"):
        await ask(manager)
    assert chain.asked == ["first"]


@pytest.mark.gen_test
async def test_first_provider_is_asked_however_short_the_time(chain: Chain) -> None:
    """Whoever sets JOB_TIMEOUT_SECONDS to a second means it."""
    manager = chain.open("first", "second", job_timeout_seconds=0.6, provider_timeout_seconds=0.5)
    assert await ask(manager) == "first"
    assert chain.requests[0].timeout_seconds == pytest.approx(0.5)


@pytest.mark.gen_test
async def test_cancellation_ends_the_chain(chain: Chain) -> None:
    """A job that loses its lease while the second provider works asks no third, and nobody is blamed."""
    manager = chain.open("first", "second", "third", breaker_failures=1)
    begun = asyncio.Event()

    async def never(request: AnalyzeRequest) -> None:
        begun.set()
        await asyncio.Event().wait()

    chain.answers |= {"first": REFUSED, "second": never}
    task = asyncio.create_task(ask(manager))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert chain.asked == ["first", "second"]
    assert chain.managers.count("pipeline_plugin_held", "provider", "second") == 0


# held


async def fail(manager: PluginManager, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(JobError):
            await ask(manager)


async def fails(manager: PluginManager, category: str = "sneaker", tries: str = "") -> RetryableJobError:
    """Return the error of a photo that nobody analyzed."""
    with pytest.raises(RetryableJobError) as caught:
        await manager.analyze(make_request(category), no_image, tries)
    return caught.value


def is_held(chain: Chain, name: str) -> bool:
    return chain.managers.count("pipeline_plugin_held", "provider", name) == 1


@pytest.mark.gen_test
async def test_provider_that_fails_in_a_row_is_held_and_the_next_asked(chain: Chain, clock: Clock) -> None:
    """After BREAKER_FAILURES failures the next answers at once; each photo not shown to the first is counted."""
    manager = chain.open("first", "second", breaker_failures=3)
    chain.answers["first"] = FAILED
    await fail(manager, 2)
    assert await ask(manager) == "second", "the failure that holds it already goes on"
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
        (DependencyUnavailable("it is away"), "AI service unavailable"),
    ],
    ids=["unreachable", "busy", "a bare network error", "a dependency"],
)
@pytest.mark.gen_test
async def test_provider_that_did_not_work_at_all_is_held_at_once(chain: Chain, answer: Any, reason: str) -> None:
    """One failure to ask it is enough, also of the last of a chain: its photos would find the same."""
    manager = chain.open("only")
    chain.answers["only"] = answer
    with capture_logs() as logs:
        first = await fails(manager)
        later = await fails(manager)
    assert chain.asked == ["only"]
    for error in (first, later):
        assert (error.message, error.spends_attempt, error.provider) == (reason, False, "only")
    (held,) = (line for line in logs if line["event"] == "plugin_held")
    assert (held["kind"], held["plugin"], held["method"], held["reason"]) == ("provider", "only", "analyze", reason)
    assert held["cause"].startswith(type(answer).__name__) and held["leftMs"] > 0


@pytest.mark.fault("E5")
@pytest.mark.gen_test
async def test_provider_without_a_free_thread_could_not_be_asked(chain: Chain) -> None:
    """Photos that waited for the thread of another's call lose no attempt, and the provider is held."""
    managers = chain.managers
    manager = managers.open(
        providers={"only": managers.hang}, concurrency=1, pool_threads=1, provider_timeout_seconds=0.2
    )
    assert (await fails(manager)).spends_attempt
    error = await fails(manager)
    assert (error.message, error.spends_attempt, error.provider) == ("AI service is busy", False, "only")
    assert is_held(chain, "only")


@pytest.mark.gen_test
async def test_success_and_refusal_end_a_row_of_failures(chain: Chain, clock: Clock) -> None:
    """A provider that refuses an image works: only failures in a row say that it does not."""
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
    """After its wait one photo tries it while the others go on to the next; success releases it."""
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
    """One failure of a provider that is being tried is enough, and its photo goes to the next."""
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
async def test_photo_that_is_to_try_a_held_provider_asks_it_whatever_the_time(chain: Chain, clock: Clock) -> None:
    """Redis has picked it, over all processes; only the provider it names is asked out of turn."""
    manager = chain.open("first", "second")
    chain.answers |= {"first": UNREACHABLE, "second": UNREACHABLE}
    assert (await fails(manager)).provider == "second"
    assert (await fails(manager, tries="first")).provider
    assert chain.asked == ["first", "second", "first"]
    chain.answers = {}
    analysis = await manager.analyze(make_request(), no_image, "second")
    assert analysis.brand.value == "second"
    assert is_held(chain, "first") and not is_held(chain, "second")


@pytest.mark.gen_test
async def test_chain_that_is_held_as_a_whole_asks_nobody_and_costs_nothing(chain: Chain) -> None:
    """The photo waits for the chain and its owner hears why; a provider that is not held is asked as ever."""
    manager = chain.open("first", "second", "third", ai_provider="first,second", ai_provider_by_category="lego=third")
    chain.answers |= {"first": BUSY, "second": UNREACHABLE}
    await fails(manager)
    del chain.asked[:]
    error = await fails(manager)
    assert chain.asked == [] and (error.spends_attempt, error.provider) == (False, "first")
    assert error.message == "AI service is busy"
    assert await ask(manager, "lego") == "third"


@pytest.mark.parametrize("names", [("away", "other"), ("other", "away")], ids=["before it", "after it"])
@pytest.mark.parametrize("fault", [REFUSED, FAILED], ids=["refused", "failed"])
@pytest.mark.gen_test
async def test_photo_does_not_fail_while_a_provider_has_not_tried_it(
    chain: Chain, names: tuple[str, str], fault: JobError
) -> None:
    """Neither by the other one's refusal nor at the last attempt, and without spending one. Nobody else waits for that,
    so the error names no provider.
    """
    manager = chain.open(*names)
    chain.answers |= {"away": BUSY, "other": fault}
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
    """Retry-After holds it at the first word, for that long and for a second at least; then everybody asks it."""
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
async def test_log_tells_when_a_busy_provider_is_held_and_released(chain: Chain, clock: Clock) -> None:
    """Once each, however often it asks to wait before it answers; and anew the next time."""
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
async def test_last_provider_is_asked_however_it_answers(chain: Chain, clock: Clock) -> None:
    """There is nobody else: a provider that fails at every photo is asked for every photo, and never held."""
    manager = chain.open("first", "second", breaker_failures=1)
    chain.answers |= {"first": FAILED, "second": FAILED}
    await fail(manager, 4)
    assert chain.asked == ["first", "second", "second", "second", "second"]
    assert is_held(chain, "first") and not is_held(chain, "second")


@pytest.mark.gen_test
async def test_provider_without_a_next_one_is_never_said_to_be_held(chain: Chain, clock: Clock) -> None:
    """The gauge and the log tell what is so: the only provider is asked for every photo, whatever it answers."""
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
    """Which plugin, for which category, what its owner is told, type and text of the cause, and where it broke."""
    manager = chain.open("first", "second")
    bug = KeyError("brand")
    chain.answers |= {"first": REFUSED, "second": bug}
    with capture_logs() as logs:
        error = await fails(manager, "lego")
    assert error.__cause__ is bug
    failed = [line for line in logs if line["event"] == "provider_failed"]
    assert [(line["plugin"], line["category"], line["error"], line["cause"], line["log_level"]) for line in failed] == [
        ("first", "lego", REFUSED.message, f"PermanentJobError: {REFUSED.message}", "warning"),
        ("second", "lego", "AI service failed", "KeyError: 'brand'", "warning"),
    ]
    assert all(line["exc_info"] for line in failed)


# by category


@pytest.mark.gen_test
async def test_category_has_its_own_chain(chain: Chain) -> None:
    """AI_PROVIDER_BY_CATEGORY is followed for its categories, AI_PROVIDER for the others."""
    manager = chain.open(
        "general", "bricks", "shoes", ai_provider="general", ai_provider_by_category="lego=bricks+general,sneaker=shoes"
    )
    asked = {category: await ask(manager, category) for category in DEFAULT_CATEGORIES}
    assert asked == {"sneaker": "shoes", "lego": "bricks", "camera": "general", "other": "general"}
    chain.answers |= {"bricks": REFUSED, "shoes": REFUSED}
    assert await ask(manager, "lego") == "general"
    with pytest.raises(PermanentJobError):
        await ask(manager, "sneaker")


@pytest.mark.gen_test
async def test_provider_is_one_in_all_chains(chain: Chain, clock: Clock) -> None:
    """What is learnt from one category's photos serves the others, and each provider is built once."""
    manager = chain.open("a", "b", ai_provider="a,b", ai_provider_by_category={"lego": ("b", "a")}, breaker_failures=1)
    assert len([plugin for plugin in manager.all if plugin.kind == "provider"]) == 2
    chain.answers["b"] = FAILED
    assert [await ask(manager, "lego") for _ in range(2)] == ["a", "a"]
    assert chain.asked == ["b", "a", "a"]
    chain.answers["a"] = REFUSED
    error = await fails(manager)
    assert chain.asked[3:] == ["a"], "another chain has found that the last one does not answer"
    assert error.message == FAILED.message and not error.spends_attempt


@pytest.mark.parametrize(
    ("text", "chains"),
    [
        ("lego=acme", {"lego": ("acme",)}),
        (" lego = acme + local , sneaker=acme", {"lego": ("acme", "local"), "sneaker": ("acme",)}),
        ("lego=acme+,", {"lego": ("acme",)}),
        ("", {}),
    ],
)
def test_chains_are_read_from_text(text: str, chains: dict[str, tuple[str, ...]]) -> None:
    """Spaces and a separator too many do no harm."""
    assert Settings(ai_provider_by_category=text).ai_provider_by_category == chains


@pytest.mark.parametrize("text", ["lego", "lego=", "=acme", "lego=+", "lego=acme,sneaker"])
def test_chain_that_cannot_be_read_stops_the_start(text: str) -> None:
    """A category without a provider is a mistake, not the default."""
    with pytest.raises(ValueError, match="AI_PROVIDER_BY_CATEGORY must look like"):
        Settings(ai_provider_by_category=text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ai_provider": "htpp"}, "AI_PROVIDER: there is no provider 'htpp'; there are: .*http.* .did you mean http"),
        ({"ai_provider": "http,opnai"}, "there is no provider 'opnai'; .*did you mean openai"),
        ({"ai_provider_by_category": "lego=http+htpp"}, "there is no provider 'htpp'; .*did you mean http"),
        ({"storage_backend": "objct"}, "STORAGE_BACKEND: there is no storage 'objct'; .*did you mean object"),
        ({"notifiers": "websoket"}, "NOTIFIERS: there is no notifier 'websoket'; .*did you mean websocket"),
        ({"ai_provider": "quux"}, "there are: anthropic, gemini, http, local, openai$"),
    ],
    ids=str,
)
def test_name_that_is_none_stops_the_start_with_the_nearest(settings: dict[str, Any], message: str) -> None:
    """Who mistyped reads what there is; each member of every chain is looked at."""
    chosen = Settings(**{"ai_service_url": "http://127.0.0.1:9"} | settings)
    with pytest.raises(ConfigurationError, match=message):
        build_plugins(chosen, Metrics(), RecordingRooms())


# cascades


PARTIAL = Analysis(brand=Attribute("Nike", 0.9))
COLOURED = Analysis(brand=Attribute("Nike", 0.8), colorway=Attribute("red", 0.7))


@pytest.mark.parametrize(
    ("setting", "answers", "asked", "brand", "provider"),
    [
        ("a>b", {}, "a", "a", "a"),
        ("a>b", {"a": PARTIAL}, "ab", "b", "b"),
        ("a>b", {"a": COLOURED, "b": PARTIAL}, "ab", "Nike", "a"),
        ("a>b", {"a": PARTIAL, "b": PARTIAL}, "ab", "Nike", "b"),
        ("a>b>c", {"a": PARTIAL, "b": PARTIAL}, "abc", "c", "c"),
        ("a,b>c", {"a": PARTIAL}, "ac", "c", "c"),  # b would be asked instead of a, not after it
        ("a,b>c", {"a": REFUSED, "b": PARTIAL}, "abc", "c", "c"),
        ("a>b,c", {"a": PARTIAL, "b": BUSY}, "abc", "c", "c"),
        ("a>b", {"a": REFUSED}, "ab", "b", "b"),
        ("a>b", {"a": PARTIAL, "b": FAILED}, "ab", "Nike", "a"),  # half an answer is better than none
        ("a>b", {"a": PARTIAL, "b": UNREACHABLE}, "ab", "Nike", "a"),
        ("a > b > a", {"a": PARTIAL, "b": PARTIAL}, "ab", "Nike", "b"),
    ],
)
@pytest.mark.gen_test
async def test_cascade_goes_on_until_an_answer_is_complete(
    chain: Chain, setting: str, answers: dict[str, Any], asked: str, brand: str, provider: str
) -> None:
    """One of each stage is asked; the fullest answer counts, and its provider is the one that is told last."""
    chain.answers = {name: Analysis(Attribute(name, 0.9), Attribute("known", 0.9)) for name in "abc"} | answers
    told: list[str] = []

    class Told:
        def asked(self, provider: str) -> None:
            told.append(provider)

        def reported(self, share: float | None, partial: Any) -> None:
            raise AssertionError

    manager = chain.open("a", "b", "c", ai_provider="c", ai_provider_by_category=f"sneaker={setting.replace(',', '+')}")
    analysis = await manager.analyze(make_request("sneaker"), no_image, "", Told())
    assert ("".join(chain.asked), analysis.brand.value, told[-1]) == (asked, brand, provider)


@pytest.mark.parametrize("setting", ["a>", ">a", "a>>b", ">"])
def test_cascade_without_a_provider_is_refused(setting: str) -> None:
    """Also in the setting of a single category."""
    with pytest.raises(ValueError, match="AI_PROVIDER: a provider is missing before or after >"):
        Settings(ai_provider=setting)
    with pytest.raises(ValueError, match="AI_PROVIDER_BY_CATEGORY"):
        Settings(ai_provider_by_category=f"lego={setting.replace(',', '+')}")
    assert Settings(ai_provider="a>b,c").cascade("lego") == (("a",), ("b", "c"))


# usage


class Till:
    """A permit that lets everybody ask, and remembers what was paid: by provider, None for what is not known."""

    def __init__(self) -> None:
        self.paid: list[tuple[str, float | None]] = []
        self.kept: dict[str, Analysis] = {}
        self.without_turn: str = ""

    async def earlier_answer(self, provider: str) -> Analysis | None:
        return self.kept.get(provider)

    async def store_partial(self, provider: str, analysis: Analysis) -> None:
        self.kept[provider] = analysis

    async def allow(self, provider: str) -> None:
        return None

    async def begin(self, provider: str, *, waits: bool) -> RetryableJobError | None:
        return RetryableJobError("no turn", spends_attempt=False) if provider == self.without_turn else None

    async def end(self, provider: str, analysis: Analysis | None, failed_usage: CallUsage | None = None) -> None:
        paid = CallUsage(analysis.usage) if analysis is not None else failed_usage
        if paid is not None:
            self.paid.append((provider, paid.usage.cost if paid.usage else None))


@pytest.mark.parametrize(
    ("usage", "paid", "tokens"),
    [
        (Usage(100, 7, 0.5), [("a", 0.5), ("b", 0.25)], 100),
        (Usage(100, 7), [("a", None), ("b", 0.25)], 100),  # billed, and for how much is not known
        (None, [("b", 0.25)], None),  # not billed, as far as the provider knows
        *((each, [("a", None), ("b", 0.25)], None) for each in (Usage(cost=-1), Usage(cost=math.nan), 0.5, "free")),
        *((Usage(cost=each), [("a", None), ("b", 0.25)], None) for each in (math.inf, 1e12, True, "1")),
    ],
)
@pytest.mark.parametrize("kind", [PermanentJobError, RetryableJobError, None])
@pytest.mark.gen_test
async def test_what_a_refused_answer_cost_is_counted(
    chain: Chain, kind: Any, usage: Any, paid: list[Any], tokens: float | None
) -> None:
    """Of a model that refuses, an answer that was cut off, and one that is no valid result; what cannot be a cost is a
    price that is not known. The one that is asked instead is paid as well.
    """
    full = Analysis(Attribute("b", 0.9), Attribute("known", 0.9), usage=Usage(cost=0.25))
    wrong = Analysis(brand=Attribute("a", 7), usage=usage)
    chain.answers = {"a": kind("refused", usage=usage) if kind else wrong, "b": full}
    manager, till = chain.open("a", "b"), Till()
    analysis = await manager.analyze(make_request(attempt=3), no_image, permit=till)
    assert (analysis.brand.value, till.paid) == ("b", paid)
    labels = {"provider": "a", "model": "", "direction": "input"}
    assert chain.managers.metrics.registry.get_sample_value("pipeline_ai_tokens_total", labels) == tokens


@pytest.mark.gen_test
async def test_a_job_that_waits_for_the_next_stage_pays_the_first_one_once(chain: Chain) -> None:
    """Given back for want of a turn, it goes on where it was."""
    chain.answers = {"a": replace(PARTIAL, usage=Usage(cost=0.5)), "b": replace(COLOURED, usage=Usage(cost=0.25))}
    manager, till = chain.open("a", "b", ai_provider="a>b"), Till()
    till.without_turn = "b"
    for _ in range(3):
        with pytest.raises(RetryableJobError, match="no turn"):
            await manager.analyze(make_request(), no_image, permit=till)
    till.without_turn = ""
    assert (await manager.analyze(make_request(), no_image, permit=till)).colorway is not None
    assert (chain.asked, till.paid) == (["a", "b"], [("a", 0.5), ("b", 0.25)])


@pytest.mark.gen_test
async def test_usage_is_counted_by_provider_and_a_bounded_number_of_models(chain: Chain) -> None:
    """Of each answer that counts or not; a model whose name changes all the time is one of the others."""
    manager = chain.open("a", "b", ai_provider="a>b")
    chain.answers["a"] = Analysis(ai_model="mini", usage=Usage(1000, 50, 0.25))
    chain.answers["b"] = Analysis(ai_model="large", usage=Usage(output_tokens=7, currency="EUR"))
    await manager.analyze(make_request(), no_image)
    for number in range(30):
        chain.answers["b"] = Analysis(ai_model=f"nightly-{number}", usage=Usage(cost=0.5, currency="EUR"))
        await manager.analyze(make_request(), no_image)

    def value(name: str, provider: str, model: str, **labels: str) -> float | None:
        return chain.managers.metrics.registry.get_sample_value(
            f"pipeline_ai_{name}_total", {"provider": provider, "model": model} | labels
        )

    assert value("calls", "a", "mini") == 31 and value("cost", "a", "mini", currency="USD") == 7.75
    assert value("tokens", "a", "mini", direction="input") == 31_000
    assert value("tokens", "b", "large", direction="output") == 7
    assert value("calls", "b", "nightly-0") == 1 and value("cost", "b", "large", currency="EUR") is None
    assert value("calls", "b", "other") == 11 and value("cost", "b", "other", currency="EUR") == 5.5
