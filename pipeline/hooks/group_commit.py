"""Work of several threads done together by one of them: what is written to a disk costs nearly the same for many.

Whoever finds nobody at work does its own and all that waits; what comes meanwhile waits for the next, who is the one
that has waited longest. Nobody waits for company. Safe from any thread; knows nothing of what the work is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Waiter(Generic[T, R]):
    """One item and the thread that waits for it. end: None until it is done; leads: it is this thread's turn."""

    __slots__ = ("item", "turn", "end", "leads")

    def __init__(self, item: T) -> None:
        self.item = item
        # Held until there is an end, or the thread is the next to work. Cheaper than an Event.
        self.turn = threading.Lock()
        self.turn.acquire()
        self.end: tuple[R | BaseException] | None = None
        self.leads = False


class GroupCommit(Generic[T, R]):
    """Work of one kind."""

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R | Exception]]) -> None:
        """work: does it for all these items and returns how each ended; what it raises is the end of all of them."""
        self._work = work
        self._lock = threading.Lock()
        self._waiting: list[_Waiter[T, R]] = []
        self._is_busy = False

    def do(self, item: T) -> R:
        """Return how the work on this item ended, or raise it."""
        mine: _Waiter[T, R] = _Waiter(item)
        with self._lock:
            self._waiting.append(mine)
            mine.leads, self._is_busy = not self._is_busy, True
        if not mine.leads:
            mine.turn.acquire()
        if mine.leads:
            self._lead()
        assert mine.end is not None
        (end,) = mine.end
        if isinstance(end, BaseException):
            raise end
        return end

    def _lead(self) -> None:
        """Do all that waits, and let the one go on that has waited longest since."""
        with self._lock:
            group, self._waiting = self._waiting, []
        ends: Sequence[R | BaseException]
        try:
            ends = self._work([each.item for each in group])
        except BaseException as error:  # handed to those who wait
            ends = [error] * len(group)
        with self._lock:
            self._is_busy = bool(self._waiting)
            following = self._waiting[:1]
        for each, end in zip(group, ends, strict=True):
            each.end = (end,)
        for each in following:
            each.leads = True
        for each in (*following, *group):
            each.turn.release()
