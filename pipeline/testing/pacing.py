"""Keeps the suites within the limits of a provider: how many calls run at once, and the time between two calls."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import pytest

from pipeline.hooks.limits import Limits

# The longest wait of one test for a call; with a very low rate some tests are left out.
WAIT_SECONDS = 10.0


class CallPacing:
    """Starts the calls of one test at the rate of the service."""

    def __init__(self, limits: Limits, class_state: dict[str, Any]) -> None:
        """class_state: state that the tests of one class share."""
        self._interval = limits.pace.apart_seconds if limits.pace else 0.0
        self._slots = asyncio.Semaphore(limits.max_in_flight or 1000)
        self.class_state = class_state

    @property
    def calls_at_once(self) -> int:
        """How many calls a test may make at once without waiting too long."""
        return 5 if self._interval <= 1 else 2

    def waits(self, seconds: float, at_most: float) -> bool:
        """Start no call for so long. Return False if all such waits of a class would be longer than `at_most`."""
        now = monotonic()
        more = now + seconds - max(now, self.class_state.get("next call at", 0.0))
        budget: float = self.class_state.setdefault("wait budget", at_most)
        if more > budget:
            return False
        self.class_state["wait budget"] = budget - max(more, 0.0)
        self.class_state["next call at"] = max(now + seconds, self.class_state.get("next call at", 0.0))
        return True

    async def __aenter__(self) -> None:
        await self._slots.acquire()
        now = monotonic()
        begins_at = max(now, self.class_state.get("next call at", 0.0))
        if begins_at - now > WAIT_SECONDS:
            self._slots.release()
            pytest.skip("its rate leaves no time for this")
        self.class_state["next call at"] = begins_at + self._interval
        await asyncio.sleep(begins_at - now)

    async def __aexit__(self, *error: object) -> None:
        self._slots.release()
