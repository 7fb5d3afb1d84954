"""The AI provider `http`: the service behind AI_SERVICE_URL, asked with POST {AI_SERVICE_URL}/analyze.

Runs on the event loop. aiohttp reuses connections, closes them when cancelled, and needs 0.1 ms of CPU per call; httpx
was measured at 1.6 ms and Tornado's client at 0.5 ms.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp

from pipeline.errors import ConfigurationError, DependencyUnavailable, PermanentJobError, RetryableJobError
from pipeline.hooks import UNKNOWN, AIProvider, Analysis, AnalyzeRequest, Attribute, hookimpl, retry_after_of

if TYPE_CHECKING:
    from pipeline.settings import Settings

# Of a value that the service sends without a confidence.
DEFAULT_CONFIDENCE = 0.5
MAX_REPLY_BYTES = 1024 * 1024
MAX_MESSAGE_LENGTH = 300
CONNECT_SECONDS = 10.0
CHECK_SECONDS = 5.0

UNAVAILABLE = "AI service unavailable"
TIMED_OUT = "AI service timed out"
BUSY = "AI service is busy"
UNREADABLE = "AI service sent an unreadable reply"


@hookimpl
def register_ai_providers(settings: Settings) -> Iterator[tuple[str, Callable[[], AIProvider]]]:
    """Offer `http`."""
    yield "http", lambda: HttpProvider(settings.ai_service_url, settings.ai_service_image_field)


class HttpProvider:
    """Sends the image's URL and category to the AI service."""

    sees = "The photo goes to an AI service of this site's choice, which can look at all of it."

    def __init__(self, base_url: str, image_field: str) -> None:
        """image_field: the JSON field for the image's URL."""
        if not base_url:
            raise ConfigurationError("AI_SERVICE_URL is not set")
        self._url = base_url.rstrip("/") + "/analyze"
        self._host = urlsplit(base_url).netloc.rpartition("@")[2]
        self._image_field = image_field
        self._session: aiohttp.ClientSession | None = None

    async def analyze(self, request: AnalyzeRequest) -> Analysis:
        """Return the service's analysis.

        RetryableJobError: the service cannot be reached or asks to wait, which uses up no attempt; it takes too long,
        answers 5xx, 408 or something unreadable.
        PermanentJobError, with the service's own message: any other 4xx.
        """
        try:
            async with self._connect().post(
                self._url,
                json={self._image_field: request.image_url, "category": request.category},
                headers=_headers(request),
                timeout=aiohttp.ClientTimeout(total=request.timeout_seconds, sock_connect=CONNECT_SECONDS),
                allow_redirects=False,
            ) as response:
                body = await read_reply(response)
                if response.status >= 300:
                    error = error_of_status(response.status, response.headers, _message(body))
                    raise error from Answer(response.status, self._host, _message(body))
                return parse_analysis(body)
        except aiohttp.ClientError as error:
            # The cause of this error says whether the service was reached at all.
            raise RetryableJobError(UNAVAILABLE) from error
        except TimeoutError as error:
            raise RetryableJobError(TIMED_OUT) from error

    async def check(self) -> None:
        """Return when the service sends any answer; DependencyUnavailable otherwise."""
        timeout = aiohttp.ClientTimeout(total=CHECK_SECONDS)
        try:
            # Not a POST: that would start an analysis, which may cost money.
            async with self._connect().get(self._url, timeout=timeout, allow_redirects=False):
                pass
        except (aiohttp.ClientError, TimeoutError) as error:
            raise DependencyUnavailable(UNAVAILABLE) from error

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _connect(self) -> aiohttp.ClientSession:
        # Made at the first call because a session belongs to the loop it is made on. No limit of connections: the job
        # slots are the limit. No decompression: a small reply may decompress to any size.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                auto_decompress=False,
            )
        return self._session


def _headers(request: AnalyzeRequest) -> dict[str, str]:
    headers = {
        "X-Request-Id": request.request_id,
        "X-Asset-Id": request.asset_id,
        "X-Job-Id": request.job_id,
    }
    return headers | ({"traceparent": request.trace_context} if request.trace_context else {})


def parse_analysis(body: bytes) -> Analysis:
    """Return the analysis in a reply of the service; RetryableJobError (two attempts) when it is unreadable."""
    try:
        reply = json.loads(body)
        if not isinstance(reply, dict):
            raise ValueError(f"a JSON object was expected, not {type(reply).__name__}")
        colorway = _attribute(reply.get("colorway"))
        return Analysis(
            brand=_attribute(reply.get("brand")),
            model=_attribute(reply.get("model")),
            colorway=None if colorway is UNKNOWN else colorway,
            processed_image_url=reply.get("processedImageUrl") or reply.get("processed_image_url") or None,
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise RetryableJobError(UNREADABLE, max_attempts=2) from error


async def read_reply(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of a reply; RetryableJobError (two attempts) when it is longer than any result."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_REPLY_BYTES:
            raise RetryableJobError(UNREADABLE, max_attempts=2)
    return bytes(body)


class Answer(Exception):
    """The answer of an HTTP service without a result; for operators, as the cause of the job's error."""

    def __init__(self, status: int, host: str, message: str = "") -> None:
        super().__init__(f"HTTP {status} from {host}" + (f": {message}" if message else ""))


def error_of_status(status: int, headers: Mapping[str, str], message: str) -> RetryableJobError | PermanentJobError:
    """Return the job's error for an answer other than 2xx. message: the service's own words, or ""."""
    if status == 429 or status >= 500 or status == 408:
        text = BUSY if status == 429 else TIMED_OUT if status == 408 else UNAVAILABLE
        retry_after = retry_after_of(headers)
        # If the service does not say how long it is busy, single jobs try it.
        spends_attempt = None if retry_after is not None else status != 429
        return RetryableJobError(text, retry_after_seconds=retry_after, spends_attempt=spends_attempt)
    if status < 400:
        return RetryableJobError(UNREADABLE, max_attempts=2)
    return PermanentJobError(message or f"AI service refused the image (HTTP {status})")


def _message(body: bytes) -> str:
    """Return the text of {"error": {"message", "code"}} in one line of bounded length, "" when there is none."""
    try:
        text = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return " ".join(text.split())[:MAX_MESSAGE_LENGTH] if isinstance(text, str) else ""


def _attribute(field: Any) -> Attribute:
    """Return the attribute in {"value", "confidence"}, a string or null; ValueError or TypeError otherwise."""
    value, confidence = (field.get("value"), field.get("confidence")) if isinstance(field, dict) else (field, None)
    if value is None:
        return UNKNOWN
    if not isinstance(value, str):
        raise TypeError(f"text was expected, not {type(value).__name__}")
    if not value.strip():
        return UNKNOWN
    if confidence is None:
        return Attribute(value.strip(), DEFAULT_CONFIDENCE)
    if isinstance(confidence, bool) or not 0 <= confidence <= 1:
        raise ValueError("a confidence of 0 to 1 was expected")
    return Attribute(value.strip(), float(confidence))
