"""A clock that stands until a test moves it."""

from __future__ import annotations

import pytest


class Clock:
    """What the code takes for the time, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    @classmethod
    def of_breakers(cls, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """Return the clock that decides how long plugins are held."""
        clock = cls()
        monkeypatch.setattr("pipeline.hooks.breaker.monotonic", clock)
        return clock
