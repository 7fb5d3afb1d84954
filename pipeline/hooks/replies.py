"""Reads from the headers of an HTTP reply when to try again. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

from pipeline.clock import utc_now

# A longer time, from a wrong header, would stop the queue.
MAX_RETRY_AFTER_SECONDS = 3600.0
# The standard allows whole seconds only; some services send fractions.
NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds in a Retry-After header (seconds or an HTTP date); None when it is missing or invalid."""
    if not value:
        return None
    try:
        is_number = NUMBER.fullmatch(value.strip()) is not None
        seconds = float(value) if is_number else (parsedate_to_datetime(value) - now).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a reply asks to wait, or None."""
    return parse_retry_after(headers.get("Retry-After"), date_of(headers))


def date_of(headers: Mapping[str, str]) -> datetime:
    """Return the time of the reply by the clock of its sender, which the other instants in the reply refer to."""
    try:
        return parsedate_to_datetime(headers.get("Date", ""))
    except (ValueError, TypeError):
        return utc_now()
