"""The pages of Grafana: they are what the code builds, use existing metrics, and follow the rules of dashboard-linter.

Grafana's dashboard-linter is not a package, so its rules are tested here under their names.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram

from grafana import pages
from pipeline.metrics import FLEET, Metrics
from tests.integration.grafana_pages import (
    BOARDS,
    chosen,
    expressions,
    panels,
    promtool,
    queries,
    samples_by_metric,
    used_samples,
    uses,
)
from tests.prometheus import GRAFANA

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
UNITS = {"short", "s", "bytes", "Bps", "ops", "reqps", "percentunit"}
AGGREGATORS = {"sum", "max", "min", "avg", "count"}


def test_pages_are_what_the_code_builds() -> None:
    """The JSON is not edited by hand: `python -m grafana.pages` writes exactly these files."""
    assert {path.stem: path.read_text() for path in pages.DASHBOARDS.glob("*.json")} == pages.build()


def test_pages_and_alerts_use_only_existing_metrics() -> None:
    """Every metric in a query is a metric that the service has."""
    known = set().union(*samples_by_metric().values())
    assert [(place, expr) for place, expr in expressions() if used_samples(expr) - known] == []


def test_every_metric_is_on_a_page() -> None:
    """Each metric of the service is in a query of a page."""
    used = set().union(*(used_samples(expr) for _, _, expr in queries()))
    assert [name for name, samples in samples_by_metric().items() if not samples & used] == []


def test_numbers_that_all_processes_share_are_not_added_up() -> None:
    """A number that every process reports equally is shown by max, a count of each process by sum."""
    fleet = "|".join(family.name for family in Metrics().registry.collect() if family.documentation.endswith(FLEET))
    assert fleet
    for place, expr in expressions():
        for around in uses(expr, fleet):
            assert next(name for name in around if name in AGGREGATORS) == "max", f"{place}: {expr}"
        for around in uses(expr, r"\w+_(?:total|bucket|count)"):
            assert "max" not in around, f"{place}: {expr}"


@pytest.mark.parametrize("uid", BOARDS)
def test_page_can_be_provisioned(uid: str) -> None:
    """A page has a fixed address and no ids of one Grafana, fits the grid, and links to the other pages."""
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


def test_provisioning_names_source_and_dashboards() -> None:
    """Grafana finds a Prometheus data source and a folder of dashboards."""
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/pipeline.yml").read_text())
    interval = yaml.safe_load((GRAFANA / "prometheus.yml").read_text())["global"]["scrape_interval"]
    (datasource,) = source["datasources"]
    assert (source["apiVersion"], datasource["type"], datasource["isDefault"]) == (1, "prometheus", True)
    assert datasource["uid"] and datasource["jsonData"]["timeInterval"] == interval
    assert provider["apiVersion"] == 1 and provider["providers"][0]["type"] == "file"
    assert provider["providers"][0]["options"]["path"] == "/var/lib/grafana/dashboards"


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
    """Return the labels of the metric that has this sample name."""
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
