"""Requests to the service with the token in use, and what its replies mean."""

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
# As long as the service lets an upload take.
REQUEST_SECONDS = 300
PAGE = 100
GATEWAY_STATUSES = {502, 503, 504}
# The service is away or has too much to do.
TOO_MANY = 429
AGAIN_STATUSES = {TOO_MANY, 502, 503}


def segment(text: str) -> str:
    """Return an id as a part of a path; ClientError for one that would name another path."""
    if text in ("", ".", ".."):
        raise ClientError(f"{text!r} is no id")
    return quote(text, safe="")


class Reply(NamedTuple):
    """An HTTP reply as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def data(self) -> dict[str, Any]:
        """Return what a good reply carries; raise what the service has to say otherwise."""
        if self.status == 204:
            return {}
        envelope = self._envelope()
        if envelope is not None and envelope["success"]:
            data: dict[str, Any] = envelope["data"]
            return data
        words = self._words(envelope)
        if self.status == TOO_MANY and self.retry_seconds is not None:
            raise TooMany(words, self.retry_seconds)
        if self.status in AGAIN_STATUSES or self.is_early_token:
            raise Unavailable(words, self.retry_seconds)
        raise ClientError(words)

    def refusal(self) -> ClientError:
        """Return what this answer means to whoever wanted to listen, in the terms of a close code."""
        envelope = self._envelope()
        words = self._words(envelope)
        is_gateway = self.status in GATEWAY_STATUSES
        if envelope is None or self.status == 404:  # a proxy's, or from a service that is older than this transport
            return Unavailable(words, self.retry_seconds, fault=Fault.NOT_OPENED, is_gateway=is_gateway)
        if self.status == 401 and not self.is_early_token:
            return Refused(words, BAD_TOKEN)
        if self.status in (400, 403):
            return Refused(words, MALFORMED)
        return Unavailable(words, self.retry_seconds, is_gateway=is_gateway)

    @property
    def retry_seconds(self) -> float | None:
        """When the service wants to be asked again, if it said so."""
        text = self.headers.get("Retry-After", "")
        return float(text) if text.isdecimal() else None

    @property
    def is_early_token(self) -> bool:
        """True when the token is not valid yet: that heals by itself."""
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
            return f"An answer that is not the service's, status {self.status}"
        error = envelope["error"]
        details = [
            f"{each['field']}: {each['message']}"
            for each in error.get("details", ())
            # A lone fault may be the message itself.
            if each["message"] != error["message"]
        ]
        return "; ".join([error["message"], *details])


class Http:
    """One user's requests to one service. `open` it on the loop it is used on."""

    def __init__(self, url: str, tokens: TokenSource) -> None:
        self.url = url.rstrip("/")
        self.tokens = tokens
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Make the pool of connections."""
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
        """Return the reply's data. body: makes what is sent, anew when the request is repeated with a fresh token."""
        return (await self.ask(method, path, body=body, **options)).data()

    async def ask(self, method: str, path: str, *, body: Callable[[], Any] = lambda: None, **options: Any) -> Reply:
        """Return the reply, good or bad; after a 401 that of the second try, with a fresh token."""
        token = await self.tokens.get()
        reply = await self.send(token, method, path, data=body(), **options)
        if reply.status == 401 and not reply.is_early_token and self.tokens.drop(token):
            reply = await self.send(await self.tokens.get(), method, path, data=body(), **options)
        return reply

    async def send(
        self, token: str, method: str, path: str, *, headers: Mapping[str, str] = {}, **options: Any
    ) -> Reply:
        """Send one request, once."""
        headers = {"Authorization": f"Bearer {token}"} | dict(headers)
        try:
            async with self.session.request(method, self.url + path, headers=headers, **options) as response:
                return Reply(response.status, response.headers, await response.read())
        except (aiohttp.ClientError, OSError) as error:
            raise self.unreached(error) from error

    async def finished_since(self, since: str) -> AsyncIterator[dict[str, Any]]:
        """Yield the assets that were finished since then, oldest first."""
        params = {"finishedSince": since, "limit": str(PAGE)}
        while True:
            page = await self.request("GET", "/api/assets", params=params)
            for asset in page["items"]:
                yield asset
            if page["nextCursor"] is None:
                return
            params["cursor"] = page["nextCursor"]

    def unreached(self, error: BaseException) -> Unavailable:
        """Return what it means that there was no answer.

        Where not even a connection came about, another transport would not have one either.
        """
        is_nobody_there = isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError))
        fault = Fault.NONE if is_nobody_there else Fault.NOT_OPENED
        return Unavailable(f"Cannot reach {self.url}: {words_of(error)}", fault=fault)
