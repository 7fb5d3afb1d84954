"""The common part of all suites: a loop for each test, a plugin that is started and closed as by the service, and a
check for leaks.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from pipeline.errors import NotReady
from pipeline.hooks.context import ContextFactory, PluginContext
from pipeline.hooks.progress import ProgressReports, takes_progress
from pipeline.hooks.threads import DaemonThreads, LoopThreads, of_plugin
from pipeline.hooks.values import MemoryValues
from pipeline.metrics import Metrics
from pipeline.sandbox.sandbox import Sandbox as RealSandbox
from pipeline.settings import Settings, load
from pipeline.testing.findings import describe, fail_test, not_ready
from pipeline.testing.leaks import GRACE_SECONDS, end_tasks, leaks
from pipeline.testing.process_state import OpenResources, PrintedText, ProcessState
from pipeline.testing.loop_watch import BLOCKED_SECONDS, Stuck, LoopWatch

Call = Callable[..., Any]
# A library may open a resource once for the process; a plugin that leaks opens one in each test.
LEAKS_FROM = 3
# Kinds of resources that are reported after one test.
AT_ONCE = ("clients", "sockets", "many threads")
# The first call may import a package on the loop.
BLOCKS_FROM = 2
NO_TIME = "there was no time left for it"
NEVER_AWAITED = "coroutine .* was never awaited"


# Many methods because a suite is one class that authors subclass: fixtures, and hooks that a kind of suite overrides.
class PluginSuite:
    """`call(method, *args)` runs or awaits a plugin's method as the service does.

    call_seconds: the longest time of one call.
    time_limit: a setting that allows less, and its seconds.
    route_time_limit: the same for the handlers of routes.
    stops_after_hang: leave out the later tests after a call that never returned.
    deadline: after this time, by monotonic(), no further call is made.
    wait_budget_seconds: how long, in all tests of a class, the suite waits when a provider asks to be called later.
    plugin_name: "" when unknown.
    """

    call_seconds = 30.0
    time_limit: tuple[str, float] | None = None
    stops_after_hang = False
    deadline: float | None = None
    wait_budget_seconds = 0.0
    route_time_limit: tuple[str, float] | None = None
    plugin_name = ""
    _at_once = 1

    @pytest.fixture
    def loop(self) -> Iterator[asyncio.AbstractEventLoop]:
        """The event loop of one test; not the current loop, which may belong to other tests."""
        loop = asyncio.new_event_loop()
        loop.set_default_executor(LoopThreads())
        yield loop
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()  # leaves its threads behind

    @pytest.fixture
    def sandbox(self, loop: asyncio.AbstractEventLoop) -> Iterator[RealSandbox]:
        """The sandbox of the service, with real child processes."""
        sandbox = RealSandbox()
        yield sandbox
        loop.run_until_complete(sandbox.close())

    @pytest.fixture
    def context_settings(self, tmp_path: Path) -> Settings:
        """The service's settings for `start(context)`: those of the environment, with a DATA_DIR of the test."""
        return load(data_dir=tmp_path / "data")

    @pytest.fixture
    def context(self, loop: asyncio.AbstractEventLoop, context_settings: Settings) -> Iterator[PluginContext]:
        """The context for `start`: a real one, with a store that is empty for each test."""
        values = MemoryValues()
        contexts = ContextFactory(context_settings, Metrics(), lambda name: values)
        yield contexts.for_plugin("suite")
        loop.run_until_complete(contexts.close())

    @pytest.fixture
    def call(self, loop: asyncio.AbstractEventLoop) -> Call:
        """Return a function that calls a method and returns its result or raises its exception."""
        return lambda method, *args: self._on_loop(loop, _name(method), self.make_call(method, *args))

    @pytest.fixture
    def call_together(self, loop: asyncio.AbstractEventLoop) -> Call:
        """Return a function that makes several calls, (method, *args) each, at once and returns their results."""

        async def together(calls: list[tuple[Any, ...]]) -> list[Any]:
            self._at_once = max(self._at_once, len(calls))
            tasks = [asyncio.create_task(self.make_call(*each)) for each in calls]
            try:
                return await asyncio.gather(*tasks)
            finally:  # calls that still wait for a slot are no leak of the plugin
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

        return lambda *calls: self._on_loop(loop, _name(calls[0][0]), together(list(calls)))

    @pytest.fixture(autouse=True)
    def _watched(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Find effects on other plugins: it blocks the loop, prints, changes the process, or leaks."""
        self._seen: list[str] = []
        self._at_once = 1
        if self.class_state.get("never returned"):
            pytest.skip("an earlier call never returned")
        state, resources = ProcessState.now(), OpenResources.now()
        yield
        self._seen += ProcessState.now().changes(state)
        if loop.get_exception_handler() is not None:
            self._seen.append("it sets an exception handler of the event loop, which is the service's: leave it out")
        if names := end_tasks(loop, PluginSuite.__name__):
            shown = ", ".join(names[:3])
            self._seen.append(f"tasks go on after close ({shown}): use context.task, or cancel them in close()")
        self._check_leaks(loop, resources)
        if self._seen:
            fail_test(*self._seen)

    @property
    def class_state(self) -> dict[str, Any]:
        """State that the tests of one class share."""
        if "of_class" not in vars(type(self)):
            type(self).of_class = {}  # type: ignore[attr-defined]
        return vars(type(self))["of_class"]  # type: ignore[no-any-return]

    def while_started(
        self, plugin: object, call: Call, context: PluginContext, loop: asyncio.AbstractEventLoop
    ) -> Iterator[None]:
        """Start the plugin, let the test go on, and close it."""
        self.service_settings = context.settings
        if api_version_of(plugin) > 1 and callable(start := getattr(plugin, "start", None)):
            self._start(start, call, context)
        yield
        loop.run_until_complete(context.end_tasks())
        if close := getattr(plugin, "close", None):
            try:
                call(close)
            except Exception as error:
                fail_test(f"close raised {describe(error)}: let everything go without an error")

    def _start(self, start: Call, call: Call, context: PluginContext) -> None:
        try:
            call(start, context)
        except NotReady as error:
            fail_test(not_ready(error))
        except Exception as error:
            fail_test(f"start raised {describe(error)}: raise NotReady for what ends by itself, else fix the cause")

    def _on_loop(self, loop: asyncio.AbstractEventLoop, name: str, work: Awaitable[Any]) -> Any:
        """Run the work on the loop and watch it; the findings are reported when the test ends."""
        watch, printed = LoopWatch(self.limit_seconds), PrintedText(sys.stdout)

        async def watched() -> Any:
            beat = asyncio.create_task(watch.beat())
            try:
                return await work
            finally:
                beat.cancel()
                await asyncio.wait([beat])

        sys.stdout = printed
        try:
            with warnings.catch_warnings(record=True) as warned, watch.looking():
                warnings.filterwarnings("always", message=NEVER_AWAITED, category=RuntimeWarning)
                return loop.run_until_complete(watched())
        except Stuck:
            self._note_hang()
            where = watch.blocked[-1][1]
            cure = "await, or use asyncio.to_thread"
            fail_test(f"{name} blocks the event loop and never returns ({where}): {cure}")
        finally:
            sys.stdout = printed.stream if sys.stdout is printed else sys.stdout
            self._note(name, watch, printed, warned)

    def _note(self, name: str, watch: LoopWatch, printed: PrintedText, warned: list[warnings.WarningMessage]) -> None:
        if watch.blocked and name not in ("start", "close"):
            times = self.class_state[f"blocked {name}"] = self.class_state.get(f"blocked {name}", 0) + 1
            seconds, where = max(watch.blocked)
            if times >= BLOCKS_FROM:
                self._seen.append(
                    f"{name} blocks the event loop for {seconds:.2f} s{f' ({where})' if where else ''}, more than "
                    f"{BLOCKED_SECONDS} s: await, write a plain def, or use asyncio.to_thread"
                )
        if printed.text.strip() and not self.class_state.setdefault("printed", False):
            self.class_state["printed"] = True
            self._seen.append(f"{name} prints ({printed.text.strip()[:60]!r}): log through context.log or structlog")
        for warning in warned:
            if "was never awaited" in str(warning.message):
                self._seen.append(f"{name}: {warning.message}; write `await` before the call, or nothing is done")
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    @property
    def limit_seconds(self) -> float:
        return min(self.call_seconds, self.time_limit[1] if self.time_limit else self.call_seconds)

    async def make_call(self, method: Callable[..., Any], *args: Any) -> Any:
        name = _name(method)
        if takes_progress(method):
            method = partial(method, progress=ProgressReports())
        if self.deadline is not None and monotonic() > self.deadline:
            pytest.skip(NO_TIME)
        async with self.call_slot(name):
            if not hasattr(method, "is_of_the_suite"):
                calls = self.class_state.setdefault("calls", {})
                calls[name] = calls.get(name, 0) + 1
            return await self._in_time(name, method, *args)

    def call_slot(self, name: str) -> AbstractAsyncContextManager[None]:
        """Return a context that waits until a call of that method may begin; without a declared rate at once."""
        return nullcontext()

    async def _in_time(self, name: str, method: Callable[..., Any], *args: Any) -> Any:
        task = asyncio.create_task(self._run(method, *args), name=name)
        try:
            await asyncio.wait([task], timeout=self.limit_seconds)
        finally:
            if is_late := not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=GRACE_SECONDS)
        if is_late:
            self._note_hang()
            fail_test(self._too_slow(name) + ("" if task.done() else "; it goes on although it was cancelled"))
        try:
            return task.result()
        except asyncio.CancelledError:
            fail_test(f"{name} lets a CancelledError escape: catch it where it cancels")

    async def _run(self, method: Callable[..., Any], *args: Any) -> Any:
        # Daemon threads: a thread that hangs must not keep pytest from ending.
        threads = DaemonThreads(4, "suite")
        of_plugin.set(threads)
        try:
            if iscoroutinefunction(method):
                return await method(*args)
            result = await asyncio.wrap_future(threads.submit(partial(method, *args)))
            return await result if isawaitable(result) else result
        except SystemExit:
            fail_test(f"{_name(method)} calls sys.exit, which would end the service: raise an error")
        finally:
            threads.shutdown()

    def _too_slow(self, name: str) -> str:
        if self.time_limit and self.time_limit[1] <= self.call_seconds:
            setting, seconds = self.time_limit
            return f"{name} takes longer than {setting}={seconds:g}, which is in force: set a shorter timeout"
        return f"{name} does not return within {self.call_seconds:g} s: set a timeout for whatever it waits for"

    def fails_alone(self, call: Call, method: Call, *args: Any) -> bool:
        """Return whether one call by itself fails too, as it does when a service cannot be reached."""
        try:
            call(method, *args)
        except Exception:
            return True
        return False

    def _note_hang(self) -> None:
        self.class_state["never returned"] = self.stops_after_hang

    def _check_leaks(self, loop: asyncio.AbstractEventLoop, before: OpenResources) -> None:
        for kind, line in leaks(loop, before, self._at_once).items():
            times = self.class_state[kind] = self.class_state.get(kind, 0) + 1
            if times >= LEAKS_FROM or kind in AT_ONCE:
                self._seen.append(line)


def api_version_of(plugin: object) -> int:
    """Return the API version that a plugin was written for, as its module declares."""
    module = sys.modules.get(type(plugin).__module__)
    version = getattr(plugin, "API_VERSION", getattr(module, "API_VERSION", 2))
    return version if isinstance(version, int) else 2


def _name(method: Callable[..., Any]) -> str:
    return str(getattr(method, "__name__", getattr(getattr(method, "func", None), "__name__", "the method")))
