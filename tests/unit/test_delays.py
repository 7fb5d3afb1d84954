"""Retry delays, as a table."""

from __future__ import annotations

from itertools import islice

from pipeline.delays import retry_delays


def test_delays_double_up_to_the_longest() -> None:
    """Each is between half and all of what is doubled, and they never end."""
    for _ in range(100):
        for delay, most in zip(retry_delays(0.1, 1.0), (0.1, 0.2, 0.4, 0.8, 1.0, 1.0), strict=False):
            assert most / 2 <= delay <= most


def test_delays_of_two_differ() -> None:
    """Processes that failed together do not come back together."""
    assert list(islice(retry_delays(1, 60), 10)) != list(islice(retry_delays(1, 60), 10))
