"""Gathers what a notifier with `notify_many` is to be told, so that one call tells it of many events.

A batch begins with the first notification that waits and is sent when it is full or batch_seconds have passed.
Runs on the event loop; what a notifier's answers mean for a delivery is known to notifiers.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass

from pipeline.hooks.notifier_protocol import Notification

BATCH_SIZE, BATCH_SECONDS = 50, 0.2
# A delivery's slot waits for its batch, and so does the job of a photo where the notifier is not durable.
MOST_SIZE, MOST_SECONDS = 1000, 5.0

Send = Callable[[Sequence[Notification]], Awaitable[Sequence[object]]]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How many notifications one call takes at most, and how long the first of them waits for others."""

    size: int
    seconds: float


def batch_limits(notifier: object) -> BatchLimits:
    """Return what the notifier declares; ValueError says what is wrong with it."""
    size, seconds = getattr(notifier, "batch_size", BATCH_SIZE), getattr(notifier, "batch_seconds", BATCH_SECONDS)
    if type(size) is not int or not 1 <= size <= MOST_SIZE:
        raise ValueError(f"its batch_size is {size!r}, not a whole number from 1 to {MOST_SIZE}")
    if type(seconds) not in (int, float) or not 0 <= seconds <= MOST_SECONDS:
        raise ValueError(f"its batch_seconds is {seconds!r}, not a number from 0 to {MOST_SECONDS:g}")
    return BatchLimits(size, seconds)


def checked_answers(answers: object, count: int) -> Sequence[object]:
    """Return what `notify_many` said of each of so many notifications; TypeError when it said something else."""
    if answers is None:
        return [None] * count
    if not isinstance(answers, Sequence) or isinstance(answers, (str, bytes)):
        raise TypeError(f"notify_many returned {type(answers).__name__}, neither None nor a list")
    if len(answers) != count:
        raise TypeError(f"notify_many returned {len(answers)} answers for {count} notifications")
    for answer in answers:
        if answer is not None and not isinstance(answer, (str, Exception)):
            raise TypeError(f"notify_many returned a {type(answer).__name__} among its answers")
    return answers


class Batches:
    """What one notifier has yet to be told."""

    def __init__(self, name: str, limits: BatchLimits, send: Send) -> None:
        """send: tells the notifier of a batch and returns, for each, what it said or why it was not told."""
        self.limits = limits
        self._name = name
        self._send = send
        self._waiting: list[tuple[Notification, asyncio.Future[object]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()

    async def hand(self, notification: Notification) -> object:
        """Return what the notifier said of it; else the exception that `send` had for it."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[object] = loop.create_future()
        self._waiting.append((notification, answer))
        if len(self._waiting) >= self.limits.size:
            self._begin()
        elif self._timer is None:
            self._timer = loop.call_later(self.limits.seconds, self._begin)
        return await answer

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Without those whose caller has gone away meanwhile.
        batch = [each for each in self._waiting if not each[1].done()]
        self._waiting = []
        if batch:
            # In a context of its own: the names of one job would stand on the log lines of all.
            task = asyncio.create_task(self._run(batch), name=f"batch of {self._name}", context=Context())
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _run(self, batch: Sequence[tuple[Notification, asyncio.Future[object]]]) -> None:
        try:
            answers = await self._send([notification for notification, _ in batch])
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
