"""The alerts: promtool accepts them, they follow the rules of pint, and every change of a rule makes a rule test fail.

Cloudflare's pint is not a package, so its rules are tested here under their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.settings import Settings
from tests.integration.grafana_pages import (
    BOARDS,
    COMPARISON,
    RULE_TESTS,
    alert_rules,
    joints,
    panels,

    promtool,
    rule_tests,
    samples_by_metric,
    used_samples,
    uses,
)
from tests.prometheus import ROOT, seconds

# The address of the runbooks, as a template that Prometheus evaluates.
RUNBOOKS = (
    '{{ with query "pipeline_build_info or last_over_time(pipeline_build_info[1d])" }}'
    '{{ . | first | label "public_url" }}{{ end }}/runbooks'
)


def firing_cases() -> list[tuple[str, dict[str, Any]]]:
    """Return every alert that a rule test expects: its name, and its labels and annotations."""
    cases = [case for name in RULE_TESTS for test in rule_tests(name)["tests"] for case in test["alert_rule_test"]]
    return [(case["alertname"], alert) for case in cases for alert in case.get("exp_alerts", ())]


def test_pint_alerts() -> None:
    """alerts/annotation, alerts/comparison, alerts/for, alerts/template: an alert says what happened and what to do.

    The alert has every label that its text uses.
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
    """promql/rate, promql/counter: rate and increase are for counters only, over four scrapes or more."""
    for rule in alert_rules():
        for around in uses(rule["expr"], r"\w+_(?:total|bucket|count)"):
            assert around[0] in ("rate", "increase"), rule["alert"]
        for name in used_samples(rule["expr"]) & samples_by_metric().keys():
            for around in uses(rule["expr"], name):
                assert not {"rate", "increase"} & set(around), rule["alert"]
        assert all(seconds(window) >= 60 for window in re.findall(r"\[(\w+)\]", rule["expr"])), rule["alert"]


def test_every_alert_has_a_correct_runbook() -> None:
    """Each alert links to its section, each section has an alert, and its events, settings and panels exist."""
    text = (ROOT / "docs/runbooks.md").read_text()
    headings = re.findall(r"^## (\w+)$", text, re.MULTILINE)
    assert headings == [rule["alert"] for rule in alert_rules()]
    for rule in alert_rules():
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOKS}#{rule['alert'].lower()}"
    sections = dict(zip(headings, re.split(r"^## \w+$", text, flags=re.MULTILINE)[1:], strict=True))
    for name, section in sections.items():
        parts = re.findall(r"^- \*\*(.+?):\*\*", section, re.MULTILINE)
        assert parts == ["Means", "Users notice", "Look at", "Do"], name
    # The service shows this text alone, so a link to another file of ours would not work.
    assert set(re.findall(r"\]\(([^)]+)\)", text)) <= {f"#{name.lower()}" for name in headings}
    code = "".join(path.read_text() for path in (ROOT / "pipeline").rglob("*.py"))
    events = set(re.findall(r"`([a-z]+_[a-z_]+)`", text))
    assert {event for event in events if f'"{event}"' not in code} == set()
    known = {field.upper() for field in Settings.model_fields}
    assert set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)[=`]", text)) - {"SLOWLOG"} <= known
    titles = {panel["title"] for uid in BOARDS for panel in panels(uid)}
    assert set(re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", text)) <= titles


def test_every_alert_has_a_firing_and_a_silent_case() -> None:
    """The rule tests have a case in which each alert fires, and one in which it does not."""
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
    """promtool accepts the configuration and the rules, and the rule tests pass."""
    assert promtool(*arguments) == ""


FLIPPED = {"==": "!=", ">": "<=", ">=": "<"}


def changed(expr: str) -> Iterator[tuple[str, str]]:
    """Yield every change of one part of an expression: a description, and the changed expression."""

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
    """Yield the rule with one part changed, for each known kind of change."""
    for change, expr in changed(rule["expr"]):
        yield change, rule | {"expr": expr}
    yield "at once", {name: value for name, value in rule.items() if name != "for"}
    yield "twice as late", rule | {"for": f"{2 * seconds(rule['for'])}s"}


def test_rule_tests_see_every_change_of_a_rule(tmp_path: Path) -> None:
    """No limit, window, matcher, label, aggregator, part or delay of an alert changes without a rule test failing."""
    changes: dict[str, str] = {}
    files = []
    for rule in alert_rules():
        # All mutants of a rule are alerts of one file, each expected to act like the rule: one run is enough.
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
    # A mutant that Prometheus cannot parse would prove nothing.
    assert promtool("check", "rules", *(f"{rule['alert']}.yml" for rule in alert_rules()), folder=tmp_path) == ""
    # The slowest first, as processors are few.
    files.sort(key=lambda name: "PipelineSlow" not in name and "PipelineEvents" not in name)
    with ThreadPoolExecutor(2) as pool:
        printed = "".join(pool.map(lambda name: promtool("test", "rules", name, folder=tmp_path), files))
    failed = set(re.findall(r"alertname: (\w+)", printed))
    assert failed == changes.keys(), [f"{name}: {changes.get(name)}" for name in failed ^ changes.keys()]
