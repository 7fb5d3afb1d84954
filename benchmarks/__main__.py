"""Runs the suites and writes benchmarks/RESULTS.md with its plots: make bench, or python -m benchmarks [SUITE ...]

Each suite saves its figures in build/benchmarks, so a suite that runs alone replaces only its own section of the page.
The first run installs the peers into build/peers. It needs npm and PyPI, and `documentdb` (.ci/documentdb) or `mongod`
on PATH.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks import fault_recovery, fault_scene, floor, growth, machine, processes, report, retention
from benchmarks.comparison import Goal, Report
from benchmarks.peers import CHECKOUT
from benchmarks.queue import suite as queue
from benchmarks.rooms import suite as rooms
from benchmarks.uploads import suite as uploads

FIGURES = CHECKOUT / "build" / "benchmarks"
LEASE_SECONDS = 15
INTRODUCTION = """Measured by `make bench`. Compare ratios, not figures: all figures are of one run, on a shared machine
whose speed changes by the minute. Every round runs all candidates; a ratio is the median of the
ratios of each round. [docs/performance.md](../docs/performance.md) explains the figures."""


def measure_recovery(_rounds: int) -> Report:
    """Return how long the running jobs of a killed process wait until another process runs them."""
    result = Report("recovery", machine=machine.describe())
    name = next(name for name in fault_scene.ROWS if "another process goes on" in name)
    _, accepted, lost, *_, seconds, since = fault_recovery.measure(name)
    limit = LEASE_SECONDS + 5
    measured = f"all {accepted} uploads done after {seconds} s ({since}), {lost} lost"
    is_met = float(str(seconds)) <= limit and lost == 0
    result.goals.append(Goal(f"{name}: running jobs again", f"<= lease + 5 s ({limit} s)", measured, is_met))
    return result


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
        result = SUITES[name](options.rounds)
        result.print()
        result.save(FIGURES / f"{name}.json")
        reports = [Report.load(path) for name in SUITES if (path := FIGURES / f"{name}.json").exists()]
        report.write(reports, INTRODUCTION)


if __name__ == "__main__":
    main()
