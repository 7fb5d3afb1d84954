"""The benchmarks' own arithmetic, and that their page says what it should."""

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


def test_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    """Rounds are compared with themselves, so that a machine that changes its speed between them spoils nothing."""
    comparison = make_comparison()
    assert comparison.ratio("drain", "ours", "slow") == 10.0
    assert comparison.ratio("memory", "ours", "slow") is None
    assert comparison.median("ours", "drain") == 200.0 and comparison.median("nobody", "drain") is None


def test_table_shows_median_spread_and_times_ours() -> None:
    """What was not measured is a dash."""
    assert make_comparison().table() == [
        "| | drain, jobs/s | memory |",
        "|---|---|---|",
        "| ours | 200 (100 - 300) | 5 (5 - 5) |",
        "| slow | 20 (10 - 50), x 0.10 | - |",
    ]


def test_measure_takes_turns_and_outlives_a_failure() -> None:
    """Each round begins with another candidate; one that fails costs its own figures only."""
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


def test_best_names_who_leads() -> None:
    """Of those that were measured."""
    comparison = make_comparison()
    assert best(comparison, "drain", ["slow", "ours", "nobody"], more_is_better=True) == "ours"
    assert best(comparison, "drain", ["slow", "ours"], more_is_better=False) == "slow"
    assert best(comparison, "drain", ["nobody"], more_is_better=True) is None


def test_report_survives_its_file(tmp_path: Path) -> None:
    """What was saved is what is loaded."""
    goals = [Goal("drain", ">= 2 x", "3 x", True)]
    report = Report("queue", [make_comparison()], goals, ["ours: 1"], ["A note."], "here")
    report.save(tmp_path / "deep" / "queue.json")
    assert Report.load(tmp_path / "deep" / "queue.json") == report


@pytest.mark.parametrize(("figure", "shown"), [(12345.6, "12,346"), (0.01234, "0.0123"), (7.0, "7")])
def test_show_gives_three_digits(figure: float, shown: str) -> None:
    assert show(figure) == shown


def test_results_page_has_every_suite_goal_and_picture() -> None:
    """It was made by the benchmarks as they are now."""
    page = PAGE.read_text()
    for suite in ("Goals", "Queue", "Uploads", "Growth", "Recovery"):
        assert f"\n## {suite}\n" in page
    goals = page.partition("## Goals")[2].partition("\n## ")[0]
    assert set(re.findall(r"\| (met|\*\*not met\*\*) \|$", goals, re.MULTILINE)) <= {"met", "**not met**"}
    assert len(re.findall(r"met\*?\*? \|$", goals, re.MULTILINE)) >= 15
    pictures = set(re.findall(r"\]\((plots/[^)]+)\)", page))
    assert pictures == {f"plots/{path.name}" for path in (HERE / "plots").glob("*.png")} and len(pictures) >= 8
