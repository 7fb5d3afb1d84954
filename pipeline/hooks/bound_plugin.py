"""One plugin in use: each call runs on the event loop or in a thread, and is timed and counted, each method by itself.

running_calls.py keeps a call within its time. This module does not know the meaning of a method.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

import structlog

from pipeline.hooks.breaker import Breaker
from pipeline.hooks.first_start import FirstStart
from pipeline.hooks.limits import Limits
from pipeline.hooks.methods import bound_method
from pipeline.hooks.plugin_status import PluginHealth, PluginStatus
from pipeline.hooks.routes import Route
from pipeline.hooks.running_calls import PluginOverrun, RunningCalls
from pipeline.hooks.sources import Source
from pipeline.hooks.timing import TimedCall
from pipeline.logs import ThrottledLog

if TYPE_CHECKING:
    from pipeline.hooks.context import ContextFactory
    from pipeline.metrics import Metrics

CLOSE_SECONDS = 5.0
# How long `start` may take; a plugin that needs longer raises NotReady.
START_SECONDS = 30.0
# Of one `check`.
CHECK_SECONDS = 5.0
# So many failures in a row hold a provider with a next one, a notifier or a hook; so many calls in a row that block the
# event loop hold any plugin but a storage. Fewer happen to healthy plugins, too.
BREAKER_FAILURES = 5
# Longest wait between two calls that try a held plugin, and so how late its return is noticed.
BREAKER_PROBE_SECONDS = 15.0
START, CHECK, CLOSE = "start", "check", "close"
# The calls of a plugin's route handlers are counted under this name.
REGISTER_ROUTES = "register_routes"
NOT_WORK = (CLOSE, START, CHECK, REGISTER_ROUTES)
log = structlog.get_logger(__name__)


# Many methods because callers name a method of the plugin each time: to call it, to count it, to ask for its breaker.
class BoundPlugin:
    """One plugin in use. The constructor decides once whether a method is awaited or run in a thread.

    routes: the routes it serves under /plugins/.
    source: the module or package it comes from.
    warnings: its harmless faults.
    """

    routes: Sequence[Route] = ()
    source: Source | None = None
    warnings: Sequence[str] = ()

    def __init__(
        self,
        kind: str,
        name: str,
        plugin: object,
        methods: Mapping[str, Callable[..., Any]],
        *,
        threads: int,
        metrics: Metrics,
        contexts: ContextFactory | None = None,
        limits: Limits = Limits(),
        is_traced: bool = False,
    ) -> None:
        """methods: the methods that may be called, by name; `start`, if it is among them, is called before any other.
        threads: how many of its calls may run in threads at once.
        contexts: makes the context for `start`.
        limits: as the plugin declares them.
        is_traced: each call is logged.
        """
        self.kind, self.name = kind, name
        self.plugin, self.limits = plugin, limits
        self.throttled_log = ThrottledLog()  # for log lines that any client of a public route may cause
        self._is_traced = is_traced
        breaker = partial(Breaker, BREAKER_FAILURES, BREAKER_PROBE_SECONDS)
        self._methods = {
            method: bound_method(kind, name, method, function, metrics, breaker())
            for method, function in {**methods, **_close_of(plugin)}.items()
        }
        self._running = RunningCalls(kind, name, threads, metrics)
        self.status = PluginStatus(self._methods, self._running)
        self._health = PluginHealth(partial(self.call, CHECK, CHECK_SECONDS) if CHECK in self._methods else None)
        # Since the start of the process, of all methods.
        self.calls = self.errors = 0
        # When a call of its work last succeeded, in monotonic seconds.
        self.worked_at = float("-inf")
        self._contexts = contexts
        start = self._call_start if START in self._methods else None
        self._first_start = FirstStart(f"{kind} {name}: start", start, self._release)

    async def health(self) -> str:
        """Return why its `check` fails, "" when it passes or there is none; see PluginHealth."""
        return await self._health.fault()

    @property
    def max_in_flight(self) -> int | None:
        """How many of its calls run at once; None when they are awaited on the loop, where nothing limits them."""
        is_awaited = all(method.is_async for name, method in self._methods.items() if name not in NOT_WORK)
        return None if is_awaited else self._running.thread_limit

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the methods that may be called."""
        return tuple(self._methods)

    def function(self, method: str) -> Callable[..., Any]:
        """Return the method itself, for a look at its signature."""
        return self._methods[method].function

    def breaker(self, method: str) -> Breaker:
        """Return the breaker of the method."""
        return self._methods[method].breaker

    def lets_through(self, method: str) -> bool:
        """Return whether the method may be called now; count the call that is not made."""
        if self._methods[method].breaker.lets_through():
            return True
        self.skip(method)
        return False

    def count_error(self, method: str) -> None:
        """Count the method's result as an error."""
        self._methods[method].errors.inc()
        self.errors += 1

    def skip(self, method: str) -> None:
        """Count a call that is not made."""
        self._methods[method].skipped.inc()

    async def call(
        self,
        method: str,
        seconds: float,
        *args: Any,
        wait_seconds: float | None = None,
        on_late_end: Callable[[], None] | None = None,
        keywords: Mapping[str, Any] = {},
        answers_by: type[Exception] | None = None,
    ) -> Any:
        """Return the method's result; PluginOverrun when it takes longer, else any Exception it raised.

        wait_seconds: how long it may wait for a thread before its time begins, PluginBusy after that; default: the wait
        is part of its time.
        on_late_end: called on the loop when a call has ended that was given up before, because its time was over or its
        caller was cancelled. A thread cannot be cancelled, so the call may still have its effect.
        keywords: arguments that are passed by name.
        answers_by: an exception that is a valid answer of the method and no error.
        NotReady when the plugin has not started yet and cannot be started now.
        """
        if not self.is_started and method != CLOSE:
            await self._first_start.run_before_call()
        bound = self._methods[method]
        call = TimedCall(partial(bound.function, **keywords) if keywords else bound.function, bound.is_async)
        return await self._timed(method, call, seconds, args, wait_seconds, on_late_end, answers_by=answers_by)

    async def run_in_thread(
        self, method: str, function: Callable[..., Any], seconds: float, *args: Any, name: str = ""
    ) -> Any:
        """Call a blocking function in the plugin's threads, limited and counted as that method: for example `read` of a
        file that the method returned.

        name: for errors and the log, instead of the method.
        """
        if not self.is_started:
            await self._first_start.run_before_call()
        return await self._timed(method, TimedCall(function, is_async=False), seconds, args, name=name)

    async def run_on_loop(
        self, method: str, function: Callable[..., Any], seconds: float, *args: Any, name: str = ""
    ) -> Any:
        """Await a function of the plugin, limited and counted as that method. name: see run_in_thread."""
        if not self.is_started:
            await self._first_start.run_before_call()
        return await self._timed(method, TimedCall(function, is_async=True), seconds, args, name=name)

    @property
    def is_started(self) -> bool:
        """True when the plugin has no `start`, or it has succeeded."""
        return self._first_start.is_done

    async def start(self) -> None:
        """Start the plugin unless it has started; raise NotReady, or any other exception of its `start`."""
        await self._first_start.run()

    async def _call_start(self) -> None:
        assert self._contexts is not None, f"the {self.kind} {self.name} has a start and no context for it"
        bound, context = self._methods[START], self._contexts.for_plugin(self.name)
        await self._timed(START, TimedCall(bound.function, bound.is_async), START_SECONDS, (context,))

    def _release(self) -> None:
        """End the holds that waited for the plugin's start."""
        self._health.forget()
        for method in self._methods.values():
            method.breaker.answered()

    async def _timed(
        self,
        method: str,
        call: TimedCall,
        seconds: float,
        args: tuple[Any, ...],
        wait_seconds: float | None = None,
        on_late_end: Callable[[], None] | None = None,
        *,
        name: str = "",
        answers_by: type[Exception] | None = None,
    ) -> Any:
        bound = self._methods[method]
        try:
            result = await self._running.result_of(name or method, call, seconds, args, wait_seconds, on_late_end)
            if method not in NOT_WORK:
                self.worked_at = monotonic()
            return result
        except Exception as failure:
            bound.overruns.inc(int(isinstance(failure, PluginOverrun)))
            if answers_by is None or not isinstance(failure, answers_by):
                self.count_error(method)
            raise
        finally:
            if call.has_blocked or bound.breaker.blocks:
                self._count_blocking(method, call)
            self.calls += 1
            seconds_taken = perf_counter() - (call.begun_at or call.made_at)
            bound.seconds.observe(seconds_taken)
            if self._is_traced:
                outcome = type(error).__name__ if (error := sys.exception()) else "ok"
                fields = {"kind": self.kind, "plugin": self.name, "method": name or method, "outcome": outcome}
                log.info("plugin_called", ms=round(seconds_taken * 1000, 1), **fields)

    def _count_blocking(self, method: str, call: TimedCall) -> None:
        """Count a call that blocked the event loop as an error; several in a row hold the method (breaker.py)."""
        breaker = self._methods[method].breaker
        breaker.blocks = breaker.blocks + 1 if call.has_blocked else 0
        if call.has_blocked and sys.exception() is None:
            self.count_error(method)

    async def close(self) -> None:
        """End its tasks, call its `close` if it has one, log a failure of that, and leave its threads behind."""
        try:
            if self._contexts is not None:
                await self._contexts.end_tasks(self.name)
            if CLOSE in self._methods:
                await self.call(CLOSE, CLOSE_SECONDS)
        except Exception:
            log.warning("plugin_close_failed", kind=self.kind, plugin=self.name, exc_info=True)
        finally:
            self._running.shutdown()


def _close_of(plugin: object) -> Mapping[str, Callable[..., Any]]:
    close = getattr(plugin, CLOSE, None)
    return {CLOSE: close} if close else {}
