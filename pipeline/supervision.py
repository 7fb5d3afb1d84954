"""Keeps the long-lived tasks of this process running, or ends the process.

A long-lived task is one that something else relies on for as long as the process lives: the job slots, the listener of
a room, the reconciler. When such a task ends and nobody asked it to, the supervisor logs the reason with its trace,
and starts the task again after a delay that doubles each time. A task that cannot be started again ends the process.
`check` is part of readiness, so that no task is down behind a green light. Runs on the event loop.

Idea: streaq's single task group, and Faktory, which ends with its Redis child.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context
from typing import Any

import structlog

from pipeline.delays import retry_delays
from pipeline.errors import DependencyUnavailable

log = structlog.get_logger(__name__)

# Before the first restart, and at most.
RESTART_SECONDS = (0.1, 10.0)
# How long a task has to run until its next failure counts as the first again.
STEADY_SECONDS = 60.0
# How often a task is asked to end before it is left behind, and how long it may take each time.
CANCELS, CANCEL_SECONDS = 4, 0.25


class SupervisedTask:
    """One long-lived task. It counts as down from its failure until it has run for as long as it had to wait."""

    def __init__(self, name: str, kind: str, run: Callable[[], Coroutine[Any, Any, None]], restarts: bool) -> None:
        self.name = name
        self.kind = kind
        self.run = run
        self.restarts = restarts
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.delays = retry_delays(*RESTART_SECONDS)
        self.delay_seconds = self.started_at = 0.0
        self.has_failed = self.is_stopped = False

    def is_down(self, now: float) -> bool:
        """True while it does not run, or has only just been started again. now: loop time."""
        if self.is_stopped:
            return False
        return self.has_failed or now - self.started_at < self.delay_seconds


class Supervisor:
    """Starts long-lived tasks and watches them until `stop`."""

    def __init__(
        self,
        *,
        on_restart: Callable[[str], None] = lambda kind: None,
        on_fatal: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """on_restart: called with the kind of a task that ended and is going to be started again.

        on_fatal: called with the reason when a task ended that cannot be; it is to end the process.
        """
        self._on_restart = on_restart
        self._on_fatal = on_fatal
        self._all: list[SupervisedTask] = []

    def start(
        self, name: str, run: Callable[[], Coroutine[Any, Any, None]], *, kind: str = "", restarts: bool = True
    ) -> SupervisedTask:
        """Start run() as a task of that name.

        run: returns only when its work is done for good. It has to bear being called again after it has failed at any
        of its awaits.
        kind: of the task, for metrics; one of a small set. Default: the name.
        restarts: False when run does not bear being called again.
        """
        watched = SupervisedTask(name, kind or name, run, restarts)
        self._all.append(watched)
        self._begin(watched)
        return watched

    async def stop(self, which: Iterable[SupervisedTask] | None = None) -> None:
        """End these tasks, or all."""
        stopped = list(self._all if which is None else which)
        for watched in stopped:
            watched.is_stopped = True
            if watched.timer is not None:
                watched.timer.cancel()
        await cancel(watched.task for watched in stopped if watched.task is not None)
        self._all = [watched for watched in self._all if watched not in stopped]

    @property
    def down(self) -> list[str]:
        """The names of the tasks that do not run, or have only just been started again."""
        now = asyncio.get_running_loop().time()
        return sorted({watched.name for watched in self._all if watched.is_down(now)})

    async def check(self) -> None:
        """Return when every task runs; DependencyUnavailable names the others."""
        if down := self.down:
            raise DependencyUnavailable(f"Not running: {', '.join(down)}")

    def _begin(self, watched: SupervisedTask) -> None:
        watched.has_failed = False
        watched.started_at = asyncio.get_running_loop().time()
        # In a context of its own: names that a job or a request has bound are not those of this task.
        watched.task = asyncio.create_task(watched.run(), name=watched.name, context=Context())
        watched.task.add_done_callback(lambda task: self._ended(watched, task))

    def _ended(self, watched: SupervisedTask, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if watched.is_stopped:
            return
        if error is None and not task.cancelled():
            self._all.remove(watched)  # its work is done
            return
        watched.has_failed = True
        cause = error or asyncio.CancelledError("a cancellation that nobody asked for")
        loop = asyncio.get_running_loop()
        if loop.time() - watched.started_at > STEADY_SECONDS:
            watched.delays = retry_delays(*RESTART_SECONDS)
        watched.delay_seconds = next(watched.delays)
        again_ms = round(watched.delay_seconds * 1000) if watched.restarts else None
        log.error("task_ended", task=watched.name, againInMs=again_ms, exc_info=cause)
        if watched.restarts:
            watched.timer = loop.call_later(watched.delay_seconds, self._begin, watched)
            self._on_restart(watched.kind)
        else:
            self._on_fatal(f"{watched.name} ended: {cause!r}")


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """End the tasks, asking again where a library took a cancellation for a failed connection; what goes on all the
    same is left behind.
    """
    pending = {task for task in tasks if not task.done()}
    for _ in range(CANCELS):
        for task in pending:
            task.cancel()
        if pending:
            _, pending = await asyncio.wait(pending, timeout=CANCEL_SECONDS)
    if pending:
        log.warning("tasks_left_behind", tasks=sorted(task.get_name() for task in pending))
