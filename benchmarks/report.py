"""Writes benchmarks/RESULTS.md from the reports of all suites, with a plot of the main columns of each comparison."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.comparison import OURS, Column, Comparison, Report, show

HERE = Path(__file__).parent
OWN_COLOR, COLOR = "#2f6f4f", "#b9c4cf"


def write(reports: Sequence[Report], introduction: str, folder: Path = HERE) -> None:
    """Write RESULTS.md and plots/*.png."""
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    lines = ["# Results", "", introduction, "", *_goals(reports)]
    for report in reports:
        lines += ["", f"## {report.suite.capitalize()}", "", report.machine, ""]
        lines += [f"- {version}" for version in report.versions]
        for comparison in report.comparisons:
            lines += ["", *_section(comparison, plots)]
        lines += ["", *(f"{note}\n" for note in report.notes)]
    (folder / "RESULTS.md").write_text("\n".join(lines).strip() + "\n")


def _goals(reports: Sequence[Report]) -> list[str]:
    lines = ["## Goals", "", "| what | goal | measured | |", "|---|---|---|---|"]
    for report in reports:
        for goal in report.goals:
            lines.append(f"| {goal.what} | {goal.goal} | {goal.measured} | {'met' if goal.is_met else '**not met**'} |")
    return lines


def _section(comparison: Comparison, plots: Path) -> list[str]:
    rounds = max(map(len, comparison.runs.values()), default=0)
    steals = comparison.steals or [0.0]
    steal = f"{statistics.median(steals):.0f} (at most {max(steals):.0f})"
    name = f"{comparison.title.lower().replace(' ', '-').replace('.', '')}.png"
    draw(comparison, plots / name)
    lines = [f"### {comparison.title}", "", comparison.what, "", f"![{comparison.title}](plots/{name})", ""]
    lines += [*comparison.table(), ""]
    how = "median (lowest - highest), x times ours" if OURS in comparison.runs else "median (lowest - highest)"
    lines += [f"{rounds} round{'s' * (rounds != 1)}: {how}. Percent of CPU taken by others: {steal}."]
    if comparison.remarks:
        lines += ["", *(f"- {candidate}: {remark}." for candidate, remark in comparison.remarks.items())]
    return lines + [f"- failed: {failure}" for failure in comparison.failures]


def draw(comparison: Comparison, path: Path) -> None:
    """Draw the first four columns and save the plot as a PNG: a bar for the median, a line from lowest to highest."""
    from matplotlib.figure import Figure

    columns = comparison.columns[:4]
    names = list(comparison.runs)[::-1]
    figure = Figure(figsize=(3.4 * len(columns), 0.9 + 0.34 * len(names)), layout="constrained")
    for axes, column in zip(figure.subplots(1, len(columns), sharey=True, squeeze=False)[0], columns, strict=True):
        _bars(axes, comparison, column, names)
    figure.savefig(path, dpi=110)


def _bars(axes: object, comparison: Comparison, column: Column, names: Sequence[str]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    for at, name in enumerate(names):
        values = comparison.values(name, column.name)
        if not values:
            continue
        median = statistics.median(values)
        axes.barh(at, median, color=OWN_COLOR if name.startswith(OURS) else COLOR, height=0.65)
        axes.plot([min(values), max(values)], [at, at], color="#333", linewidth=1)
        axes.annotate(f" {show(median)}", (max(values), at), va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_title(f"{column.name}{f', {column.unit}' if column.unit else ''}", fontsize=9)
    axes.tick_params(axis="x", labelsize=7)
    axes.margins(x=0.25)
    axes.spines[["top", "right"]].set_visible(False)
