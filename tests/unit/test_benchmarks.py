"""The calculations of the benchmarks, and the parts of their page of results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.comparison import Column, Comparison, Goal, Report, best, show
from benchmarks.report import HERE

PAGE = HERE / "RESULTS.md"


def make_comparison() -> Comparison:
    comparison = Comparison("Queue", "How.", [Column("drain", "jobs/s", more_is_better=True), Column("memory")])
    for ours, slow in ((100.0, 10.0), (300.0, 20.0), (200.0, 50.0)):
        comparison.add("ours", {"drain": ours, "memory": 5.0})
        comparison.add("slow", {"drain": slow})
    return comparison


def test_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    """Each round has its own ratio, so a machine that changes its speed between rounds does not change the result."""
    comparison = make_comparison()
    assert comparison.ratio("drain", "ours", "slow") == 10.0
    assert comparison.ratio("memory", "ours", "slow") is None
    assert comparison.median("ours", "drain") == 200.0 and comparison.median("absent", "drain") is None


def test_table_shows_median_spread_and_ratio_to_ours() -> None:
    """A cell shows the median, the smallest and the largest value and the ratio; a missing figure is a dash."""
    assert make_comparison().table() == [
        "| | drain, jobs/s | memory |",
        "|---|---|---|",
        "| ours | 200 (100 - 300) | 5 (5 - 5) |",
        "| slow | 20 (10 - 50), x 0.10 | - |",
    ]


def test_measure_changes_the_order_and_survives_a_failure() -> None:
    """Each round begins with another candidate; a candidate that fails loses its own figures only."""
    order = []

    def candidate(name: str, fails: bool = False) -> dict[str, float]:
        order.append(name)
        if fails:
            raise ValueError("no")
        return {"drain": 1.0}

    comparison = Comparison("Queue", "How.", [Column("drain")])
    comparison.measure({"a": lambda: candidate("a"), "b": lambda: candidate("b", fails=True)}, 2)
    assert order == ["a", "b", "b", "a"]
    assert comparison.values("a", "drain") == [1.0, 1.0] and len(comparison.failures) == 2


def test_best_names_the_leading_candidate() -> None:
    """The best candidate is one that was measured; without any there is none."""
    comparison = make_comparison()
    assert best(comparison, "drain", ["slow", "ours", "absent"], more_is_better=True) == "ours"
    assert best(comparison, "drain", ["slow", "ours"], more_is_better=False) == "slow"
    assert best(comparison, "drain", ["absent"], more_is_better=True) is None


def test_report_is_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    """A report that is loaded from its file equals the one that was saved."""
    goals = [Goal("drain", ">= 2 x", "3 x", True)]
    report = Report("queue", [make_comparison()], goals, ["ours: 1"], ["A note."], "here")
    report.save(tmp_path / "deep" / "queue.json")
    assert Report.load(tmp_path / "deep" / "queue.json") == report


@pytest.mark.parametrize(("figure", "shown"), [(12345.6, "12,346"), (0.01234, "0.0123"), (7.0, "7")])
def test_show_gives_three_digits(figure: float, shown: str) -> None:
    """A figure is shown with three significant digits, a large one as a rounded number."""
    assert show(figure) == shown


def test_results_page_has_every_suite_goal_and_picture() -> None:
    """The page was written by the present benchmarks: it has their suites, goals and pictures."""
    page = PAGE.read_text()
    for suite in ("Goals", "Queue", "Uploads", "Growth", "Recovery"):
        assert f"\n## {suite}\n" in page
    goals = page.partition("## Goals")[2].partition("\n## ")[0]
    assert set(re.findall(r"\| (met|\*\*not met\*\*) \|$", goals, re.MULTILINE)) <= {"met", "**not met**"}
    assert len(re.findall(r"met\*?\*? \|$", goals, re.MULTILINE)) >= 15
    pictures = set(re.findall(r"\]\((plots/[^)]+)\)", page))
    assert pictures == {f"plots/{path.name}" for path in (HERE / "plots").glob("*.png")} and len(pictures) >= 8
