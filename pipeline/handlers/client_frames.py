"""The frames that a client sends on a WebSocket: their one form, and how many are allowed per second. Pure."""

from __future__ import annotations

import json
import time
from datetime import datetime

from pipeline.handlers.query import parse_instant

# Values of `events`: progress frames, and for operators the overview. Other values are ignored, for later versions.
PROGRESS, OPERATORS = "progress", "operators"
EVENTS = {PROGRESS, OPERATORS}
# With so many times the allowance in debt a client has ignored its close frame.
IGNORED_CLOSE = 9


class FrameAllowance:
    """Counts the frames of a connection against a limit per second.

    per_second: the limit.
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = self._frames_left = float(per_second)
        self._last_frame_at = time.monotonic()

    def count(self, frames: float) -> None:
        """Count a frame, or another request that costs as much as so many frames."""
        now = time.monotonic()
        earned = (now - self._last_frame_at) * self._per_second
        self._frames_left = min(self._per_second, self._frames_left + earned) - frames
        self._last_frame_at = now

    @property
    def is_exceeded(self) -> bool:
        """True when there were too many frames."""
        return self._frames_left < 0

    @property
    def ignores_close(self) -> bool:
        """True when the client goes on sending after it was closed for too many frames."""
        return self._frames_left < -IGNORED_CLOSE * self._per_second


def parse_frame(message: str | bytes) -> tuple[str | None, datetime | None, set[str]]:
    """Return the token, the instant and the wanted events of a frame `{"auth": {"token"}, "since"?, "events"?}`.

    The token is None when `auth` has none. Unknown members and events are ignored, for later versions.
    ValueError for any other frame.
    """
    if isinstance(message, bytes):
        raise ValueError("a binary frame")
    try:
        frame = json.loads(message)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    match frame:
        case {"auth": {"token": str(token)}}:
            events = frame.get("events", [])
            if not isinstance(events, list):
                raise ValueError("events is no list")
            wanted = {name for name in EVENTS if name in events}
            return token, parse_instant(frame["since"]) if "since" in frame else None, wanted
        case {"auth": {"token": None}}:
            return None, None, set()
        case {"auth": dict(auth)} if "token" not in auth:
            return None, None, set()
    raise ValueError("not a known frame")
