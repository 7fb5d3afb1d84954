"""Reads the query of a list: filters, limits, instants and cursors. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from pipeline.errors import ValidationError
from pipeline.instants import instant_of, milliseconds_of

CURSOR = re.compile(r"(\d{1,15})\.(.+)", re.ASCII | re.DOTALL)
# Only after a time of day: the blank between date and time is no plus.
BLANK_BEFORE_ZONE = re.compile(r"(\d.*[Tt ]\d\d[\d:.,]*) (\d\d(?::?\d\d)*)", re.ASCII)
NO_INSTANT = "Must be a timestamp like 2026-01-31T12:00:00.000Z"
DEFAULT_LIMIT = 20
MAX_LIMIT = 100
Position = tuple[datetime, str]


class Query:
    """Reads query parameters and collects all faults, so that one reply names them all."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values
        self._faults: list[dict[str, str]] = []

    def fault(self, field: str, message: str) -> None:
        """Add a fault of a parameter."""
        self._faults.append({"field": field, "message": message})

    def check(self) -> None:
        """Raise ValidationError with all faults, if there are any."""
        if self._faults:
            raise ValidationError("Invalid query", details=self._faults)

    def choice(self, name: str, choices: tuple[str, ...]) -> str | None:
        """Return the parameter, or None when it is missing; it must be one of the choices."""
        value = self._values.get(name)
        if value is not None and value not in choices:
            self.fault(name, f"Must be one of: {', '.join(choices)}")
        return value

    def text(self, name: str, pattern: re.Pattern[str], message: str) -> str | None:
        """Return the parameter, or None when it is missing; it must match the pattern.

        message: of the fault when it does not match.
        """
        value = self._values.get(name)
        if value is not None and not pattern.fullmatch(value):
            self.fault(name, message)
            return None
        return value

    def limit(self) -> int:
        """Return the parameter `limit`: the most items of a page."""
        text = self._values.get("limit", str(DEFAULT_LIMIT))
        if re.fullmatch(r"[0-9]{1,3}", text) and 1 <= int(text) <= MAX_LIMIT:
            return int(text)
        self.fault("limit", f"Must be a number from 1 to {MAX_LIMIT}")
        return DEFAULT_LIMIT

    def wait(self, longest_seconds: int) -> int:
        """Return the parameter `wait`: for how many seconds the caller waits for an answer."""
        text = self._values.get("wait", "0")
        if re.fullmatch(r"[0-9]{1,3}", text) and int(text) <= longest_seconds:
            return int(text)
        self.fault("wait", f"Must be a number from 0 to {longest_seconds}")
        return 0

    def cursor(self, ids: re.Pattern[str]) -> Position | None:
        """Return the position in the parameter `cursor`, or None.

        ids: the pattern of an item's id.
        """
        text = self._values.get("cursor")
        try:
            return decode_cursor(text, ids) if text is not None else None
        except ValueError:
            self.fault("cursor", "Must be a nextCursor of an earlier reply")
            return None

    def instant(self, name: str) -> datetime | None:
        """Return the parameter as an instant, or None."""
        text = self._values.get(name)
        try:
            return parse_instant(text) if text is not None else None
        except ValueError:
            self.fault(name, NO_INSTANT)
            return None


def encode_cursor(instant: datetime, item_id: str) -> str:
    """Return a position in a list as an opaque text, which clients send back."""
    return base64.urlsafe_b64encode(f"{milliseconds_of(instant)}.{item_id}".encode()).decode().rstrip("=")


def next_cursor(after: Position | None) -> str | None:
    """Return the cursor of the page after this position, None at the end of the list."""
    return encode_cursor(*after) if after else None


def decode_cursor(text: str, ids: re.Pattern[str]) -> Position:
    """Return the position that encode_cursor encoded; ValueError for any other text."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        match = CURSOR.fullmatch(raw.decode())
        if match is None or not ids.fullmatch(match[2]):
            raise ValueError("not a cursor")
        return instant_of(int(match[1])), match[2]
    except (binascii.Error, OverflowError) as error:
        raise ValueError("not a cursor") from error


def parse_instant(text: str) -> datetime:
    """Return the instant of an ISO 8601 timestamp with a zone, or of an HTTP Date; ValueError for any other text.

    A blank before the zone is read as a plus: an unescaped plus of a query arrives as a blank.
    """
    try:
        if matched := BLANK_BEFORE_ZONE.fullmatch(text):
            text = f"{matched[1]}+{matched[2]}"
        instant = datetime.fromisoformat(text) if text[:1].isdigit() else parsedate_to_datetime(text)
        if instant.tzinfo is None:
            raise ValueError("a timestamp needs its zone")
        return instant.astimezone(UTC)
    except (OverflowError, TypeError, IndexError) as error:
        raise ValueError("not a timestamp") from error
