"""The result of a benchmark: the figures of several candidates, measured back to back in rounds, and goals.

A Report is saved as JSON, so that one suite can run alone; report.py makes the page and the plots of all reports.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.machine import Steal

OURS = "ours"


@dataclass(frozen=True)
class Column:
    """One measured quantity.

    unit: as in the head of the table, "" for a count.
    """

    name: str
    unit: str = ""
    more_is_better: bool = False


@dataclass
class Comparison:
    """The figures of candidates, by round.

    what: one line of Markdown that says how they were measured.
    remarks: by candidate: its guarantees and limits.
    runs: by candidate: the figures of each run, by column.
    steals: percent of the CPU that other machines of the host took, by run.
    failures: the runs that ended without figures.
    """

    title: str
    what: str
    columns: list[Column]
    remarks: dict[str, str] = field(default_factory=dict)
    runs: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    steals: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def measure(self, candidates: Mapping[str, Callable[[], dict[str, float]]], rounds: int) -> None:
        """Run every candidate in each round, in another order each time; a failed run goes to `failures`."""
        names = list(candidates)
        for number in range(rounds):
            first = number % max(1, len(names))
            for name in names[first:] + names[:first]:
                with Steal() as steal:
                    try:
                        figures = candidates[name]()
                    except Exception as error:  # a candidate that fails must not cost the figures of the other ones
                        self.failures.append(f"{name}, round {number + 1}: {error!r}"[:300])
                        print(self.failures[-1], file=sys.stderr, flush=True)
                        continue
                self.add(name, figures, steal.percent)

    def add(self, name: str, figures: dict[str, float], steal: float = 0.0) -> None:
        """Add the figures of one run.

        figures: by column, without the columns that could not be measured.
        steal: percent of the CPU that other machines of the host took.
        """
        self.runs.setdefault(name, []).append(figures)
        self.steals.append(steal)
        shown = "  ".join(f"{column} {show(value)}" for column, value in figures.items())
        print(f"{self.title}: {name}: {shown}  steal {steal:.0f} %", file=sys.stderr, flush=True)

    def values(self, name: str, column: str) -> list[float]:
        """Return a candidate's figures of a column, one for each round that has it."""
        return [run[column] for run in self.runs.get(name, []) if column in run]

    def median(self, name: str, column: str) -> float | None:
        """Return the median over the rounds, None when there is no figure."""
        values = self.values(name, column)
        return statistics.median(values) if values else None

    def ratio(self, column: str, name: str, to: str) -> float | None:
        """Return the median of `name`'s figure divided by that of `to` in the same round, None without figures."""
        pairs = zip(self.values(name, column), self.values(to, column), strict=False)
        ratios = [mine / theirs for mine, theirs in pairs if theirs]
        return statistics.median(ratios) if ratios else None

    def table(self) -> list[str]:
        """Return a Markdown table: median (lowest - highest), and the ratio to ours."""
        heads = [f"{column.name}{f', {column.unit}' if column.unit else ''}" for column in self.columns]
        lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        for name in self.runs:
            lines.append("| " + " | ".join([name, *(self._cell(name, column.name) for column in self.columns)]) + " |")
        return lines

    def _cell(self, name: str, column: str) -> str:
        values = self.values(name, column)
        if not values:
            return "-"
        cell = show(statistics.median(values))
        if len(values) > 1:
            cell += f" ({show(min(values))} - {show(max(values))})"
        ratio = self.ratio(column, name, OURS) if name != OURS else None
        return cell + (f", x {ratio:.2f}" if ratio is not None else "")


@dataclass(frozen=True)
class Goal:
    """One goal of a suite and the measured value."""

    what: str
    goal: str
    measured: str
    is_met: bool


@dataclass
class Report:
    """The result of one suite.

    versions: one line for each candidate.
    notes: paragraphs of Markdown after the tables.
    machine: one line about the machine, as machine.describe returns it.
    """

    suite: str
    comparisons: list[Comparison] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machine: str = ""

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def print(self) -> None:
        """Show it on a terminal."""
        for comparison in self.comparisons:
            print("", comparison.title, *comparison.table(), *comparison.failures, sep="\n")
        for goal in self.goals:
            print(f"{'met' if goal.is_met else 'NOT MET'}: {goal.what} {goal.goal}: {goal.measured}")
        print(*self.versions, *self.notes, sep="\n")

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read a file that `save` wrote."""
        fields = json.loads(path.read_text())
        fields["comparisons"] = [
            Comparison(**item | {"columns": [Column(**column) for column in item["columns"]]})
            for item in fields["comparisons"]
        ]
        fields["goals"] = [Goal(**goal) for goal in fields["goals"]]
        return cls(**fields)


def best(comparison: Comparison, column: str, names: Sequence[str], *, more_is_better: bool) -> str | None:
    """Return the name with the best median, None when no name has one."""
    medians = [(median, name) for name in names if (median := comparison.median(name, column)) is not None]
    with suppress(ValueError):
        return (max(medians) if more_is_better else min(medians))[1]
    return None


def show(figure: float) -> str:
    """Return the number with three digits, or with separated thousands."""
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"
