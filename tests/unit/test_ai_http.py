"""The provider `http` against a real HTTP server: what it sends, what it understands, which errors are tried again."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from tornado.ioloop import IOLoop

from pipeline.errors import DependencyUnavailable, JobError, PermanentJobError, RetryableJobError
from pipeline.hooks import UNKNOWN, Analysis, AnalyzeRequest, Attribute, retry_after_of
from pipeline.hooks.replies import parse_retry_after
from pipeline.settings import Settings
from pipeline.hooks import replies
from pipeline.plugins.ai_http import (
    DEFAULT_CONFIDENCE,
    MAX_REPLY_BYTES,
    HttpProvider,
    parse_analysis,
    register_ai_providers,
)
from tests.fake_ai_service import FakeAiService, Reply

ASSET_ID = "65f0c0ffee65f0c0ffee65f0"
IMAGE_URL = "https://images.example/original.jpg"
NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@pytest.fixture
def service(io_loop: IOLoop) -> Iterator[FakeAiService]:
    """A fake AI service on the test's loop."""
    fake = FakeAiService()
    fake.start()
    yield fake
    io_loop.run_sync(fake.stop)


@pytest.fixture
def provider(io_loop: IOLoop, service: FakeAiService) -> Iterator[HttpProvider]:
    """The provider, pointed at it."""
    provider = HttpProvider(service.url, "imageUrl")
    yield provider
    io_loop.run_sync(provider.close)


def make_request(timeout_seconds: float = 5) -> AnalyzeRequest:
    return AnalyzeRequest(
        image_url=IMAGE_URL,
        category="sneaker",
        asset_id=ASSET_ID,
        job_id=f"ai-processing:{ASSET_ID}",
        request_id="request-1",
        attempt=1,
        timeout_seconds=timeout_seconds,
    )


async def failure(provider: HttpProvider, timeout_seconds: float = 5) -> JobError:
    with pytest.raises(JobError) as caught:
        await provider.analyze(make_request(timeout_seconds))
    return caught.value


@pytest.mark.gen_test
async def test_check_needs_any_answer_and_causes_no_work(service: FakeAiService, provider: HttpProvider) -> None:
    """405 to a GET is as good as any answer; none at all is told with its cause."""
    await provider.check()
    assert service.calls == 0
    await service.stop()
    with pytest.raises(DependencyUnavailable) as caught:
        await provider.check()
    assert isinstance(caught.value.__cause__, aiohttp.ClientError)


@pytest.mark.spec("T038")
@pytest.mark.gen_test
async def test_analyze_posts_image_url_category_and_ids(service: FakeAiService, provider: HttpProvider) -> None:
    """The body is exactly {imageUrl, category}; who asks is in the headers."""
    await provider.analyze(make_request())
    (recorded,) = service.requests
    assert recorded.body == {"imageUrl": IMAGE_URL, "category": "sneaker"}
    assert recorded.headers["Content-Type"] == "application/json"
    ids = {name: recorded.headers[name] for name in ("X-Request-Id", "X-Asset-Id", "X-Job-Id")}
    assert ids == {"X-Request-Id": "request-1", "X-Asset-Id": ASSET_ID, "X-Job-Id": f"ai-processing:{ASSET_ID}"}


@pytest.mark.gen_test
async def test_analyze_names_the_image_as_the_settings_say(service: FakeAiService) -> None:
    """Some services take image_url and refuse unknown properties; a slash at the end of the base URL does no harm."""
    settings = Settings(ai_service_url=service.url + "/", ai_service_image_field="image_url")
    ((name, build),) = register_ai_providers(settings)
    provider = build()
    await provider.analyze(make_request())  # type: ignore[misc]
    assert name == "http"
    assert service.requests[0].body == {"image_url": IMAGE_URL, "category": "sneaker"}
    await provider.close()  # type: ignore[attr-defined]


@pytest.mark.spec("T038")
@pytest.mark.gen_test
async def test_analyze_gives_up_when_the_time_is_over(service: FakeAiService, provider: HttpProvider) -> None:
    """A service that never answers costs the request's timeout, 90 s by default, and may be asked again."""
    assert Settings().provider_timeout_seconds == 90
    service.hold()
    error = await failure(provider, timeout_seconds=0.2)
    assert isinstance(error, RetryableJobError) and error.message == "AI service timed out"


@pytest.mark.spec("T039")
@pytest.mark.gen_test
async def test_analyze_returns_what_the_service_found(provider: HttpProvider) -> None:
    """Brand, model and colorway with their confidences, and the processed image's URL."""
    assert await provider.analyze(make_request()) == Analysis(
        brand=Attribute("Nike", 0.93),
        model=Attribute("Air Max 90", 0.88),
        colorway=Attribute("Infrared", 0.71),
        processed_image_url=f"https://images.example/processed/{ASSET_ID}.webp",
    )


@pytest.mark.gen_test
async def test_calls_share_a_kept_connection(service: FakeAiService, provider: HttpProvider) -> None:
    """Calls one after the other need one handshake."""
    for _ in range(5):
        await provider.analyze(make_request())
    assert len({recorded.client_port for recorded in service.requests}) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (500, "AI service unavailable"),
        (502, "AI service unavailable"),
        (503, "AI service unavailable"),
        (504, "AI service unavailable"),
        (408, "AI service timed out"),
        (429, "AI service is busy"),
    ],
)
@pytest.mark.gen_test
async def test_passing_errors_are_retryable(
    service: FakeAiService, provider: HttpProvider, status: int, message: str
) -> None:
    """The service may be well again next time; its own words are not shown."""
    service.script(Reply(status))
    error = await failure(provider)
    assert isinstance(error, RetryableJobError) and error.message == message
    assert (error.max_attempts, error.retry_after_seconds) == (None, None)


@pytest.mark.gen_test
async def test_a_busy_service_says_how_long_to_wait(service: FakeAiService, provider: HttpProvider) -> None:
    """Retry-After of a 429 reaches the retry policy."""
    service.script(Reply(429, headers={"Retry-After": "7"}))
    error = await failure(provider)
    assert isinstance(error, RetryableJobError) and error.retry_after_seconds == 7


@pytest.mark.gen_test
async def test_a_lost_connection_is_retryable(service: FakeAiService, provider: HttpProvider) -> None:
    """The service going away in the middle of a call reads as unavailable."""
    service.script(Reply(cut=True))
    error = await failure(provider)
    assert isinstance(error, RetryableJobError) and error.message == "AI service unavailable"


@pytest.mark.gen_test
async def test_a_refused_connection_is_retryable() -> None:
    """Nobody listening reads as unavailable."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        provider = HttpProvider(f"http://127.0.0.1:{unheard.getsockname()[1]}", "imageUrl")
        error = await failure(provider)
    assert isinstance(error, RetryableJobError) and error.message == "AI service unavailable"
    await provider.close()


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
@pytest.mark.gen_test
async def test_other_client_errors_are_permanent(service: FakeAiService, provider: HttpProvider, status: int) -> None:
    """The service's own message is the reason, for example that the image is no product."""
    service.script(Reply(status, {"error": {"message": "No product\n in the image", "code": "NO_PRODUCT"}}))
    error = await failure(provider)
    assert isinstance(error, PermanentJobError) and error.message == "No product in the image"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "x" * 5000, "code": "LONG"}}, "x" * 300),
        ({"error": "text"}, "AI service refused the image (HTTP 400)"),
        ({"error": {"message": None}}, "AI service refused the image (HTTP 400)"),
        ("<html>Bad Request</html>", "AI service refused the image (HTTP 400)"),
        ("[" * 100_000, "AI service refused the image (HTTP 400)"),
    ],
    ids=["long", "no object", "null", "html", "deep"],
)
@pytest.mark.gen_test
async def test_a_refusal_always_has_a_short_message(
    service: FakeAiService, provider: HttpProvider, body: Any, message: str
) -> None:
    """Whatever an error's body holds, its owner is shown one line of at most 300 characters."""
    service.script(Reply(400, body))
    assert (await failure(provider)).message == message


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body="not json"),
        Reply(body=""),
        Reply(body=[1, 2]),
        Reply(body="[" * 100_000),
        Reply(body={"brand": 7}),
        Reply(body={"brand": {"value": ["Nike"], "confidence": 1}}),
        Reply(body={"brand": {"value": "Nike", "confidence": 93}}),
        Reply(body={"brand": {"value": "Nike", "confidence": -0.1}}),
        Reply(body={"brand": {"value": "Nike", "confidence": "high"}}),
        Reply(body={"brand": {"value": "Nike", "confidence": True}}),
        Reply(body='{"brand": {"value": "Nike", "confidence": NaN}}'),
        Reply(body=b"\x1f\x8b\x08 never asked for", headers={"Content-Encoding": "gzip"}),
        Reply(body=b"\xff\xfe\xff"),
        Reply(body=json.dumps({"brand": "x" * (MAX_REPLY_BYTES + 1)})),
        Reply(302, headers={"Location": "http://127.0.0.1:1/elsewhere"}),
    ],
    ids=lambda reply: str(reply.body)[:50],
)
@pytest.mark.gen_test
async def test_an_unreadable_reply_is_tried_twice(service: FakeAiService, provider: HttpProvider, reply: Reply) -> None:
    """Nonsense may be a proxy's hiccup; twice the same is not. Redirects are not followed, large replies not read."""
    service.script(reply)
    error = await failure(provider)
    assert isinstance(error, RetryableJobError)
    assert (error.message, error.max_attempts) == ("AI service sent an unreadable reply", 2)
    assert service.calls == 1


@pytest.mark.gen_test
async def test_cancelling_a_call_drops_its_connection(service: FakeAiService, provider: HttpProvider) -> None:
    """A job that lost its lease stops asking, and cancellation is never taken for an error."""
    service.hold()
    call = asyncio.ensure_future(provider.analyze(make_request()))
    await service.wait_for_calls(1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    service.release()
    await provider.analyze(make_request())
    first, second = service.requests
    assert first.client_port != second.client_port


@pytest.mark.spec("T039")
@pytest.mark.parametrize(
    ("reply", "analysis"),
    [
        ({}, Analysis()),  # nothing found is a partial result, not an error
        ({"brand": None, "model": {"value": None}, "colorway": None}, Analysis()),
        ({"brand": "", "model": "  ", "colorway": {"value": "", "confidence": 0.9}}, Analysis()),
        ({"brand": "Nike"}, Analysis(brand=Attribute("Nike", DEFAULT_CONFIDENCE))),
        ({"brand": {"value": "Nike"}}, Analysis(brand=Attribute("Nike", DEFAULT_CONFIDENCE))),
        ({"model": {"value": " 501 ", "confidence": 1, "source": "ocr"}}, Analysis(model=Attribute("501", 1.0))),
        ({"colorway": {"value": "Bred", "confidence": 0}}, Analysis(colorway=Attribute("Bred", 0.0))),
        ({"processedImageUrl": "https://a/b"}, Analysis(processed_image_url="https://a/b")),
        ({"processed_image_url": "https://a/b"}, Analysis(processed_image_url="https://a/b")),
        ({"processedImageUrl": None, "processed_image_url": "http://a"}, Analysis(processed_image_url="http://a")),
        ({"processedImageUrl": ""}, Analysis()),
        ({"brand": "Nike", "latencyMs": 12, "debug": {}}, Analysis(brand=Attribute("Nike", DEFAULT_CONFIDENCE))),
    ],
    ids=str,
)
def test_parse_analysis_understands_every_shape_in_the_field(reply: dict[str, Any], analysis: Analysis) -> None:
    """Objects, bare strings, null and absence; both spellings of the processed image; unknown properties ignored."""
    parsed = parse_analysis(json.dumps(reply).encode())
    assert parsed == analysis
    assert (parsed.brand is UNKNOWN) == (analysis.brand is UNKNOWN)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 5 ", 5.0),
        ("Sat, 31 Jan 2026 12:01:00 GMT", 60.0),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0.0),  # past: at once
        ("99999999", 3600.0),  # a mistaken header must not stop the queue for years
        ("Fri, 31 Jan 2036 12:00:00 GMT", 3600.0),
        ("soon", None),
        ("-5", None),
        ("Sat, 31 Jan 2026 12:01:00 -0000", None),  # no time zone
        ("", None),
        (None, None),
    ],
)
def test_parse_retry_after_reads_seconds_and_dates(value: str | None, seconds: float | None) -> None:
    """Both forms of the header become seconds from now, at most an hour; nonsense is no answer."""
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("Sat, 31 Jan 2026 12:00:00 GMT", 60.0),
        # The clock of the service; the date is past by it.
        (None, 0.0),
        ("soon", 0.0),
    ],
)
def test_retry_after_of_counts_from_the_date_of_the_reply(
    date: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clocks that differ make no wait longer or shorter."""
    monkeypatch.setattr(replies, "utc_now", lambda: NOW + timedelta(hours=1))
    headers = {"Retry-After": "Sat, 31 Jan 2026 12:01:00 GMT"} | ({"Date": date} if date else {})
    assert retry_after_of(headers) == seconds
