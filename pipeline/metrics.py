"""All metrics. Each app has its own Metrics object with its own registry, so two apps in a test share no count.

Series with known labels start at 0: a rate over a series that appears with its first event misses that event. Labels
come from small fixed sets, never an id. A count belongs to this process; dashboards sum it over processes. A metric
whose help ends in FLEET shows the state in Redis, the same in every process; dashboards take its max. Safe from any
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
from pipeline.queue_metrics import QueueMetrics
from pipeline.settings import Role

HTTP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30)
WAIT_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 90, 120, 300, 900)
# 60 is the promise to the user, 90 the timeout of the AI provider, 120 that of the job.
JOB_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 90, 120)
ASSET_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 90, 120, 300)
# 1 is the promise: an event reaches its owner within a second after the result.
EVENT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
# The codes of the table in handlers/socket.py that the service can count.
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


class Metrics:
    """The series of one process, one attribute each."""

    # Many methods because each group of series has its own.
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        build = Info("pipeline_build", "Version of this process.", registry=self.registry)
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
        """Show the version and the address of this process.

        public_url: the address of the service; alerts link to its runbooks.
        """
        self._build.info({"version": __version__, "python": platform.python_version(), "public_url": public_url})

    def render(self) -> tuple[bytes, str]:
        """Return the body and the Content-Type of GET /metrics, in Prometheus' text format."""
        return generate_latest(_WithoutCreated(self.registry)), CONTENT_TYPE_PLAIN_0_0_4

    def of_queue(self, name: str, providers: Iterable[str] = ()) -> QueueMetrics:
        """Return the series of a queue. The first call creates them, all at 0.

        providers: see QueueMetrics; only the first call for a queue may name them.
        """
        if name not in self._queues:
            self._queues[name] = QueueMetrics(self, name, providers)
        return self._queues[name]

    def _add_http(self) -> None:
        self.http_requests = self._counter("http_requests", "Finished HTTP requests.", "route", "method", "status")
        self.http_seconds = self._histogram(
            "http_seconds",
            "Duration of a request, from its first line to the last byte of the reply.",
            HTTP_SECONDS,
            "route",
        )
        self.connections_refused = self._counter("connections_refused", "Connections closed for lack of open files.")
        self.uploads = self._counter("uploads", "Uploads by outcome.", "outcome")
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
            f"How long a held provider or durable notifier is still not asked, except by a probe. {FLEET}",
            "queue",
            "provider",
        )

    def _add_jobs(self) -> None:
        of_queue, by_outcome = ("queue",), ("queue", "outcome")
        self.jobs_enqueued = self._counter("jobs_enqueued", "Jobs put in the queue by this process.", *of_queue)
        self.jobs_claimed = self._counter("jobs_claimed", "Jobs taken from the queue by this process.", *of_queue)
        self.job_wait_seconds = self._histogram(
            "job_wait_seconds", "From enqueueing to the first start.", WAIT_SECONDS, *of_queue
        )
        self.job_seconds = self._histogram(
            "job_seconds", "Duration of an attempt, from its start to its outcome.", JOB_SECONDS, *by_outcome
        )
        self.job_running_seconds = self._gauge(
            "job_running_seconds", "How long the oldest running attempt of this process has run.", *of_queue
        )
        self.jobs_finished = self._counter("jobs_finished", "Attempts by outcome.", *by_outcome)
        self.job_attempts = self._counter("job_attempts", "Starts by the number of the attempt.", "queue", "attempt")
        self.jobs_recovered = self._counter(
            "jobs_recovered", "Jobs put back into the queue because their lease expired.", *of_queue
        )
        self.leases_lost = self._counter("leases_lost", "Leases lost while the job was running.", *of_queue)
        self.slots = self._gauge("slots", "Job slots of this process.", *of_queue)
        self.slots_busy = self._gauge("slots_busy", "Job slots that run a job.", *of_queue)
        self.stale_results = self._counter("stale_results", "Results dropped because a newer run owns the asset.")
        self.reconciled = self._counter(
            "reconciled", "Lost jobs, dead letters and undelivered events that were put back into Redis."
        )
        self.reconciler_searches = self._counter("reconciler_searches", "Searches for lost jobs, by reason.", "reason")
        _start(self.reconciler_searches, ("urgent", "regular"))

    def _add_assets(self) -> None:
        self.reanalyses = self._counter("reanalyses", "Reanalyses of finished assets by outcome.", "outcome")
        _start(self.reanalyses, ("changed", "unchanged", "kept", "dropped", "failed"))
        self.assets_finished = self._counter("assets_finished", "Finished assets by status.", "status")
        _start(self.assets_finished, ("active", "partial", "failed"))
        self.asset_seconds = self._histogram(
            "asset_seconds", "From the accepted upload to the sent event.", ASSET_SECONDS
        )
        self.expired = self._counter("expired", "Assets and originals deleted at the end of their retention.", "kind")
        _start(self.expired, ("assets", "originals"))
        self.damaged_assets = self._counter(
            "damaged_assets", "Documents of assets that cannot be read, each counted once."
        )
        self.previews = self._counter("previews", "Photos by the outcome of making their previews.", "outcome")
        _start(self.previews, ("made", "failed", "late"))
        self.images_swept = self._counter("images_swept", "Stored images removed because no asset names them.")
        self.event_seconds = self._histogram(
            "event_seconds",
            "From the commit of a result to its event, sent here and published to Redis.",
            EVENT_SECONDS,
        )

    def _add_sockets(self) -> None:
        self.sockets_open = self._gauge("sockets_open", "Sockets, event streams and long polls in a room.", "transport")
        self.sockets_closed = self._counter("sockets_closed", "Closed sockets and event streams by close code.", "code")
        _start(self.sockets_closed, (*map(str, CLOSE_CODES), "other"))
        self.socket_frames_sent = self._counter(
            "socket_frames_sent", "Frames written to sockets and streams; a batch of replayed events is one frame."
        )
        self.outbox_bytes = self._gauge("outbox_bytes", "Bytes in the outboxes of this process.")
        self.events_published = self._counter("events_published", "Events sent to a room.")
        self.fanout_errors = self._counter(
            "fanout_errors", "Events that could not be published to other processes at once."
        )
        self.events_dropped = self._counter(
            "events_dropped",
            "Events not published because there were too many; other processes read them from the store.",
        )
        self.replays = self._counter("replays", "Replays of missed events by outcome.", "outcome")
        _start(self.replays, ("complete", "resync", "unavailable"))
        self.events_replayed = self._counter("events_replayed", "Events sent again from the asset store.")

    def _add_plugins(self) -> None:
        of_plugin, of_call = ("kind", "plugin"), ("kind", "plugin", "method")
        self.plugin_seconds = self._histogram("plugin_seconds", "Duration of a plugin call.", PLUGIN_SECONDS, *of_call)
        self.plugin_errors = self._counter(
            "plugin_errors", "Plugin calls that raised or exceeded their time limit.", *of_call
        )
        self.plugin_overruns = self._counter(
            "plugin_overruns", "Plugin calls that exceeded their time limit.", *of_call
        )
        self.plugin_stuck = self._gauge(
            "plugin_stuck", "Threads and tasks of calls that run on after their time limit.", *of_plugin
        )
        self.plugin_held = self._gauge(
            "plugin_held", "1 while the method is held: unreachable, failed several times in a row, or busy.", *of_call
        )
        self.plugin_skipped = self._counter(
            "plugin_skipped", "Calls not made because the method was held or too slow.", *of_call
        )
        self.plugin_blocked_loop = self._counter(
            "plugin_blocked_loop", "How many times the plugin has blocked the event loop.", *of_plugin
        )
        self.thread_wait_seconds = self._histogram(
            "thread_wait_seconds", "How long blocking calls wait for a thread.", LAG_SECONDS, *of_plugin
        )

    def _add_ai(self) -> None:
        of_model = ("provider", "model")
        self.ai_calls = self._counter("ai_calls", "Answers of AI providers.", *of_model)
        self.ai_tokens = self._counter(
            "ai_tokens", "Tokens read and written by AI providers, as they report them.", *of_model, "direction"
        )
        self.ai_cost = self._counter(
            "ai_cost", "Cost of AI providers' answers, as they report it.", *of_model, "currency"
        )

    def _add_surroundings(self) -> None:
        self.dependency_up = self._gauge(
            "dependency_up", "1 when the last probe of the dependency by this process succeeded, else 0.", "name"
        )
        self.disk_free_bytes = self._gauge("disk_free_bytes", "Free bytes of the filesystem of DATA_DIR.")
        self.disk_size_bytes = self._gauge("disk_size_bytes", "All bytes of the filesystem of DATA_DIR.")
        self.processes = self._gauge(
            "processes",
            f"Processes of the service: alive, or lost, which is not shut down in order and not replaced. {FLEET}",
            "role",
            "state",
        )

    def show_processes(self, counts: Mapping[tuple[str, str], int] | None) -> None:
        """Show the number of processes by role and state.

        counts: None while Redis does not answer.
        """
        for key in product(map(str, Role), PROCESS_STATES):
            self.processes.labels(*key).set(nan if counts is None else counts.get(key, 0))

    def _add_loop(self) -> None:
        self.task_restarts = self._counter(
            "task_restarts", "Restarts of long-lived tasks that ended unexpectedly.", "task"
        )
        _start(self.task_restarts, TASKS)
        self.clock_skew_seconds = self._gauge(
            "clock_skew_seconds", "How far this machine's clock is ahead of Redis TIME; below 0 when it is behind."
        )
        self.loop_lag_seconds = self._histogram(
            "loop_lag_seconds", "How late the event loop runs a timer.", LAG_SECONDS
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"pipeline_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"pipeline_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"pipeline_{name}", text, labels, buckets=buckets, registry=self.registry)


class _WithoutCreated(Collector):
    """The registry without the `_created` series: a third of the page, which no dashboard uses."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


def _start(metric: Counter | Gauge | Histogram, values: Iterable[str]) -> None:
    """Create the series of these label values, at 0."""
    for value in values:
        metric.labels(value)
