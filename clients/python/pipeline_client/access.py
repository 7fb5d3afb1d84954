"""The errors and the token that requests and connections use."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Any

import aiohttp

Token = str | Callable[[], str | Awaitable[str]]


class Fault(IntEnum):
    """Points against a transport for one failed connection. With two points the client tries another transport."""

    NONE = 0  # the service is down, or has given a reason
    NOT_OPENED = 1
    MUTE = 2


class ClientError(Exception):
    """The service refused, or could not be reached. The message is for people and safe to print on a terminal."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(each if each.isprintable() else " " for each in message))


class Unavailable(ClientError):
    """It failed, but may succeed later.

    retry_seconds: the service's Retry-After, None without one.
    fault: points against the transport.
    is_gateway: a proxy answered that the service is down.
    """

    def __init__(
        self,
        message: str,
        retry_seconds: float | None = None,
        *,
        fault: Fault = Fault.NONE,
        is_gateway: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds
        self.fault = fault
        self.is_gateway = is_gateway


class TooMany(Unavailable):
    """The user has reached a limit of the service.

    free_at: when the next request is allowed, by the monotonic clock.
    """

    def __init__(self, message: str, retry_seconds: float) -> None:
        super().__init__(message, retry_seconds)
        self.free_at = time.monotonic() + retry_seconds


class Refused(ClientError):
    """The service closed the connection, and will do so again unless something is changed. code: the close code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class TokenSource:
    """The token in use, and the source of the next one."""

    def __init__(self, source: Token) -> None:
        self._source = source
        self._token: str | None = None
        self._lock = asyncio.Lock()

    async def get(self) -> str:
        """Return the token in use, or a fresh one when there is none."""
        if isinstance(self._source, str):
            return _checked(self._source)
        async with self._lock:  # simultaneous requests call the function once
            if self._token is None:
                try:
                    answer = self._source()
                    self._token = answer if isinstance(answer, str) else await answer
                except (aiohttp.ClientError, OSError) as error:
                    raise Unavailable(f"Cannot get a token: {words_of(error)}") from error
            return _checked(self._token)

    def drop(self, token: str) -> bool:
        """Stop using this token; False when there can be no other."""
        if self._token == token:
            self._token = None
        return not isinstance(self._source, str)


def _checked(token: str) -> str:
    """Return the token; ClientError when a header cannot contain it."""
    if token.isascii() and token.isprintable():
        return token
    raise ClientError("The token has a line break or another character that tokens cannot have")


def claims_of(token: str) -> dict[str, Any]:
    """Return the token's claims, unverified; {} when it cannot be read."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}


def seconds_left(token: str) -> float:
    """Return for how many seconds the token is still valid; 0 when it has no expiry."""
    try:
        return float(claims_of(token)["exp"]) - time.time()
    except (KeyError, TypeError, ValueError):
        return 0


def words_of(error: BaseException) -> str:
    """Return the error as text: a timeout has no text of its own, and that of a refused connection has no reason."""
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.errno, int) and error.strerror:
        return os.strerror(error.errno) if error.errno > 0 else error.strerror
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
