"""The time of one call of a plugin: when it was made, when it began, when its time is over, and when it really ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from time import perf_counter
from typing import Any

# On a busy machine the start of a thread takes some time; that must not count as waiting for a free thread.
LEAST_WAIT_SECONDS = 0.5


class TimedCall:
    """One current call.

    begun_at: None while it waits for a thread.
    future: of the thread it runs in.
    has_blocked: it has blocked the event loop.
    """

    __slots__ = ("function", "is_async", "made_at", "begun_at", "future", "has_blocked")

    def __init__(self, function: Callable[..., Any], is_async: bool) -> None:
        self.function = function
        self.is_async = is_async
        self.made_at = perf_counter()
        self.begun_at: float | None = None
        self.future: Future[Any] | None = None
        self.has_blocked = False

    def begin(self, *args: Any) -> Any:
        """Call the function."""
        self.begun_at = perf_counter()
        return self.function(*args)

    def left_seconds(self, seconds: float, wait_seconds: float | None) -> float:
        """Return for how many seconds its time cannot be over, whenever it begins. Arguments: see BoundPlugin.call."""
        now = perf_counter()
        if wait_seconds is None:
            return self.made_at + seconds - now
        if self.begun_at is None:
            return min(seconds, self.made_at + max(wait_seconds, LEAST_WAIT_SECONDS) - now)
        return self.begun_at + seconds - now

    def when_ended(self, task: asyncio.Task[Any], then: Callable[[], None]) -> None:
        """Call `then` on the loop when this call, which was given up, has ended; never if it has not begun."""
        future = self.future
        if future is not None and not future.done():
            loop = asyncio.get_running_loop()

            def wake(_: Future[Any]) -> None:
                with suppress(RuntimeError):  # the loop is closed, the process ends
                    loop.call_soon_threadsafe(then)

            future.add_done_callback(wake)
        elif not task.done():
            task.add_done_callback(lambda _: then())
        elif self.begun_at is not None:
            then()
