"""What the three transports have in common: frames come in, and an error tells how the connection ended."""

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
    """One open connection. hello: its `connected` frame. takes_tokens: a fresh token can be shown on it."""

    transport: str
    hello: Frame
    takes_tokens: bool

    async def next_frame(self) -> Frame:
        """Return the next frame; Unavailable or Refused when the connection ends."""

    async def show(self, token: str) -> None:
        """Show the service a fresh token, where it takes one."""

    async def close(self) -> None:
        """Let go of the connection."""


class Transport:
    """What the transports share. is_progress: the connection asks for progress frames."""

    transport = ""
    takes_tokens = False

    def __init__(self, http: Http, token: str, cursor: Cursor, is_progress: bool) -> None:
        self.hello: Frame = {}
        self._http = http
        self._token = token
        self._cursor = cursor
        self._is_progress = is_progress
        self._said = ""
        self._retry_seconds: float | None = None

    async def show(self, token: str) -> None:
        """Not on this transport."""

    @property
    def _params(self) -> dict[str, str]:
        params = {} if self._cursor.since is None else {"since": self._cursor.since}
        return params | ({"events": "progress"} if self._is_progress else {})

    def _is_news(self, frame: Frame) -> bool:
        """Remember what the service says before it hangs up; True for any other frame."""
        if frame["event"] == "goodbye":
            self._retry_seconds = frame["retryInMs"] / 1000
        elif frame["event"] == "error":
            self._said = frame["message"]
        else:
            return True
        return False

    def _ended(self, code: int | None, fault: Fault = Fault.NOT_OPENED) -> ClientError:
        """Return what the end of the connection means. code: None when it broke."""
        if self._retry_seconds is not None and not self._said:
            return Unavailable("The service goes away", self._retry_seconds)
        if code is None:
            return Unavailable(self._said or "The connection broke", self._retry_seconds, fault=fault)
        words = f"The service closed the connection: {self._said or 'it did not say why'} ({code})"
        if is_final(code):
            return Refused(words, code)
        if code == TOO_MANY and self._retry_seconds is None:
            self._retry_seconds = random.uniform(*TOO_MANY_SECONDS)
        return Unavailable(words, self._retry_seconds, fault=Fault.NONE if code in CLOSE_CODES else fault)
