"""Where a user's events go on: one instant of the service's clocks, for every transport. Pure but for the clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

# The processes of the service may differ by so much.
SKEW_SECONDS = 5
# An event may come so long after one that is later by its timestamp.
OVERLAP_SECONDS = 30
# An asset ends within a day of its upload, so this far back nothing can be missing that was not told before.
DAY_SECONDS = 24 * 3600


class Cursor:
    """The timestamp up to which all events have been handed on; never past the service's own time.

    since: None until the service told its time or an event came.
    """

    def __init__(self, since: str | None) -> None:
        self.since = None if since is None else shift(since, 0)
        self._server_time: datetime | None = None
        self._measured_at = 0.0

    def measure(self, server_time: str) -> None:
        """Take the service's time as it tells it now; the cursor begins there unless it stands somewhere."""
        self._server_time, self._measured_at = _instant(server_time), time.monotonic()
        self.since = self.since or shift(server_time, 0)

    def advance(self, timestamp: str) -> None:
        """Go on to the timestamp, or to the service's time where that is earlier; never back."""
        limit = self.server_time
        reached = _instant(timestamp) if limit is None else min(_instant(timestamp), limit)
        self.since = max(self.since or "", _spelled(reached))

    @property
    def is_ahead(self) -> bool:
        """True when the cursor stands in the service's future: a clock was wrong."""
        limit = self.server_time
        if self.since is None or limit is None:
            return False
        return _instant(self.since) > limit + timedelta(seconds=SKEW_SECONDS)

    def reset(self) -> str:
        """Go back to a day before the service's time; return that time, where the cursor belongs after that day."""
        limit = self.server_time
        assert limit is not None, "measure first"
        self.since = _spelled(limit - timedelta(seconds=DAY_SECONDS))
        return _spelled(limit)

    @property
    def server_time(self) -> datetime | None:
        """The service's time by now: what it told, and what has passed by our own clock since."""
        if self._server_time is None:
            return None
        return self._server_time + timedelta(seconds=time.monotonic() - self._measured_at)


def shift(timestamp: str, seconds: float) -> str:
    """Return the timestamp so much later, spelled as the service does; ValueError for one without its zone."""
    return _spelled(_instant(timestamp) + timedelta(seconds=seconds))


def _instant(timestamp: str) -> datetime:
    instant = datetime.fromisoformat(timestamp)
    if instant.tzinfo is None:
        raise ValueError("a timestamp needs its zone")
    return instant.astimezone(UTC)


def _spelled(instant: datetime) -> str:
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")
