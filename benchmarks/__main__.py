"""All side by side, and benchmarks/RESULTS.md with its plots: make bench, or python -m benchmarks [SUITE ...]

Each suite leaves its figures in build/benchmarks; one that is run again alone takes only its own place on the page.
Peers are installed into build/peers the first time: npm and PyPI are needed, and on PATH `documentdb`
(.ci/documentdb) or `mongod`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks import fault_recovery, floor, growth, machine, processes, report, retention
from benchmarks.comparison import Goal, Report
from benchmarks.peers import CHECKOUT
from benchmarks.queue import suite as queue
from benchmarks.rooms import suite as rooms
from benchmarks.uploads import suite as uploads

FIGURES = CHECKOUT / "build" / "benchmarks"
LEASE_SECONDS = 15
INTRODUCTION = """Measured by `make bench`. Compare ratios, not figures: they are of one run on one shared machine whose
speed changes by the minute. Candidates take turns in every round; a ratio is the median of the rounds' own ratios. What
is behind the figures is in [docs/performance.md](../docs/performance.md)."""


def measure_recovery(_rounds: int) -> Report:
    """Return how long the running jobs of a killed process wait for another."""
    found = Report("recovery", machine=machine.describe())
    name = next(name for name in fault_recovery.ROWS if "another process goes on" in name)
    _, accepted, lost, *_, seconds, since = fault_recovery.measure(name)
    limit = LEASE_SECONDS + 5
    measured = f"all {accepted} uploads done after {seconds} s ({since}), {lost} lost"
    is_met = float(str(seconds)) <= limit and lost == 0
    found.goals.append(Goal(f"{name}: running jobs again", f"<= lease + 5 s ({limit} s)", measured, is_met))
    return found


SUITES: dict[str, Callable[[int], Report]] = {
    "queue": queue.measure,
    "uploads": uploads.measure,
    "floor": floor.measure,
    "processes": processes.measure,
    "rooms": rooms.measure,
    "growth": growth.measure,
    "retention": lambda _rounds: retention.measure(days=21, thinning=200),
    "recovery": measure_recovery,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", nargs="*", help=f"of {', '.join(SUITES)}; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name in options.suite or SUITES:
        found = SUITES[name](options.rounds)
        found.print()
        found.save(FIGURES / f"{name}.json")
        reports = [Report.load(path) for name in SUITES if (path := FIGURES / f"{name}.json").exists()]
        report.write(reports, INTRODUCTION)


if __name__ == "__main__":
    main()
