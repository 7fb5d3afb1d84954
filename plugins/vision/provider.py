"""A provider that sends the photo to a vision model over HTTP and checks its answer against our schema.

ai_openai.py, ai_anthropic.py and ai_gemini.py subclass VisionProvider: they know the requests and replies of one
endpoint. Plain HTTP and not the makers' SDKs: each takes half a second to import, has an HTTP client of its own, and
retries calls that the queue retries. The photo itself is sent, never its URL: that may not be reachable from outside,
and the endpoint must not know it. Runs on the event loop; photos are reduced in the sandbox.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

import aiohttp

from pipeline.errors import DependencyUnavailable, JobError, PermanentJobError, RetryableJobError, is_unreachable
from pipeline.hooks import Analysis, AnalyzeRequest, Context, Rate, Sandbox, Usage

from ..ai_http import BUSY, CONNECT_SECONDS, MAX_MESSAGE_LENGTH, TIMED_OUT, UNAVAILABLE, read_reply
from . import prompt as prompts
from .answers import UnreadableAnswer, attributes_in, one_line
from .replies import error_in, message_in
from .settings import VisionSettings
from .waits import wait_of

REFUSED = "AI service refused the image: its content is not allowed there"
NO_QUOTA = "AI service quota is used up"
JPEG_QUALITY = 85
# Of a call's time: the wait for a child that reduces the photo, and the reduction. The rest is for the endpoint.
WAIT_SHARE, REDUCE_SHARE = 0.4, 0.3
CHECK_SECONDS = 5.0
MAX_NAME_LENGTH = 200
# How long jobs wait when our key, account or model is refused. No photo is at fault, so no attempt is used up.
HOLD_SECONDS = 30.0
# No decompression: a small reply may decompress to any size.
JSON = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
NEVER = re.compile("(?!)")
UNREADABLE_REPLY = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a model, taken from the endpoint's reply.

    text: the JSON it was asked for.
    model: the name of the model.
    """

    text: str
    model: Any = None


class AnswerRefused(Exception):
    """The model, or a filter of its maker, refuses this photo."""


class Refusal(Exception):
    """The endpoint's answer without a result, for operators; never contains our key."""


# Many methods because a subclass implements five of them.
class VisionProvider(ABC):
    """One endpoint. Subclasses make its requests and read its replies."""

    needs_image = True
    name: ClassVar[str]
    maker: ClassVar[str]
    default_url: ClassVar[str]
    # Patterns in the codes of an error (see `codes_in`): the account's quota is used up; the photo's content is not
    # allowed; the photo is unreadable; our key or account is refused; the endpoint is overloaded. Any other 400 may
    # also concern our parameters, and then all photos fail.
    used_up = NEVER
    not_allowed = NEVER
    bad_photo = NEVER
    not_set_up = NEVER
    overloaded = NEVER
    settings_at_fault = {401: ("API_KEY",), 403: ("API_KEY",), 404: ("MODEL", "BASE_URL"), 405: ("BASE_URL",)}

    def __init__(self, settings: VisionSettings, sandbox: Sandbox) -> None:
        self.settings = settings
        self._sandbox = sandbox
        self._prefix = f"PLUGIN_{self.name.upper()}_"
        self._prompt = prompts.load(settings.prompt_path, f"{self._prefix}PROMPT_PATH")
        self._url = (settings.base_url or self.default_url).rstrip("/")
        self._host = urlsplit(self._url).netloc
        self._http: aiohttp.ClientSession | None = None
        self._own_http: aiohttp.ClientSession | None = None
        # Known before any answer: results of different models and prompts are compared by them.
        self.model_name = settings.model
        self.prompt_version = self._prompt.version
        self.rate: Rate | None = settings.rate
        receiver = "a server of this site's choice" if settings.base_url else self.maker
        self.sees = (
            f"The photo goes to {receiver}, made smaller and without the file's other data. A vision model looks at "
            "all of it; it may miss small or hidden details, or guess."
        )

    @abstractmethod
    def headers(self) -> Mapping[str, str]:
        """Return the headers of each call: the key, if there is one."""

    @abstractmethod
    def question(self, prompt: str, about: str, photo: str) -> tuple[str, Mapping[str, Any]]:
        """Return the path and the JSON body of a call.

        prompt: the text for all photos.
        about: the text for this photo.
        photo: a JPEG in base64.
        """

    @abstractmethod
    def answer(self, reply: Any) -> Answer:
        """Return the model's answer in the endpoint's reply.

        AnswerRefused: the model refuses the photo.
        ValueError, LookupError, TypeError or AttributeError: the answer is unreadable or was cut off.
        """

    @abstractmethod
    def tokens(self, reply: Any) -> tuple[int | None, int | None]:
        """Return the input and output tokens in the endpoint's reply, also in one without a usable answer."""

    @abstractmethod
    def check_path(self) -> str:
        """Return the path of a GET that needs the key and costs nothing."""

    def codes_in(self, error: Mapping[str, Any]) -> str:
        """Return the codes of an error in one line."""
        return f"{error.get('code')} {error.get('type')}"

    async def start(self, context: Context) -> None:
        """Use the session that all plugins share."""
        self._http = context.http

    async def analyze(self, request: AnalyzeRequest) -> Analysis:
        """Return the model's analysis.

        RetryableJobError: the endpoint cannot be reached, takes too long, answers 5xx, 408, 429 or something
        unreadable; or it refuses our key, account, model or parameters, which is not the photo's fault.
        PermanentJobError: the photo is unreadable or its content is refused.
        """
        try:
            async with asyncio.timeout(request.timeout_seconds):
                # Upright, of limited size, and without the file's metadata, such as the place.
                photo = await self._sandbox.reduce_to_jpeg(
                    request.image or b"",
                    self.settings.max_side_pixels,
                    quality=JPEG_QUALITY,
                    seconds=request.timeout_seconds * REDUCE_SHARE,
                    wait_seconds=request.timeout_seconds * WAIT_SHARE,
                )
                data, about = base64.b64encode(photo).decode(), self._prompt.about(request.category)
                path, question = self.question(self._prompt.text, about, data)
                headers = {"X-Request-Id": request.request_id}
                if request.trace_context:
                    headers["traceparent"] = request.trace_context
                async with asyncio.timeout(self.settings.timeout_seconds):
                    return self._analysis(await self._ask("POST", path, headers, question))
        except TimeoutError as error:
            raise RetryableJobError(TIMED_OUT, spends_attempt=not is_unreachable(error)) from self._cause(error)
        except aiohttp.ClientError as error:
            # The cause of the error says whether the endpoint was reached at all.
            raise RetryableJobError(UNAVAILABLE, spends_attempt=not is_unreachable(error)) from self._cause(error)

    async def check(self) -> None:
        """Return when the endpoint answers and accepts our key; else DependencyUnavailable, the reason as its cause."""
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                body = await self._ask("GET", self.check_path(), {})
            if not isinstance(json.loads(body), dict):
                raise ValueError("no JSON object")
        except JobError as error:
            raise DependencyUnavailable(error.message) from error.__cause__
        except (TimeoutError, aiohttp.ClientError) as error:
            raise DependencyUnavailable(UNAVAILABLE) from self._cause(error)
        except (ValueError, RecursionError) as error:
            reason = f"{self._host} sent something unreadable ({error}): is {self._prefix}BASE_URL right?"
            raise DependencyUnavailable(UNAVAILABLE) from self._cause(Refusal(reason))

    async def close(self) -> None:
        """Close the connections of its own session."""
        if self._own_http is not None:
            await self._own_http.close()

    async def _ask(self, method: str, path: str, headers: Mapping[str, str], body: Any = None) -> bytes:
        """Return the body of a 2xx answer; raise the JobError for any other answer."""
        async with self._session().request(
            method,
            self._url + path,
            # A file and not bytes, because bytes would be passed to the socket in one piece.
            data=None if body is None else io.BytesIO(json.dumps(body).encode()),
            headers={**self.headers(), **headers, **JSON},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            allow_redirects=False,
        ) as response:
            content = await read_reply(response)
            if response.status >= 300:
                error = error_in(content)
                fault, hint = self._fault_of(response.status, response.headers, error)
                words = f"HTTP {response.status} from {self._host}: {message_in(error, content)}"
                raise fault from self._cause(Refusal(f"{hint}; {words}" if hint else words))
            return content

    def _session(self) -> aiohttp.ClientSession:
        # Some commands call a plugin without starting it.
        if self._http is None and self._own_http is None:
            self._own_http = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=True)
        session = self._http or self._own_http
        assert session is not None
        return session

    def _analysis(self, body: bytes) -> Analysis:
        """Return the analysis in a reply; UnreadableAnswer, or PermanentJobError when the model refused to answer."""
        usage = None
        try:
            reply = json.loads(body)
            usage = self._usage(reply)
            answer = self.answer(reply)
            attributes = attributes_in(answer.text)
        except AnswerRefused as error:
            cause = self._cause(Refusal(f"{self._host} refused the photo: {error}"))
            raise PermanentJobError(REFUSED, usage=usage) from cause
        except UNREADABLE_REPLY as error:
            raise UnreadableAnswer(usage) from self._cause(error)
        model = answer.model if isinstance(answer.model, str) and answer.model else self.settings.model
        return Analysis(
            *attributes,
            usage=usage,
            ai_model=one_line(model, MAX_NAME_LENGTH),
            prompt_version=self._prompt.version,
            confidence_kind="self_reported",
        )

    def _usage(self, reply: Any) -> Usage | None:
        """Return the usage in a reply; with invalid token counts the answer, which is paid for, is still valid."""
        try:
            return self.settings.usage(*self.tokens(reply))
        except UNREADABLE_REPLY:
            return self.settings.usage(None, None)

    def _fault_of(
        self, status: int, headers: Mapping[str, str], error: Mapping[str, Any]
    ) -> tuple[JobError, str]:
        """Return the job's error for an answer other than 2xx, and a hint for operators if they can solve the problem.

        error: from the body of the answer.
        """
        codes = self.codes_in(error)
        is_limited = status == 429
        wait = wait_of(headers, error, is_limited=is_limited)
        is_refusal = 400 <= status < 500
        if status == 402 or (is_refusal and self.used_up.search(codes)):
            waited = max(wait or 0, HOLD_SECONDS)
            return RetryableJobError(NO_QUOTA, retry_after_seconds=waited), f"see the account of {self._prefix}API_KEY"
        if is_limited or status == 529 or (status == 503 and self.overloaded.search(codes)):
            # If the endpoint does not say how long it is busy, single jobs try it.
            return RetryableJobError(BUSY, retry_after_seconds=wait, spends_attempt=False), ""
        if status == 408 or status >= 500:
            return RetryableJobError(TIMED_OUT if status == 408 else UNAVAILABLE, retry_after_seconds=wait), ""
        if is_refusal and self.not_allowed.search(codes):
            return PermanentJobError(REFUSED), ""
        if status == 413 or (is_refusal and self.bad_photo.search(codes)):
            return PermanentJobError(f"AI service refused the image (HTTP {status})"), ""
        if status < 400 or status in self.settings_at_fault or (is_refusal and self.not_set_up.search(codes)):
            settings = ("BASE_URL",) if status < 400 else self.settings_at_fault.get(status, ("API_KEY",))
            hint = "see " + " and ".join(f"{self._prefix}{name}" for name in settings)
            not_set_up = f"AI service is not set up (HTTP {status})"
            return RetryableJobError(not_set_up, retry_after_seconds=HOLD_SECONDS), hint
        # The reason may be our parameters; if it is the photo, the job fails after its last attempt.
        return RetryableJobError(f"AI service refused the request (HTTP {status})"), ""

    def _cause(self, error: Exception) -> Exception:
        """Return the error for the log, without our key, which an endpoint may repeat."""
        text = str(error) if isinstance(error, Refusal) else f"{type(error).__name__}: {error}"
        if key := self.settings.api_key.get_secret_value():
            text = text.replace(key, "***")
        kind = Refusal if isinstance(error, Refusal) else ConnectionError
        return kind(one_line(text, MAX_MESSAGE_LENGTH))
