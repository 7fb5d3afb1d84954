"""What every benchmark makes: figures of several candidates, measured back to back in rounds, and goals.

A Report goes to a JSON file, so that a suite can be run again alone; report.py makes the page and the plots of all.
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
    """One measured quantity. unit: as it is written after the number, "" for a count."""

    name: str
    unit: str = ""
    more_is_better: bool = False


@dataclass
class Comparison:
    """Figures of candidates by round. what: one line of Markdown on how it was measured. remarks: what a candidate
    guarantees or does not. failures: runs that ended without figures. steals: percent of CPU taken by others, by run.
    """

    title: str
    what: str
    columns: list[Column]
    remarks: dict[str, str] = field(default_factory=dict)
    runs: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    steals: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def measure(self, candidates: Mapping[str, Callable[[], dict[str, float]]], rounds: int) -> None:
        """Run every candidate in each round, in another order each time; a run that fails is noted."""
        names = list(candidates)
        for number in range(rounds):
            turn = number % max(1, len(names))
            for name in names[turn:] + names[:turn]:
                with Steal() as steal:
                    try:
                        figures = candidates[name]()
                    except Exception as error:  # one peer that fails must not cost the others' figures
                        self.failures.append(f"{name}, round {number + 1}: {error!r}"[:300])
                        print(self.failures[-1], file=sys.stderr, flush=True)
                        continue
                self.add(name, figures, steal.percent)

    def add(self, name: str, figures: dict[str, float], steal: float = 0.0) -> None:
        """Keep the figures of one run, by the names of the columns; those it could not measure are left out."""
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
        """Return the median, over the rounds, of name's figure divided by the other's of the same round."""
        pairs = zip(self.values(name, column), self.values(to, column), strict=False)
        ratios = [mine / theirs for mine, theirs in pairs if theirs]
        return statistics.median(ratios) if ratios else None

    def table(self) -> list[str]:
        """Return Markdown: median (lowest - highest), and how many times ours that is."""
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
    """What was aimed at and what came out."""

    what: str
    goal: str
    measured: str
    is_met: bool


@dataclass
class Report:
    """All of one suite. notes: paragraphs of Markdown after the tables: versions, limits, where the time goes."""

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
        """Read what save has written."""
        found = json.loads(path.read_text())
        found["comparisons"] = [
            Comparison(**item | {"columns": [Column(**column) for column in item["columns"]]})
            for item in found["comparisons"]
        ]
        found["goals"] = [Goal(**goal) for goal in found["goals"]]
        return cls(**found)


def best(comparison: Comparison, column: str, names: Sequence[str], *, more_is_better: bool) -> str | None:
    """Return which of the names has the best median, None when none has any."""
    found = [(median, name) for name in names if (median := comparison.median(name, column)) is not None]
    with suppress(ValueError):
        return (max(found) if more_is_better else min(found))[1]
    return None


def show(figure: float) -> str:
    """Return a number as a reader wants it: three digits, thousands apart."""
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"
