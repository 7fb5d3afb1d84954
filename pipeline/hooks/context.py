"""Makes the Context of each plugin (context_api.py): an HTTP session that all plugins share, and its own folder, small
store, tasks, measures and log. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context as Variables
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
import structlog
from prometheus_client import Counter, Histogram

from pipeline import __version__
from pipeline.hooks.context_api import Measure, PluginStore
from pipeline.hooks.threads import DaemonThreads, of_plugin
from pipeline.metrics import PLUGIN_SECONDS
from pipeline.supervision import cancel
from pipeline.texts import cause_of

if TYPE_CHECKING:
    from pipeline.metrics import Metrics
    from pipeline.settings import Settings

# Measures of one plugin, and series of one measure: /metrics must not grow with the data.
MEASURES_AT_MOST, SERIES_AT_MOST = 20, 100
OTHER = "other"
MEASURE_NAME = re.compile(r"[a-z][a-z0-9_]{0,60}")
# For calls of `asyncio.to_thread` by the plugin's tasks.
TASK_THREADS = 4
FOLDER = "plugins"
log = structlog.get_logger(__name__)

# The `traceparent` of the current call, "" without tracing.
trace_of_call: ContextVar[str] = ContextVar("trace_of_call", default="")


class ContextFactory:
    """Makes the contexts of plugins and closes them at the end."""

    def __init__(self, settings: Settings, metrics: Metrics, values: Callable[[str], PluginStore]) -> None:
        """values: returns the store of the plugin of that name."""
        self._settings = settings
        self._metrics = metrics
        self._values = values
        self._contexts: dict[str, PluginContext] = {}
        self._session: aiohttp.ClientSession | None = None

    def for_plugin(self, name: str) -> PluginContext:
        """Return the context of the plugin of that name, always the same."""
        if name not in self._contexts:
            store = self._values(name)
            context = PluginContext(name, self._settings, self._metrics, store, self._open_session)
            self._contexts[name] = context
        return self._contexts[name]

    async def end_tasks(self, name: str) -> None:
        """End the plugin's background tasks."""
        if name in self._contexts:
            await self._contexts[name].end_tasks()

    async def close(self) -> None:
        """End all tasks and close the session; the plugins must be closed before."""
        for context in self._contexts.values():
            await context.end_tasks()
        if self._session is not None:
            await self._session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        # Made at the first use, because a session belongs to the loop it is made on. No limit of connections: the
        # number of a plugin's calls is limited elsewhere.
        if self._session is None:
            tracing = aiohttp.TraceConfig()
            tracing.on_request_start.append(_send_trace)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": f"ai-queue-pipeline/{__version__}"},
                trust_env=True,
                trace_configs=[tracing],
            )
        return self._session


class PluginContext:
    """The context of one plugin; methods: see Context in context_api.py."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        metrics: Metrics,
        store: PluginStore,
        open_session: Callable[[], aiohttp.ClientSession],
    ) -> None:
        self.settings = settings
        self.store = store
        self.log: Any = structlog.get_logger(f"plugin.{name}").bind(plugin=name)
        self._name = name
        self._metrics = metrics
        self._open_session = open_session
        self._measures: dict[str, _Measure] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._threads: DaemonThreads | None = None

    @property
    def http(self) -> aiohttp.ClientSession:
        return self._open_session()

    @property
    def data_dir(self) -> Path:
        folder = self.settings.data_dir / FOLDER / re.sub(r"[^A-Za-z0-9_.-]", "_", self._name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def task(self, coroutine: Coroutine[Any, Any, object], name: str) -> asyncio.Task[object]:
        self._threads = self._threads or DaemonThreads(TASK_THREADS, f"plugin-{self._name}")
        # A new contextvars context: without the log names of the current job, with the plugin's own threads.
        variables = Variables()
        variables.run(of_plugin.set, self._threads)
        task = asyncio.create_task(coroutine, name=f"plugin {self._name}: {name}", context=variables)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def counter(self, name: str, text: str, *labels: str) -> Measure:
        return self._measure(name, labels, lambda full: Counter(full, text, labels, registry=self._metrics.registry))

    def histogram(self, name: str, text: str, *labels: str, buckets: Sequence[float] = ()) -> Measure:
        return self._measure(
            name,
            labels,
            lambda full: Histogram(
                full, text, labels, buckets=buckets or PLUGIN_SECONDS, registry=self._metrics.registry
            ),
        )

    async def end_tasks(self) -> None:
        """Cancel its tasks and leave its threads behind."""
        await cancel(self._tasks)
        if self._threads is not None:
            self._threads.shutdown()

    def _measure(self, name: str, labels: Sequence[str], make: Callable[[str], Counter | Histogram]) -> _Measure:
        if name not in self._measures:
            if not MEASURE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a valid name of a measure: use a-z, 0-9 and _")
            if len(self._measures) >= MEASURES_AT_MOST:
                raise ValueError(f"a plugin has at most {MEASURES_AT_MOST} measures")
            plugin = re.sub(r"[^a-z0-9]", "_", self._name.lower())
            self._measures[name] = _Measure(make(f"pipeline_plugin_{plugin}_{name}"), labels)
        return self._measures[name]

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._metrics.plugin_errors.labels("plugin", self._name, "task").inc()
            log.error(
                "plugin_task_failed", plugin=self._name, task=task.get_name(), cause=cause_of(error), exc_info=error
            )


class _Measure:
    """A counter or histogram with a bounded number of series."""

    def __init__(self, metric: Any, labels: Sequence[str]) -> None:
        self._metric = metric
        self._names = tuple(labels)
        self._seen: set[tuple[str, ...]] = set()

    def inc(self, amount: float = 1, **labels: str) -> None:
        """See Measure."""
        self._series(labels).inc(amount)

    def observe(self, value: float, **labels: str) -> None:
        """See Measure."""
        self._series(labels).observe(value)

    def _series(self, labels: dict[str, str]) -> Any:
        if set(labels) != set(self._names):
            raise ValueError(f"this measure has the labels {', '.join(self._names) or 'none'}")
        if not self._names:
            return self._metric
        values = tuple(str(labels[name]) for name in self._names)
        if values not in self._seen and len(self._seen) >= SERIES_AT_MOST:
            values = (OTHER,) * len(self._names)
        self._seen.add(values)
        return self._metric.labels(*values)


async def _send_trace(
    session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceRequestStartParams
) -> None:
    if (trace := trace_of_call.get()) and "traceparent" not in params.headers:
        params.headers["traceparent"] = trace
