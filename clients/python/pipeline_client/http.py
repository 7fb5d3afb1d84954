"""Requests to the service with the token in use, and the meaning of its replies."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp

from .access import ClientError, Fault, Refused, TokenSource, TooMany, Unavailable, words_of
from .close_codes import BAD_TOKEN, MALFORMED

CONNECT_SECONDS = 10
# The service's own limit for an upload.
REQUEST_SECONDS = 300
PAGE = 100
GATEWAY_STATUSES = {502, 503, 504}
TOO_MANY = 429
# The service is down or overloaded: a retry may help.
RETRY_STATUSES = {TOO_MANY, 502, 503}


def segment(text: str) -> str:
    """Return an id quoted for a path; ClientError for one that would change the path."""
    if text in ("", ".", ".."):
        raise ClientError(f"{text!r} is not an id")
    return quote(text, safe="")


class Reply(NamedTuple):
    """An HTTP reply."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def data(self) -> dict[str, Any]:
        """Return the data of a good reply; raise the error of any other."""
        if self.status == 204:
            return {}
        envelope = self._envelope()
        if envelope is not None and envelope["success"]:
            data: dict[str, Any] = envelope["data"]
            return data
        words = self._words(envelope)
        if self.status == TOO_MANY and self.retry_seconds is not None:
            raise TooMany(words, self.retry_seconds)
        if self.status in RETRY_STATUSES or self.is_early_token:
            raise Unavailable(words, self.retry_seconds)
        raise ClientError(words)

    def refusal(self) -> ClientError:
        """Return the error for a refused connection of events."""
        envelope = self._envelope()
        words = self._words(envelope)
        is_gateway = self.status in GATEWAY_STATUSES
        if envelope is None or self.status == 404:  # from a proxy, or from a service older than this transport
            return Unavailable(words, self.retry_seconds, fault=Fault.NOT_OPENED, is_gateway=is_gateway)
        if self.status == 401 and not self.is_early_token:
            return Refused(words, BAD_TOKEN)
        if self.status in (400, 403):
            return Refused(words, MALFORMED)
        return Unavailable(words, self.retry_seconds, is_gateway=is_gateway)

    @property
    def retry_seconds(self) -> float | None:
        """The seconds of Retry-After, None without one."""
        text = self.headers.get("Retry-After", "")
        return float(text) if text.isdecimal() else None

    @property
    def is_early_token(self) -> bool:
        """True when the token is not valid yet: a retry helps."""
        return self.status == 401 and self.retry_seconds is not None

    @property
    def server_time(self) -> str:
        """The service's time in the Date header; "" without one."""
        try:
            return parsedate_to_datetime(self.headers.get("Date", "")).isoformat()
        except ValueError:
            return ""

    def _envelope(self) -> dict[str, Any] | None:
        try:
            envelope = json.loads(self.body)
            _ = envelope["data"] if envelope["success"] else envelope["error"]["message"]
        except (ValueError, LookupError, TypeError):
            return None
        return envelope if isinstance(envelope, dict) else None

    def _words(self, envelope: dict[str, Any] | None) -> str:
        if envelope is None or envelope["success"]:
            return f"The answer does not come from the service, status {self.status}"
        error = envelope["error"]
        details = [
            f"{each['field']}: {each['message']}"
            for each in error.get("details", ())
            # With a single detail the message may be the same text.
            if each["message"] != error["message"]
        ]
        return "; ".join([error["message"], *details])


class Http:
    """One user's requests to one service. Call `open` on the loop that uses it."""

    def __init__(self, url: str, tokens: TokenSource) -> None:
        self.url = url.rstrip("/")
        self.tokens = tokens
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Create the pool of connections."""
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS)
        self._session = aiohttp.ClientSession(timeout=timeout)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The pool of connections."""
        if self._session is None:
            raise ClientError("This client is not open: use it in a `with` statement")
        return self._session

    async def request(
        self, method: str, path: str, *, body: Callable[[], Any] = lambda: None, **options: Any
    ) -> dict[str, Any]:
        """Return the reply's data. body: builds the body, again when the request is repeated with a fresh token."""
        return (await self.ask(method, path, body=body, **options)).data()

    async def ask(self, method: str, path: str, *, body: Callable[[], Any] = lambda: None, **options: Any) -> Reply:
        """Return the reply, good or bad. After a 401 the request is repeated once with a fresh token."""
        token = await self.tokens.get()
        reply = await self.send(token, method, path, data=body(), **options)
        if reply.status == 401 and not reply.is_early_token and self.tokens.drop(token):
            reply = await self.send(await self.tokens.get(), method, path, data=body(), **options)
        return reply

    async def send(
        self, token: str, method: str, path: str, *, headers: Mapping[str, str] = {}, **options: Any
    ) -> Reply:
        """Send one request, without a retry."""
        headers = {"Authorization": f"Bearer {token}"} | dict(headers)
        try:
            async with self.session.request(method, self.url + path, headers=headers, **options) as response:
                return Reply(response.status, response.headers, await response.read())
        except (aiohttp.ClientError, OSError) as error:
            raise self.unreached(error) from error

    async def finished_since(self, since: str) -> AsyncIterator[dict[str, Any]]:
        """Yield the assets that were finished since then, oldest first."""
        async for asset in self.listed("/api/assets", None, {"finishedSince": since}):
            yield asset

    async def listed(self, path: str, limit: int | None, params: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
        """Yield the items of a list, page by page. limit: at most so many; None: all."""
        left, cursor = limit, None
        while left is None or left > 0:
            page_params = {**params, "limit": str(min(left or PAGE, PAGE))} | ({"cursor": cursor} if cursor else {})
            page = await self.request("GET", path, params=page_params)
            for item in page["items"]:
                yield item
            if (cursor := page["nextCursor"]) is None:
                return
            left = None if left is None else left - len(page["items"])

    def unreached(self, error: BaseException) -> Unavailable:
        """Return the error for a missing answer. Without a TCP connection no other transport would work either."""
        is_unconnected = isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError))
        fault = Fault.NONE if is_unconnected else Fault.NOT_OPENED
        return Unavailable(f"Cannot reach {self.url}: {words_of(error)}", fault=fault)
