"""How long an endpoint asks to wait: by Retry-After, by its own headers about limits, or in the body of its refusal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from pipeline.hooks import retry_after_of
from pipeline.hooks.replies import MAX_RETRY_AFTER_SECONDS, date_of

NUMBER = r"(\d{1,12}(?:\.\d{1,12})?)"
# As Go and Protocol Buffers write them: 6m0s, 20ms, 1h2m3.5s, 58.217s.
DURATION = re.compile(f"(?:{NUMBER}h)?(?:{NUMBER}m(?!s))?(?:{NUMBER}s)?(?:{NUMBER}ms)?")
UNITS = (3600.0, 60.0, 1.0, 0.001)
# x-ratelimit-reset-requests (OpenAI and those like it), anthropic-ratelimit-requests-reset.
RESET = re.compile(r"x-ratelimit-reset-(?P<of>[\w-]+)|(?P<whose>anthropic-ratelimit-[\w-]+)-reset", re.IGNORECASE)
RETRY_INFO = "google.rpc.RetryInfo"


def wait_of(headers: Mapping[str, str], error: Mapping[str, Any], *, is_limited: bool) -> float | None:
    """Return for how many seconds an endpoint asks to be left alone, None when it does not say.

    error: what its reply has under that name. is_limited: it refused because of a limit, so what its headers tell of
    limits is why.
    """
    now = date_of(headers)
    asked = [_milliseconds(headers.get("retry-after-ms")), retry_after_of(headers), _retry_info(error)]
    told = next((each for each in asked if each is not None), None)
    if told is None and is_limited:
        told = _until_reset(headers, now)
    return None if told is None else min(max(told, 0.0), MAX_RETRY_AFTER_SECONDS)


def duration(text: str) -> float | None:
    """Return the seconds in a duration, or in a bare number; None when it is neither."""
    text = text.strip()
    if re.fullmatch(NUMBER, text):
        return float(text)
    found = DURATION.fullmatch(text)
    if not text or found is None:
        return None
    return sum(float(each) * unit for each, unit in zip(found.groups(), UNITS, strict=True) if each)


def _until_reset(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return when the limit that was reached is over. Without knowing which one that is: when the first one is."""
    resets = list(_resets(headers, now))
    reached = [seconds for seconds, left in resets if left == "0"]
    return max(reached) if reached else min((seconds for seconds, _ in resets if seconds > 0), default=None)


def _resets(headers: Mapping[str, str], now: datetime) -> Iterator[tuple[float, str | None]]:
    """Yield of each limit when it is reset, in seconds, and what is left of it."""
    for name, value in headers.items():
        if not (found := RESET.fullmatch(name)):
            continue
        left = f"{found['whose']}-remaining" if found["whose"] else f"x-ratelimit-remaining-{found['of']}"
        seconds = _seconds_until(value, now) if found["whose"] else duration(value)
        if seconds is not None:
            yield max(seconds, 0.0), headers.get(left, "").strip() or None


def _seconds_until(instant: str, now: datetime) -> float | None:
    try:
        return (datetime.fromisoformat(instant.strip()) - now).total_seconds()
    except (ValueError, TypeError):  # no instant, or one without a time zone
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
