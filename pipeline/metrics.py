"""Every number operators see. One Metrics object per app, with a registry of its own, so two apps never share a count.

Series of known label sets start at 0: a rate over a series that appears with its first event would miss that event.
Labels come from small fixed sets, never an id. Counts live in this process only. Safe from any thread.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from math import nan

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pipeline import __version__

QUEUE_STATES = ("waiting", "active", "delayed", "completed", "failed")
JOB_OUTCOMES = ("completed", "retried", "postponed", "failed", "released", "lost")
HTTP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30)
WAIT_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900)
# 60, 90 and 120 are the limits: the promise to the user, the AI provider's timeout, the job's timeout.
JOB_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 90, 120)
ASSET_SECONDS = (1, 2, 5, 10, 30, 60, 90, 120, 300)
# Those of the table in handlers/socket.py that the service can tell.
CLOSE_CODES = (
    *(1000, 1001, 1002, 1006, 1007, 1009, 1011, 1012, 1013),
    *(4400, 4401, 4403, 4419, 4429, 4503, 4504),
)
PLUGIN_SECONDS = (0.005, 0.025, 0.1, 0.5, 1, 2, 5, 10, 25, 60, 90)


class Metrics:
    """The series of one process, one attribute each; `render` is what GET /metrics answers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        build = Info("pipeline_build", "What runs here.", registry=self.registry)
        build.info({"version": __version__, "python": platform.python_version()})
        self._add_http()
        self._add_queue()
        self._add_jobs()
        self._add_assets()
        self._add_sockets()
        self._add_plugins()

    def render(self) -> tuple[bytes, str]:
        """Return the page in Prometheus' text format and its Content-Type."""
        return generate_latest(_WithoutCreated(self.registry)), CONTENT_TYPE_PLAIN_0_0_4

    def set_queue(
        self,
        counts: dict[str, int],
        *,
        oldest_waiting_seconds: float,
        is_paused: bool,
        held_seconds: float,
        is_breaker_open: bool,
    ) -> None:
        """Show the queue as Redis has it. counts: jobs by state, all of QUEUE_STATES."""
        self.redis_up.set(1)
        for state in QUEUE_STATES:
            self.queue_depth.labels(state).set(counts[state])
        self.queue_oldest_seconds.set(oldest_waiting_seconds)
        self.queue_paused.set(is_paused)
        self.queue_held_seconds.set(held_seconds)
        self.breaker_open.set(is_breaker_open)

    def set_queue_unknown(self) -> None:
        """Redis does not answer: show no depth at all rather than the last one."""
        self.redis_up.set(0)
        self.queue_depth.clear()
        self.queue_oldest_seconds.set(nan)
        self.queue_paused.set(nan)
        self.queue_held_seconds.set(nan)
        self.breaker_open.set(nan)

    def _add_http(self) -> None:
        self.http_requests = self._counter("http_requests", "Finished HTTP requests.", "route", "method", "status")
        self.http_seconds = self._histogram("http_seconds", "From request line to last byte.", HTTP_SECONDS, "route")
        self.connections_refused = self._counter("connections_refused", "Connections closed for lack of open files.")
        self.uploads = self._counter("uploads", "Uploads by how they were answered.", "outcome")
        _start(self.uploads, ("accepted", "replayed", "rejected", "unavailable"))
        self.upload_bytes = self._counter("upload_bytes", "Bytes of accepted images.")

    def _add_queue(self) -> None:
        self.queue_depth = self._gauge("queue_depth", "Jobs in Redis by state; every process shows the same.", "state")
        _start(self.queue_depth, QUEUE_STATES)
        self.queue_oldest_seconds = self._gauge("queue_oldest_seconds", "How long the oldest waiting job has waited.")
        self.queue_paused = self._gauge("queue_paused", "1 while no process claims jobs because the queue is paused.")
        self.queue_held_seconds = self._gauge(
            "queue_held_seconds", "Until jobs are claimed again, as a provider asked."
        )
        self.breaker_open = self._gauge("breaker_open", "1 while failures in a row let only single jobs through.")
        self.redis_up = self._gauge("redis_up", "1 when Redis answered at this scrape.")

    def _add_jobs(self) -> None:
        self.jobs_enqueued = self._counter("jobs_enqueued", "Jobs put in the queue by uploads and retries.")
        self.jobs_claimed = self._counter("jobs_claimed", "Jobs taken from the queue by this process.")
        self.job_wait_seconds = self._histogram("job_wait_seconds", "From enqueued to first start.", WAIT_SECONDS)
        self.job_seconds = self._histogram("job_seconds", "One attempt, from start to outcome.", JOB_SECONDS, "outcome")
        _start(self.job_seconds, JOB_OUTCOMES)
        self.jobs_finished = self._counter("jobs_finished", "Attempts by how they ended.", "outcome")
        _start(self.jobs_finished, JOB_OUTCOMES)
        self.job_attempts = self._counter("job_attempts", "Starts by which attempt it was.", "attempt")
        _start(self.job_attempts, ("1", "2", "3", "more"))
        self.jobs_recovered = self._counter("jobs_recovered", "Jobs put back because their lease ran out.")
        self.leases_lost = self._counter("leases_lost", "Leases this process lost while it held the job.")
        self.stale_results = self._counter("stale_results", "Results dropped because a newer run owns the asset.")
        self.reconciled = self._counter("reconciled", "Assets whose lost job was enqueued again.")
        self.probing = self._gauge(
            "probing", "1 while this process alone tries single jobs, because its own fail in a row."
        )
        self.slots = self._gauge("slots", "Job slots of this process.")
        self.slots_busy = self._gauge("slots_busy", "Job slots at work.")

    def _add_assets(self) -> None:
        self.assets_finished = self._counter("assets_finished", "Assets by the status they ended in.", "status")
        _start(self.assets_finished, ("active", "partial", "failed"))
        self.asset_seconds = self._histogram("asset_seconds", "From accepted upload to sent event.", ASSET_SECONDS)

    def _add_sockets(self) -> None:
        self.sockets_open = self._gauge("sockets_open", "WebSocket connections in a room.")
        self.sockets_closed = self._counter("sockets_closed", "Closed WebSocket connections by close code.", "code")
        _start(self.sockets_closed, (*map(str, CLOSE_CODES), "other"))
        self.socket_frames_sent = self._counter(
            "socket_frames_sent", "Frames written to sockets, many replayed events as one."
        )
        self.events_published = self._counter("events_published", "Events handed to a room.")
        self.fanout_errors = self._counter("fanout_errors", "Events other processes could not be told at once.")
        self.replays = self._counter("replays", "Reads of what a socket missed, by how they ended.", "outcome")
        _start(self.replays, ("complete", "resync", "unavailable"))
        self.events_replayed = self._counter("events_replayed", "Events sent again from the asset store.")

    def _add_plugins(self) -> None:
        labels = ("kind", "plugin")
        self.plugin_seconds = self._histogram("plugin_seconds", "One call of a plugin.", PLUGIN_SECONDS, *labels)
        self.plugin_errors = self._counter("plugin_errors", "Plugin calls that raised or overran.", *labels)
        self.plugin_stuck = self._gauge("plugin_stuck", "Threads and tasks held by calls whose time is over.", *labels)
        self.plugin_overruns = self._counter("plugin_overruns", "Plugin calls that used up their time.", *labels)

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
