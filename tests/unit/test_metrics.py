"""Metrics: the series that a process shows before and after the first events."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import pytest

from pipeline.metrics import Metrics
from pipeline.queue_metrics import QUEUE_STATES
from tests.requirements import program
from tests.unit.metric_samples import read, sample

QUEUE = "ai-processing"
HELD = "pipeline_provider_held_seconds"
# Each label has a small fixed set of values: names in the code, settings, or HTTP and close codes that we choose.
BOUNDED_LABELS = {
    *("route", "method", "status", "outcome", "state", "attempt"),
    # AI providers report these; hooks/usage.py limits the number of different values.
    *("model", "currency", "direction"),
    *("name", "role"),
    *("code", "kind", "plugin", "method", "queue", "provider", "reason", "task", "transport"),
    "limit",
}


def test_metrics_of_two_apps_are_separate() -> None:
    """The counts of one app do not appear in another app of the same process."""
    one, other = Metrics(), Metrics()
    one.of_queue(QUEUE).jobs_enqueued.inc(3)
    assert sample(one, "pipeline_jobs_enqueued_total", queue=QUEUE) == 3
    other.of_queue(QUEUE)
    assert sample(other, "pipeline_jobs_enqueued_total", queue=QUEUE) == 0


def test_metrics_of_two_queues_are_separate() -> None:
    """The counts of one queue do not appear in another queue of the same process."""
    metrics = Metrics()
    metrics.of_queue(QUEUE).started(1)
    metrics.of_queue("notifications").started(4)
    assert metrics.of_queue(QUEUE) is metrics.of_queue(QUEUE)
    assert sample(metrics, "pipeline_job_attempts_total", queue=QUEUE, attempt="1") == 1
    assert sample(metrics, "pipeline_job_attempts_total", queue=QUEUE, attempt="more") == 0
    assert sample(metrics, "pipeline_job_attempts_total", queue="notifications", attempt="more") == 1


@pytest.mark.parametrize(
    ("name", "label", "values"),
    [
        ("pipeline_uploads_total", "outcome", ("accepted", "replayed", "rejected", "unavailable")),
        ("pipeline_queue_depth", "state", QUEUE_STATES),
        (
            "pipeline_jobs_finished_total",
            "outcome",
            ("completed", "retried", "postponed", "parked", "failed", "released", "cancelled", "lost"),
        ),
        (
            "pipeline_job_seconds_count",
            "outcome",
            ("completed", "retried", "postponed", "parked", "failed", "released", "cancelled", "lost"),
        ),
        ("pipeline_job_attempts_total", "attempt", ("1", "2", "3", "more")),
        ("pipeline_assets_finished_total", "status", ("active", "partial", "failed")),
    ],
)
def test_metrics_known_series_start_at_zero(name: str, label: str, values: tuple[str, ...]) -> None:
    """A series with a known label exists before its first event, so that a rate includes this event."""
    metrics = Metrics()
    metrics.of_queue(QUEUE)
    series = read(metrics)
    found = {dict(labels)[label]: value for (found, labels), value in series.items() if found == name}
    assert found == dict.fromkeys(values, 0.0)


@pytest.mark.parametrize(
    ("name", "edges", "remark"),
    [
        ("pipeline_job_seconds", {60, 90, 120}, "the promised time, the provider's timeout, the job's timeout"),
        ("pipeline_job_wait_seconds", {60, 90, 120}, "a longer wait breaks the promise"),
        ("pipeline_event_seconds", {1}, "an event reaches its owner within a second"),
        ("pipeline_loop_lag_seconds", {0.02}, "the loop is late by 20 ms at most"),
        ("pipeline_asset_seconds", {1, 2, 5, 10, 30, 60, 90, 120, 300}, "the promise is a share within 60 s"),
        ("pipeline_http_seconds", {2}, "an upload is confirmed within 2 s"),
    ],
)
def test_metrics_histograms_have_edges_at_the_limits(name: str, edges: set[float], remark: str) -> None:
    """Each limit is an edge of its histogram, so that no value has to be interpolated."""
    metrics = Metrics()
    metrics.http_seconds.labels("/").observe(1)
    metrics.of_queue(QUEUE)
    found = {float(dict(labels)["le"]) for (found, labels) in read(metrics) if found == f"{name}_bucket"}
    assert edges <= found, remark


def test_metrics_labels_are_bounded() -> None:
    """No metric has a label whose values could grow with use."""
    families = list(Metrics().registry._names_to_collectors.values())
    ours = {collector for collector in families if getattr(collector, "_name", "").startswith("pipeline_")}
    labels = {label for collector in ours for label in collector._labelnames}
    assert labels == BOUNDED_LABELS


def test_metrics_of_the_queue_are_nan_during_an_outage_of_redis() -> None:
    """During an outage of Redis the metrics show NaN, not the last known depth."""
    metrics = Metrics()
    shown = metrics.of_queue(QUEUE, ["acme", "other"])
    shown.show(
        dict.fromkeys(QUEUE_STATES, 7), oldest_ready_seconds=12.5, is_paused=True, held_seconds={"acme": 3.5}
    )
    values = {"pipeline_queue_oldest_seconds": 12.5, "pipeline_queue_paused": 1}
    held = {"acme": 3.5, "other": 0}
    assert sample(metrics, "pipeline_queue_depth", queue=QUEUE, state="waiting") == 7
    assert {name: sample(metrics, name, queue=QUEUE) for name in values} == values
    assert {each: sample(metrics, HELD, queue=QUEUE, provider=each) for each in held} == held
    shown.show_unknown()
    depths = [value for (name, _), value in read(metrics).items() if name == "pipeline_queue_depth"]
    assert len(depths) == len(QUEUE_STATES) and all(map(math.isnan, depths))
    assert all(math.isnan(sample(metrics, name, queue=QUEUE) or 0) for name in values)
    assert all(math.isnan(sample(metrics, HELD, queue=QUEUE, provider=each) or 0) for each in held)


def test_metrics_show_holds_only_of_known_providers() -> None:
    """An unknown provider name in Redis makes no series; a provider that is no longer held shows 0."""
    metrics = Metrics()
    shown = metrics.of_queue(QUEUE, ["acme"])
    for held_seconds, expected in (({"acme": 2.0, "unknown": 9.0}, 2.0), ({}, 0.0)):
        shown.show(
            dict.fromkeys(QUEUE_STATES, 0), oldest_ready_seconds=0, is_paused=False, held_seconds=held_seconds
        )
        series = {dict(labels)["provider"]: value for (name, labels), value in read(metrics).items() if name == HELD}
        assert series == {"acme": expected}


def test_metrics_page_has_no_created_series() -> None:
    """The page has no creation times, because no consumer reads them."""
    assert not [name for name, _ in read(Metrics()) if name.endswith("_created")]


def test_metrics_page_describes_process_and_build() -> None:
    """The page has the running version and the resources that the process uses."""
    names = {name for name, _ in read(Metrics())}
    assert {"pipeline_build_info", "python_info"} <= names
    # prometheus-client reads these from /proc, so other systems do not have them.
    assert Path("/proc/self/stat").exists() == ("process_resident_memory_bytes" in names)


def test_metrics_page_passes_promtool() -> None:
    """promtool, the linter of Prometheus, finds no fault in names, units and help texts."""
    promtool = program("promtool")
    body, _ = Metrics().render()
    checked = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
