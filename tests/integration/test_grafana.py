"""Dashboard, alerts and Prometheus' configuration: checked by Prometheus' own tools, and every panel seen to draw.

Prometheus answers a query for a metric that does not exist with an empty success, so a dashboard can rot unseen; here a
real Prometheus scrapes a real server and every query has to return something.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tornado.httpserver
import tornado.netutil
import tornado.web
import yaml

from pipeline.auth import TokenVerifier
from pipeline.handlers import base, ops
from pipeline.metrics import Metrics
from pipeline.queue.queue import JobQueue
from pipeline.settings import Settings
from tests.factories import SECRET
from tests.parts import require

GRAFANA = Path(__file__).parents[2] / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
WAIT_SECONDS = 60.0


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every panel of every dashboard that draws something, with a name."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            if panel["type"] != "row":
                yield f"{path.stem}: {panel['title']}", panel


def queries() -> list[tuple[str, str]]:
    """Every query of every panel: the panel's name, the expression."""
    return [(name, target["expr"]) for name, panel in panels() for target in panel["targets"]]


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((GRAFANA / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def samples_by_metric() -> dict[str, set[str]]:
    """Each metric of ours -> the sample names it is scraped under."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",), "gauge": ("",)}
    families = [family for family in Metrics().registry.collect() if family.name.startswith("pipeline_")]
    return {family.name: {family.name + suffix for suffix in suffixes[family.type]} for family in families}


def used_samples() -> set[str]:
    """The sample names of ours that dashboards and alerts ask for."""
    expressions = [expr for _, expr in queries()] + [rule["expr"] for rule in alert_rules()]
    return set(re.findall(r"\bpipeline_\w+", " ".join(expressions)))


# the files


def test_dashboards_and_alerts_use_only_metrics_there_are() -> None:
    """Every name in a query is one that the service shows."""
    known = set().union(*samples_by_metric().values())
    assert used_samples() - known == set()


def test_every_metric_is_on_a_dashboard_or_in_an_alert() -> None:
    """What is counted is also shown to somebody."""
    used = used_samples()
    assert [name for name, samples in samples_by_metric().items() if not samples & used] == []


def test_queries_of_what_all_processes_share_take_one_value() -> None:
    """Every process reports the same queue, so its numbers are never added up."""
    for name, expr in queries() + [(rule["alert"], rule["expr"]) for rule in alert_rules()]:
        for use in re.finditer(r"\bpipeline_queue_\w+", expr):
            assert re.search(r"\bmax ?(by \(state\) )?\($", expr[: use.start()]), f"{name}: {expr}"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboard_can_be_provisioned(path: Path) -> None:
    """A dashboard keeps its address, asks the data source chosen on it, and its panels do not overlap."""
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"] == path.stem
    assert [variable["type"] for variable in dashboard["templating"]["list"]] == ["datasource"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        box = panel["gridPos"]
        covered = {(x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])}
        assert box["x"] + box["w"] <= 24 and not covered & cells, panel["title"]
        cells |= covered
        for part in [panel, *panel.get("targets", [])] if panel["type"] != "row" else []:
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert panel["type"] == "row" or panel["description"], panel["title"]


def test_provisioning_names_what_is_there() -> None:
    """Grafana finds a Prometheus data source and a folder of dashboards."""
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/pipeline.yml").read_text())
    interval = yaml.safe_load((GRAFANA / "prometheus.yml").read_text())["global"]["scrape_interval"]
    (datasource,) = source["datasources"]
    assert (source["apiVersion"], datasource["type"], datasource["isDefault"]) == (1, "prometheus", True)
    assert datasource["jsonData"]["timeInterval"] == interval
    assert provider["providers"][0]["options"]["path"] == "/var/lib/grafana/dashboards"


def test_every_alert_says_what_to_do() -> None:
    """An alert carries a severity, a summary and a runbook, and is seen to fire in the rule tests."""
    tests = yaml.safe_load((GRAFANA / "alerts_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    fired = {case["alertname"] for case in cases if case.get("exp_alerts")}
    silent = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    names = set()
    for rule in alert_rules():
        assert rule["labels"]["severity"] in ("critical", "warning") and rule["for"], rule["alert"]
        assert rule["annotations"].keys() == {"summary", "runbook"}, rule["alert"]
        names.add(rule["alert"])
    assert fired == silent == names


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint-fatal", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts(arguments: tuple[str, ...]) -> None:
    """Prometheus' own checker accepts the configuration, and the alerts fire and stay silent as they should."""
    promtool = shutil.which("promtool")
    require(promtool is not None, "promtool is not installed")
    checked = subprocess.run([str(promtool), *arguments], cwd=GRAFANA, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


# the live check


def exercise(metrics: Metrics) -> None:
    """Let everything happen once that the dashboard draws."""
    metrics.uploads.labels("accepted").inc()
    metrics.upload_bytes.inc(100_000)
    metrics.jobs_enqueued.inc()
    metrics.jobs_claimed.inc()
    metrics.job_wait_seconds.observe(0.2)
    metrics.job_attempts.labels("1").inc()
    metrics.job_seconds.labels("completed").observe(3)
    metrics.jobs_finished.labels("completed").inc()
    metrics.assets_finished.labels("active").inc()
    metrics.asset_seconds.observe(4)
    metrics.slots.set(5)
    metrics.sockets_closed.labels("1001").inc()
    metrics.socket_frames_sent.inc()
    metrics.events_published.inc()
    metrics.plugin_seconds.labels("provider", "http").observe(1)
    metrics.plugin_errors.labels("provider", "http").inc()
    metrics.plugin_overruns.labels("provider", "http").inc()
    metrics.plugin_stuck.labels("provider", "http").inc()


@pytest.fixture
def scraped(redis_url: str) -> Iterator[str]:
    """A host:port that answers /metrics and has traffic as long as the test runs."""
    started: threading.Event = threading.Event()
    found: dict[str, Any] = {}

    async def serve() -> None:
        metrics, queue = Metrics(), JobQueue(redis_url)
        found.update(loop=asyncio.get_running_loop(), stop=asyncio.Event())
        verifier = TokenVerifier(Settings(jwt_secret=SECRET))
        common: dict[str, Any] = {"verifier": verifier, "metrics": metrics, "allowed_origins": (), "queue": queue}
        app = tornado.web.Application([("/metrics", ops.MetricsHandler, common)], log_function=base.log_request)
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
        await queue.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(10)
    yield found["address"]
    found["loop"].call_soon_threadsafe(found["stop"].set)
    thread.join(10)


@pytest.fixture
def prometheus(scraped: str, tmp_path: Path) -> Iterator[httpx.Client]:
    """A Prometheus with our configuration, pointed at the scraped server and in more of a hurry."""
    binary = shutil.which("prometheus")
    require(binary is not None, "prometheus is not installed")
    config = yaml.safe_load((GRAFANA / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(GRAFANA / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [scraped]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [
                str(binary),
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    with httpx.Client(base_url=f"http://{address}", timeout=10) as client:
        try:
            until(lambda: is_ready(client), lambda: (tmp_path / "log").read_text())
            yield client
        finally:
            process.terminate()
            process.wait()


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def until(condition: Any, explain: Any) -> None:
    """Ask again until the condition holds: another process has no signal to wait for."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.1)


def ask(client: httpx.Client, expr: str) -> list[float]:
    """Return the values a query yields now, less those that are no number."""
    reply = client.get("/api/v1/query", params={"query": expr.replace("$__rate_interval", "10s")}).json()
    assert reply["status"] == "success", f"{expr}: {reply}"
    values = [float(series["value"][1]) for series in reply["data"]["result"]]
    return [value for value in values if value == value]


def test_every_panel_draws(prometheus: httpx.Client) -> None:
    """Each query of each panel returns numbers once there is traffic."""
    # prometheus-client reads process metrics from /proc, so other systems do without those panels.
    missing = [(name, expr) for name, expr in queries() if "process_" not in expr or Path("/proc/self/stat").exists()]

    def is_all_there() -> bool:
        missing[:] = [(name, expr) for name, expr in missing if not ask(prometheus, expr)]
        return not missing

    until(is_all_there, lambda: f"nothing returned for {missing}")


def test_alert_rules_are_evaluated(prometheus: httpx.Client) -> None:
    """Prometheus loads and evaluates every rule, and a healthy service sets none of them off."""

    def rules() -> list[dict[str, Any]]:
        groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    until(lambda: ask(prometheus, "pipeline_redis_up") == [1], lambda: "nothing was scraped")
    # Not even pending: the rules were evaluated once before the first scrape, so they may need a moment.
    until(lambda: {(rule["health"], rule["state"]) for rule in rules()} == {("ok", "inactive")}, rules)
    assert {rule["name"] for rule in rules()} == {rule["alert"] for rule in alert_rules()}
