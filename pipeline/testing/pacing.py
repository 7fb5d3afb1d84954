"""Keeps the suites to what a provider declares: how many of its calls run at once, and how far they are apart."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import pytest

from pipeline.hooks.limits import Limits

# The longest wait of one test for its turn; with a rate so low, some tests are left out.
WAIT_SECONDS = 10.0


class CallPacing:
    """Lets the calls of one test begin as the pipeline would. kept: what the tests of one class know of each other."""

    def __init__(self, limits: Limits, kept: dict[str, Any]) -> None:
        self._interval = limits.pace.apart_seconds if limits.pace else 0.0
        self._slots = asyncio.Semaphore(limits.max_in_flight or 1000)
        self.class_state = kept

    @property
    def calls_at_once(self) -> int:
        """How many calls a test may make at once without waiting too long."""
        return 5 if self._interval <= 1 else 2

    def waits(self, seconds: float, at_most: float) -> bool:
        """Let no call begin for so long, unless all such waits of a class come to more than `at_most`."""
        now = monotonic()
        longer = now + seconds - max(now, self.class_state.get("next call at", 0.0))
        left: float = self.class_state.setdefault("patience", at_most)
        if longer > left:
            return False
        self.class_state["patience"] = left - max(longer, 0.0)
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
