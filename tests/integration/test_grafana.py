"""Pages, alerts and Prometheus' configuration: linted, tested by Prometheus' own tools, and every query seen to answer.

Prometheus answers a query for a metric that does not exist with an empty success, so a page can rot unseen; here a real
Prometheus scrapes a real service under real traffic and every query has to return numbers. `python -m
tests.integration.test_grafana` prints them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import tornado.httpserver
import tornado.netutil
import tornado.web
import yaml
from prometheus_client import Counter, Gauge, Histogram

from grafana import pages
from pipeline.auth import TokenVerifier
from pipeline.client import Client
from pipeline.handlers import access_log, ops
from pipeline.metrics import FLEET, Metrics
from pipeline.queue.queue import JobQueue
from pipeline.settings import Settings
from pipeline.usecases.processes import Processes
from tests.constants import RECONCILE_SECONDS
from tests.factories import SECRET, make_image, make_token
from tests.parts import program
from tests.prometheus import GRAFANA, ROOT, WAIT_SECONDS, hurried_rules, running_prometheus, seconds, until
from tests.service import AiService, Service

BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
RULE_TESTS = ("alerts_test.yml", "alerts_hours_test.yml")
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
UNITS = {"short", "s", "bytes", "Bps", "ops", "reqps", "percentunit"}
AGGREGATORS = {"sum", "max", "min", "avg", "count"}
# What the page's variables stand for, when all is chosen and Prometheus scrapes twice a second.
CHOSEN = {"$__rate_interval": "10s", "$__range": "1m", "$job": ".+", "$instance": ".+", "$queue": ".+"}
# Where the runbooks are, as Prometheus works it out.
RUNBOOKS = (
    '{{ with query "pipeline_build_info or last_over_time(pipeline_build_info[1d])" }}'
    '{{ . | first | label "public_url" }}{{ end }}/runbooks'
)


def panels(uid: str) -> list[dict[str, Any]]:
    """Every panel of a page that draws something."""
    return [panel for panel in BOARDS[uid]["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str, str]]:
    """Every query of every panel: the page, the panel, the expression."""
    return [
        (uid, panel["title"], target["expr"]) for uid in BOARDS for panel in panels(uid) for target in panel["targets"]
    ]


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((GRAFANA / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def rule_tests(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((GRAFANA / name).read_text())
    return loaded


def expressions() -> list[tuple[str, str]]:
    """Every expression of pages and alerts, with where it stands."""
    on_pages = [(f"{uid}: {title}", expr) for uid, title, expr in queries()]
    return on_pages + [(rule["alert"], rule["expr"]) for rule in alert_rules()]


def samples_by_metric() -> dict[str, set[str]]:
    """Each metric of ours -> the sample names it is scraped under."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",), "gauge": ("",)}
    families = [family for family in Metrics().registry.collect() if family.name.startswith("pipeline_")]
    return {family.name: {family.name + suffix for suffix in suffixes[family.type]} for family in families}


def used_samples(expr: str) -> set[str]:
    return set(re.findall(r"\bpipeline_\w+", expr))


def uses(expr: str, pattern: str) -> Iterator[list[str]]:
    """For each use of a metric, the functions and aggregators around it, from the inside out."""
    for use in re.finditer(rf"\b(?:{pattern})\b", expr):
        around, depth = [], 0
        for place in range(use.start() - 1, -1, -1):
            depth += {")": 1, "(": -1}.get(expr[place], 0)
            if depth < 0:
                depth = 0
                if name := re.search(r"(\w+) ?(?:by ?\([^)]*\) ?)?$", expr[:place]):
                    around.append(name[1])
        yield around


def promtool(*arguments: str, folder: Path = GRAFANA) -> str:
    """Run promtool; return what it prints, which is a failure's reason."""
    done = subprocess.run([program("promtool"), *arguments], cwd=folder, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


# the pages


def test_pages_are_what_the_code_builds() -> None:
    """Nobody edits the JSON: `python -m grafana.pages` writes exactly these files."""
    assert {path.stem: path.read_text() for path in pages.DASHBOARDS.glob("*.json")} == pages.build()


def test_pages_and_alerts_use_only_metrics_there_are() -> None:
    """Every name in a query is one that the service shows."""
    known = set().union(*samples_by_metric().values())
    assert [(place, expr) for place, expr in expressions() if used_samples(expr) - known] == []


def test_every_metric_is_on_a_page() -> None:
    """What is counted is also shown to somebody."""
    used = set().union(*(used_samples(expr) for _, _, expr in queries()))
    assert [name for name, samples in samples_by_metric().items() if not samples & used] == []


def test_what_all_processes_share_is_not_added_up() -> None:
    """Numbers that every process reports alike are shown by max, counts of each process by sum."""
    fleet = "|".join(family.name for family in Metrics().registry.collect() if family.documentation.endswith(FLEET))
    assert fleet
    for place, expr in expressions():
        for around in uses(expr, fleet):
            assert next(name for name in around if name in AGGREGATORS) == "max", f"{place}: {expr}"
        for around in uses(expr, r"\w+_(?:total|bucket|count)"):
            assert "max" not in around, f"{place}: {expr}"


@pytest.mark.parametrize("uid", BOARDS)
def test_page_can_be_provisioned(uid: str) -> None:
    """A page keeps its address, has nothing of one Grafana in it, fits the grid and leads to the other three."""
    board = BOARDS[uid]
    assert board["uid"] == uid and len(uid) <= 40 and 30 <= board["schemaVersion"] <= 42
    assert not board.keys() & {"id", "__inputs", "__requires", "iteration"}
    assert len({panel["id"] for panel in board["panels"]} - {0, None}) == len(board["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        box = panel["gridPos"]
        covered = set(itertools.product(range(box["x"], box["x"] + box["w"]), range(box["y"], box["y"] + box["h"])))
        assert box["x"] + box["w"] <= 24 and not covered & cells, panel["title"]
        cells |= covered
    for panel in panels(uid):
        letters = [target["refId"] for target in panel["targets"]]
        assert panel["options"] and all(letters) and len(letters) == len(set(letters)), panel["title"]
    assert {link["url"] for link in board["links"]} == {f"/d/{other}" for other in BOARDS if other != uid}
    assert all(link["includeVars"] and link["keepTime"] for link in board["links"])


def test_provisioning_names_what_is_there() -> None:
    """Grafana finds a Prometheus data source and a folder of dashboards."""
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/pipeline.yml").read_text())
    interval = yaml.safe_load((GRAFANA / "prometheus.yml").read_text())["global"]["scrape_interval"]
    (datasource,) = source["datasources"]
    assert (source["apiVersion"], datasource["type"], datasource["isDefault"]) == (1, "prometheus", True)
    assert datasource["uid"] and datasource["jsonData"]["timeInterval"] == interval
    assert provider["apiVersion"] == 1 and provider["providers"][0]["type"] == "file"
    assert provider["providers"][0]["options"]["path"] == "/var/lib/grafana/dashboards"


# the rules of Grafana's dashboard-linter, by their names there; it is not to be had as a package


@pytest.mark.parametrize("uid", BOARDS)
def test_dashboard_linter_templates(uid: str) -> None:
    """template-datasource-rule, template-job-rule, template-instance-rule, template-on-time-change-reload-rule."""
    first, *others = BOARDS[uid]["templating"]["list"]
    assert (first["type"], first["name"], first["label"], first["query"]) == (
        "datasource",
        "datasource",
        "Data source",
        "prometheus",
    )
    names = [variable["name"] for variable in others]
    assert names == ["job", "instance"] + ["queue"] * (uid == "pipeline-jobs")
    for variable in others:
        assert (variable["type"], variable["datasource"], variable["refresh"]) == ("query", SOURCE, 2)
        assert variable["label"] == variable["name"].title()
        assert variable["multi"] and variable["includeAll"] and variable["allValue"] == ".+"
        assert variable["current"]["value"] == "$__all"


@pytest.mark.parametrize("uid", BOARDS)
def test_dashboard_linter_panels(uid: str) -> None:
    """panel-datasource-rule, panel-title-description-rule, panel-units-rule, panel-no-targets-rule,
    uneditable-dashboard-rule.
    """
    assert BOARDS[uid]["editable"] is False
    for panel in panels(uid):
        assert panel["title"] and panel["description"].endswith((".", "`."))
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["targets"], panel["title"]
        assert all(part["datasource"] == SOURCE for part in [panel, *panel["targets"]]), panel["title"]


@pytest.mark.parametrize("uid", BOARDS)
def test_dashboard_linter_targets(uid: str) -> None:
    """target-job-rule, target-instance-rule, target-rate-interval-rule, target-counter-agg-rule."""
    queue = ', queue=~"$queue"'
    for panel in panels(uid):
        for expr in (target["expr"] for target in panel["targets"]):
            for name, matchers in re.findall(r"\b((?:pipeline|process)_\w+)(\{[^}]*\})?", expr):
                assert matchers.startswith('{job=~"$job", instance=~"$instance"'), f"{name} in {panel['title']}"
                if uid == "pipeline-jobs" and "queue" in labels_of(name):
                    assert queue in matchers, f"{name} in {panel['title']}"
            assert re.findall(r"rate\(\S*?\{[^}]*\}\[(?!\$__rate_interval\])", expr) == [], panel["title"]
            for around in uses(expr, r"\w+_total"):
                assert around[0] in ("rate", "increase"), panel["title"]


def labels_of(sample: str) -> tuple[str, ...]:
    """The labels a metric of ours has, by one of its sample names."""
    for attribute in vars(Metrics()).values():
        if isinstance(attribute, Counter | Gauge | Histogram):
            if sample in {attribute._name + suffix for suffix in ("", "_total", "_bucket", "_count", "_sum")}:
                return tuple(attribute._labelnames)
    return ()


def test_dashboard_linter_promql(tmp_path: Path) -> None:
    """target-promql-rule, template-label-promql-rule: Prometheus can parse every query of a panel or a variable."""
    asked = [expr for _, _, expr in queries()]
    for board in BOARDS.values():
        for variable in board["templating"]["list"][1:]:
            parts = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert parts and parts[2] == variable["name"]
            asked.append(parts[1])
    rules = [{"record": f"query:{number}", "expr": chosen(expr)} for number, expr in enumerate(asked)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert promtool("check", "rules", "queries.yml", folder=tmp_path) == ""


# the alerts: what cloudflare's pint asks for, by its names; it is not to be had as a package either


def firing_cases() -> list[tuple[str, dict[str, Any]]]:
    """Every alert that a rule test expects: its name, and its labels and annotations."""
    cases = [case for name in RULE_TESTS for test in rule_tests(name)["tests"] for case in test["alert_rule_test"]]
    return [(case["alertname"], alert) for case in cases for alert in case.get("exp_alerts", ())]


def test_pint_alerts() -> None:
    """alerts/annotation, alerts/comparison, alerts/for, alerts/template: an alert says what it is and what to do.

    Every label its text uses is one it has when it fires.
    """
    labels = {name: alert["exp_labels"].keys() for name, alert in firing_cases()}
    severities: dict[str, set[str]] = {}
    for name, alert in firing_cases():
        severities.setdefault(name, set()).add(alert["exp_labels"]["severity"])
    for rule in alert_rules():
        name, annotations = rule["alert"], rule["annotations"]
        assert rule["labels"].keys() == {"severity"}, name
        assert severities[name] <= {"critical", "warning"}, name
        assert annotations.keys() == {"summary", "action", "runbook_url"}, name
        assert COMPARISON.search(rule["expr"]), name
        assert seconds(rule["for"]) >= 60, name
        assert set(re.findall(r"\$labels\.(\w+)", str(annotations))) <= labels[name], name


def test_pint_promql() -> None:
    """promql/rate, promql/counter: counters are asked for their growth, gauges never, over four scrapes or more."""
    for rule in alert_rules():
        for around in uses(rule["expr"], r"\w+_(?:total|bucket|count)"):
            assert around[0] in ("rate", "increase"), rule["alert"]
        for name in used_samples(rule["expr"]) & samples_by_metric().keys():
            for around in uses(rule["expr"], name):
                assert not {"rate", "increase"} & set(around), rule["alert"]
        assert all(seconds(window) >= 60 for window in re.findall(r"\[(\w+)\]", rule["expr"])), rule["alert"]


def test_every_alert_has_a_runbook_that_is_true() -> None:
    """An alert links to its section, a section is an alert's, and the events, settings and panels it names exist."""
    text = (ROOT / "docs/runbooks.md").read_text()
    headings = re.findall(r"^## (\w+)$", text, re.MULTILINE)
    assert headings == [rule["alert"] for rule in alert_rules()]
    for rule in alert_rules():
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOKS}#{rule['alert'].lower()}"
    sections = dict(zip(headings, re.split(r"^## \w+$", text, flags=re.MULTILINE)[1:], strict=True))
    for name, section in sections.items():
        parts = re.findall(r"^- \*\*(.+?):\*\*", section, re.MULTILINE)
        assert parts == ["Means", "Users notice", "Look at", "Do"], name
    # The service shows this text alone: a link to another file of ours would lead nowhere.
    assert set(re.findall(r"\]\(([^)]+)\)", text)) <= {f"#{name.lower()}" for name in headings}
    code = "".join(path.read_text() for path in (ROOT / "pipeline").rglob("*.py"))
    events = set(re.findall(r"`([a-z]+_[a-z_]+)`", text))
    assert {event for event in events if f'"{event}"' not in code} == set()
    known = {field.upper() for field in Settings.model_fields}
    assert set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)[=`]", text)) - {"SLOWLOG"} <= known
    titles = {panel["title"] for uid in BOARDS for panel in panels(uid)}
    assert set(re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", text)) <= titles


def test_every_alert_is_seen_to_fire_and_to_be_silent() -> None:
    """The rule tests have both cases of every alert."""
    cases = [case for name in RULE_TESTS for test in rule_tests(name)["tests"] for case in test["alert_rule_test"]]
    silent = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    assert {name for name, _ in firing_cases()} == silent == {rule["alert"] for rule in alert_rules()}


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint-fatal", "alerts.yml"),
        ("test", "rules", *RULE_TESTS),
    ],
    ids=" ".join,
)
def test_promtool_accepts(arguments: tuple[str, ...]) -> None:
    """Prometheus' own checker accepts the configuration, and the alerts fire and stay silent as they should."""
    assert promtool(*arguments) == ""


# the rule tests themselves: is there a change to a rule that they would not see?

COMPARISON = re.compile(r" (==|>=|>) ([\d.]+)")
FLIPPED = {"==": "!=", ">": "<=", ">=": "<"}


def joints(expr: str) -> Iterator[re.Match[str]]:
    """The `and`, `or` and `unless` outside all brackets."""
    depth = 0
    for part in re.finditer(r"[(\[{]|[)\]}]| (?:and|or|unless)(?: on \([^)]*\))? ", expr):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(part[0], 0)
        if depth == 0 and part[0].startswith(" "):
            yield part


def changed(expr: str) -> Iterator[tuple[str, str]]:
    """Every change of one part of an expression: what was done, and the expression since."""

    def put(part: re.Match[str], text: str) -> tuple[str, str]:
        return f"{part[0]!r} at {part.start()} is {text!r}", expr[: part.start()] + text + expr[part.end() :]

    for part in COMPARISON.finditer(expr):
        limit = float(part[2])
        near = (limit * 0.75, limit * 1.25)
        for other in (1.0,) if limit == 0 else (0.0, 2.0) if limit == 1 else near:
            yield put(part, f" {part[1]} {other:g}")
        yield put(part, f" {FLIPPED[part[1]]} {part[2]}")
    for part in re.finditer(r'\w+="[^"]*"(, )?', expr):
        yield put(part, "")
    for part in re.finditer(r"\[(\w+)\]", expr):
        yield put(part, f"[{seconds(part[1]) // 4}s]")
        yield put(part, f"[{seconds(part[1]) * 4}s]")
    for part in re.finditer(r"\b(sum|max)\b", expr):
        yield put(part, {"sum": "max", "max": "sum"}[part[0]])
    for part in re.finditer(r"(?<=by )\(([^)]*)\)", expr):
        labels = part[1].split(", ")
        for label in labels:
            yield put(part, f"({', '.join(other for other in labels if other != label)})")
    for part in joints(expr):
        yield f"nothing after{part[0]}", expr[: part.start()]
        yield f"nothing before{part[0]}", expr[part.end() :]
    yield "always", "vector(1)"
    yield "never", "vector(0) == 1"


def mutants(rule: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rule with one part of it changed, in every way we know."""
    for change, expr in changed(rule["expr"]):
        yield change, rule | {"expr": expr}
    yield "at once", {name: value for name, value in rule.items() if name != "for"}
    yield "twice as late", rule | {"for": f"{2 * seconds(rule['for'])}s"}


def test_rule_tests_see_every_change_of_a_rule(tmp_path: Path) -> None:
    """No limit, window, matcher, label, aggregator, part or delay of an alert changes without a rule test failing."""
    changes: dict[str, str] = {}
    files = []
    for rule in alert_rules():
        # All mutants of a rule as alerts beside each other, each expected to do what the rule does: one run for all.
        known = {f"{rule['alert']}_{number}": mutant for number, (_, mutant) in enumerate(mutants(rule))}
        changes |= {f"{rule['alert']}_{number}": change for number, (change, _) in enumerate(mutants(rule))}
        rules = [mutant | {"alert": name} for name, mutant in {rule["alert"]: rule, **known}.items()]
        groups = [{"name": "all", "rules": rules}]
        (tmp_path / f"{rule['alert']}.yml").write_text(yaml.safe_dump({"groups": groups}))
        for name in RULE_TESTS:
            tests = rule_tests(name)
            for test in tests["tests"]:
                cases = [case for case in test["alert_rule_test"] if case["alertname"] == rule["alert"]]
                test["alert_rule_test"] = [case | {"alertname": mutant["alert"]} for mutant in rules for case in cases]
            tests["tests"] = [test for test in tests["tests"] if test["alert_rule_test"]]
            if tests["tests"]:
                files.append(f"{rule['alert']}.{name}")
                (tmp_path / files[-1]).write_text(yaml.safe_dump(tests | {"rule_files": [f"{rule['alert']}.yml"]}))
    # A mutant that Prometheus cannot read would be no proof.
    assert promtool("check", "rules", *(f"{rule['alert']}.yml" for rule in alert_rules()), folder=tmp_path) == ""
    # The slowest first, as processors are few.
    files.sort(key=lambda name: "PipelineSlow" not in name and "PipelineEvents" not in name)
    with ThreadPoolExecutor(2) as pool:
        said = "".join(pool.map(lambda name: promtool("test", "rules", name, folder=tmp_path), files))
    failed = set(re.findall(r"alertname: (\w+)", said))
    assert failed == changes.keys(), [f"{name}: {changes.get(name)}" for name in failed ^ changes.keys()]


# the live checks


def chosen(expr: str) -> str:
    """The query as Grafana sends it."""
    for name, value in CHOSEN.items():
        expr = expr.replace(name, value)
    return expr


def left_sides(expr: str) -> list[str]:
    """What an alert compares: it returns numbers also while nothing is wrong."""
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


def test_left_sides() -> None:
    """The side is found in brackets, after another comparison, and with an operator in it."""
    table = {
        "up == 0": ["up"],
        "absent(slots{queue=\"a\"} > 0)": ['slots{queue="a"}'],
        "max by (q) (a) > 3 unless on (q) max by (q) (b) == 1": ["max by (q) (a)", "max by (q) (b)"],
        "1 - sum(a) / sum(b) > 0.3 and sum(c) - sum(d) >= 3": ["1 - sum(a) / sum(b)", "sum(c) - sum(d)"],
    }
    assert {expr: left_sides(expr) for expr in table} == table


def ask(client: httpx.Client, expr: str) -> list[float]:
    """Return the values a query yields now, less those that are no number."""
    reply = client.get("/api/v1/query", params={"query": chosen(expr)}).json()
    assert reply["status"] == "success", f"{expr}: {reply}"
    values = [float(series["value"][1]) for series in reply["data"]["result"]]
    return [value for value in values if value == value]


def all_queries() -> list[tuple[str, str, str]]:
    """Every query that must return numbers from a healthy service: those of panels, and what alerts compare."""
    compared = [("alerts.yml", rule["alert"], side) for rule in alert_rules() for side in left_sides(rule["expr"])]
    # prometheus-client reads process metrics from /proc, so other systems do without those panels.
    has_proc = Path("/proc/self/stat").exists()
    # A healthy service answers nothing with 5xx.
    compared = [query for query in compared if query[1] != "PipelineServerErrors"]
    return [query for query in queries() + compared if has_proc or "process_" not in query[2]]


def answers(client: httpx.Client) -> dict[tuple[str, str, str], list[float]]:
    """Return what each query answered as soon as it had numbers; fail when one has none in time."""
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
    """Each alert -> inactive, pending or firing; fail when a rule cannot be evaluated."""
    groups = client.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}, rules
    return {rule["name"]: rule["state"] for rule in rules}


# quickly, with made-up numbers: has every query an answer, whatever happens to be counted?


def exercise(metrics: Metrics) -> None:
    """Count on every metric there is."""
    labels = {"queue": "ai-processing", "outcome": "completed", "status": "active", "code": "1001", "kind": "provider"}
    for metric in vars(metrics).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            names = metric._labelnames
            series = metric.labels(*(labels.get(name, "other") for name in names)) if names else metric
            if isinstance(series, Counter):
                series.inc()
            elif isinstance(series, Gauge):
                # Depths and states are the queue's to tell; a paused one would be an alert.
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
    """A host:port that answers /metrics and has traffic as long as the test runs."""
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
    """Each query of each panel and each side of an alert returns numbers once everything has been counted."""
    with running_prometheus(tmp_path, static_configs=[{"targets": [scraped]}]) as prometheus:
        answers(prometheus)
        assert alert_states(prometheus).keys() == {rule["alert"] for rule in alert_rules()}


# the real service, under real traffic


@contextmanager
def traffic(service: Service, ai_service: AiService, folder: Path) -> Iterator[None]:
    """Uploads that succeed, fail and are tried again, and a client that listens, leaves and comes back."""
    (folder / "photo.jpg").write_bytes(make_image())
    loop, stopped = asyncio.new_event_loop(), asyncio.Event()

    async def drive() -> None:
        since = None
        while not stopped.is_set():
            async with Client(service.url, make_token("user-1"), since=since) as client:
                await client.listen()
                # One is tried again, one is refused.
                ai_service.order(replies=[{"status": 200}, {"status": 503}, {"status": 200}, {"status": 422}])
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
    """The service, its AI service and a Prometheus that scrapes it."""
    settings = {"BACKOFF_MS": "100", RECONCILE_SECONDS: "1"}
    with AiService() as ai_service, Service(folder / "service", ai_service.url, **settings) as service:
        target = service.url.removeprefix("http://")
        rules = hurried_rules()
        with running_prometheus(folder, rules=rules, static_configs=[{"targets": [target]}]) as prometheus:
            yield prometheus, service, ai_service


def test_real_traffic_is_on_every_panel_and_an_outage_is_an_alert(tmp_path: Path) -> None:
    """Every query has numbers from the real service; once its AI service stops, PipelineProviderHeld pends, then fires.

    It ends with the outage. Its minute of waiting is two seconds here, see tests/prometheus.py.
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
    """Print every query with what the service answered after half a minute of traffic."""
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
