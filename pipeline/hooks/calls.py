"""How one plugin is called: awaited on the loop or run in threads of its own, in a time budget, timed and counted.

Every plugin has its own threads, also for what it hands to `asyncio.to_thread`, so one that hangs cannot take those of
another, and nothing of ours runs in them. What a method means is not known here.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from time import monotonic, perf_counter
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import structlog

from pipeline.errors import DependencyUnavailable, NotReady, RetryableJobError, is_unreachable
from pipeline.hooks.breaker import BLOCKING_CAUSE, Breaker
from pipeline.hooks.limits import Limits
from pipeline.hooks.routes import Route
from pipeline.hooks.sources import Source
from pipeline.hooks.threads import DaemonThreads, of_plugin
from pipeline.hooks.timing import TimedCall
from pipeline.texts import cause_of

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

    from pipeline.hooks.context import Lender
    from pipeline.metrics import Metrics

CLOSE_SECONDS = 5.0
# How long a call that was cancelled may take to clean up before it is left behind. Half of what a drain waits for its
# job to be handed back (queue/worker.py).
GRACE_SECONDS = 0.5
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


class PluginOverrun(Exception):
    """The call took longer than its time budget."""


class PluginBusy(Exception):
    """The call did not begin: all threads of the plugin are busy with, or hang in, earlier ones."""


@dataclass(frozen=True, slots=True)
class _Method:
    """One method of a plugin, its series, and whether it is called for now."""

    function: Callable[..., Any]
    is_async: bool
    seconds: Histogram
    errors: Counter
    overruns: Counter
    skipped: Counter
    breaker: Breaker


class BoundPlugin:
    """One plugin in use. Whether a method is awaited or run in a thread is decided here, once."""

    def __init__(
        self,
        kind: str,
        name: str,
        plugin: object,
        methods: Mapping[str, Callable[..., Any]],
        *,
        threads: int,
        metrics: Metrics,
        breaker_failures: int = 5,
        breaker_probe_seconds: float = 15,
        lender: Lender | None = None,
        limits: Limits = Limits(),
        is_traced: bool = False,
    ) -> None:
        """methods: what may be called, by name; `start`, if it is among them, before any other one.
        threads: how many of its calls may run in threads at once.
        lender: gives `start` its context.
        limits: what it declares.
        is_traced: each call is logged.
        """
        self.kind = kind
        self.name = name
        self.plugin = plugin
        self.limits = limits
        self._is_traced = is_traced
        close = getattr(plugin, "close", None)
        self._methods = {
            method: _Method(
                function,
                inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function),
                metrics.plugin_seconds.labels(kind, name, method),
                metrics.plugin_errors.labels(kind, name, method),
                metrics.plugin_overruns.labels(kind, name, method),
                metrics.plugin_skipped.labels(kind, name, method),
                Breaker(breaker_failures, breaker_probe_seconds, partial(self._note_held, method)),
            )
            for method, function in {**methods, **({CLOSE: close} if close else {})}.items()
        }
        for method, known in self._methods.items():
            metrics.plugin_held.labels(kind, name, method).set_function(partial(_is_held, known.breaker))
        thread_wait = metrics.thread_wait_seconds.labels(kind, name)
        self._threads = DaemonThreads(threads, f"{kind}-{name}", thread_wait.observe)
        self._stuck = metrics.plugin_stuck.labels(kind, name)
        # What it serves under /plugins/, where it comes from, and what is wrong with it and harmless.
        self.routes: Sequence[Route] = ()
        self.source: Source | None = None
        self.warnings: Sequence[str] = ()
        self._blocked_loop = metrics.plugin_blocked_loop.labels(kind, name)
        # Since the start, of all methods.
        self.calls = self.errors = 0
        self._overdue: set[Future[Any]] = set()
        self._left_behind: set[asyncio.Task[Any]] = set()
        self._lender = lender
        self.is_started = START not in self._methods
        self._starting: asyncio.Task[None] | None = None
        self._health: tuple[float, asyncio.Future[str]] | None = None

    @property
    def overdue(self) -> int:
        """How many threads are held now by calls whose time was up: a thread cannot be cancelled."""
        self._overdue = {future for future in self._overdue if not future.done()}
        return len(self._overdue)

    @property
    def state(self) -> str:
        """Return how it is now: ok, held, stuck (calls whose time was up go on, in threads or on the loop), or blocking
        (the last call of a method kept the event loop from everything else).
        """
        if any(known.breaker.is_held for known in self._methods.values()):
            return "held"
        if self.overdue or self._left_behind:
            return "stuck"
        return "blocking" if self.reason else "ok"

    @property
    def reason(self) -> str:
        """Return which methods are held and why, or keep the event loop, "" when none does."""
        told = []
        for method, known in self._methods.items():
            breaker = known.breaker
            if breaker.is_held:
                told.append(f"{method}: {breaker.reason} ({breaker.cause})")
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
            return cause_of(error)
        return f"{CHECK} returned False" if answer is False else ""

    @property
    def max_in_flight(self) -> int | None:
        """How many of its calls run at once; None when it is awaited: as many as there are."""
        is_awaited = all(known.is_async for name, known in self._methods.items() if name not in NOT_WORK)
        return None if is_awaited else self._threads.limit

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

    def note_blocking(self, call: TimedCall) -> None:
        """Count that the call keeps the event loop. Called by the watchdog, in its thread, while it does."""
        self._blocked_loop.inc()
        call.has_blocked = True

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
    ) -> Any:
        """Return what the method returns; PluginOverrun when it takes longer, else whatever Exception it raised.

        wait_seconds: how long it may wait for a thread before its time begins, PluginBusy after that; default: the wait
        is part of its time.
        on_late_end: called on the loop when a call has ended that was given up before, because its time was over or its
        caller was cancelled. A thread cannot be cancelled, so what the call does may be done all the same.
        keywords: arguments that are passed by name.
        NotReady when the plugin could not be started, which is tried first.
        """
        if not self.is_started and method != CLOSE:
            await self._start_late()
        known = self._methods[method]
        call = TimedCall(partial(known.function, **keywords) if keywords else known.function, known.is_async)
        return await self._timed(method, call, seconds, args, wait_seconds, on_late_end)

    async def run_in_thread(self, method: str, function: Callable[..., Any], seconds: float, *args: Any) -> Any:
        """Call a blocking function in the plugin's threads as if it were that method, such as `read` of a file that the
        method returned.
        """
        if not self.is_started:
            await self._start_late()
        return await self._timed(method, TimedCall(function, is_async=False), seconds, args)

    async def run_on_loop(self, method: str, function: Callable[..., Any], seconds: float, *args: Any) -> Any:
        """Await a function that waits for the plugin as if it were that method."""
        if not self.is_started:
            await self._start_late()
        return await self._timed(method, TimedCall(function, is_async=True), seconds, args)

    async def start(self) -> None:
        """Start the plugin unless it has started; NotReady, or what else its `start` raised, when it could not be."""
        if self.is_started:
            return
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start(), name=f"{self.kind} {self.name}: start")
            self._starting.add_done_callback(_ignore)
        # Who goes away does not take it from the others.
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        assert self._lender is not None, f"nobody lends the {self.kind} {self.name} what it starts with"
        known = self._methods[START]
        context = self._lender.to(self.name)
        try:
            await self._timed(START, TimedCall(known.function, known.is_async), START_SECONDS, (context,))
        except Exception as error:
            if is_away(error):
                raise NotReady(f"{cause_of(error)}") from error
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
            raise NotReady(cause_of(error)) from error

    def hold(self, reason: str, error: NotReady) -> None:
        """Let nobody call it but to try it, after the time the error says."""
        for method in self._methods.values():
            method.breaker.unreachable(reason, cause_of(error), error.retry_after_seconds)

    async def _timed(
        self,
        method: str,
        call: TimedCall,
        seconds: float,
        args: tuple[Any, ...],
        wait_seconds: float | None = None,
        on_late_end: Callable[[], None] | None = None,
    ) -> Any:
        measured = self._methods[method]
        # A task of its own: whatever the plugin does with a cancellation, the caller comes free.
        task = asyncio.create_task(self._run(method, call, args), name=f"{self.kind} {self.name}: {method}")
        task.add_done_callback(_ignore)
        try:
            while not task.done() and (left := call.left_seconds(seconds, wait_seconds)) > 0:
                await asyncio.wait([task], timeout=left)
            if task.done():
                return task.result()
            has_begun = call.begun_at is not None
            await self._give_up(task, call, method, on_late_end)
            if not has_begun:
                raise PluginBusy(f"{self.kind} {self.name}: no thread came free for {method}")
            measured.overruns.inc()
            raise PluginOverrun(f"{self.kind} {self.name}: {method} took longer than {seconds:g} s")
        except asyncio.CancelledError:
            if not task.done():
                await self._give_up(task, call, method, on_late_end)
            raise
        except Exception:
            measured.errors.inc()
            self.errors += 1
            raise
        finally:
            if call.has_blocked or measured.breaker.blocks:
                self._judge_blocking(method, call)
            self.calls += 1
            seconds_taken = perf_counter() - (call.begun_at or call.made_at)
            measured.seconds.observe(seconds_taken)
            if self._is_traced:
                outcome = type(error).__name__ if (error := sys.exception()) else "ok"
                fields = {"kind": self.kind, "plugin": self.name, "method": method, "outcome": outcome}
                log.info("plugin_called", ms=round(seconds_taken * 1000, 1), **fields)

    def _judge_blocking(self, method: str, call: TimedCall) -> None:
        """Count a call that kept the event loop as an error; so many in a row hold the method (breaker.py)."""
        breaker = self._methods[method].breaker
        breaker.blocks = breaker.blocks + 1 if call.has_blocked else 0
        if call.has_blocked and sys.exception() is None:
            self.count_error(method)

    async def _give_up(
        self, task: asyncio.Task[Any], call: TimedCall, method: str, on_late_end: Callable[[], None] | None
    ) -> None:
        try:
            await self._cancel(task, method)
        finally:
            if on_late_end is not None:
                call.when_ended(task, on_late_end)

    async def _cancel(self, task: asyncio.Task[Any], method: str) -> None:
        """Cancel the call; one that goes on all the same is left behind, counted until it ends."""
        task.cancel()
        try:
            await asyncio.wait([task], timeout=GRACE_SECONDS)
        finally:
            if not task.done():
                log.warning("plugin_stuck", kind=self.kind, plugin=self.name, method=method)
                self._stuck.inc()
                self._left_behind.add(task)
                task.add_done_callback(self._came_back)

    def _note_held(self, method: str, is_held: bool) -> None:
        fields: dict[str, Any] = {"kind": self.kind, "plugin": self.name, "method": method}
        if is_held:
            breaker = self._methods[method].breaker
            left_ms = round(breaker.left_seconds * 1000)
            log.warning("plugin_held", leftMs=left_ms, reason=breaker.reason, cause=breaker.cause, **fields)
        else:
            log.warning("plugin_released", **fields)

    def _came_back(self, task: asyncio.Task[Any]) -> None:
        self._stuck.dec()
        self._left_behind.discard(task)

    async def close(self) -> None:
        """End its tasks, call its close method if it has one, log its failure, and leave its threads behind."""
        try:
            if self._lender is not None:
                await self._lender.end_tasks(self.name)
            if CLOSE in self._methods:
                await self.call(CLOSE, CLOSE_SECONDS)
        except Exception:
            log.warning("plugin_close_failed", kind=self.kind, plugin=self.name, exc_info=True)
        finally:
            self._threads.shutdown()

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
            # Nobody cancelled us: it escaped from inside the plugin and must not look like our own shutdown.
            raise RuntimeError(f"{method} let a cancellation escape") from error

    async def _run_in_thread(self, method: str, call: TimedCall, args: tuple[Any, ...]) -> Any:
        # Waiting for a thread that will not come would only cost the caller its whole time.
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


def find_plugin(frame: FrameType | None) -> tuple[BoundPlugin, str, TimedCall] | None:
    """Return the plugin whose coroutine is running in these frames, the innermost first, which of its methods that is,
    and the call; None when there is none.
    """
    while frame is not None:
        if frame.f_code is BoundPlugin._run.__code__:
            names = frame.f_locals
            return cast(BoundPlugin, names["self"]), cast(str, names["method"]), cast(TimedCall, names["call"])
        frame = frame.f_back
    return None


def is_away(error: Exception) -> bool:
    """Return whether what a `start` raised may be over in a while, though it is no NotReady."""
    away = (DependencyUnavailable, RetryableJobError, PluginOverrun, PluginBusy, TimeoutError)
    return isinstance(error, away) or is_unreachable(error)


def _is_held(breaker: Breaker) -> float:
    return float(breaker.is_held)


def _ignore(task: asyncio.Task[Any]) -> None:
    """Fetch what nobody may wait for any more, so that the loop does not complain of it."""
    if not task.cancelled():
        task.exception()
