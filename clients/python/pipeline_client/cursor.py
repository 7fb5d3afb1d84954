"""The cursor of a user's events: a timestamp of the service, shared by all transports. Pure except for the clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

# The clocks of the service's processes may differ by this much.
SKEW_SECONDS = 5
# An event may arrive this long after an event with a later timestamp.
OVERLAP_SECONDS = 30
# An asset ends within a day of its upload, so no unseen event is older.
DAY_SECONDS = 24 * 3600


class Cursor:
    """The timestamp up to which all events have been yielded; never later than the service's own time.

    since: None until the service has sent its time, or an event.
    """

    def __init__(self, since: str | None) -> None:
        self.since = None if since is None else shift(since, 0)
        self._server_time: datetime | None = None
        self._measured_at = 0.0

    def measure(self, server_time: str) -> None:
        """Store the service's time of now. A cursor without a timestamp begins there."""
        self._server_time, self._measured_at = _instant(server_time), time.monotonic()
        self.since = self.since or shift(server_time, 0)

    def advance(self, timestamp: str) -> None:
        """Advance to the timestamp, or to the service's time if that is earlier; never go back."""
        limit = self.server_time
        reached = _instant(timestamp) if limit is None else min(_instant(timestamp), limit)
        self.since = max(self.since or "", _spelled(reached))

    @property
    def is_ahead(self) -> bool:
        """True when the cursor is later than the service's time, because a clock was wrong."""
        limit = self.server_time
        if self.since is None or limit is None:
            return False
        return _instant(self.since) > limit + timedelta(seconds=SKEW_SECONDS)

    def reset(self) -> str:
        """Go back to a day before the service's time. Return that time, for the cursor after that day is read."""
        limit = self.server_time
        assert limit is not None, "measure first"
        self.since = _spelled(limit - timedelta(seconds=DAY_SECONDS))
        return _spelled(limit)

    @property
    def server_time(self) -> datetime | None:
        """The service's present time: its last known time plus the time since then."""
        if self._server_time is None:
            return None
        return self._server_time + timedelta(seconds=time.monotonic() - self._measured_at)


def shift(timestamp: str, seconds: float) -> str:
    """Return the timestamp shifted by so many seconds, in the service's format; ValueError without a time zone."""
    return _spelled(_instant(timestamp) + timedelta(seconds=seconds))


def _instant(timestamp: str) -> datetime:
    instant = datetime.fromisoformat(timestamp)
    if instant.tzinfo is None:
        raise ValueError("a timestamp needs its zone")
    return instant.astimezone(UTC)


def _spelled(instant: datetime) -> str:
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")
