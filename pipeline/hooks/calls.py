"""How one plugin is called: started before its first call, timed and counted, each method by itself.

How a call runs within its time: running.py. What a method means is not known here.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

import structlog

from pipeline.errors import NotReady, asked_seconds, plugin_error_text
from pipeline.hooks.breaker import BLOCKING_CAUSE, Breaker
from pipeline.hooks.limits import Limits
from pipeline.hooks.methods import bound_method
from pipeline.hooks.routes import Route
from pipeline.hooks.running import PluginOverrun, Running, ignore, is_away
from pipeline.hooks.sources import Source
from pipeline.hooks.timing import TimedCall
from pipeline.logs import ThrottledLog

if TYPE_CHECKING:
    from pipeline.hooks.context import ContextFactory
    from pipeline.metrics import Metrics

# So many failures in a row hold a provider with a next one, a notifier or a hook; so many calls in a row that block the
# event loop hold any plugin but a storage. Fewer happen to healthy ones, too.
BREAKER_FAILURES = 5
# Longest wait between two calls that try a held plugin, and so how late its return is noticed.
BREAKER_PROBE_SECONDS = 15.0
CLOSE_SECONDS = 5.0
# How long a plugin may take to get ready; one that needs longer says so with NotReady.
START_SECONDS = 30.0
# Of one `check`, and how often who asks for the plugin's health has it called.
CHECK_SECONDS, CHECK_EVERY_SECONDS = 5.0, 10.0
START, CHECK, CLOSE = "start", "check", "close"
# Under this name the calls of the handlers that it gives us are counted.
REGISTER_ROUTES = "register_routes"
NOT_WORK = (CLOSE, START, CHECK, REGISTER_ROUTES)
SEES_LENGTH = 500
log = structlog.get_logger(__name__)


class BoundPlugin:
    """One plugin in use. Whether a method is awaited or run in a thread is decided here, once.

    routes: what it serves under /plugins/. source: where it comes from. warnings: what is wrong with it and harmless.
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
        """methods: what may be called, by name; `start`, if it is among them, before any other one.
        threads: how many of its calls may run in threads at once.
        contexts: gives `start` its context.
        limits: what it declares.
        is_traced: each call is logged.
        """
        self.kind = kind
        self.name = name
        self.plugin = plugin
        self.limits = limits
        self.throttled_log = ThrottledLog()  # for lines that anybody who calls a route of the plugin may cause
        self._is_traced = is_traced
        close = getattr(plugin, "close", None)
        breaker = partial(Breaker, BREAKER_FAILURES, BREAKER_PROBE_SECONDS)
        self._methods = {
            method: bound_method(kind, name, method, function, metrics, breaker())
            for method, function in {**methods, **({CLOSE: close} if close else {})}.items()
        }
        self._running = Running(kind, name, threads, metrics)
        # Since the start, of all methods.
        self.calls = self.errors = 0
        # When it last did what was asked of it, in monotonic seconds.
        self.worked_at = float("-inf")
        self._contexts = contexts
        self.is_started = START not in self._methods
        self._starting: asyncio.Task[None] | None = None
        self._health: tuple[float, asyncio.Future[str]] | None = None

    @property
    def state(self) -> str:
        """Return how it is now: ok, held, stuck (calls whose time was up go on, in threads or on the loop), or blocking
        (the last call of a method kept the event loop from everything else).
        """
        if any(known.breaker.is_held for known in self._methods.values()):
            return "held"
        if self._running.is_stuck:
            return "stuck"
        return "blocking" if self.reason else "ok"

    @property
    def reason(self) -> str:
        """Return which methods are held and why, or keep the event loop, "" when none does."""
        told = []
        for method, known in self._methods.items():
            breaker = known.breaker
            if breaker.is_held:
                cause = breaker.cause.removesuffix(f": {breaker.reason}")
                told.append(f"{method}: {breaker.reason}" + (f" ({cause})" if cause else ""))
            elif breaker.blocks:
                told.append(f"{method}: {BLOCKING_CAUSE} (calls in a row: {breaker.blocks})")
        return "; ".join(told)

    @property
    def held_seconds(self) -> float:
        """How long until a held method may be called or tried again; 0 when none is held."""
        held = [known.breaker for known in self._methods.values() if known.breaker.is_held]
        return max((breaker.left_seconds for breaker in held), default=0.0)

    async def health(self) -> str:
        """Return why its `check` fails, "" when it passes or there is none. Asked once in CHECK_EVERY_SECONDS."""
        if CHECK not in self._methods:
            return ""
        if self._health is None or self._health[0] <= monotonic():
            until = monotonic() + CHECK_EVERY_SECONDS
            # For all who ask meanwhile.
            self._health = until, asyncio.ensure_future(self._check())
        return await asyncio.shield(self._health[1])

    async def _check(self) -> str:
        try:
            answer = await self.call(CHECK, CHECK_SECONDS)
        except Exception as error:
            return plugin_error_text(error)
        return f"{CHECK} returned False" if answer is False else ""

    @property
    def max_in_flight(self) -> int | None:
        """How many of its calls run at once; None when it is awaited: as many as there are."""
        is_awaited = all(known.is_async for name, known in self._methods.items() if name not in NOT_WORK)
        return None if is_awaited else self._running.thread_limit

    @property
    def sees(self) -> str:
        """What an AI provider says it can and cannot see, "" when it says nothing."""
        says = getattr(self.plugin, "sees", "")
        return says[:SEES_LENGTH] if isinstance(says, str) else ""

    @property
    def methods(self) -> tuple[str, ...]:
        """What may be called."""
        return tuple(self._methods)

    def function(self, method: str) -> Callable[..., Any]:
        """Return the method itself, to be looked at."""
        return self._methods[method].function

    def breaker(self, method: str) -> Breaker:
        """Return what says whether the method may be called now."""
        return self._methods[method].breaker

    def lets_through(self, method: str) -> bool:
        """Return whether the method may be called now; count the call that is not made."""
        if self._methods[method].breaker.lets_through():
            return True
        self.skip(method)
        return False

    def count_error(self, method: str) -> None:
        """Count what the method returned as an error."""
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
        """Return what the method returns; PluginOverrun when it takes longer, else whatever Exception it raised.

        wait_seconds: how long it may wait for a thread before its time begins, PluginBusy after that; default: the wait
        is part of its time.
        on_late_end: called on the loop when a call has ended that was given up before, because its time was over or its
        caller was cancelled. A thread cannot be cancelled, so what the call does may be done all the same.
        keywords: arguments that are passed by name.
        answers_by: what it raises as an answer, which is no error of its.
        NotReady when the plugin could not be started, which is tried first.
        """
        if not self.is_started and method != CLOSE:
            await self._start_late()
        known = self._methods[method]
        call = TimedCall(partial(known.function, **keywords) if keywords else known.function, known.is_async)
        return await self._timed(method, call, seconds, args, wait_seconds, on_late_end, answers_by=answers_by)

    async def run_in_thread(
        self, method: str, function: Callable[..., Any], seconds: float, *args: Any, name: str = ""
    ) -> Any:
        """Call a blocking function in the plugin's threads as if it were that method, such as `read` of a file that the
        method returned. name: what errors and the log call it, instead of the method.
        """
        if not self.is_started:
            await self._start_late()
        return await self._timed(method, TimedCall(function, is_async=False), seconds, args, name=name)

    async def run_on_loop(
        self, method: str, function: Callable[..., Any], seconds: float, *args: Any, name: str = ""
    ) -> Any:
        """Await a function that waits for the plugin as if it were that method. name: see run_in_thread."""
        if not self.is_started:
            await self._start_late()
        return await self._timed(method, TimedCall(function, is_async=True), seconds, args, name=name)

    async def start(self) -> None:
        """Start the plugin unless it has started; NotReady, or what else its `start` raised, when it could not be."""
        if self.is_started:
            return
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start(), name=f"{self.kind} {self.name}: start")
            self._starting.add_done_callback(ignore)
        # Who goes away does not take it from the others.
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        assert self._contexts is not None, f"nobody lends the {self.kind} {self.name} what it starts with"
        known, context = self._methods[START], self._contexts.to(self.name)
        try:
            await self._timed(START, TimedCall(known.function, known.is_async), START_SECONDS, (context,))
        except Exception as error:
            if is_away(error):
                seconds, reason = asked_seconds(error), plugin_error_text(error)
                raise (NotReady(reason, seconds) if seconds else NotReady(reason)) from error
            raise
        self.is_started, self._health = True, None
        # What was held until it is ready is held no more, called or not.
        for method in self._methods.values():
            method.breaker.answered()

    async def _start_late(self) -> None:
        try:
            await self.start()
        except NotReady:
            raise
        except Exception as error:
            raise NotReady(plugin_error_text(error)) from error

    def hold(self, reason: str, error: NotReady) -> None:
        """Let nobody call it but to try it, after the time the error says."""
        for method in self._methods.values():
            method.breaker.unreachable(reason, plugin_error_text(error), error.retry_after_seconds)

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
        measured = self._methods[method]
        try:
            result = await self._running.result_of(name or method, call, seconds, args, wait_seconds, on_late_end)
            if method not in NOT_WORK:
                self.worked_at = monotonic()
            return result
        except Exception as failure:
            measured.overruns.inc(int(isinstance(failure, PluginOverrun)))
            if answers_by is None or not isinstance(failure, answers_by):
                self.count_error(method)
            raise
        finally:
            if call.has_blocked or measured.breaker.blocks:
                self._judge_blocking(method, call)
            self.calls += 1
            seconds_taken = perf_counter() - (call.begun_at or call.made_at)
            measured.seconds.observe(seconds_taken)
            if self._is_traced:
                outcome = type(error).__name__ if (error := sys.exception()) else "ok"
                fields = {"kind": self.kind, "plugin": self.name, "method": name or method, "outcome": outcome}
                log.info("plugin_called", ms=round(seconds_taken * 1000, 1), **fields)

    def _judge_blocking(self, method: str, call: TimedCall) -> None:
        """Count a call that kept the event loop as an error; so many in a row hold the method (breaker.py)."""
        breaker = self._methods[method].breaker
        breaker.blocks = breaker.blocks + 1 if call.has_blocked else 0
        if call.has_blocked and sys.exception() is None:
            self.count_error(method)

    async def close(self) -> None:
        """End its tasks, call its close method if it has one, log its failure, and leave its threads behind."""
        try:
            if self._contexts is not None:
                await self._contexts.end_tasks(self.name)
            if CLOSE in self._methods:
                await self.call(CLOSE, CLOSE_SECONDS)
        except Exception:
            log.warning("plugin_close_failed", kind=self.kind, plugin=self.name, exc_info=True)
        finally:
            self._running.shutdown()
