"""Chains of AI providers: which provider is asked for a photo, when the next one is, and how long each may take."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.errors import ConfigurationError, DependencyUnavailable, PermanentJobError, RetryableJobError
from pipeline.hooks import AnalyzeRequest
from pipeline.hooks.manager import build_plugins
from pipeline.metrics import Metrics
from pipeline.settings import DEFAULT_CATEGORIES, Settings
from pipeline.testing import RecordingRooms
from tests.clock import Clock
from tests.fake_plugins import make_request
from tests.unit.provider_chains import BUSY, FAILED, INVALID, REFUSED, UNREACHABLE, Chain, ask, failure, open_chain


@pytest.fixture
def chain(io_loop: IOLoop) -> Iterator[Chain]:
    yield from open_chain(io_loop)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.of_breakers(monkeypatch)


@pytest.mark.parametrize(
    ("answer", "attempt", "is_next_asked"),
    [
        (REFUSED, 1, True),  # another model may analyze it
        (FAILED, 1, False),  # its own retries come first
        (FAILED, 2, False),
        (FAILED, 3, True),  # without the next provider the job would fail
        (FAILED, 7, True),
        (ValueError("a bug"), 2, False),
        (ValueError("a bug"), 3, True),
        (RetryableJobError("again", max_attempts=2), 1, False),
        (RetryableJobError("again", max_attempts=2), 2, True),  # the provider would not be asked a third time
        (RetryableJobError("again", max_attempts=9), 3, True),  # no provider would be asked a fourth time
        (INVALID, 1, False),
        (INVALID, 2, True),
        (BUSY, 1, True),  # no job waits for it while another provider is free
        (UNREACHABLE, 1, True),
        (ConnectionRefusedError("a plugin that wraps nothing"), 1, True),
    ],
    ids=lambda each: repr(each)[:45],
)
@pytest.mark.gen_test
async def test_next_provider_is_asked_when_a_retry_of_the_first_is_useless(
    chain: Chain, answer: Any, attempt: int, is_next_asked: bool
) -> None:
    """After a permanent error, a busy reply or a failure at the last attempt the next provider is asked.

    After any other failure the job is retried.
    """
    manager = chain.open("first", "second")
    chain.answers["first"] = answer
    with capture_logs() as logs:
        if is_next_asked:
            assert await ask(manager, attempt=attempt) == "second"
        else:
            with pytest.raises(RetryableJobError):
                await ask(manager, attempt=attempt)
    assert chain.asked == (["first", "second"] if is_next_asked else ["first"])
    passed_over = [line["plugin"] for line in logs if line["event"] == "provider_passed_over"]
    assert passed_over == (["first"] if is_next_asked else [])


@pytest.mark.parametrize("job_attempts", [1, 2, 5])
@pytest.mark.gen_test
async def test_last_attempt_is_the_one_the_settings_say(chain: Chain, job_attempts: int) -> None:
    """JOB_ATTEMPTS sets the attempt from which on the next provider is asked after a failure."""
    manager = chain.open("first", "second", job_attempts=job_attempts)
    chain.answers["first"] = FAILED
    for attempt in range(1, job_attempts):
        with pytest.raises(RetryableJobError):
            await ask(manager, attempt=attempt)
    assert await ask(manager, attempt=job_attempts) == "second"


@pytest.mark.gen_test
async def test_chain_is_asked_in_order_to_its_end(chain: Chain) -> None:
    """AI_PROVIDER sets the order; the first answer ends the chain; if all refuse, the error of the last one counts."""
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
async def test_first_success_asks_no_other_provider(chain: Chain) -> None:
    """While the first provider answers, the others are not called."""
    assert await ask(chain.open("first", "second")) == "first"
    assert chain.asked == ["first"]


@pytest.mark.gen_test
async def test_name_twice_in_a_chain_is_asked_once(chain: Chain) -> None:
    """A provider that refused a photo does not get the same photo a second time."""
    manager = chain.open("a", "b", ai_provider="a,a,b", ai_provider_by_category="lego=b+b")
    chain.answers |= {"a": REFUSED, "b": REFUSED}
    with pytest.raises(PermanentJobError):
        await ask(manager)
    with pytest.raises(PermanentJobError):
        await ask(manager, "lego")
    assert chain.asked == ["a", "b", "b"]


@pytest.mark.gen_test
async def test_unreadable_image_holds_no_provider(chain: Chain) -> None:
    """If the image cannot be read from the storage, the provider that needs it is not held."""
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
async def test_only_providers_that_need_the_image_get_it(chain: Chain) -> None:
    """The image is read for the providers with needs_image, at any position of the chain."""
    needy = chain.provider("needy")
    needy.needs_image = True  # type: ignore[attr-defined]
    names = ("before", "needy", "after")
    functions = {name: needy if name == "needy" else chain.provider(name) for name in names}
    manager = chain.managers.open(providers=functions)
    chain.answers |= {"before": REFUSED, "needy": REFUSED}

    async def read_image() -> bytes:
        return b"photo"

    await manager.analyze(make_request(), read_image)
    assert [request.image for request in chain.requests] == [None, b"photo", None]


@pytest.mark.gen_test
async def test_each_provider_gets_the_rest_of_the_time_of_the_job(chain: Chain) -> None:
    """The timeout of a later provider is shorter: all providers together must end within the timeout of the job."""
    manager = chain.open("first", "second", job_timeout_seconds=10, provider_timeout_seconds=9.4)

    async def refuse_slowly(request: AnalyzeRequest) -> None:
        await asyncio.sleep(0.2)  # the test is about this time
        raise REFUSED

    chain.answers["first"] = refuse_slowly
    assert await ask(manager) == "second"
    first, second = (request.timeout_seconds for request in chain.requests)
    assert first == pytest.approx(9.4) and 9 < second < 9.32


@pytest.mark.gen_test
async def test_provider_with_less_than_a_second_is_not_asked(chain: Chain) -> None:
    """With less than a second left no other provider is asked: the error of the first one ends the attempt."""
    manager = chain.open("first", "second", job_timeout_seconds=1.2, provider_timeout_seconds=0.3, job_attempts=1)
    chain.answers["first"] = lambda request: asyncio.Event().wait()
    with pytest.raises(RetryableJobError, match="AI service timed out"):
        await ask(manager)
    assert chain.asked == ["first"]


@pytest.mark.gen_test
async def test_first_provider_is_asked_with_any_timeout(chain: Chain) -> None:
    """The first provider is asked also if JOB_TIMEOUT_SECONDS is less than a second."""
    manager = chain.open("first", "second", job_timeout_seconds=0.6, provider_timeout_seconds=0.5)
    assert await ask(manager) == "first"
    assert chain.requests[0].timeout_seconds == pytest.approx(0.5)


@pytest.mark.gen_test
async def test_cancellation_ends_the_chain(chain: Chain) -> None:
    """A job that loses its lease while the second provider works asks no third one, and no provider is held."""
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


@pytest.mark.gen_test
async def test_category_has_its_own_chain(chain: Chain) -> None:
    """AI_PROVIDER_BY_CATEGORY sets the chains of its categories, AI_PROVIDER the chain of all others."""
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
async def test_provider_is_the_same_in_all_chains(chain: Chain, clock: Clock) -> None:
    """Each provider is built once; a hold that the photos of one category cause counts for all categories."""
    manager = chain.open("a", "b", ai_provider="a,b", ai_provider_by_category={"lego": ("b", "a")}, breaker_failures=1)
    assert len([plugin for plugin in manager.all if plugin.kind == "provider"]) == 2
    chain.answers["b"] = FAILED
    assert [await ask(manager, "lego") for _ in range(2)] == ["a", "a"]
    assert chain.asked == ["b", "a", "a"]
    chain.answers["a"] = REFUSED
    error = await failure(manager)
    assert chain.asked[3:] == ["a"], "the other chain has found that provider b fails"
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
    """Spaces and an additional separator are ignored."""
    assert Settings(ai_provider_by_category=text).ai_provider_by_category == chains


@pytest.mark.parametrize("text", ["lego", "lego=", "=acme", "lego=+", "lego=acme,sneaker"])
def test_invalid_chain_stops_the_start(text: str) -> None:
    """A category without a provider is an error; it does not mean the default provider."""
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
def test_unknown_name_stops_the_start_with_the_nearest_name(settings: dict[str, Any], message: str) -> None:
    """The message has the existing names and the nearest one; each name of every chain is checked."""
    chosen = Settings(**{"ai_service_url": "http://127.0.0.1:9"} | settings)
    with pytest.raises(ConfigurationError, match=message):
        build_plugins(chosen, Metrics(), RecordingRooms())
