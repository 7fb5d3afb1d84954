"""How long an endpoint asks to wait: in Retry-After, in its headers about limits, or in the body of its error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from pipeline.hooks import retry_after_of
from pipeline.hooks.replies import MAX_RETRY_AFTER_SECONDS, date_of

NUMBER = r"(\d{1,12}(?:\.\d{1,12})?)"
# In the format of Go and Protocol Buffers: 6m0s, 20ms, 1h2m3.5s, 58.217s.
DURATION = re.compile(f"(?:{NUMBER}h)?(?:{NUMBER}m(?!s))?(?:{NUMBER}s)?(?:{NUMBER}ms)?")
UNITS = (3600.0, 60.0, 1.0, 0.001)
# x-ratelimit-reset-requests (OpenAI and compatible endpoints), anthropic-ratelimit-requests-reset.
RESET = re.compile(r"x-ratelimit-reset-(?P<of>[\w-]+)|(?P<whose>anthropic-ratelimit-[\w-]+)-reset", re.IGNORECASE)
RETRY_INFO = "google.rpc.RetryInfo"


def wait_of(headers: Mapping[str, str], error: Mapping[str, Any], *, is_limited: bool) -> float | None:
    """Return how many seconds an endpoint asks to wait, None when it does not say.

    error: the object `error` of its reply.
    is_limited: it refused because of a limit, so its headers about limits count too.
    """
    now = date_of(headers)
    candidates = [_milliseconds(headers.get("retry-after-ms")), retry_after_of(headers), _retry_info(error)]
    seconds = next((each for each in candidates if each is not None), None)
    if seconds is None and is_limited:
        seconds = _until_reset(headers, now)
    return None if seconds is None else min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def duration(text: str) -> float | None:
    """Return the seconds in a duration or in a plain number; None when it is neither."""
    text = text.strip()
    if re.fullmatch(NUMBER, text):
        return float(text)
    match = DURATION.fullmatch(text)
    if not text or match is None:
        return None
    return sum(float(number) * unit for number, unit in zip(match.groups(), UNITS, strict=True) if number)


def _until_reset(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds until the reached limit is reset; if it is unknown which one, until the first reset."""
    resets = list(_resets(headers, now))
    reached = [seconds for seconds, left in resets if left == "0"]
    return max(reached) if reached else min((seconds for seconds, _ in resets if seconds > 0), default=None)


def _resets(headers: Mapping[str, str], now: datetime) -> Iterator[tuple[float, str | None]]:
    """Yield for each limit the seconds until its reset, and what remains of it."""
    for name, value in headers.items():
        if not (match := RESET.fullmatch(name)):
            continue
        remaining = f"{match['whose']}-remaining" if match["whose"] else f"x-ratelimit-remaining-{match['of']}"
        seconds = _seconds_until(value, now) if match["whose"] else duration(value)
        if seconds is not None:
            yield max(seconds, 0.0), headers.get(remaining, "").strip() or None


def _seconds_until(instant: str, now: datetime) -> float | None:
    try:
        return (datetime.fromisoformat(instant.strip()) - now).total_seconds()
    except (ValueError, TypeError):  # not a time, or one without a time zone
        return None


def _retry_info(error: Mapping[str, Any]) -> float | None:
    """Return the delay among the details of a Google error."""
    try:
        delays = [each.get("retryDelay") for each in error["details"] if str(each.get("@type")).endswith(RETRY_INFO)]
    except (LookupError, TypeError, AttributeError):
        return None
    return next((duration(delay) for delay in delays if isinstance(delay, str)), None)


def _milliseconds(text: str | None) -> float | None:
    return float(text) / 1000 if text and re.fullmatch(NUMBER, text.strip()) else None
