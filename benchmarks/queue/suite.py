"""Our job queue beside seven others on the same Redis: python -m benchmarks.queue

A no-op job with a payload of 300 bytes, five at a time in one worker process, a Redis with an append-only file that is
new for every run. Measured of each: how fast one producer enqueues, one by one and in bulk; how fast a worker drains
the waiting jobs, from the first to the last, with its CPU, Redis' CPU and the load of Redis; and, on an idle worker
with one job every 20 ms, the time from the enqueue call to the job's first line. `trips` are reads from sockets
(total_reads_processed): a batch sent at once counts once. `commands` are all that Redis runs, inside scripts too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from benchmarks import machine
from benchmarks.comparison import OURS, Column, Comparison, Goal, Report, best, show
from benchmarks.peers import CHECKOUT, CannotHave, environment
from benchmarks.queue.candidates import BULLMQ, Candidate, all_candidates
from tests.redis_server import RedisServer

COUNT = 10_000
ONE_BY_ONE = 2_000
IDLE_SECONDS = 10
WAIT_SECONDS = 180
COLUMNS = [
    Column("drain", "jobs/s", more_is_better=True),
    Column("enqueue", "jobs/s", more_is_better=True),
    Column("bulk", "jobs/s", more_is_better=True),
    Column("idle p50", "ms"),
    Column("idle p99", "ms"),
    Column("trips/job"),
    Column("commands/job"),
    Column("CPU", "s per 1,000"),
    Column("Redis CPU", "s per 1,000"),
    Column("memory", "MiB"),
]


@contextmanager
def program(candidate: Candidate, role: str, url: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """Start the candidate's program in a role; it ends with the block."""
    command = ["timeout", "-k", "1", str(WAIT_SECONDS), *candidate.command, role, url, str(count)]
    process = subprocess.Popen(command, cwd=CHECKOUT, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def next_figures(process: subprocess.Popen[str]) -> dict[str, float | list[float]]:
    """Return the figures that the program prints next."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            figures: dict[str, float | list[float]] = json.loads(line)
            return figures
    raise RuntimeError(f"{process.args!r} ended without figures")


def run_role(candidate: Candidate, role: str, url: str, count: int) -> float:
    """Run the candidate's program in a role that ends by itself; return the seconds that it prints."""
    with program(candidate, role, url, count) as process:
        seconds = next_figures(process).get("seconds", 0.0)
        process.wait()
    assert isinstance(seconds, float)
    return seconds


def redis_counts(server: RedisServer) -> tuple[int, int]:
    """Return the number of reads from clients' sockets and of commands, with the commands inside scripts."""
    stats: dict[str, dict[str, int]] = server.client().info("commandstats")  # type: ignore[assignment]
    commands = sum(figures["calls"] for name, figures in stats.items() if not name.startswith("cmdstat_info"))
    reads: int = server.client().info("stats")["total_reads_processed"]  # type: ignore[index]
    return reads, commands


def measure_one(candidate: Candidate, count: int) -> dict[str, float]:
    """Return the figures of one run, by column."""
    count //= candidate.slowness
    few = ONE_BY_ONE // candidate.slowness
    figures = {}
    with RedisServer() as server:
        figures["enqueue"] = few / run_role(candidate, "enqueue", server.url, few)
        server.client().flushall()
        seconds = run_role(candidate, "bulk" if candidate.has_bulk else "enqueue", server.url, count)
        if candidate.has_bulk:
            figures["bulk"] = count / seconds
        reads, commands = redis_counts(server)
        redis_cpu = machine.cpu_seconds([server.pid])
        with program(candidate, "work", server.url, count) as worker:
            drained = next_figures(worker)
            reads_after, commands_after = redis_counts(server)
            redis_cpu = machine.cpu_seconds([server.pid]) - redis_cpu
            figures["memory"] = machine.resident_mib(machine.descendants(worker.pid)[1:])
            run_role(candidate, "trickle", server.url, 0)
            waits = next_figures(worker)["waits"]
    assert isinstance(waits, list) and isinstance(drained["seconds"], float) and isinstance(drained["cpu"], float)
    percentiles = statistics.quantiles(waits, n=100)
    return figures | {
        "drain": count / drained["seconds"],
        "idle p50": percentiles[49] * 1000,
        "idle p99": percentiles[98] * 1000,
        "trips/job": (reads_after - reads) / count,
        "commands/job": (commands_after - commands) / count,
        "CPU": drained["cpu"] / count * 1000,
        "Redis CPU": redis_cpu / count * 1000,
    }


def measure_idle(candidate: Candidate) -> dict[str, float]:
    """Return the load of Redis by a worker without jobs, per second."""
    with RedisServer() as server, program(candidate, "work", server.url, 1):
        while not server.client().info("clients")["blocked_clients"]:
            time.sleep(0.1)
        reads, commands = redis_counts(server)
        time.sleep(IDLE_SECONDS)
        reads_after, commands_after = redis_counts(server)
    # Without the two calls of redis_counts itself.
    return {
        "trips/s": (reads_after - reads - 2) / IDLE_SECONDS,
        "commands/s": (commands_after - commands) / IDLE_SECONDS,
    }


def measure(rounds: int, count: int = COUNT, only: Sequence[str] = ()) -> Report:
    """Install the libraries and measure them; one that cannot be installed is left out."""
    report = Report("queue", machine=machine.describe())
    candidates = []
    for candidate in all_candidates():
        if only and candidate.name not in only:
            continue
        try:
            report.versions.append(f"{candidate.name}: {candidate.install()}")
            candidates.append(candidate)
        except CannotHave as error:
            report.notes.append(f"{candidate.name} is left out: {error}")
    what = (__doc__ or "").partition("\n\n")[2].replace("\n", " ").strip()
    drain = Comparison("Queue", what, COLUMNS, {candidate.name: candidate.remark for candidate in candidates})
    drain.measure({candidate.name: partial(measure_one, candidate, count) for candidate in candidates}, rounds)
    idle = Comparison("Idle worker", f"Over {IDLE_SECONDS} s.", [Column("trips/s"), Column("commands/s")])
    idle.measure({candidate.name: partial(measure_idle, candidate) for candidate in candidates[:1]}, 1)
    report.comparisons += [drain, idle]
    report.goals += goals(drain, idle, candidates)
    return report


def goals(drain: Comparison, idle: Comparison, candidates: Sequence[Candidate]) -> Iterator[Goal]:
    """Yield the goals and whether they are met."""
    others = [candidate.name for candidate in candidates if candidate.name != OURS]
    rivals = [candidate.name for candidate in candidates[1:] if candidate.is_python and candidate.acknowledges]
    for name, wanted in ((BULLMQ, 2), (best(drain, "drain", rivals, more_is_better=True), 5)):
        if name and (ratio := drain.ratio("drain", OURS, name)):
            yield Goal("drain", f">= {wanted} x {name}", f"{ratio:.2f} x", ratio >= wanted)
    for column in ("idle p50", "idle p99"):
        if quickest := best(drain, column, others, more_is_better=False):
            mine, theirs = drain.median(OURS, column) or 0.0, drain.median(quickest, column) or 0.0
            measured = f"{mine:.2f} ms, {quickest} {theirs:.2f} ms"
            yield Goal(column.replace("idle", "idle latency"), "below every peer's", measured, mine < theirs)
    for column, most in (("trips/job", 0.21), ("commands/job", 3.5)):
        value = drain.median(OURS, column) or 0.0
        yield Goal(column, f"<= {most}", show(value), value <= most)
    trips = idle.median(OURS, "trips/s") or 0.0
    inside = idle.median(OURS, "commands/s") or 0.0
    yield Goal("idle worker", "about 1 call a second", f"{trips:.1f}, {inside:.1f} with those in scripts", trips <= 1.2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.queue", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME")
    options = parser.parse_args()
    measure(options.rounds, options.count, options.only).print()


if __name__ == "__main__":
    main()
