"""How one plugin is called: awaited on the loop or run in threads of its own, in a time budget, timed and counted.

Every plugin has its own threads, so one that hangs cannot take those of another. What a method means is not known here.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic, perf_counter
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import structlog

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

    from pipeline.metrics import Metrics

CLOSE_SECONDS = 5.0
# How long a call that was cancelled may take to clean up before it is left behind.
GRACE_SECONDS = 1.0
log = structlog.get_logger(__name__)


class PluginOverrun(Exception):
    """The call took longer than its time budget, or no thread was left because earlier ones never returned."""


class DaemonThreads(Executor):
    """A pool of at most `limit` daemon threads, each started when it is first needed.

    Not a ThreadPoolExecutor: the interpreter joins its threads at exit, so one stuck call would keep the process alive.
    """

    def __init__(self, limit: int, name: str, on_start: Callable[[float], None] = lambda _: None) -> None:
        """on_start: called with the seconds a call has waited for its thread."""
        self.limit = limit
        self._name = name
        self._on_start = on_start
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._started = 0
        self._is_closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Return the future of fn(*args, **kwargs); RuntimeError after shutdown."""
        future: Future[Any] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError(f"the threads of {self._name} are shut down")
            self._work.put((future, partial(self._start, perf_counter(), partial(fn, *args, **kwargs))))
            if not self._idle.acquire(blocking=False) and self._started < self.limit:
                self._started += 1
                threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:
        """Cancel what has not begun and let the threads end as they come free; never waits."""
        with self._lock:
            self._is_closed = True
            try:
                while item := self._work.get_nowait():
                    item[0].cancel()
            except Empty:
                pass
            self._work.put(None)

    def _start(self, submitted_at: float, call: Callable[[], Any]) -> Any:
        self._on_start(perf_counter() - submitted_at)
        return call()

    def _serve(self) -> None:
        while (item := self._work.get()) is not None:
            _fulfil(*item)
            del item
            self._idle.release()
        self._work.put(None)


def _fulfil(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


class Aside:
    """Sets a plugin aside for a while once it has failed so often in a row; then one call at a time tries it again."""

    def __init__(self, failures: int, seconds: float, *, on_change: Callable[[bool], None]) -> None:
        self._limit = failures
        self._seconds = seconds
        self._on_change = on_change
        self._failures = 0
        self._until = 0.0
        self.is_set = False

    def lets_through(self) -> bool:
        """Return whether the plugin may be called now; True while it is set aside: this call is the one that tries."""
        if not self.is_set:
            return True
        if monotonic() < self._until:
            return False
        self._until = monotonic() + self._seconds
        return True

    def succeeded(self) -> None:
        """The plugin works."""
        self._failures = 0
        if self.is_set:
            self.is_set = False
            self._on_change(False)

    def failed(self, for_seconds: float | None = None) -> None:
        """The plugin failed. for_seconds: it asked to be left alone for that long."""
        self._failures += 1
        if for_seconds is None and self._failures < self._limit:
            return
        self._until = monotonic() + max(self._seconds, for_seconds or 0)
        if not self.is_set:
            self.is_set = True
            self._on_change(True)


@dataclass(frozen=True, slots=True)
class _Method:
    """One method of a plugin and its series."""

    function: Callable[..., Any]
    is_async: bool
    seconds: Histogram
    errors: Counter
    overruns: Counter


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
        aside_failures: int = 5,
        aside_seconds: float = 30,
    ) -> None:
        """methods: what may be called, by name. threads: how many of its calls may run in threads at once."""
        self.kind = kind
        self.name = name
        self.plugin = plugin
        close = getattr(plugin, "close", None)
        self._methods = {
            method: _Method(
                function,
                inspect.iscoroutinefunction(function),
                metrics.plugin_seconds.labels(kind, name, method),
                metrics.plugin_errors.labels(kind, name, method),
                metrics.plugin_overruns.labels(kind, name, method),
            )
            for method, function in {**methods, **({"close": close} if close else {})}.items()
        }
        thread_wait = metrics.thread_wait_seconds.labels(kind, name)
        self._threads = DaemonThreads(threads, f"{kind}-{name}", thread_wait.observe)
        self._stuck = metrics.plugin_stuck.labels(kind, name)
        self.skipped = metrics.plugin_skipped.labels(kind, name)
        self.blocked_loop = metrics.plugin_blocked_loop.labels(kind, name)
        self._aside_gauge = metrics.plugin_aside.labels(kind, name)
        self.aside = Aside(aside_failures, aside_seconds, on_change=self._note_aside)
        self._overdue: set[Future[Any]] = set()
        self._left_behind: set[asyncio.Task[Any]] = set()

    @property
    def overdue(self) -> int:
        """How many threads are held now by calls whose time was up: a thread cannot be cancelled."""
        self._overdue = {future for future in self._overdue if not future.done()}
        return len(self._overdue)

    @property
    def state(self) -> str:
        """Return how it is now: ok, set aside, or stuck (calls whose time was up go on, in threads or on the loop)."""
        if self.aside.is_set:
            return "set aside"
        return "stuck" if self.overdue or self._left_behind else "ok"

    @property
    def methods(self) -> tuple[str, ...]:
        """What may be called."""
        return tuple(self._methods)

    async def call(self, method: str, seconds: float, *args: Any) -> Any:
        """Return what the method returns; PluginOverrun when it takes longer, else whatever Exception it raised."""
        started = perf_counter()
        measured = self._methods[method]
        # A task of its own: whatever the plugin does with a cancellation, the caller comes free.
        task = asyncio.create_task(self._run(method, args), name=f"{self.kind} {self.name}: {method}")
        task.add_done_callback(_ignore)
        try:
            await asyncio.wait([task], timeout=seconds)
            if task.done():
                return task.result()
            measured.overruns.inc()
            await self._cancel(task, method)
            raise PluginOverrun(f"{self.kind} {self.name}: {method} took longer than {seconds:g} s")
        except asyncio.CancelledError:
            if not task.done():
                await self._cancel(task, method)
            raise
        except Exception:
            measured.errors.inc()
            raise
        finally:
            measured.seconds.observe(perf_counter() - started)

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

    def _note_aside(self, is_aside: bool) -> None:
        self._aside_gauge.set(is_aside)
        log.warning("plugin_set_aside" if is_aside else "plugin_taken_back", kind=self.kind, plugin=self.name)

    def _came_back(self, task: asyncio.Task[Any]) -> None:
        self._stuck.dec()
        self._left_behind.discard(task)

    async def close(self) -> None:
        """Call the plugin's close method if it has one, log its failure, and leave the threads without waiting."""
        try:
            if "close" in self._methods:
                await self.call("close", CLOSE_SECONDS)
        except Exception:
            log.warning("plugin_close_failed", kind=self.kind, plugin=self.name, exc_info=True)
        finally:
            self._threads.shutdown()

    async def _run(self, method: str, args: tuple[Any, ...]) -> Any:
        function = self._methods[method].function
        try:
            result = function(*args) if self._methods[method].is_async else await self._run_in_thread(function, args)
            return await result if inspect.isawaitable(result) else result
        except SystemExit as error:
            raise RuntimeError(f"{method} called sys.exit") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cancelled us: it escaped from inside the plugin and must not look like our own shutdown.
            raise RuntimeError(f"{method} let a cancellation escape") from error

    async def _run_in_thread(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        # Waiting for a thread that will not come would only cost the caller the whole time budget again.
        if self.overdue >= self._threads.limit:
            raise PluginOverrun(f"{self.kind} {self.name}: all {self._threads.limit} threads hang in earlier calls")
        future = self._threads.submit(contextvars.copy_context().run, function, *args)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancel():
                log.warning("plugin_stuck", kind=self.kind, plugin=self.name, method=getattr(function, "__name__", ""))
                self._overdue.add(future)
                self._stuck.inc()
                future.add_done_callback(lambda _: self._stuck.dec())
            raise


def find_plugin(frame: FrameType | None) -> BoundPlugin | None:
    """Return the plugin whose coroutine is running in these frames, the innermost first; None when there is none."""
    while frame is not None:
        if frame.f_code is BoundPlugin._run.__code__:
            return cast(BoundPlugin, frame.f_locals["self"])
        frame = frame.f_back
    return None


def _ignore(task: asyncio.Task[Any]) -> None:
    """Fetch what nobody may wait for any more, so that the loop does not complain of it."""
    if not task.cancelled():
        task.exception()
