"""What requests and connections stand on: the errors that tell what went wrong, and tokens."""

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
    """How much a failed connection speaks against its transport; two of these make the client take another one."""

    NONE = 0  # the service is away, or said itself why not now
    NOT_OPENED = 1
    MUTE = 2


class ClientError(Exception):
    """The service refused, or could not be reached; the message is for people, and fit for their terminal."""

    def __init__(self, message: str) -> None:
        super().__init__("".join(each if each.isprintable() else " " for each in message))


class Unavailable(ClientError):
    """It failed for now.

    retry_seconds: when the service wants to be asked again, if it said so.
    is_gateway: a proxy answered that the service is away.
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
    """The user has asked for as much as one user may.

    free_at: when there is room again, by the monotonic clock.
    """

    def __init__(self, message: str, retry_seconds: float) -> None:
        super().__init__(message, retry_seconds)
        self.free_at = time.monotonic() + retry_seconds


class Refused(ClientError):
    """The service ended the connection and will do so again unless something is changed. code: the close code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class TokenSource:
    """The token in use, and where the next one comes from."""

    def __init__(self, source: Token) -> None:
        self._source = source
        self._held: str | None = None
        self._lock = asyncio.Lock()

    async def get(self) -> str:
        """Return the token in use, a fresh one when there is none."""
        if isinstance(self._source, str):
            return _checked(self._source)
        async with self._lock:  # many who need one ask once
            if self._held is None:
                try:
                    answer = self._source()
                    self._held = answer if isinstance(answer, str) else await answer
                except (aiohttp.ClientError, OSError) as error:
                    raise Unavailable(f"Cannot get a token: {words_of(error)}") from error
            return _checked(self._held)

    def drop(self, token: str) -> bool:
        """Use this token no more; False when there is no other."""
        if self._held == token:
            self._held = None
        return not isinstance(self._source, str)


def _checked(token: str) -> str:
    """Return the token; ClientError for one that no header can carry."""
    if token.isascii() and token.isprintable():
        return token
    raise ClientError("The token holds a line break or another character that no token has")


def claims_of(token: str) -> dict[str, Any]:
    """Return what the token says, unverified; nothing when it cannot be read."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}


def seconds_left(token: str) -> float:
    """Return how long the token is still good for; 0 when it does not say."""
    try:
        return float(claims_of(token)["exp"]) - time.time()
    except (KeyError, TypeError, ValueError):
        return 0


def words_of(error: BaseException) -> str:
    """Return what is known of an error; a timeout itself says nothing, and asyncio tells of a refusal only where."""
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.errno, int) and error.strerror:
        return os.strerror(error.errno) if error.errno > 0 else error.strerror
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
