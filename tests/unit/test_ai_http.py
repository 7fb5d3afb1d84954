"""The provider `http` against a real HTTP server: its requests, the replies it reads, and which errors are retried."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from tornado.ioloop import IOLoop

from pipeline.errors import DependencyUnavailable, JobError, PermanentJobError, RetryableJobError
from pipeline.hooks import UNKNOWN, Analysis, AnalyzeRequest, Attribute
from pipeline.plugins.ai_http import (
    DEFAULT_CONFIDENCE,
    MAX_REPLY_BYTES,
    HttpProvider,
    parse_analysis,
    register_ai_providers,
)
from pipeline.settings import Settings
from tests.fake_ai_service import FakeAiService, Reply

ASSET_ID = "65f0c0ffee65f0c0ffee65f0"
IMAGE_URL = "https://images.example/original.jpg"


@pytest.fixture
def service(io_loop: IOLoop) -> Iterator[FakeAiService]:
    """A fake AI service on the test's loop."""
    fake = FakeAiService()
    fake.start()
    yield fake
    io_loop.run_sync(fake.stop)


@pytest.fixture
def provider(io_loop: IOLoop, service: FakeAiService) -> Iterator[HttpProvider]:
    """The provider `http` with the address of the fake AI service."""
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
    """Call the provider and return the error that it raises."""
    with pytest.raises(JobError) as caught:
        await provider.analyze(make_request(timeout_seconds))
    return caught.value


@pytest.mark.gen_test
async def test_check_needs_any_answer_and_causes_no_work(service: FakeAiService, provider: HttpProvider) -> None:
    """Any reply to a GET passes the check, also 405; without a reply the error has its cause."""
    await provider.check()
    assert service.calls == 0
    await service.stop()
    with pytest.raises(DependencyUnavailable) as caught:
        await provider.check()
    assert isinstance(caught.value.__cause__, aiohttp.ClientError)


@pytest.mark.spec("T038")
@pytest.mark.gen_test
async def test_analyze_posts_image_url_category_and_ids(service: FakeAiService, provider: HttpProvider) -> None:
    """The body is exactly {imageUrl, category}; the headers have the ids of the request, the asset and the job."""
    await provider.analyze(make_request())
    (recorded,) = service.requests
    assert recorded.body == {"imageUrl": IMAGE_URL, "category": "sneaker"}
    assert recorded.headers["Content-Type"] == "application/json"
    ids = {name: recorded.headers[name] for name in ("X-Request-Id", "X-Asset-Id", "X-Job-Id")}
    assert ids == {"X-Request-Id": "request-1", "X-Asset-Id": ASSET_ID, "X-Job-Id": f"ai-processing:{ASSET_ID}"}


@pytest.mark.gen_test
async def test_analyze_names_the_image_as_the_settings_say(service: FakeAiService) -> None:
    """The body has only the property that the settings name; a slash at the end of the base URL changes nothing.

    Some AI services require image_url and refuse unknown properties.
    """
    settings = Settings(ai_service_url=service.url + "/", ai_service_image_field="image_url")
    ((name, build),) = register_ai_providers(settings)
    provider = build()
    await provider.analyze(make_request())  # type: ignore[misc]
    assert name == "http"
    assert service.requests[0].body == {"image_url": IMAGE_URL, "category": "sneaker"}
    await provider.close()  # type: ignore[attr-defined]


@pytest.mark.spec("T038")
@pytest.mark.gen_test
async def test_analyze_ends_at_its_timeout(service: FakeAiService, provider: HttpProvider) -> None:
    """A service that never answers costs the timeout of the request, 90 s by default; the error is retryable."""
    assert Settings().provider_timeout_seconds == 90
    service.pause()
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
async def test_calls_share_a_connection(service: FakeAiService, provider: HttpProvider) -> None:
    """Calls one after the other use one connection."""
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
async def test_temporary_errors_are_retryable(
    service: FakeAiService, provider: HttpProvider, status: int, message: str
) -> None:
    """A temporary error is retryable; its message is ours, not that of the AI service."""
    service.script(Reply(status))
    error = await failure(provider)
    assert isinstance(error, RetryableJobError) and error.message == message
    assert (error.max_attempts, error.retry_after_seconds) == (None, None)


@pytest.mark.gen_test
async def test_retry_after_of_a_busy_service_is_in_the_error(service: FakeAiService, provider: HttpProvider) -> None:
    """The error has the Retry-After of a 429, for the retry policy."""
    service.script(Reply(429, headers={"Retry-After": "7"}))
    error = await failure(provider)
    assert isinstance(error, RetryableJobError) and error.retry_after_seconds == 7


@pytest.mark.gen_test
async def test_a_lost_connection_is_retryable(service: FakeAiService, provider: HttpProvider) -> None:
    """A connection that closes during a call means that the AI service is unavailable."""
    service.script(Reply(cut=True))
    error = await failure(provider)
    assert isinstance(error, RetryableJobError) and error.message == "AI service unavailable"


@pytest.mark.gen_test
async def test_a_refused_connection_is_retryable() -> None:
    """A port without a server means that the AI service is unavailable."""
    with socket.socket() as not_listening:
        not_listening.bind(("127.0.0.1", 0))
        provider = HttpProvider(f"http://127.0.0.1:{not_listening.getsockname()[1]}", "imageUrl")
        error = await failure(provider)
    assert isinstance(error, RetryableJobError) and error.message == "AI service unavailable"
    await provider.close()


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
@pytest.mark.gen_test
async def test_other_client_errors_are_permanent(service: FakeAiService, provider: HttpProvider, status: int) -> None:
    """The reason of the failure is the message of the AI service, for example that the image shows no product."""
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
    """For any body of an error the message for the owner is one line of at most 300 characters."""
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
    """An unreadable reply is retried once: a proxy may have caused the first one.

    The provider follows no redirect and does not read a reply over the limit.
    """
    service.script(reply)
    error = await failure(provider)
    assert isinstance(error, RetryableJobError)
    assert (error.message, error.max_attempts) == ("AI service sent an unreadable reply", 2)
    assert service.calls == 1


@pytest.mark.gen_test
async def test_cancelled_call_closes_its_connection(service: FakeAiService, provider: HttpProvider) -> None:
    """A cancelled call closes its connection and raises CancelledError; the next call uses a new connection."""
    service.pause()
    call = asyncio.ensure_future(provider.analyze(make_request()))
    await service.wait_for_calls(1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    service.resume()
    await provider.analyze(make_request())
    first, second = service.requests
    assert first.client_port != second.client_port


@pytest.mark.spec("T039")
@pytest.mark.parametrize(
    ("reply", "analysis"),
    [
        ({}, Analysis()),  # an empty result is a partial result, not an error
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
def test_parse_analysis_reads_every_known_shape(reply: dict[str, Any], analysis: Analysis) -> None:
    """Objects, bare strings, null and absence; both spellings of the processed image; unknown properties ignored."""
    parsed = parse_analysis(json.dumps(reply).encode())
    assert parsed == analysis
    assert (parsed.brand is UNKNOWN) == (analysis.brand is UNKNOWN)
