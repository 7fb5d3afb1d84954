"""Instants in a query, in the spellings that clients use."""

from __future__ import annotations

import pytest

from pipeline.handlers.query import parse_instant

INSTANTS = [
    ("2026-11-28T10:00:00 00:00", "2026-11-28T10:00:00+00:00", "a plus that was not escaped"),
    ("2026-11-28T10:00:00.123 00:00", "2026-11-28T10:00:00.123000+00:00", "with a fraction"),
    ("2026-11-28T10:00:00,5 05:30", "2026-11-28T04:30:00.500000+00:00", "with a comma and another zone"),
    ("2026-11-28T10:00 00:00", "2026-11-28T10:00:00+00:00", "without seconds"),
    ("2026-11-28T10:00:00 01", "2026-11-28T09:00:00+00:00", "hours only"),
    ("20261128T100000 0100", "2026-11-28T09:00:00+00:00", "without signs"),
    ("2026-11-28 10:00:00 00:00", "2026-11-28T10:00:00+00:00", "a blank between date and time as well"),
    ("2026-11-28 10:00:00+00:00", "2026-11-28T10:00:00+00:00", "a blank only between date and time"),
    ("2026-11-28t10:00:00 01:00", "2026-11-28T09:00:00+00:00", "a small t"),
    ("2026-11-28T10:00:00-05:00", "2026-11-28T15:00:00+00:00", "a minus"),
    ("2026-11-28T10:00:00Z", "2026-11-28T10:00:00+00:00", "Z"),
    ("Sat, 28 Nov 2026 10:00:00 GMT", "2026-11-28T10:00:00+00:00", "an HTTP date"),
    ("Sat, 28 Nov 2026 10:00:00  0100", "2026-11-28T09:00:00+00:00", "a mail date whose plus was not escaped"),
]


@pytest.mark.fault("R12")
@pytest.mark.parametrize(("text", "expected"), [row[:2] for row in INSTANTS], ids=[row[2] for row in INSTANTS])
def test_instant_is_read(text: str, expected: str) -> None:
    """Each spelling gives the right instant; a blank before the zone counts as a plus."""
    assert parse_instant(text).isoformat() == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "2026-11-28", "2026-11-28 10:00", "2026-11-28 10:00:00", "2026-11-28T10:00:00", "00:00"),
        *("2026-11-28T10:00:00  00:00", "2026-11-28T10:00:00 99:00", "2026-11-28T10:00:00 00:00 00:00", "9" * 5000),
    ],
)
def test_instant_without_a_zone_is_refused(text: str) -> None:
    """An instant without a zone or with an invalid zone is refused, also if it has a blank."""
    with pytest.raises(ValueError):
        parse_instant(text)
