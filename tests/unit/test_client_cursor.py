"""The cursor of the Python client: the instant up to which it has the events, by the clock of the service."""

from __future__ import annotations

import time

import pytest

from pipeline.client.cursor import Cursor, shift


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of the client's machine; only the test moves it."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_cursor_begins_at_the_time_of_the_service(clock: list[float]) -> None:
    """A cursor without a given instant begins at the first time of the service; later times do not move it."""
    fresh, given = Cursor(None), Cursor("2026-01-31T13:00:00+01:00")
    for cursor in (fresh, given):
        cursor.measure("2026-01-31T12:00:05.000Z")
        cursor.measure("2026-01-31T12:00:09.000Z")
    assert (fresh.since, given.since) == ("2026-01-31T12:00:05.000Z", "2026-01-31T12:00:00.000Z")
    with pytest.raises(ValueError, match="zone"):
        Cursor("2026-01-31T12:00:00")


@pytest.mark.fault("R7")
def test_cursor_never_passes_the_services_time(clock: list[float]) -> None:
    """An event of a worker whose clock is an hour ahead moves the cursor to the present time of the service only.

    The client counts the present time from the time in `connected` and the seconds since.
    """
    cursor = Cursor(None)
    cursor.measure("2026-01-31T12:00:00.000Z")
    clock[0] += 2.5
    cursor.advance("2026-01-31T13:00:00.000Z")
    assert cursor.since == "2026-01-31T12:00:02.500Z"
    cursor.advance("2026-01-31T12:00:01.000Z")
    assert cursor.since == "2026-01-31T12:00:02.500Z"
    clock[0] += 10
    cursor.advance("2026-01-31T12:00:04.000Z")
    assert cursor.since == "2026-01-31T12:00:04.000Z"


@pytest.mark.fault("R7")
@pytest.mark.parametrize(
    ("seconds", "is_ahead"),
    [(-3600, False), (0, False), (4, False), (6, True), (3600, True)],  # clocks of the service may differ by 5 s
)
def test_cursor_ahead_is_reset_to_a_day_ago(clock: list[float], seconds: float, is_ahead: bool) -> None:
    """A cursor in the future of the service is ahead; a reset moves it to a day before the time of the service."""
    now = "2026-01-31T12:00:00.000Z"
    cursor = Cursor(shift(now, seconds))
    assert not cursor.is_ahead
    cursor.measure(now)
    assert cursor.is_ahead == is_ahead
    if is_ahead:
        assert cursor.reset() == now
        assert cursor.since == "2026-01-30T12:00:00.000Z" and not cursor.is_ahead
