"""The header Retry-After of replies from AI services: both of its forms, and whose clock counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pipeline.hooks import replies, retry_after_of
from pipeline.hooks.replies import parse_retry_after

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 5 ", 5.0),
        ("Sat, 31 Jan 2026 12:01:00 GMT", 60.0),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0.0),  # in the past: no wait
        ("99999999", 3600.0),  # a mistaken header must not stop the queue for years
        ("Fri, 31 Jan 2036 12:00:00 GMT", 3600.0),
        ("soon", None),
        ("-5", None),
        ("Sat, 31 Jan 2026 12:01:00 -0000", None),  # no time zone
        ("", None),
        (None, None),
    ],
)
def test_parse_retry_after_reads_seconds_and_dates(value: str | None, seconds: float | None) -> None:
    """Both forms of the header become seconds from now, at most an hour; an invalid value gives None."""
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("Sat, 31 Jan 2026 12:00:00 GMT", 60.0),
        # Without a Date the clock of the worker counts: by it the time is over.
        (None, 0.0),
        ("soon", 0.0),
    ],
)
def test_retry_after_of_counts_from_the_date_of_the_reply(
    date: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A difference between the clocks of the AI service and the worker does not change the wait."""
    monkeypatch.setattr(replies, "utc_now", lambda: NOW + timedelta(hours=1))
    headers = {"Retry-After": "Sat, 31 Jan 2026 12:01:00 GMT"} | ({"Date": date} if date else {})
    assert retry_after_of(headers) == seconds
