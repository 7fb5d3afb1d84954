"""Instants as milliseconds since 1970, as the SQLite store, the queue and cursors have them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def milliseconds_of(instant: datetime) -> int:
    """Return the whole milliseconds from 1970 to the instant."""
    return (instant - EPOCH) // timedelta(milliseconds=1)


def instant_of(milliseconds: int) -> datetime:
    """Return the instant so many milliseconds after 1970; OverflowError when a datetime cannot hold it."""
    return EPOCH + timedelta(milliseconds=milliseconds)
