"""What the client's requests and its socket stand on: tokens, replies, and the errors that tell what went wrong."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import aiohttp
import jwt

from pipeline.texts import clean

# The service is away or has too much to do.
AGAIN_STATUSES = {429, 502, 503}

Token = str | Callable[[], str | Awaitable[str]]


class ClientError(Exception):
    """The service refused, or could not be reached; the message is for people, and fit for their terminal."""

    def __init__(self, message: str) -> None:
        super().__init__(clean(message))


class Unavailable(ClientError):
    """It failed for now. retry_seconds: when the service wants to be asked again, if it said so."""

    def __init__(self, message: str, retry_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class TokenSource:
    """The token in use, and where the next one comes from."""

    def __init__(self, source: Token) -> None:
        self._source = source
        self._held: str | None = None
        self._lock = asyncio.Lock()

    async def get(self) -> str:
        """Return the token in use, a fresh one when there is none."""
        if isinstance(self._source, str):
            return self._source
        async with self._lock:  # many who need one ask once
            if self._held is None:
                try:
                    answer = self._source()
                    self._held = answer if isinstance(answer, str) else await answer
                except (aiohttp.ClientError, OSError) as error:
                    raise Unavailable(f"Cannot get a token: {words_of(error)}") from error
            return self._held

    def drop(self, token: str) -> bool:
        """Use this token no more; False when there is no other."""
        if self._held == token:
            self._held = None
        return not isinstance(self._source, str)


class Reply(NamedTuple):
    """An HTTP reply as it came."""

    status: int
    retry_after: str
    body: bytes

    def data(self) -> dict[str, Any]:
        """Return what a good reply carries; raise what the service has to say otherwise."""
        if self.status == 204:
            return {}
        try:
            envelope = json.loads(self.body)
            if envelope["success"]:
                data: dict[str, Any] = envelope["data"]
                return data
            details = [f"{each['field']}: {each['message']}" for each in envelope["error"].get("details", ())]
            words = "; ".join([envelope["error"]["message"], *details])
        except (ValueError, LookupError, TypeError):
            words = f"An answer that is not the service's, status {self.status}"  # from a proxy, perhaps
        if self.status in AGAIN_STATUSES:
            raise Unavailable(words, float(self.retry_after) if self.retry_after.isdecimal() else None)
        raise ClientError(words)


def seconds_left(token: str) -> float:
    """Return how long the token is still good for; 0 when it does not say."""
    try:
        return float(jwt.decode(token, options={"verify_signature": False})["exp"]) - time.time()
    except (jwt.InvalidTokenError, KeyError, TypeError, ValueError):
        return 0


def words_of(error: Exception) -> str:
    """Return what is known of an error; a timeout itself says nothing."""
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
