"""Collects the notifications for a notifier with `notify_many`, so that one call delivers many events.

A batch begins with the first notification that waits and is sent when it is full or batch_seconds have passed.
notifiers.py decides what the answers mean for each delivery. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass

from pipeline.hooks.notifier_protocol import Notification

BATCH_SIZE, BATCH_SECONDS = 50, 0.2
# A delivery keeps its slot while it waits for its batch. If the notifier is not durable, the photo's job waits too.
MOST_SIZE, MOST_SECONDS = 1000, 5.0

Send = Callable[[Sequence[Notification]], Awaitable[Sequence[object]]]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of one batch.

    size: the most notifications in one call.
    seconds: how long the first of them waits for others.
    """

    size: int
    seconds: float


def batch_limits(notifier: object) -> BatchLimits:
    """Return the limits that the notifier declares; ValueError when they are invalid."""
    size, seconds = getattr(notifier, "batch_size", BATCH_SIZE), getattr(notifier, "batch_seconds", BATCH_SECONDS)
    if type(size) is not int or not 1 <= size <= MOST_SIZE:
        raise ValueError(f"its batch_size is {size!r}, not a whole number from 1 to {MOST_SIZE}")
    if type(seconds) not in (int, float) or not 0 <= seconds <= MOST_SECONDS:
        raise ValueError(f"its batch_seconds is {seconds!r}, not a number from 0 to {MOST_SECONDS:g}")
    return BatchLimits(size, seconds)


def checked_answers(answers: object, count: int) -> Sequence[object]:
    """Return one answer for each of `count` notifications; TypeError for an invalid result of `notify_many`."""
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
    """The notifications that wait for one notifier."""

    def __init__(self, name: str, limits: BatchLimits, send: Send) -> None:
        """send: delivers a batch and returns for each notification the notifier's answer, or the exception."""
        self.limits = limits
        self._name = name
        self._send = send
        self._waiting: list[tuple[Notification, asyncio.Future[object]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()

    async def deliver(self, notification: Notification) -> object:
        """Return the notifier's answer for this notification; raise the exception that `send` returned for it."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[object] = loop.create_future()
        self._waiting.append((notification, answer))
        if len(self._waiting) >= self.limits.size:
            self._send_now()
        elif self._timer is None:
            self._timer = loop.call_later(self.limits.seconds, self._send_now)
        return await answer

    def _send_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Without the notifications whose caller was cancelled meanwhile.
        batch = [(notification, answer) for notification, answer in self._waiting if not answer.done()]
        self._waiting = []
        if batch:
            # In a context of its own: otherwise the log lines of the whole batch would carry the names of one job.
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
