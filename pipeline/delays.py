"""Retry delays. Pure: draws numbers, sleeps nowhere."""

from __future__ import annotations

import random
from collections.abc import Iterator


def retry_delays(first: float, longest: float) -> Iterator[float]:
    """Yield the retry delay after each failure in a row, in seconds, for ever.

    They double from `first` to `longest`, less up to half at random: processes that failed together must not all retry
    together. After a success the caller makes a new iterator.
    """
    delay = first
    while True:
        yield delay * random.uniform(0.5, 1)
        delay = min(delay * 2, longest)
