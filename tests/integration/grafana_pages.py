"""Grafana's pages and Prometheus' alerts as data: their panels, queries and rules, and promtool to check them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.metrics import Metrics
from tests.requirements import program
from tests.prometheus import GRAFANA

BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
RULE_TESTS = ("alerts_test.yml", "alerts_hours_test.yml")
# What the page's variables stand for, when all is chosen and Prometheus scrapes twice a second.
CHOSEN = {"$__rate_interval": "10s", "$__range": "1m", "$job": ".+", "$instance": ".+", "$queue": ".+"}


def panels(uid: str) -> list[dict[str, Any]]:
    """Return every panel of a page that draws something."""
    return [panel for panel in BOARDS[uid]["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str, str]]:
    """Return every query of every panel: the page, the panel, the expression."""
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
    """Return every expression of pages and alerts, each with the name of its panel or alert."""
    on_pages = [(f"{uid}: {title}", expr) for uid, title, expr in queries()]
    return on_pages + [(rule["alert"], rule["expr"]) for rule in alert_rules()]


def samples_by_metric() -> dict[str, set[str]]:
    """Return the sample names under which each of our metrics is scraped, by metric."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",), "gauge": ("",)}
    families = [family for family in Metrics().registry.collect() if family.name.startswith("pipeline_")]
    return {family.name: {family.name + suffix for suffix in suffixes[family.type]} for family in families}


def used_samples(expr: str) -> set[str]:
    return set(re.findall(r"\bpipeline_\w+", expr))


def uses(expr: str, pattern: str) -> Iterator[list[str]]:
    """Yield, for each use of a metric, the functions and aggregators around it, from the inside out."""
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
    """Run promtool; return what it prints when it fails, else nothing."""
    done = subprocess.run([program("promtool"), *arguments], cwd=folder, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


COMPARISON = re.compile(r" (==|>=|>) ([\d.]+)")


def joints(expr: str) -> Iterator[re.Match[str]]:
    """Yield the `and`, `or` and `unless` outside all brackets."""
    depth = 0
    for part in re.finditer(r"[(\[{]|[)\]}]| (?:and|or|unless)(?: on \([^)]*\))? ", expr):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(part[0], 0)
        if depth == 0 and part[0].startswith(" "):
            yield part


def chosen(expr: str) -> str:
    """Return the query as Grafana sends it."""
    for name, value in CHOSEN.items():
        expr = expr.replace(name, value)
    return expr
