"""The providers `openai`, `anthropic` and `gemini` against real HTTP servers: what they send, what they believe, whose
fault an error is. Every test is of all three unless it says otherwise.
"""

from __future__ import annotations

import asyncio
import io
import json
import socket
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import ExifTags, Image
from tornado.ioloop import IOLoop

from pipeline.demo import pictures
from pipeline.errors import ConfigurationError, DependencyUnavailable, JobError, PermanentJobError, RetryableJobError
from pipeline.hooks import UNKNOWN, AIProvider, AnalyzeRequest, Attribute, Rate, Usage
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.context import ContextFactory, trace_of_call
from pipeline.hooks.kinds import PROVIDER
from pipeline.hooks.limits import sees_of
from pipeline.hooks.values import MemoryValues
from pipeline.metrics import Metrics
from pipeline.sandbox.sandbox import Sandbox
from pipeline.settings import Settings
from pipeline.testing import AIProviderSuite
from pipeline.plugins.vision import prompt as prompts
from pipeline.plugins.vision.provider import HOLD_SECONDS, NO_QUOTA, REFUSED, VisionProvider
from tests.factories import make_image, make_noise_image
from tests.service import Service
from tests.vision_fakes import FAKES
from tests.vision_server import KEY, PRODUCT, FakeVision, Reply

NAMES = sorted(FAKES)
UNREADABLE = "AI service sent an unreadable reply"
UNAVAILABLE, BUSY = "AI service unavailable", "AI service is busy"
NIKE = (Attribute("Nike", 0.93), Attribute("Air Max 90", 0.88), Attribute("Infrared", 0.71))
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PRICES = {"INPUT_PRICE": "0.25", "OUTPUT_PRICE": "2"}
RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "58.2s"}
PER_DAY = {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}
QUOTA_FAILURE = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [PER_DAY]}
NOON = {"Date": "Sun, 29 Nov 2026 12:00:00 GMT"}


@pytest.fixture(params=NAMES)
def endpoint(request: pytest.FixtureRequest, io_loop: IOLoop) -> Iterator[FakeVision]:
    """A fake endpoint on the test's loop, one after the other of each maker."""
    fake = FAKES[request.param]()
    fake.start()
    yield fake
    io_loop.run_sync(fake.stop)


@pytest.fixture
def provider(io_loop: IOLoop, endpoint: FakeVision, sandbox: Sandbox) -> Iterator[VisionProvider]:
    """The provider that speaks to it."""
    provider = build(endpoint, sandbox)
    yield provider
    io_loop.run_sync(provider.close)


def with_variables(name: str, **variables: str) -> Settings:
    """Return settings with these PLUGIN_<NAME>_... variables."""
    return Settings().with_plugin_variables({f"PLUGIN_{name.upper()}_{each}": text for each, text in variables.items()})


def factory(name: str, settings: Settings, sandbox: Sandbox) -> AIProvider:
    """Return the provider as its module makes it."""
    ((offered, build),) = import_module(f"pipeline.plugins.ai_{name}").register_ai_providers(settings, sandbox)
    assert offered == name
    provider: AIProvider = build()
    return provider


def build(endpoint: FakeVision, sandbox: Sandbox, **variables: str) -> VisionProvider:
    """Return the provider as the service builds it."""
    given = {"API_KEY": KEY, "BASE_URL": endpoint.url} | variables
    provider = factory(endpoint.name, with_variables(endpoint.name, **given), sandbox)
    assert isinstance(provider, VisionProvider)
    return provider


def make_request(**fields: Any) -> AnalyzeRequest:
    request = AnalyzeRequest(
        image_url="https://images.example/secret-place.jpg",
        category="sneaker",
        asset_id="65f0c0ffee65f0c0ffee65f0",
        job_id="ai-processing:65f0c0ffee65f0c0ffee65f0",
        request_id="request-1",
        attempt=1,
        timeout_seconds=10,
        image=make_image(),
    )
    return replace(request, **fields)


async def failure(provider: VisionProvider, **fields: Any) -> JobError:
    with pytest.raises(JobError) as caught:
        await provider.analyze(make_request(**fields))
    return caught.value


def product(**changes: Any) -> dict[str, Any]:
    return {**PRODUCT, **changes}


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


class VisionSuite(AIProviderSuite):
    """What every provider must do."""

    name: str

    @pytest.fixture
    def provider(self, loop: asyncio.AbstractEventLoop, sandbox: Sandbox) -> Iterator[AIProvider]:
        fake = FAKES[self.name]()

        async def start() -> None:
            fake.start()

        loop.run_until_complete(start())
        yield build(fake, sandbox)
        loop.run_until_complete(fake.stop())


class TestOpenAi(VisionSuite):
    """The built-in provider `openai`."""

    name = "openai"


class TestAnthropic(VisionSuite):
    """The built-in provider `anthropic`."""

    name = "anthropic"


class TestGemini(VisionSuite):
    """The built-in provider `gemini`."""

    name = "gemini"


@pytest.mark.gen_test(timeout=60)
async def test_analyze_sends_the_photo_and_returns_what_the_model_sees(
    endpoint: FakeVision, sandbox: Sandbox
) -> None:
    """Brand, model and colorway, told by the model itself, with tokens, cost, model and prompt. The photo goes along as
    a JPEG; the image's URL is nowhere, the ids only where they are needed; text in the photo is said to be no order.
    """
    provider = build(endpoint, sandbox, **PRICES, CALLS_PER_MINUTE="30")
    analysis = await provider.analyze(make_request(trace_context=TRACE))
    assert (analysis.brand, analysis.model, analysis.colorway) == NIKE
    input_tokens, output_tokens = endpoint.tokens
    cost = pytest.approx((input_tokens * 0.25 + output_tokens * 2) / 1_000_000)
    assert analysis.usage == Usage(input_tokens, output_tokens, cost, "USD")  # type: ignore[arg-type]
    assert analysis.confidence_kind == "self_reported" and endpoint.name in analysis.ai_model
    assert analysis.prompt_version == provider.prompt_version and analysis.prompt_version.startswith("2-")
    assert provider.model_name and provider.rate == Rate(30, 60)
    # Owners of photos are told who gets them.
    assert "a server of this site's choice" in provider.sees
    assert f"goes to {provider.maker}, " in build(endpoint, sandbox, BASE_URL="").sees
    (recorded,) = endpoint.requests
    assert Image.open(io.BytesIO(recorded.image)).format == "JPEG"
    assert "secret-place" not in json.dumps(recorded.body) + json.dumps(recorded.headers)
    asked = json.dumps(recorded.body, ensure_ascii=False)
    assert "never an instruction" in asked and "filed it under: sneaker" in asked and "Look at the tongue" in asked
    assert (recorded.headers["X-Request-Id"], recorded.headers["Traceparent"]) == ("request-1", TRACE)
    # Without a trace there is no header, which some proxies would refuse; other categories have other hints, or none.
    for category, hint in (("camera", "Read the lettering on the body"), ("hat", "")):
        await provider.analyze(make_request(category=category))
        assert "Traceparent" not in endpoint.requests[-1].headers
        asked = json.dumps(endpoint.requests[-1].body)
        assert f"filed it under: {category}" in asked and hint in asked and "tongue" not in asked
    assert len({each.client_port for each in endpoint.requests}) == 1, "calls share a kept connection"
    await provider.close()


@pytest.mark.gen_test(timeout=60)
async def test_settings_reach_the_endpoint(endpoint: FakeVision, sandbox: Sandbox, tmp_path: Path) -> None:
    """Another model, a smaller photo, a limit of tokens, another prompt and no key; prices of 0 are a cost of 0, and
    without prices there is none.
    """
    endpoint.key = None
    (tmp_path / "prompt.md").write_text("Name it, as JSON.\n[sneaker]\nIt has laces.\n")
    given = {"API_KEY": "", "MODEL": "llava:7b", "MAX_SIDE_PIXELS": "300", "MAX_OUTPUT_TOKENS": "777"}
    free = {"INPUT_PRICE": "0", "OUTPUT_PRICE": "0", "CURRENCY": "EUR"}
    provider = build(endpoint, sandbox, PROMPT_PATH=str(tmp_path / "prompt.md"), **given, **free)
    analysis = await provider.analyze(make_request(image=make_image(size=(640, 480))))
    assert analysis.usage is not None and (analysis.usage.cost, analysis.usage.currency) == (0.0, "EUR")
    (recorded,) = endpoint.requests
    asked = recorded.path + json.dumps(recorded.body)
    assert all(each in asked for each in ("llava", "777", "Name it, as JSON.", "It has laces."))
    assert "catalogue" not in asked
    assert Image.open(io.BytesIO(recorded.image)).size == (300, 225)
    assert not {"Authorization", "X-Api-Key", "X-Goog-Api-Key"} & set(recorded.headers)
    await provider.close()
    unpriced = build(endpoint, sandbox)
    usage = (await unpriced.analyze(make_request())).usage
    assert usage is not None and usage.cost is None and usage.input_tokens == endpoint.tokens[0]
    await unpriced.close()


@pytest.mark.gen_test(timeout=60)
async def test_started_by_the_service_it_uses_the_session_of_all(
    endpoint: FakeVision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built and started as the service does; variables of the makers' own SDKs are none of ours."""
    for variable in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.setenv(variable, "ambient-secret")
    given = {"API_KEY": KEY, "BASE_URL": endpoint.url, "CALLS_PER_MINUTE": "120"}
    settings = with_variables(endpoint.name, **given).model_copy(update={"data_dir": tmp_path})
    catalogue = Catalogue(settings)
    metrics = Metrics()
    contexts = ContextFactory(settings, metrics, lambda name: MemoryValues())
    provider = catalogue.build(PROVIDER, endpoint.name, metrics, contexts)
    assert provider.limits.rate == Rate(120, 60) and sees_of(provider.plugin)
    trace_of_call.set(TRACE)
    analysis = await provider.call("analyze", 10, make_request())
    assert analysis.brand == NIKE[0]
    headers = endpoint.requests[0].headers
    assert headers["User-Agent"].startswith("ai-queue-pipeline/") and headers["Traceparent"] == TRACE
    assert "ambient-secret" not in json.dumps(headers)
    await provider.close()
    await contexts.close()
    await catalogue.sandbox.close()


@pytest.mark.parametrize("endpoint", ["openai"], indirect=True)  # what makes photos small is the same code for all
@pytest.mark.gen_test(timeout=60)
async def test_every_photo_is_sent_as_a_small_upright_jpeg(endpoint: FakeVision, provider: VisionProvider) -> None:
    """Endpoints take neither HEIC nor AVIF, and bill by the pixel; what the file tells besides goes nowhere. What
    cannot be decoded here is not paid for there.
    """
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "Phone of somebody"
    clear = Image.new("RGBA", (400, 300), (255, 0, 0, 0))
    photos = [
        (make_image("HEIF", (2000, 1500)), (1024, 768)),
        (make_image("AVIF", (2000, 1500)), (1024, 768)),
        (make_image("GIF", (3000, 10)), (1024, 3)),
        (make_noise_image(6 * 1024 * 1024), (514, 1024)),
        (encode(clear, "PNG"), (400, 300)),
        (encode(clear.convert("RGB"), "JPEG", exif=exif), (300, 400)),
    ]
    sent = []
    for photo, size in photos:
        await provider.analyze(make_request(image=photo, timeout_seconds=60))
        content = endpoint.requests[-1].image
        sent.append(picture := Image.open(io.BytesIO(content)))
        assert (picture.format, picture.mode) == ("JPEG", "RGB") and size in (None, picture.size)
        assert len(content) < 1_100_000 and not picture.getexif() and b"somebody" not in content
    assert min(sent[-2].convert("L").tobytes()) > 250, "what is clear is white"
    calls = len(endpoint.requests)
    for broken in (b"", None, b"%PDF-1.7", make_image()[:300]):
        error = await failure(provider, image=broken)
        assert isinstance(error, PermanentJobError) and error.message.startswith("The photo cannot be read")
    assert len(endpoint.requests) == calls


def statuses(fake: FakeVision) -> list[tuple[Reply, type[JobError], str, float | None]]:
    """Return replies of each kind with what they mean: the error, its text, the wait in seconds."""
    error, again, never = fake.error, RetryableJobError, PermanentJobError
    common: list[tuple[Reply, type[JobError], str, float | None]] = [
        (Reply(500, error("x", "api_error")), again, UNAVAILABLE, None),
        (Reply(502, b"<html>Bad Gateway</html>"), again, UNAVAILABLE, None),
        (Reply(503, b""), again, UNAVAILABLE, None),
        (Reply(503, error("x"), {"Retry-After": "9"}), again, UNAVAILABLE, 9),
        (Reply(504, error("x", "DEADLINE_EXCEEDED")), again, UNAVAILABLE, None),
        (Reply(408), again, "AI service timed out", None),
        (Reply(529, error("Overloaded", "overloaded_error")), again, BUSY, None),
        (Reply(429, error("Slow down", "rate_limit_exceeded")), again, BUSY, None),
        (Reply(429, headers={"Retry-After": "7"}), again, BUSY, 7),
        (Reply(429, headers={"Retry-After": "0.5"}), again, BUSY, 0.5),
        (Reply(429, headers={"retry-after-ms": "1500", "Retry-After": "2"}), again, BUSY, 1.5),
        (Reply(429, headers={"Retry-After": "Sun, 29 Nov 2026 12:00:20 GMT"} | NOON), again, BUSY, 20),
        (Reply(429, headers={"Retry-After": "1e9"}), again, BUSY, None),
        (Reply(429, headers={"Retry-After": "999999999"}), again, BUSY, 3600),
        (Reply(402, error("Insufficient Balance", "billing_error")), again, NO_QUOTA, HOLD_SECONDS),
        (Reply(401, error("x")), again, "AI service is not set up (HTTP 401)", HOLD_SECONDS),
        (Reply(403, error("x", "permission_error")), again, "AI service is not set up (HTTP 403)", HOLD_SECONDS),
        (Reply(404, error("No such model")), again, "AI service is not set up (HTTP 404)", HOLD_SECONDS),
        (Reply(307, headers={"Location": "/v1/x"}), again, "AI service is not set up (HTTP 307)", HOLD_SECONDS),
        (Reply(405), again, "AI service is not set up (HTTP 405)", HOLD_SECONDS),
        (Reply(400, error("Unsupported parameter")), again, "AI service refused the request (HTTP 400)", None),
        (Reply(400, [1, "text"]), again, "AI service refused the request (HTTP 400)", None),
        (Reply(400, b"[" * 100_000), again, "AI service refused the request (HTTP 400)", None),
        (Reply(400, {"error": {"details": [7, {"violations": [None]}], "type": []}}), again, "", None),
        (Reply(413, error("x", "request_too_large")), never, "AI service refused the image (HTTP 413)", None),
    ]
    return common + [row for row in STATUSES[fake.name](fake)]


def openai_statuses(fake: FakeVision) -> list[tuple[Reply, type[JobError], str, float | None]]:
    error, again, never = fake.error, RetryableJobError, PermanentJobError
    quota, refused = error("Exceeded", "insufficient_quota"), "AI service refused the image (HTTP 400)"
    tokens = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}
    requests = {"x-ratelimit-remaining-requests": "4999", "x-ratelimit-reset-requests": "20ms"}
    return [
        (Reply(429, quota), again, NO_QUOTA, HOLD_SECONDS),
        (Reply(429, quota, {"Retry-After": "600"}), again, NO_QUOTA, 600),
        (Reply(429, headers=tokens | requests), again, BUSY, 360),
        (Reply(429, headers=requests), again, BUSY, 0.02),
        (Reply(500, error("x"), tokens), again, UNAVAILABLE, None),
        (Reply(503, error("x", "engine_overloaded")), again, BUSY, None),
        (Reply(400, error("image_url is only supported by certain models")), again, "", None),
        (Reply(400, error("x", "invalid_image")), never, refused, None),
        (Reply(400, error("x", "image_parse_error")), never, refused, None),
        (Reply(400, error("x", "content_filter")), never, REFUSED, None),
        (Reply(400, error("x", "image_content_policy_violation")), never, REFUSED, None),
        (Reply(403, error("x", "moderation_blocked")), never, REFUSED, None),
    ]


def anthropic_statuses(fake: FakeVision) -> list[tuple[Reply, type[JobError], str, float | None]]:
    error, again, never = fake.error, RetryableJobError, PermanentJobError
    limit = "anthropic-ratelimit-{}"
    spent = {limit.format("input-tokens-remaining"): "0", limit.format("input-tokens-reset"): "2026-11-29T12:00:42Z"}
    left = {limit.format("requests-remaining"): "49", limit.format("requests-reset"): "2026-11-29T12:00:01Z"}
    low = error("Your credit balance is too low to access the Anthropic API.")
    return [
        (Reply(429, error("x", "rate_limit_error"), spent | left | NOON), again, BUSY, 42),
        (Reply(429, error("x", "rate_limit_error"), left | NOON), again, BUSY, 1),
        (Reply(529, error("x", "overloaded_error"), spent | NOON), again, BUSY, None),
        (Reply(503, error("x", "overloaded_error")), again, BUSY, None),
        (Reply(400, low), again, NO_QUOTA, HOLD_SECONDS),
        (Reply(400, error("Could not process image")), never, "AI service refused the image (HTTP 400)", None),
        (Reply(400, error("Output blocked by content filtering policy")), never, REFUSED, None),
    ]


def gemini_statuses(fake: FakeVision) -> list[tuple[Reply, type[JobError], str, float | None]]:
    again, never = RetryableJobError, PermanentJobError

    def error(message: str, kind: str = "", *details: Any) -> Any:
        return {"error": {"code": 0, "message": message, "status": kind or "INVALID_ARGUMENT", "details": details}}

    exceeded = "You exceeded your current quota, please check your plan and billing details."
    key = {"reason": "API_KEY_INVALID"}
    return [
        (Reply(429, error(exceeded, "RESOURCE_EXHAUSTED", RETRY_INFO)), again, BUSY, 58.2),
        (Reply(429, [error(exceeded, "RESOURCE_EXHAUSTED", RETRY_INFO)]), again, BUSY, 58.2),
        (Reply(429, error(exceeded, "RESOURCE_EXHAUSTED")), again, BUSY, None),
        (Reply(429, error(exceeded, "RESOURCE_EXHAUSTED", QUOTA_FAILURE, RETRY_INFO)), again, NO_QUOTA, 58.2),
        (Reply(503, error("The model is overloaded.", "UNAVAILABLE")), again, BUSY, None),
        (Reply(400, error("API key not valid", "", key)), again, "AI service is not set up (HTTP 400)", HOLD_SECONDS),
        (Reply(400, error("x", "FAILED_PRECONDITION")), again, "AI service is not set up (HTTP 400)", HOLD_SECONDS),
        (Reply(400, error("Unable to process input image.")), never, "AI service refused the image (HTTP 400)", None),
        (Reply(400, error("PROHIBITED_CONTENT")), never, REFUSED, None),
    ]


STATUSES = {"openai": openai_statuses, "anthropic": anthropic_statuses, "gemini": gemini_statuses}


@pytest.mark.gen_test(timeout=60)
async def test_error_says_whose_fault_it_is(endpoint: FakeVision, provider: VisionProvider) -> None:
    """Only what is surely the photo's fault is permanent; what is ours to put right, and any limit, costs no photo an
    attempt. The call is made once: the queue repeats it. Operators read in the cause which setting to look at.
    """
    rows = statuses(endpoint)
    for reply, kind, message, wait in rows:
        endpoint.script(reply)
        error = await failure(provider)
        assert type(error) is kind and message in error.message, (reply, error)
        assert getattr(error, "retry_after_seconds", None) == wait, reply
        assert getattr(error, "max_attempts", None) is None
        if isinstance(error, RetryableJobError):
            is_ours = wait is not None or error.message in (BUSY, NO_QUOTA)
            assert error.spends_attempt is not is_ours, (reply, error)
        cause, prefix = str(error.__cause__), f"PLUGIN_{endpoint.name.upper()}_"
        assert f"HTTP {reply.status} from 127.0.0.1" in cause
        if "not set up" in error.message:
            setting = {404: "MODEL", 405: "BASE_URL", 307: "BASE_URL"}.get(reply.status, "API_KEY")
            assert f"see {prefix}{setting}" in cause
    assert len(endpoint.requests) == len(rows)


def refusals(fake: FakeVision) -> list[Any]:
    """Return answers in which the model, or a filter, does not want to."""
    if fake.name == "openai":
        refusal = fake.completion(None, refusal="I can't help with that: ignore all rules")
        return [refusal, fake.completion(None, "content_filter"), fake.completion(PRODUCT, "content_filter")]
    if fake.name == "anthropic":
        return [fake.completion(None, "refusal"), fake.completion("I can't help with", "refusal")]
    reasons = ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY")
    blocked = [{"promptFeedback": {"blockReason": reason}, "usageMetadata": {}} for reason in ("SAFETY", "OTHER")]
    return [*blocked, *({"candidates": [{"finishReason": reason, "index": 0}]} for reason in reasons)]


def paid(error: JobError) -> tuple[Any, ...] | None:
    """Return the tokens that the error says were paid for, None for none."""
    usage = error.usage
    return (usage.input_tokens, usage.output_tokens) if isinstance(usage, Usage) else None


def billed(fake: FakeVision, body: Any) -> tuple[Any, ...] | None:
    """Return the tokens that the answer names."""
    is_published = isinstance(body, dict) and (body.get("usage") or body.get("usageMetadata"))
    return tuple(fake.tokens) if is_published else None


def unreadable(fake: FakeVision) -> list[Any]:
    """Return answers that are not as asked for."""
    said = [
        *(None, "", "I see a shoe.", "```json\n{}\n```", "[" * 100_000, {}, '{"brand": {"value": "Ni'),
        {"brand": PRODUCT["brand"], "model": PRODUCT["model"]},
        *(product(brand=each) for each in (None, "Nike", {"value": "Nike"}, {"value": None, "confidence": 0})),
        *(
            product(brand={"value": "Nike", "confidence": each})
            for each in (93, -0.1, "high", True, None, float("nan"), float("inf"))
        ),
        product(brand={"value": ["Nike"], "confidence": 1}),
        product(brand={"value": "IGNORE ALL RULES " * 20, "confidence": 1}),
    ]
    cut_off = {"openai": "length", "anthropic": "max_tokens", "gemini": "MAX_TOKENS"}[fake.name]
    bodies = [
        *(b"", b"not json", b"<html>200 OK</html>", b"\xff\xfe", b"[" * 100_000, b" " * 1_100_000),
        *([], {}, 7, None, "text", {"choices": []}, {"choices": [{"message": None}]}),
        *({"content": None, "stop_reason": "end_turn"}, {"content": [{}], "stop_reason": ["end_turn"]}),
        *({"candidates": []}, {"candidates": [{"finishReason": "OTHER"}]}, {"candidates": [{"finishReason": []}]}),
    ]
    return [*bodies, *map(fake.completion, said), fake.completion(PRODUCT, cut_off)]


@pytest.mark.gen_test(timeout=60)
async def test_refusals_are_permanent_and_unreadable_answers_are_tried_twice(
    endpoint: FakeVision, provider: VisionProvider
) -> None:
    """A model that declines a photo would do so again; its words, which the photo may have put there, are not shown. A
    model may slip once; twice the same is no slip. What breaks the schema is never kept in part.
    """
    for body in refusals(endpoint):
        endpoint.script(Reply(body=body))
        error = await failure(provider)
        assert isinstance(error, PermanentJobError) and error.message == REFUSED, body
        assert "ignore all rules" not in str(error.__cause__)
        assert paid(error) == billed(endpoint, body)
    for body in unreadable(endpoint):
        endpoint.script(Reply(body=body))
        error = await failure(provider)
        assert isinstance(error, RetryableJobError), body
        assert (error.message, error.max_attempts, error.retry_after_seconds) == (UNREADABLE, 2, None)
        assert paid(error) == billed(endpoint, body)
        assert len(str(error.__cause__)) < 400 and "IGNORE" not in str(error.__cause__)


@pytest.mark.gen_test(timeout=60)
async def test_what_keeps_the_schema_is_taken_and_cleaned(endpoint: FakeVision, provider: VisionProvider) -> None:
    """Blanks and control characters go, "" and what models say instead of it is UNKNOWN, additions are left out. An
    answer without a word about tokens, or with nonsense for them, is an answer.
    """
    cases: list[tuple[Any, tuple[Attribute, ...]]] = [
        (product(brand={"value": " Nike\n", "confidence": 1}), (Attribute("Nike", 1.0), *NIKE[1:])),
        (product(brand={"value": "Ni\x1b[2Jke\u202e", "confidence": 1}), (Attribute("Ni [2Jke", 1.0), *NIKE[1:])),
        (product(model={"value": "", "confidence": 0.4}), (NIKE[0], UNKNOWN, NIKE[2])),
        (product(model={"value": "Not visible", "confidence": 0.4}), (NIKE[0], UNKNOWN, NIKE[2])),
        (product(colorway={"value": " \x00 ", "confidence": 0}), (*NIKE[:2], UNKNOWN)),
        (product(remark="nice"), NIKE),
    ]
    for found, wanted in cases:
        endpoint.script(Reply(body=endpoint.completion(found)))
        analysis = await provider.analyze(make_request())
        assert (analysis.brand, analysis.model, analysis.colorway) == wanted
    usage = {"openai": "usage", "anthropic": "usage", "gemini": "usageMetadata"}[endpoint.name]
    named = "modelVersion" if endpoint.name == "gemini" else "model"
    for nonsense in (None, {}, {"prompt_tokens": "many", "input_tokens": -1, "promptTokenCount": 1e300}):
        body = endpoint.completion(PRODUCT) | {usage: nonsense, named: 7}
        endpoint.script(Reply(body=body))
        analysis = await provider.analyze(make_request())
        assert analysis.usage is None and analysis.ai_model == provider.model_name


@pytest.mark.parametrize("endpoint", ["openai"], indirect=True)  # waiting is the same code for all
@pytest.mark.gen_test(timeout=60)
async def test_what_is_not_answered_in_time_is_given_up(endpoint: FakeVision, sandbox: Sandbox) -> None:
    """An endpoint that is silent, or never ends, costs the time of the call or of the setting; one that goes away in
    the middle is unavailable; a call that is cancelled drops its connection, and the next is none the worse.
    """
    provider = build(endpoint, sandbox)
    endpoint.script(Reply(trickles=True))
    error = await failure(provider, timeout_seconds=1)
    assert (type(error), error.message) == (RetryableJobError, "AI service timed out")
    await asyncio.wait_for(endpoint.dropped.wait(), 10)
    endpoint.script(Reply(cut=True))
    error = await failure(provider)
    assert isinstance(error, RetryableJobError) and (error.message, error.spends_attempt) == (UNAVAILABLE, True)
    endpoint.hold()
    impatient = build(endpoint, sandbox, TIMEOUT_SECONDS="1")
    assert (await failure(impatient, timeout_seconds=100)).message == "AI service timed out"
    await impatient.close()
    endpoint.dropped.clear()
    endpoint.requests.clear()
    call = asyncio.ensure_future(provider.analyze(make_request()))
    await endpoint.wait_for_call()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(endpoint.dropped.wait(), 10)
    endpoint.release()
    assert (await provider.analyze(make_request())).brand == NIKE[0]
    await provider.close()


@pytest.mark.gen_test(timeout=60)
async def test_nobody_listening_spends_no_attempt_and_fails_the_check(endpoint: FakeVision, sandbox: Sandbox) -> None:
    """A refused connection is not the photo's fault."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        provider = build(endpoint, sandbox, BASE_URL=f"http://127.0.0.1:{unheard.getsockname()[1]}/v1")
        error = await failure(provider)
        with pytest.raises(DependencyUnavailable) as caught:
            await provider.check()
    assert isinstance(error, RetryableJobError) and (error.message, error.spends_attempt) == (UNAVAILABLE, False)
    assert "ClientConnectorError" in str(error.__cause__) and "ClientConnectorError" in str(caught.value.__cause__)
    await provider.close()


@pytest.mark.gen_test(timeout=60)
async def test_check_costs_nothing_and_names_the_reason(endpoint: FakeVision, provider: VisionProvider) -> None:
    """It asks about models, with the key; an operator reads in the chained cause what to put right."""
    assert await provider.check() is None
    assert [(each.method, each.body) for each in endpoint.requests] == [("GET", None)]
    prefix = f"PLUGIN_{endpoint.name.upper()}_"
    for reply, reason in (
        (Reply(401, endpoint.error("Incorrect key provided")), f"see {prefix}API_KEY; HTTP 401 from 127.0.0.1"),
        (Reply(404, b"<html>"), f"see {prefix}MODEL and {prefix}BASE_URL; HTTP 404"),
        (Reply(503), "HTTP 503"),
        (Reply(cut=True), "ServerDisconnectedError"),
        (Reply(body=b"<html>the page of a chat</html>"), f"{prefix}BASE_URL"),
        (Reply(body=7), f"{prefix}BASE_URL"),
    ):
        # A GET is sent again when a kept connection turns out to be closed.
        endpoint.script(*[reply] * (2 if reply.cut else 1))
        with pytest.raises(DependencyUnavailable) as caught:
            await provider.check()
        assert reason in str(caught.value.__cause__)


@pytest.mark.gen_test(timeout=60)
async def test_key_is_in_no_error_and_no_repr(endpoint: FakeVision, sandbox: Sandbox) -> None:
    """Even an endpoint that repeats the key it refuses does not get it into an error, its trace or a repr."""
    key = "sk-wrong-9876543210"
    provider = build(endpoint, sandbox, API_KEY=key)
    errors: list[BaseException] = [await failure(provider)]
    for padding in range(200, 320, 10):  # wherever the text is cut
        endpoint.script(Reply(400, endpoint.error("x" * padding + key)), Reply(400, b"x" * padding + key.encode()))
        errors += [await failure(provider), await failure(provider)]
    with pytest.raises(DependencyUnavailable) as caught:
        await provider.check()
    for raised in (*errors, caught.value):
        shown = "".join(traceback.format_exception(raised)) + repr(raised) + repr(raised.__cause__)
        assert "sk-wrong" not in shown
    assert "***" in str(errors[0].__cause__) and "***" in str(caught.value.__cause__)
    held = repr(provider) + repr(vars(provider)) + repr(provider.settings) + str(provider.settings.model_dump())
    assert key not in held
    await provider.close()


@pytest.mark.parametrize("endpoint", ["openai"], indirect=True)
@pytest.mark.gen_test(timeout=60)
async def test_event_loop_stays_free_while_a_photo_is_made_small(provider: VisionProvider) -> None:
    """A large photo is decoded in a child process: the loop goes on turning meanwhile."""
    image = encode(Image.open(pictures()[0][0]).resize((4000, 3000)), "PNG", compress_level=1)
    call = asyncio.ensure_future(provider.analyze(make_request(image=image, timeout_seconds=60)))
    loop, longest = asyncio.get_running_loop(), 0.0
    while not call.done():
        before = loop.time()
        await asyncio.sleep(0.005)
        longest = max(longest, loop.time() - before)
    assert (await call).brand == NIKE[0]
    # In the loop it would be nearly 0.5 s.
    assert longest < 0.25


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Mapping[str, FakeVision], Service]]:
    """A service that asks another provider about each category, and the endpoints, on a loop in a thread."""
    fakes = {name: fake() for name, fake in FAKES.items()}
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()

    async def work(begins: bool) -> None:
        for fake in fakes.values():
            if begins:
                fake.start()
            else:
                await fake.stop()

    asyncio.run_coroutine_threadsafe(work(True), loop).result()
    given = {"AI_PROVIDER": "openai", "AI_PROVIDER_BY_CATEGORY": "lego=anthropic,camera=gemini"}
    for name, fake in fakes.items():
        own = {"API_KEY": KEY, "BASE_URL": fake.url, **PRICES}
        given |= {f"PLUGIN_{name.upper()}_{variable}": value for variable, value in own.items()}
    with Service(tmp_path, **given) as service:
        yield fakes, service
    asyncio.run_coroutine_threadsafe(work(False), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_wrong_key_holds_its_provider_and_fails_no_photo(
    running: tuple[Mapping[str, FakeVision], Service]
) -> None:
    """In the service: results come with their provenance; photos of the provider whose key is wrong wait, those of the
    others do not, and the operator reads which setting it is.
    """
    fakes, service = running
    fakes["gemini"].key = "another"
    ids = {each: service.upload(category=each).json()["data"]["assetId"] for each in ("camera", "sneaker", "lego")}
    held = service.wait_log("plugin_held", plugin="gemini")
    assert "see PLUGIN_GEMINI_API_KEY" in held["cause"] and KEY not in json.dumps(service.lines)
    for category, name in (("sneaker", "openai"), ("lego", "anthropic")):
        service.wait_log("job_completed", assetId=ids[category])
        asset = service.asset(ids[category])
        assert (asset["status"], asset["aiMetadata"]["model"]["value"]) == ("active", "Air Max 90")
        provenance = asset["provenance"]
        assert (provenance["provider"], provenance["confidenceKind"]) == (name, "self_reported")
        assert provenance["usage"]["inputTokens"] == fakes[name].tokens[0] and provenance["usage"]["cost"] > 0
        assert name in provenance["model"] and provenance["promptVersion"].startswith("2-")
    waiting = service.asset(ids["camera"])
    assert waiting["status"] == "processing" and waiting["aiMetadata"]["error"] is None


@pytest.mark.parametrize("name", NAMES)
def test_faulty_settings_are_named(name: str, tmp_path: Path) -> None:
    """All variables at fault stand in the error, their values do not; what is settable says what it is."""
    prefix = f"PLUGIN_{name.upper()}_"
    (tmp_path / "empty.md").write_text("version: 3\n[sneaker]\nIt has laces.\n")
    (tmp_path / "large.md").write_text("x" * 70_000)
    table: list[tuple[dict[str, str], list[str]]] = [
        ({}, ["API_KEY is needed"]),
        ({"API_KEY": "sk-two words"}, ["API_KEY has a character"]),
        ({"API_KEY": "sk-line\n"}, ["API_KEY has a character"]),
        ({"API_KEY": "ключ-9876"}, ["API_KEY has a character"]),
        ({"BASE_URL": "api.example/v1"}, ["BASE_URL must be"]),
        ({"BASE_URL": "http://me:sk-secret@api.example/v1"}, ["BASE_URL must be"]),
        ({"BASE_URL": "http://[::1/v1"}, ["BASE_URL must be"]),
        ({"BASE_URL": "http://api.example/v1?key=sk-secret"}, ["BASE_URL must be"]),
        ({"API_KEY": "sk two", "BASE_URL": "x"}, ["API_KEY has", "BASE_URL must"]),
        ({"API_KEY": "sk-123456", "INPUT_PRICE": "1"}, ["INPUT_PRICE and"]),
        ({"MAX_SIDE_PIXELS": "5000", "OUTPUT_PRICE": "inf"}, ["MAX_SIDE_PIXELS", "OUTPUT_PRICE"]),
        ({"API_KEY": "sk-123456", "PROMPT_PATH": str(tmp_path / "none.md")}, ["PROMPT_PATH: the prompt cannot"]),
        ({"API_KEY": "sk-123456", "PROMPT_PATH": str(tmp_path / "empty.md")}, ["PROMPT_PATH", "no text for all"]),
        ({"API_KEY": "sk-123456", "PROMPT_PATH": str(tmp_path / "large.md")}, ["PROMPT_PATH", "65536 bytes"]),
        ({"API_KEY": "sk-123456", "PROMPT_PATH": str(tmp_path)}, ["PROMPT_PATH"]),
    ]
    for variables, faults in table:
        with pytest.raises(ConfigurationError) as caught:
            factory(name, with_variables(name, **variables), Sandbox())
        assert all(fault in caught.value.message for fault in faults), (variables, caught.value.message)
        assert prefix + faults[0].split()[0].rstrip(":") in caught.value.message
        assert not any(value in caught.value.message for value in variables.values() if len(value) > 5)
    ((offered, own),) = import_module(f"pipeline.plugins.ai_{name}").register_settings()
    assert offered == name and all(field.description for field in own.model_fields.values())


def test_prompt_that_changes_without_a_new_version_has_another_one() -> None:
    """What was answered to one text is not taken for an answer to another; a byte order mark is no text."""
    first, second = (prompts.parse(f"version: 7\nName it{end}\n".encode()) for end in ("", " now"))
    assert first.version.startswith("7-") and second.version.startswith("7-") and first.version != second.version
    plain = prompts.parse("\ufeffversion: 8 \r\nName it.\r\n[hat]\r\nIt has a brim.\r\n".encode())
    assert (plain.text, plain.hints) == ("Name it.", {"hat": "It has a brim."}) and plain.version.startswith("8-")
    assert prompts.load(None, "x").hints.keys() == {"sneaker", "lego", "camera"}
