"""Writes of several callers in one call: a call costs many times what one more write in it costs.

Nobody waits for company. What comes while calls are under way goes with the next one. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
WRITES_AT_ONCE = 100


class WriteGroups(Generic[T, R]):
    """Writes of one kind."""

    def __init__(
        self,
        write: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        on_unwanted: Callable[[T], None] = lambda write: None,
        *,
        calls_at_once: int,
    ) -> None:
        """write: makes some writes and returns how each ended, in their order; what it raises is the end of all.
        calls_at_once: how many are under way at most; the fewer the more writes go together.
        on_unwanted: called with one that has been made though its caller was gone by then.
        """
        self._write = write
        self._on_unwanted = on_unwanted
        self._calls_at_once = calls_at_once
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._calls = 0
        self._tasks: set[asyncio.Task[None]] = set()  # so that none is collected while it runs

    async def add(self, write: T) -> R:
        """Return how this write ended. One whose caller is gone before its call has begun is not made."""
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((write, done))
        # Not the tasks: one that has just ended is no more there to take this write.
        if self._calls < self._calls_at_once:
            self._calls += 1
            # In a context of its own: the names of one request would stand on the log lines of all.
            task = asyncio.create_task(self._work(), name="grouped writes", context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await done

    async def _work(self) -> None:
        try:
            while group := self._next():
                ends: Sequence[R | Exception]
                try:
                    ends = await self._write([write for write, _ in group])
                except Exception as error:  # handed to those who wait
                    ends = [error] * len(group)
                for (write, done), end in zip(group, ends, strict=True):
                    if done.done():
                        if not isinstance(end, Exception):
                            self._on_unwanted(write)
                    elif isinstance(end, Exception):
                        done.set_exception(end)
                    else:
                        done.set_result(end)
        finally:
            self._calls -= 1

    def _next(self) -> list[tuple[T, asyncio.Future[R]]]:
        group: list[tuple[T, asyncio.Future[R]]] = []
        while self._waiting and len(group) < WRITES_AT_ONCE:
            each = self._waiting.popleft()
            if not each[1].done():
                group.append(each)
        return group
