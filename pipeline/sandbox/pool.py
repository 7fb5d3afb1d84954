"""Calls functions in child processes, each call within limits of its own; a child that reaches one is ended, and the
next call gets a new one. Runs on any event loop: nothing that stays between calls belongs to one.

Our own code, because Pebble is LGPL, unpickles the replies of a child in the service and passes the environment on, and
loky cannot end a single task.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from contextvars import Context
from time import monotonic
from typing import Any

import structlog

from pipeline.delays import retry_delays
from pipeline.errors import PermanentJobError, RetryableJobError, SandboxLimit
from pipeline.sandbox.process import Child, ChildGone
from pipeline.sandbox.wire import pack
from pipeline.texts import cause_of

START_SECONDS = 60.0
RETRY_SECONDS = (1.0, 60.0)  # after a child that did not start: the first and the longest retry delay
CLOSE_SECONDS = 2.0
BUSY = "Too many photos are being read at the moment"
UNAVAILABLE = "Photos cannot be read at the moment"
FAILED = "Reading the photo failed"
MESSAGES = {
    "time": "Reading the photo takes too long",
    "cpu": "Reading the photo takes too long",
    "memory": "Reading the photo needs more memory than is allowed",
    "crash": "Reading the photo crashed",
}
log = structlog.get_logger(__name__)


class SandboxError(Exception):
    """The type and text of an exception in a child."""


class Pool:
    """Up to `processes` children, started when they are first needed."""

    def __init__(
        self, name: str, *, setup: Callable[[], Any] | None = None, processes: int = 1, memory_mb: int = 1024
    ) -> None:
        """setup: called by each child once, before its first call; a function at the top of a module.

        memory_mb: the most memory that one call may add.
        """
        self.name = name
        self._setup = name_of(setup) if setup else ""
        self._processes = processes
        self._memory_mb = memory_mb
        self._children: set[Child] = set()
        self._idle: list[Child] = []
        self._waiting: deque[asyncio.Future[Child]] = deque()
        self._starting: dict[Child, asyncio.Task[None]] = {}
        self._fault: Exception | None = None  # why children do not start
        self._delays = retry_delays(*RETRY_SECONDS)
        self._start_again_at = 0.0
        self._is_closed = False

    async def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        seconds: float,
        cpu_seconds: float | None = None,
        wait_seconds: float | None = None,
    ) -> Any:
        """Return function(*args), called in a child. hooks/sandbox_protocol.py says more."""
        name = name_of(function)
        cpu = seconds * (os.cpu_count() or 1) if cpu_seconds is None else cpu_seconds
        message = pack({"function": name, "args": args, "cpuSeconds": cpu})
        child = await self._next_child(wait_seconds)
        started_at = monotonic()
        limit, why = "", "cancelled"
        try:
            async with asyncio.timeout(seconds):
                reply = await child.ask(message)
            limit = why = "memory" if reply.get("error", {}).get("kind") == "memory" else ""
        except TimeoutError:
            limit = why = "time"
        except ChildGone as gone:
            limit, why = _cause_of_death(await child.exit_code(), gone)
        finally:
            if why:
                self._end(child, why, name, monotonic() - started_at)
            else:
                self._give_back(child)
        if limit and self._is_closed:
            raise self._unavailable()
        if limit:
            raise SandboxLimit(MESSAGES[limit], limit)
        if "error" in reply:
            raise _exception(reply["error"])
        return reply.get("result")

    def check(self) -> None:
        """Return unless children do not start; RetryableJobError says why. Starts one when it is time to try again."""
        if self._fault is None:
            return
        if monotonic() >= self._start_again_at and not self._children and not self._is_closed:
            self._start()
        raise self._unavailable()

    async def close(self) -> None:
        """End all children at once, also in the middle of a call."""
        self._is_closed = True
        for task in list(self._starting.values()):
            task.cancel()
        exits = [asyncio.wrap_future(child.end()) for child in self._children]
        for child in self._idle:
            child.close()
        self._children.clear()
        self._idle.clear()
        self._serve()
        if exits:
            await asyncio.wait(exits, timeout=CLOSE_SECONDS)

    async def _next_child(self, wait_seconds: float | None) -> Child:
        """Return a child for this call alone; RetryableJobError that costs no attempt when there is none in time."""
        waiting: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._serve()
        try:
            async with asyncio.timeout(wait_seconds):
                return await waiting
        except BaseException as error:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self._give_back(waiting.result())
            if isinstance(error, TimeoutError):
                raise RetryableJobError(BUSY, spends_attempt=False) from None
            raise

    def _serve(self) -> None:
        """Give idle children to the calls that wait, in order, and start missing children if that is allowed now."""
        while self._waiting:
            if not self._waiting[0].done():
                child = self._take_idle()
                if child is None:
                    break
                self._waiting[0].set_result(child)
            self._waiting.popleft()
        while self._lacks_child():
            self._start()
        while self._waiting and not self._children:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(self._unavailable())

    def _lacks_child(self) -> bool:
        may_start = not self._is_closed and monotonic() >= self._start_again_at
        return may_start and len(self._starting) < len(self._waiting) and len(self._children) < self._processes

    def _take_idle(self) -> Child | None:
        while self._idle:
            child = self._idle.pop()
            if child.is_ready:
                return child
            self._drop(child)
            log.warning("sandbox_child_ended", sandbox=self.name, pid=child.pid, why="died while idle")
        return None

    def _give_back(self, child: Child) -> None:
        if self._is_closed:
            self._drop(child)
        else:
            self._idle.append(child)
            self._serve()

    def _end(self, child: Child, why: str, function: str, seconds: float) -> None:
        fields = {"sandbox": self.name, "pid": child.pid, "function": function, "seconds": round(seconds, 3)}
        log.warning("sandbox_child_ended", why=why, **fields)
        self._drop(child)
        self._serve()

    def _drop(self, child: Child) -> None:
        self._children.discard(child)
        self._starting.pop(child, None)
        child.end()
        child.close()

    def _start(self) -> None:
        try:
            child = Child(self._memory_mb, self._setup)
        except OSError as error:
            self._postpone_start(error)
            return
        self._children.add(child)
        # In a context of its own: the fields of one job would be on the log lines of all jobs.
        task = asyncio.create_task(self._begin(child), name=f"sandbox {self.name}: start", context=Context())
        self._starting[child] = task

    async def _begin(self, child: Child) -> None:
        """Wait until the child is ready for its first call."""
        try:
            async with asyncio.timeout(START_SECONDS):
                reply = await child.reply()
            if "error" in reply:
                raise _exception(reply["error"])
        except asyncio.CancelledError:
            self._drop(child)
            raise
        except Exception as error:
            self._drop(child)
            # The cause in the child, not the general message.
            self._postpone_start(error.__cause__ if isinstance(error.__cause__, SandboxError) else error)
            self._serve()
        else:
            del self._starting[child]
            self._delays, self._fault = retry_delays(*RETRY_SECONDS), None
            self._give_back(child)

    def _postpone_start(self, error: Exception) -> None:
        delay, self._fault = next(self._delays), error
        self._start_again_at = monotonic() + delay
        log.warning("sandbox_child_failed", sandbox=self.name, cause=cause_of(error), againInS=round(delay, 1))

    def _unavailable(self) -> RetryableJobError:
        error = RetryableJobError(UNAVAILABLE, spends_attempt=False)
        error.__cause__ = self._fault
        return error


def name_of(function: Callable[..., Any]) -> str:
    """Return `module:function`, by which a child finds the function; ValueError when it could not."""
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    if module == "__main__" or getattr(sys.modules.get(module), name, None) is not function:
        raise ValueError(f"{function!r} is no function at the top of a module: a child could not import it")
    return f"{module}:{name}"


def _cause_of_death(code: int | None, gone: ChildGone) -> tuple[str, str]:
    """Return which limit was reached, and the reason for the log. code: of the exit, None while the child runs."""
    if code is None:
        return "crash", f"malformed reply: {cause_of(gone)}"
    if code == -signal.SIGXCPU:
        return "cpu", "cpu"
    return "crash", str(signal.strsignal(-code)) if code < 0 else f"exit code {code}"


def _exception(error: dict[str, Any]) -> Exception:
    """Return an exception of a child as one of the service."""
    message = str(error.get("message", ""))
    if error.get("kind") == "permanent":
        return PermanentJobError(message)
    if error.get("kind") == "retryable":
        return RetryableJobError(message)
    failed = RetryableJobError(FAILED)
    failed.__cause__ = SandboxError(f"{error.get('type', '')}: {message}")
    return failed
