"""The common part of the three transports: frames come in, and an error says why the connection ended."""

from __future__ import annotations

import random
from typing import Protocol

from .access import ClientError, Fault, Refused, Unavailable
from .close_codes import CLOSE_CODES, TOO_MANY, TOO_MANY_SECONDS, is_final
from .cursor import Cursor
from .events import Frame
from .http import Http

# The service sends something at least every 25 s; a connection without a byte for so long is dead.
MUTE_SECONDS = 40


class Connection(Protocol):
    """One open connection.

    hello: its `connected` frame.
    takes_tokens: a fresh token can be sent on it.
    """

    transport: str
    hello: Frame
    takes_tokens: bool

    async def next_frame(self) -> Frame:
        """Return the next frame; Unavailable or Refused when the connection ends."""

    async def show(self, token: str) -> None:
        """Send the service a fresh token, if takes_tokens."""

    async def close(self) -> None:
        """Close the connection."""


class Transport:
    """The base of the transports. is_progress: the connection asks for progress frames."""

    transport = ""
    takes_tokens = False

    def __init__(self, http: Http, token: str, cursor: Cursor, is_progress: bool) -> None:
        self.hello: Frame = {}
        self._http = http
        self._token = token
        self._cursor = cursor
        self._is_progress = is_progress
        self._close_reason = ""
        self._retry_seconds: float | None = None

    async def show(self, token: str) -> None:
        """Do nothing: this transport takes no token."""

    @property
    def _params(self) -> dict[str, str]:
        params = {} if self._cursor.since is None else {"since": self._cursor.since}
        return params | ({"events": "progress"} if self._is_progress else {})

    def _is_news(self, frame: Frame) -> bool:
        """Store the content of a frame that announces the end of the connection; True for any other frame."""
        if frame["event"] == "goodbye":
            self._retry_seconds = frame["retryInMs"] / 1000
        elif frame["event"] == "error":
            self._close_reason = frame["message"]
        else:
            return True
        return False

    def _ended(self, code: int | None, fault: Fault = Fault.NOT_OPENED) -> ClientError:
        """Return the error for the end of the connection. code: the close code, None when the connection broke."""
        if self._retry_seconds is not None and not self._close_reason:
            return Unavailable("The service shuts down", self._retry_seconds)
        if code is None:
            return Unavailable(self._close_reason or "The connection broke", self._retry_seconds, fault=fault)
        words = f"The service closed the connection: {self._close_reason or 'it gave no reason'} ({code})"
        if is_final(code):
            return Refused(words, code)
        if code == TOO_MANY and self._retry_seconds is None:
            self._retry_seconds = random.uniform(*TOO_MANY_SECONDS)
        return Unavailable(words, self._retry_seconds, fault=Fault.NONE if code in CLOSE_CODES else fault)
