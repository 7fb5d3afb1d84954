"""Writes of several callers in one call: a call costs many times as much as one more write in it.

No write waits for others to join it: writes that come while calls are under way go with the next call. Runs on the
event loop.
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
        """write: makes some writes and returns the result of each, in their order; its exception is the result of all.

        on_unwanted: called with a write that was made though its caller was gone by then.
        calls_at_once: at most so many are under way; the fewer, the more writes share one.
        """
        self._write = write
        self._on_unwanted = on_unwanted
        self._calls_at_once = calls_at_once
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._calls = 0
        self._tasks: set[asyncio.Task[None]] = set()  # so that no running task is collected

    async def add(self, write: T) -> R:
        """Return the result of this write. A write whose caller is gone before its call begins is not made."""
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((write, done))
        # Not the tasks: a task that has just ended cannot make this write.
        if self._calls < self._calls_at_once:
            self._calls += 1
            # In a context of its own: the fields of one request would be on the log lines of all.
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
                except Exception as error:  # handed to the callers
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
