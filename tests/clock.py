"""A clock whose time only a test changes."""

from __future__ import annotations

import pytest


class Clock:
    """Replaces time.monotonic: returns `now`, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    @classmethod
    def of_breakers(cls, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """Return a clock that the breakers use for their waits."""
        clock = cls()
        monkeypatch.setattr("pipeline.hooks.breaker.monotonic", clock)
        return clock
