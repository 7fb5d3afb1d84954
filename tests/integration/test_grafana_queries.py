"""Every query of pages and alerts has numbers: a real Prometheus scrapes a real service under real traffic.

Prometheus answers a query for a metric that does not exist with an empty success, so nothing else would show a wrong
name. `python -m tests.integration.test_grafana_queries` prints the numbers.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import tornado.httpserver
import tornado.netutil
import tornado.web
from prometheus_client import Counter, Gauge, Histogram

from pipeline.auth import TokenVerifier
from pipeline.client import Client
from pipeline.handlers import access_log, ops
from pipeline.metrics import Metrics
from pipeline.queue.queue import JobQueue
from pipeline.settings import Settings
from pipeline.usecases.processes import Processes
from tests.constants import RECONCILE_SECONDS
from tests.factories import SECRET, make_image, make_token
from tests.integration.grafana_pages import COMPARISON, alert_rules, chosen, joints, queries
from tests.prometheus import WAIT_SECONDS, faster_rules, running_prometheus, until
from tests.service import AiService, Service


def left_sides(expr: str) -> list[str]:
    """Return the expressions that an alert compares: they have numbers also while no alert fires."""
    sides = []
    for comparison in COMPARISON.finditer(expr):
        start = depth = 0
        for place in range(comparison.start() - 1, -1, -1):
            depth += {")": 1, "}": 1, "]": 1, "(": -1, "{": -1, "[": -1}.get(expr[place], 0)
            if depth < 0:
                start = place + 1
                break
        side = expr[start : comparison.start()]
        sides.append(side[max((joint.end() for joint in joints(side)), default=0) :])
    return sides


def test_left_sides_of_comparisons_are_found() -> None:
    """The left side is found in brackets, after another comparison, and with an operator inside."""
    table = {
        "up == 0": ["up"],
        "absent(slots{queue=\"a\"} > 0)": ['slots{queue="a"}'],
        "max by (q) (a) > 3 unless on (q) max by (q) (b) == 1": ["max by (q) (a)", "max by (q) (b)"],
        "1 - sum(a) / sum(b) > 0.3 and sum(c) - sum(d) >= 3": ["1 - sum(a) / sum(b)", "sum(c) - sum(d)"],
    }
    assert {expr: left_sides(expr) for expr in table} == table


def ask(client: httpx.Client, expr: str) -> list[float]:
    """Return the values of a query now, without NaN."""
    reply = client.get("/api/v1/query", params={"query": chosen(expr)}).json()
    assert reply["status"] == "success", f"{expr}: {reply}"
    values = [float(series["value"][1]) for series in reply["data"]["result"]]
    return [value for value in values if value == value]


def all_queries() -> list[tuple[str, str, str]]:
    """Return every query that must have numbers on a healthy service: those of panels, and the left sides of alerts."""
    compared = [("alerts.yml", rule["alert"], side) for rule in alert_rules() for side in left_sides(rule["expr"])]
    # prometheus-client reads process metrics from /proc, so other systems do without those panels.
    has_proc = Path("/proc/self/stat").exists()
    # A healthy service answers nothing with 5xx.
    compared = [query for query in compared if query[1] != "PipelineServerErrors"]
    return [query for query in queries() + compared if has_proc or "process_" not in query[2]]


def answers(client: httpx.Client) -> dict[tuple[str, str, str], list[float]]:
    """Wait until each query has numbers and return them; fail when a query has none in time."""
    found: dict[tuple[str, str, str], list[float]] = {}
    missing = all_queries()

    def is_all_there() -> bool:
        for query in missing:
            if values := ask(client, query[2]):
                found[query] = values
        missing[:] = [query for query in missing if query not in found]
        return not missing

    until(is_all_there, lambda: f"nothing returned for {missing}")
    return found


def alert_states(client: httpx.Client) -> dict[str, str]:
    """Return inactive, pending or firing for each alert; fail when a rule cannot be evaluated."""
    groups = client.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}, rules
    return {rule["name"]: rule["state"] for rule in rules}


def exercise(metrics: Metrics) -> None:
    """Set a number on every metric."""
    labels = {"queue": "ai-processing", "outcome": "completed", "status": "active", "code": "1001", "kind": "provider"}
    for metric in vars(metrics).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            names = metric._labelnames
            series = metric.labels(*(labels.get(name, "other") for name in names)) if names else metric
            if isinstance(series, Counter):
                series.inc()
            elif isinstance(series, Gauge):
                # The queue sets depths and states itself; a paused queue would be an alert.
                series.set(0)
            else:
                series.observe(0.2)
    metrics.slots.labels("ai-processing").set(5)
    metrics.http_requests.labels("other", "GET", "500").inc()
    metrics.plugin_seconds.labels("provider", "other", "analyze").observe(0.2)
    metrics.dependency_up.labels("store").set(1)
    metrics.disk_size_bytes.set(100)
    metrics.plugin_held.labels("notifier", "other", "notify").set(0)


@pytest.fixture
def scraped(redis_url: str) -> Iterator[str]:
    """Yield a host:port that answers /metrics and has traffic as long as the test runs."""
    started: threading.Event = threading.Event()
    found: dict[str, Any] = {}

    async def serve() -> None:
        metrics = Metrics()
        queues = [JobQueue(redis_url, name=name) for name in ("ai-processing", "notifications")]
        found.update(loop=asyncio.get_running_loop(), stop=asyncio.Event())
        verifier = TokenVerifier(Settings(jwt_secret=SECRET))
        common: dict[str, Any] = {"verifier": verifier, "metrics": metrics, "allowed_origins": (), "queues": queues}
        common["processes"] = Processes(
            queues[0], {}, role="all", concurrency=0, sockets=lambda: 0, running=lambda job_id: None
        )
        app = tornado.web.Application([("/metrics", ops.MetricsHandler, common)], log_function=access_log.log_request)
        (listener,) = tornado.netutil.bind_sockets(0, "127.0.0.1")
        server = tornado.httpserver.HTTPServer(app)
        server.add_socket(listener)
        found["address"] = f"127.0.0.1:{listener.getsockname()[1]}"
        exercise(metrics)
        started.set()
        while not found["stop"].is_set():
            exercise(metrics)
            # A rate needs something to happen between two scrapes.
            try:
                await asyncio.wait_for(found["stop"].wait(), 0.1)
            except TimeoutError:
                continue
        server.stop()
        await server.close_all_connections()
        for queue in queues:
            await queue.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(10)
    yield found["address"]
    found["loop"].call_soon_threadsafe(found["stop"].set)
    thread.join(10)


def test_every_query_answers(scraped: str, tmp_path: Path) -> None:
    """Each query of a panel and each left side of an alert has numbers once every metric has some."""
    with running_prometheus(tmp_path, static_configs=[{"targets": [scraped]}]) as prometheus:
        answers(prometheus)
        assert alert_states(prometheus).keys() == {rule["alert"] for rule in alert_rules()}


@contextmanager
def traffic(service: Service, ai_service: AiService, folder: Path) -> Iterator[None]:
    """Run uploads that succeed, fail and are retried, with a client that listens, closes and connects anew."""
    (folder / "photo.jpg").write_bytes(make_image())
    loop, stopped = asyncio.new_event_loop(), asyncio.Event()

    async def drive() -> None:
        since = None
        while not stopped.is_set():
            async with Client(service.url, make_token("user-1"), since=since) as client:
                await client.listen()
                # One photo is retried, one is refused.
                ai_service.configure(replies=[{"status": 200}, {"status": 503}, {"status": 200}, {"status": 422}])
                waiting = {(await client.upload(folder / "photo.jpg", "camera"))["assetId"] for _ in range(4)}
                events = client.events()
                while waiting:
                    waiting.discard((await anext(events))["assetId"])
                await events.aclose()
                since = client.since
                httpx.get(f"{service.url}/nowhere")

    thread = threading.Thread(target=loop.run_until_complete, args=(drive(),))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(WAIT_SECONDS)
        loop.close()


@contextmanager
def real_service(folder: Path) -> Iterator[tuple[httpx.Client, Service, AiService]]:
    """Run the service, its AI service and a Prometheus that scrapes it."""
    settings = {"BACKOFF_MS": "100", RECONCILE_SECONDS: "1"}
    with AiService() as ai_service, Service(folder / "service", ai_service.url, **settings) as service:
        target = service.url.removeprefix("http://")
        rules = faster_rules()
        with running_prometheus(folder, rules=rules, static_configs=[{"targets": [target]}]) as prometheus:
            yield prometheus, service, ai_service


def test_real_traffic_is_on_every_panel_and_an_outage_is_an_alert(tmp_path: Path) -> None:
    """Every query has numbers from the real service. PipelineProviderHeld fires while the AI service is stopped.

    The alert ends with the outage. Its minute of waiting is two seconds here, see tests/prometheus.py.
    """
    with real_service(tmp_path) as (prometheus, service, ai_service):
        with traffic(service, ai_service, tmp_path):
            answers(prometheus)
        assert service.find("job_failed") and service.find("job_retrying") and not service.find("plugin_held")
        seen: list[str] = []

        def state() -> str:
            state = alert_states(prometheus)["PipelineProviderHeld"]
            if seen[-1:] != [state]:
                seen.append(state)
            return state

        until(lambda: state() == "inactive", lambda: seen)
        ai_service.kill()
        for number in range(8):
            service.upload(image=make_image(seed=number))
        until(lambda: state() == "firing", lambda: seen)
        ai_service.start()
        service.wait_log("plugin_released")
        until(lambda: state() == "inactive", lambda: seen)
        assert seen == ["inactive", "pending", "firing", "inactive"]


def print_table() -> None:
    """Print every query with its numbers after half a minute of traffic."""
    with tempfile.TemporaryDirectory() as name, real_service(Path(name)) as (prometheus, service, ai_service):
        with traffic(service, ai_service, Path(name)):
            time.sleep(30)
            answered = answers(prometheus)
    print("| page | panel | query | series | highest |\n|---|---|---|---|---|")
    for uid, title, expr in all_queries():
        values = answered[uid, title, expr]
        short = expr.replace('job=~"$job", instance=~"$instance"', "@").replace("|", "\\|")
        print(f"| {uid} | {title} | `{short}` | {len(values)} | {max(values):.4g} |")


if __name__ == "__main__":
    print_table()
