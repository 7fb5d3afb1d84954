"""Every number operators see. One Metrics object per app, with a registry of its own, so two apps never share a count.

Series of known label sets start at 0: a rate over a series that appears with its first event would miss that event.
Labels come from small fixed sets, never an id. Counts live in this process only, to be summed over processes, but for
those that end in FLEET: they tell what Redis has, every process the same, so dashboards take the max. Safe from any
thread.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from itertools import product
from math import nan

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pipeline import __version__
from pipeline.settings import Role

QUEUE_STATES = ("waiting", "active", "delayed", "completed", "failed", "background")
ATTEMPTS = ("1", "2", "3", "more")
JOB_OUTCOMES = ("completed", "retried", "postponed", "parked", "failed", "released", "cancelled", "lost")
HTTP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30)
WAIT_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 90, 120, 300, 900)
# 60, 90 and 120 are the limits: the promise to the user, the AI provider's timeout, the job's timeout.
JOB_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 90, 120)
ASSET_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 90, 120, 300)
# 1 is the promise: an event reaches its owner within a second of its result.
EVENT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
# Those of the table in handlers/socket.py that the service can tell.
CLOSE_CODES = (
    *(1000, 1001, 1002, 1006, 1007, 1009, 1011, 1012, 1013),
    *(4400, 4401, 4403, 4419, 4429, 4503, 4504),
)
PLUGIN_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 2, 5, 10, 25, 60, 90)
LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.1, 0.25, 0.5, 1, 5)
# Kinds of long-lived tasks, see supervision.py.
TASKS = (
    *("claiming", "slot", "renewal", "enforcement", "replay", "subscriptions", "publisher", "reconciler", "sweeper"),
    *("store", "watchdog", "embedded", "clock", "progress", "expiry", "erasing", "processes", "console"),
    *("dependencies", "limits"),
)
PROCESS_STATES = ("alive", "lost")
# What one user, or one address, may ask for too much of: see usecases/limits.py and bounds.py.
LIMITS = ("uploads", "requests", "wrong_tokens", "backlog", "stored_bytes")
FLEET = "Same from every process: use max."


class QueueMetrics:
    """The series of one queue, ready to be counted on. Made by Metrics.of_queue."""

    def __init__(self, metrics: Metrics, queue: str, providers: Iterable[str]) -> None:
        self.jobs_enqueued = metrics.jobs_enqueued.labels(queue)
        self.jobs_claimed = metrics.jobs_claimed.labels(queue)
        self.jobs_recovered = metrics.jobs_recovered.labels(queue)
        self.leases_lost = metrics.leases_lost.labels(queue)
        self.job_wait_seconds = metrics.job_wait_seconds.labels(queue)
        self.job_running_seconds = metrics.job_running_seconds.labels(queue)
        self.slots = metrics.slots.labels(queue)
        self.slots_busy = metrics.slots_busy.labels(queue)
        self.job_seconds = {outcome: metrics.job_seconds.labels(queue, outcome) for outcome in JOB_OUTCOMES}
        self.jobs_finished = {outcome: metrics.jobs_finished.labels(queue, outcome) for outcome in JOB_OUTCOMES}
        self._attempts = {attempt: metrics.job_attempts.labels(queue, attempt) for attempt in ATTEMPTS}
        self._depth = {state: metrics.queue_depth.labels(queue, state) for state in QUEUE_STATES}
        self._oldest_seconds = metrics.queue_oldest_seconds.labels(queue)
        self._paused = metrics.queue_paused.labels(queue)
        self._held = {each: metrics.provider_held_seconds.labels(queue, each) for each in providers}

    def started(self, attempt: int) -> None:
        """Count a start. attempt: from 1."""
        self._attempts[str(attempt) if attempt <= 3 else "more"].inc()

    def show(
        self,
        counts: dict[str, int],
        *,
        oldest_ready_seconds: float,
        is_paused: bool,
        held_seconds: Mapping[str, float],
    ) -> None:
        """Show the queue as Redis has it.

        counts: jobs by state, all of QUEUE_STATES. held_seconds: for how much longer each held provider is not asked.
        """
        for state, gauge in self._depth.items():
            gauge.set(counts[state])
        self._oldest_seconds.set(oldest_ready_seconds)
        self._paused.set(is_paused)
        for provider, gauge in self._held.items():
            gauge.set(held_seconds.get(provider, 0))

    def show_unknown(self) -> None:
        """Redis does not answer: show no number at all rather than the last one."""
        for gauge in (*self._depth.values(), self._oldest_seconds, self._paused, *self._held.values()):
            gauge.set(nan)


class Metrics:
    """The series of one process, one attribute each; `render` is what GET /metrics answers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        build = Info("pipeline_build", "What runs here.", registry=self.registry)
        self._build = build
        self.show_build("")
        self._add_http()
        self._add_queue()
        self._add_jobs()
        self._add_assets()
        self._add_sockets()
        self._add_plugins()
        self._add_ai()
        self._add_surroundings()
        self._add_loop()
        self._queues: dict[str, QueueMetrics] = {}

    def show_build(self, public_url: str) -> None:
        """Show what runs here. public_url: by which the service is reached; alerts link to its runbooks."""
        self._build.info({"version": __version__, "python": platform.python_version(), "public_url": public_url})

    def render(self) -> tuple[bytes, str]:
        """Return the page in Prometheus' text format and its Content-Type."""
        return generate_latest(_WithoutCreated(self.registry)), CONTENT_TYPE_PLAIN_0_0_4

    def of_queue(self, name: str, providers: Iterable[str] = ()) -> QueueMetrics:
        """Return the series of the queue of that name, all of them at 0 from the first call on.

        providers: whom its jobs ask; only the first call for a queue may name any.
        """
        if name not in self._queues:
            self._queues[name] = QueueMetrics(self, name, providers)
        return self._queues[name]

    def _add_http(self) -> None:
        self.http_requests = self._counter("http_requests", "Finished HTTP requests.", "route", "method", "status")
        self.http_seconds = self._histogram("http_seconds", "From request line to last byte.", HTTP_SECONDS, "route")
        self.connections_refused = self._counter("connections_refused", "Connections closed for lack of open files.")
        self.uploads = self._counter("uploads", "Uploads by how they were answered.", "outcome")
        _start(self.uploads, ("accepted", "replayed", "rejected", "unavailable"))
        self.rate_limited = self._counter("rate_limited", "Requests refused because of a limit.", "limit")
        _start(self.rate_limited, LIMITS)
        self.upload_bytes = self._counter("upload_bytes", "Bytes of accepted images.")

    def _add_queue(self) -> None:
        self.queue_depth = self._gauge("queue_depth", f"Jobs in Redis by state. {FLEET}", "queue", "state")
        self.queue_oldest_seconds = self._gauge(
            "queue_oldest_seconds", f"How long the oldest job that could start now has waited. {FLEET}", "queue"
        )
        self.queue_paused = self._gauge(
            "queue_paused", f"1 while no process claims jobs because the queue is paused. {FLEET}", "queue"
        )
        self.provider_held_seconds = self._gauge(
            "provider_held_seconds",
            f"Until a provider or durable notifier that is held is asked again, by all or by one. {FLEET}",
            "queue",
            "provider",
        )

    def _add_jobs(self) -> None:
        of_queue, by_outcome = ("queue",), ("queue", "outcome")
        self.jobs_enqueued = self._counter("jobs_enqueued", "Jobs put in the queue by this process.", *of_queue)
        self.jobs_claimed = self._counter("jobs_claimed", "Jobs taken from the queue by this process.", *of_queue)
        self.job_wait_seconds = self._histogram(
            "job_wait_seconds", "From enqueued to first start.", WAIT_SECONDS, *of_queue
        )
        self.job_seconds = self._histogram(
            "job_seconds", "One attempt, from start to outcome.", JOB_SECONDS, *by_outcome
        )
        self.job_running_seconds = self._gauge(
            "job_running_seconds", "How long the longest running attempt of this process has taken.", *of_queue
        )
        self.jobs_finished = self._counter("jobs_finished", "Attempts by how they ended.", *by_outcome)
        self.job_attempts = self._counter("job_attempts", "Starts by which attempt it was.", "queue", "attempt")
        self.jobs_recovered = self._counter("jobs_recovered", "Jobs put back because their lease ran out.", *of_queue)
        self.leases_lost = self._counter("leases_lost", "Leases lost while the job was held.", *of_queue)
        self.slots = self._gauge("slots", "Job slots of this process.", *of_queue)
        self.slots_busy = self._gauge("slots_busy", "Job slots at work.", *of_queue)
        self.stale_results = self._counter("stale_results", "Results dropped because a newer run owns the asset.")
        self.reconciled = self._counter(
            "reconciled", "Lost jobs, dead letters and undelivered events that were put back."
        )
        self.reconciler_searches = self._counter("reconciler_searches", "Searches for lost jobs, by reason.", "reason")
        _start(self.reconciler_searches, ("urgent", "regular"))

    def _add_assets(self) -> None:
        self.reanalyses = self._counter("reanalyses", "Reanalyses of finished assets by what came of them.", "outcome")
        _start(self.reanalyses, ("changed", "unchanged", "kept", "dropped", "failed"))
        self.assets_finished = self._counter("assets_finished", "Assets by the status they ended in.", "status")
        _start(self.assets_finished, ("active", "partial", "failed"))
        self.asset_seconds = self._histogram("asset_seconds", "From accepted upload to sent event.", ASSET_SECONDS)
        self.expired = self._counter("expired", "Assets and originals that were kept for long enough.", "kind")
        _start(self.expired, ("assets", "originals"))
        self.damaged_assets = self._counter("damaged_assets", "Documents of assets that could not be read, each once.")
        self.previews = self._counter(
            "previews", "Photos whose previews were made, or could not be, or not in time.", "outcome"
        )
        _start(self.previews, ("made", "failed", "late"))
        self.images_swept = self._counter("images_swept", "Stored images removed because no asset names them.")
        self.event_seconds = self._histogram(
            "event_seconds", "From a result's commit to its event being sent, here and by Redis.", EVENT_SECONDS
        )

    def _add_sockets(self) -> None:
        self.sockets_open = self._gauge(
            "sockets_open", "Sockets, event streams and long polls in a room.", "transport"
        )
        self.sockets_closed = self._counter("sockets_closed", "Closed sockets and event streams by close code.", "code")
        _start(self.sockets_closed, (*map(str, CLOSE_CODES), "other"))
        self.socket_frames_sent = self._counter(
            "socket_frames_sent", "Frames written to sockets and streams, many replayed events as one."
        )
        self.outbox_bytes = self._gauge("outbox_bytes", "Bytes that wait for slow clients of this process.")
        self.events_published = self._counter("events_published", "Events handed to a room.")
        self.fanout_errors = self._counter("fanout_errors", "Events other processes could not be told at once.")
        self.events_dropped = self._counter(
            "events_dropped", "Events too many to be told to other processes, which read them from the store instead."
        )
        self.replays = self._counter("replays", "Reads of what a socket missed, by how they ended.", "outcome")
        _start(self.replays, ("complete", "resync", "unavailable"))
        self.events_replayed = self._counter("events_replayed", "Events sent again from the asset store.")

    def _add_plugins(self) -> None:
        of_plugin, of_call = ("kind", "plugin"), ("kind", "plugin", "method")
        self.plugin_seconds = self._histogram("plugin_seconds", "One call of a plugin.", PLUGIN_SECONDS, *of_call)
        self.plugin_errors = self._counter("plugin_errors", "Plugin calls that raised or overran.", *of_call)
        self.plugin_overruns = self._counter("plugin_overruns", "Plugin calls that used up their time.", *of_call)
        self.plugin_stuck = self._gauge(
            "plugin_stuck", "Threads and tasks held by calls whose time is over.", *of_plugin
        )
        self.plugin_held = self._gauge(
            "plugin_held", "1 while the method is not called: it could not be, failed in a row, or is busy.", *of_call
        )
        self.plugin_skipped = self._counter(
            "plugin_skipped", "Calls not made: the method was held, or too slow to take them.", *of_call
        )
        self.plugin_blocked_loop = self._counter(
            "plugin_blocked_loop", "Times the plugin kept the event loop from everything else.", *of_plugin
        )
        self.thread_wait_seconds = self._histogram(
            "thread_wait_seconds", "From a blocking call to a thread that runs it.", LAG_SECONDS, *of_plugin
        )

    def _add_ai(self) -> None:
        of_model = ("provider", "model")
        self.ai_calls = self._counter("ai_calls", "Answers of AI providers.", *of_model)
        self.ai_tokens = self._counter(
            "ai_tokens", "Tokens that AI providers have read and written, as they tell.", *of_model, "direction"
        )
        self.ai_cost = self._counter("ai_cost", "What AI providers' answers cost, as they tell.", *of_model, "currency")

    def _add_surroundings(self) -> None:
        self.dependency_up = self._gauge(
            "dependency_up", "1 when this process could use the dependency at its last probe, 0 when not.", "name"
        )
        self.disk_free_bytes = self._gauge("disk_free_bytes", "Free bytes of the filesystem of DATA_DIR.")
        self.disk_size_bytes = self._gauge("disk_size_bytes", "All bytes of the filesystem of DATA_DIR.")
        self.processes = self._gauge(
            "processes",
            f"Processes of the service: alive, or lost without an end in order and not replaced. {FLEET}",
            "role",
            "state",
        )

    def show_processes(self, counts: Mapping[tuple[str, str], int] | None) -> None:
        """Show how many processes there are by role and state; None while Redis does not tell."""
        for key in product(map(str, Role), PROCESS_STATES):
            self.processes.labels(*key).set(nan if counts is None else counts.get(key, 0))

    def _add_loop(self) -> None:
        self.task_restarts = self._counter(
            "task_restarts", "Long-lived tasks that ended unforeseen and were started again.", "task"
        )
        _start(self.task_restarts, TASKS)
        self.clock_skew_seconds = self._gauge(
            "clock_skew_seconds", "How far this machine's clock is ahead of Redis TIME; below 0 when it is behind."
        )
        self.loop_lag_seconds = self._histogram(
            "loop_lag_seconds", "How late the event loop runs what is due.", LAG_SECONDS
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"pipeline_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"pipeline_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"pipeline_{name}", text, labels, buckets=buckets, registry=self.registry)


class _WithoutCreated(Collector):
    """The registry less its `_created` series: a third more to scrape that no query of ours reads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


def _start(metric: Counter | Gauge | Histogram, values: Iterable[str]) -> None:
    """Let the series of these label values exist, at 0."""
    for value in values:
        metric.labels(value)
