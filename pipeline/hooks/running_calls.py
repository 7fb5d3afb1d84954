"""Runs the calls of one plugin, on the event loop or in the plugin's threads, each within its time.

Every plugin has its own threads, also for its calls of `asyncio.to_thread`: a plugin that hangs cannot use up the
threads of another plugin, and no code of the service runs in them. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import structlog

from pipeline.errors import DependencyUnavailable, RetryableJobError, is_unreachable
from pipeline.hooks.threads import DaemonThreads, of_plugin
from pipeline.hooks.timing import TimedCall

if TYPE_CHECKING:
    from pipeline.metrics import Metrics

# How long a cancelled call may take to clean up before it is left behind. Half of the time that a drain waits for the
# release of its job (queue/worker.py).
GRACE_SECONDS = 0.5
log = structlog.get_logger(__name__)


class PluginOverrun(Exception):
    """The call took longer than its time budget."""


class PluginBusy(Exception):
    """The call did not begin: all threads of the plugin are busy with earlier calls, or hang in them."""


class RunningCalls:
    """The current calls of one plugin, and those that were given up but still run."""

    def __init__(self, kind: str, name: str, threads: int, metrics: Metrics) -> None:
        """kind, name: of the plugin.
        threads: how many of its calls may run in threads at once.
        """
        self.kind = kind
        self.name = name
        thread_wait = metrics.thread_wait_seconds.labels(kind, name)
        self._threads = DaemonThreads(threads, f"{kind}-{name}", thread_wait.observe)
        self._stuck = metrics.plugin_stuck.labels(kind, name)
        self._blocked_loop = metrics.plugin_blocked_loop.labels(kind, name)
        self._overdue: set[Future[Any]] = set()
        self._left_behind: set[asyncio.Task[Any]] = set()

    @property
    def thread_limit(self) -> int:
        """How many calls may run in threads at once."""
        return self._threads.limit

    @property
    def overdue(self) -> int:
        """How many threads are occupied by calls whose time is over: a thread cannot be cancelled."""
        self._overdue = {future for future in self._overdue if not future.done()}
        return len(self._overdue)

    @property
    def is_stuck(self) -> bool:
        """True while calls whose time is over still run, in threads or on the loop."""
        return bool(self.overdue or self._left_behind)

    def note_blocking(self, call: TimedCall) -> None:
        """Count that the call blocks the event loop. The watchdog calls this in its thread meanwhile."""
        self._blocked_loop.inc()
        call.has_blocked = True

    async def result_of(
        self,
        method: str,
        call: TimedCall,
        seconds: float,
        args: tuple[Any, ...],
        wait_seconds: float | None,
        on_late_end: Callable[[], None] | None,
    ) -> Any:
        """Return the call's result: see BoundPlugin.call."""
        # A task of its own: even if the plugin ignores a cancellation, the caller continues.
        task = asyncio.create_task(self._run(method, call, args), name=f"{self.kind} {self.name}: {method}")
        task.add_done_callback(ignore)
        try:
            while not task.done() and (left := call.left_seconds(seconds, wait_seconds)) > 0:
                await _until_done(task, left)
            if task.done():
                return task.result()
            has_begun = call.begun_at is not None
            await self._give_up(task, call, method, on_late_end)
        except asyncio.CancelledError:
            if not task.done():
                await self._give_up(task, call, method, on_late_end)
            raise
        if not has_begun:
            raise PluginBusy(f"{self.kind} {self.name}: no thread came free for {method}")
        raise PluginOverrun(f"{self.kind} {self.name}: {method} took longer than {seconds:g} s")

    def shutdown(self) -> None:
        """Leave the threads behind."""
        self._threads.shutdown()

    async def _give_up(
        self, task: asyncio.Task[Any], call: TimedCall, method: str, on_late_end: Callable[[], None] | None
    ) -> None:
        try:
            await self._cancel(task, method)
        finally:
            if on_late_end is not None:
                call.when_ended(task, on_late_end)

    async def _cancel(self, task: asyncio.Task[Any], method: str) -> None:
        """Cancel the call; if it still runs, leave it behind and count it until it ends."""
        task.cancel()
        try:
            await asyncio.wait([task], timeout=GRACE_SECONDS)
        finally:
            if not task.done():
                log.warning("plugin_stuck", kind=self.kind, plugin=self.name, method=method)
                self._stuck.inc()
                self._left_behind.add(task)
                task.add_done_callback(self._ended_late)

    def _ended_late(self, task: asyncio.Task[Any]) -> None:
        self._stuck.dec()
        self._left_behind.discard(task)

    async def _run(self, method: str, call: TimedCall, args: tuple[Any, ...]) -> Any:
        of_plugin.set(self._threads)
        try:
            result = call.begin(*args) if call.is_async else await self._run_in_thread(method, call, args)
            return await result if inspect.isawaitable(result) else result
        except SystemExit as error:
            raise RuntimeError(f"{method} called sys.exit") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The task was not cancelled: the exception comes from the plugin and must not look like a shutdown.
            raise RuntimeError(f"{method} let a cancellation escape") from error

    async def _run_in_thread(self, method: str, call: TimedCall, args: tuple[Any, ...]) -> Any:
        # No thread will become free: waiting would only use up the caller's time.
        if self.overdue >= self._threads.limit:
            raise PluginBusy(f"{self.kind} {self.name}: all {self._threads.limit} threads hang in earlier calls")
        future = call.future = self._threads.submit(contextvars.copy_context().run, call.begin, *args)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancel():
                log.warning("plugin_stuck", kind=self.kind, plugin=self.name, method=method)
                self._overdue.add(future)
                self._stuck.inc()
                future.add_done_callback(lambda _: self._stuck.dec())
            raise


async def _until_done(task: asyncio.Task[Any], seconds: float) -> None:
    """Return when the task is done or the time is over.

    Like asyncio.wait, but in a third of its time: every call of a plugin waits here.
    """
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_later(seconds, wake)
    task.add_done_callback(wake)
    try:
        await waiter
    finally:
        timer.cancel()
        task.remove_done_callback(wake)


def find_plugin(frame: FrameType | None) -> tuple[RunningCalls, str, TimedCall] | None:
    """Return the plugin's calls, the method and the call whose coroutine runs in these frames, innermost first; None
    when no plugin runs in them.
    """
    while frame is not None:
        if frame.f_code is RunningCalls._run.__code__:
            names = frame.f_locals
            return cast(RunningCalls, names["self"]), cast(str, names["method"]), cast(TimedCall, names["call"])
        frame = frame.f_back
    return None


def is_temporary(error: Exception) -> bool:
    """Return whether an exception of `start` other than NotReady may end by itself."""
    temporary = (DependencyUnavailable, RetryableJobError, PluginOverrun, PluginBusy, TimeoutError)
    return isinstance(error, temporary) or is_unreachable(error)


def ignore(task: asyncio.Task[Any]) -> None:
    """Retrieve the exception of a task that perhaps no caller awaits, so that the loop does not log it."""
    if not task.cancelled():
        task.exception()
