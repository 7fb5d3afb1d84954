"""Retry delays: how they grow, and that they are random."""

from __future__ import annotations

from itertools import islice

from pipeline.delays import retry_delays


def test_delays_double_up_to_the_longest() -> None:
    """Each delay is between half and all of a value that doubles up to the longest; there is no last delay."""
    for _ in range(100):
        for delay, most in zip(retry_delays(0.1, 1.0), (0.1, 0.2, 0.4, 0.8, 1.0, 1.0), strict=False):
            assert most / 2 <= delay <= most


def test_delays_of_two_processes_differ() -> None:
    """Processes that fail at the same time do not retry at the same time."""
    assert list(islice(retry_delays(1, 60), 10)) != list(islice(retry_delays(1, 60), 10))
