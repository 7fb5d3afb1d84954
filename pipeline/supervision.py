"""Keeps the long-lived tasks of this process running, or ends the process.

A long-lived task is needed as long as the process runs: the job slots, the listener of a room, the reconciler. When
such a task ends without being asked to, the supervisor logs the reason with its trace, and restarts the task after a
delay that doubles each time. A task that cannot be restarted ends the process. `check` is part of readiness: a process
with a task down is not ready. Runs on the event loop.

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

# The first and the longest delay before a restart.
RESTART_SECONDS = (0.1, 10.0)
# After running for so long, the next failure of a task counts as its first one.
STEADY_SECONDS = 60.0
# How many times a task is cancelled, and how long it may take each time, before it is left running.
CANCELS, CANCEL_SECONDS = 4, 0.25


class SupervisedTask:
    """One long-lived task. After a failure it counts as down until it has run for as long as its restart delay."""

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
        """True while the task does not run, or was restarted only just now.

        now: loop time.
        """
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
        """on_restart: called with the kind of a task that has failed and will be restarted.

        on_fatal: called with the reason when a task has ended that cannot be restarted; it must end the process.
        """
        self._on_restart = on_restart
        self._on_fatal = on_fatal
        self._all: list[SupervisedTask] = []

    def start(
        self, name: str, run: Callable[[], Coroutine[Any, Any, None]], *, kind: str = "", restarts: bool = True
    ) -> SupervisedTask:
        """Start run() as a task of that name.

        run: returns only when its work is finished. It must work when it is called again after a failure at any await.
        kind: label of the metrics, from a small set; the name by default.
        restarts: False when run cannot be called a second time.
        """
        watched = SupervisedTask(name, kind or name, run, restarts)
        self._all.append(watched)
        self._begin(watched)
        return watched

    async def stop(self, which: Iterable[SupervisedTask] | None = None) -> None:
        """End these tasks, or all of them."""
        stopped = list(self._all if which is None else which)
        for watched in stopped:
            watched.is_stopped = True
            if watched.timer is not None:
                watched.timer.cancel()
        await cancel(watched.task for watched in stopped if watched.task is not None)
        self._all = [watched for watched in self._all if watched not in stopped]

    @property
    def down(self) -> list[str]:
        """The names of the tasks that do not run, or were restarted only just now."""
        now = asyncio.get_running_loop().time()
        return sorted({watched.name for watched in self._all if watched.is_down(now)})

    async def check(self) -> None:
        """Return when every task runs; else raise DependencyUnavailable with the names of those that do not."""
        if down := self.down:
            raise DependencyUnavailable(f"Not running: {', '.join(down)}")

    def _begin(self, watched: SupervisedTask) -> None:
        watched.has_failed = False
        watched.started_at = asyncio.get_running_loop().time()
        # In a context of its own, so that its log lines do not carry fields of the job or request that started it.
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
        cause = error or asyncio.CancelledError("cancelled, but not by the supervisor")
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
    """Cancel the tasks, several times, because some libraries swallow a cancellation; log those that still run."""
    pending = {task for task in tasks if not task.done()}
    for _ in range(CANCELS):
        for task in pending:
            task.cancel()
        if pending:
            _, pending = await asyncio.wait(pending, timeout=CANCEL_SECONDS)
    if pending:
        log.warning("tasks_left_behind", tasks=sorted(task.get_name() for task in pending))
