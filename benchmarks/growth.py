"""The costs that may grow with jobs, assets and processes: python -m benchmarks.growth

The cost of a job with 0, 10^4 and 10^6 waiting jobs; the reads of the SQLite asset store with 10^3 and 10^6 assets, and
the reconciler that searches for 10,000 lost jobs among them (growth_store.py); one, two and four worker processes on
one Redis; a Redis Cluster of three masters beside a single server. The job does nothing; benchmarks/queue/ours.py
enqueues and runs it.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial

from benchmarks import machine
from benchmarks.comparison import Column, Comparison, Goal, Report
from benchmarks.growth_store import measure_store
from benchmarks.queue.candidates import all_candidates
from benchmarks.queue.suite import redis_counts, program, next_figures, run_role
from pipeline.queue.queue import JobQueue
from tests.redis_server import RedisCluster, RedisServer

WAITING = (0, 10_000, 1_000_000)
DRAINED = 5_000
CALLS = 200
SHARED = 20_000
OURS = all_candidates()[0]
JOB_COST = [
    Column("drain", "jobs/s", more_is_better=True),
    Column("enqueue", "jobs/s", more_is_better=True),
    Column("commands/job"),
    Column("CPU", "s per 1,000"),
    Column("Redis CPU", "s per 1,000"),
]


def drained(url: str, server: RedisServer) -> dict[str, float]:
    """Return the cost of DRAINED jobs that are enqueued behind the jobs that wait already.

    server: the one that has the queue.
    """
    enqueue = CALLS / run_role(OURS, "enqueue", url, CALLS)
    run_role(OURS, "bulk", url, DRAINED)
    _, commands = redis_counts(server)
    cpu = machine.cpu_seconds([server.pid])
    with program(OURS, "work", url, DRAINED) as worker:
        figures = next_figures(worker)
        _, commands_after = redis_counts(server)
        cpu = machine.cpu_seconds([server.pid]) - cpu
    assert isinstance(figures["seconds"], float) and isinstance(figures["cpu"], float)
    # Jobs that the worker runs before it is stopped are counted too: less than a hundredth.
    return {
        "drain": DRAINED / figures["seconds"],
        "enqueue": enqueue,
        "commands/job": (commands_after - commands) / DRAINED,
        "CPU": figures["cpu"] / DRAINED * 1000,
        "Redis CPU": cpu / DRAINED * 1000,
    }


def measure_waiting(report: Report, rounds: int) -> None:
    """Add the cost of a job by the number of waiting jobs."""
    comparison = Comparison("Cost of a job by how many wait", f"{DRAINED:,} more jobs are drained.", JOB_COST)
    report.comparisons.append(comparison)
    with ExitStack() as stack:
        servers = {count: stack.enter_context(RedisServer()) for count in WAITING}
        for count, server in servers.items():
            before = server.client().info("memory")["used_memory"]  # type: ignore[index]
            if count:
                run_role(OURS, "bulk", server.url, count)
                bytes_each = (server.client().info("memory")["used_memory"] - before) / count  # type: ignore[index]
                report.notes.append(f"A waiting job takes {bytes_each:,.0f} bytes of Redis (of {count:,}).")
        candidates = {f"{count:,}": partial(drained, server.url, server) for count, server in servers.items()}
        comparison.measure(candidates, rounds)
    empty, full = f"{WAITING[0]:,}", f"{WAITING[-1]:,}"
    costs = {name: sum(comparison.median(name, part) or 0.0 for part in ("CPU", "Redis CPU")) for name in (empty, full)}
    more = costs[full] / costs[empty] - 1
    ratio = comparison.ratio("drain", full, empty) or 0.0
    measured = f"CPU {more * 100:+.0f} %, drain x {ratio:.2f}"
    what, wanted = f"cost of a job with {full} waiting", "within 10 % of an empty queue"
    report.goals.append(Goal(what, wanted, measured, more <= 0.1))


def shared(count: int) -> dict[str, float]:
    """Return how fast that many worker processes drain one queue together."""
    with ExitStack() as stack, RedisServer() as server:
        run_role(OURS, "bulk", server.url, SHARED)
        asyncio.run(_call_queue(server.url, JobQueue.pause))
        workers = [stack.enter_context(program(OURS, "work", server.url, SHARED)) for _ in range(count)]
        while server.client().info("clients")["blocked_clients"] < count:  # type: ignore[index]
            time.sleep(0.01)
        pids = [pid for worker in workers for pid in machine.descendants(worker.pid)]
        cpu = machine.cpu_seconds(pids)
        started_at = time.perf_counter()
        asyncio.run(_call_queue(server.url, JobQueue.resume))
        while server.client().zcard("pipeline:{ai-processing}:completed") < SHARED:
            time.sleep(0.005)
        seconds = time.perf_counter() - started_at
        cpu = machine.cpu_seconds(pids) - cpu
    return {"drain": SHARED / seconds, "CPU": cpu / SHARED * 1000}


async def _call_queue(url: str, method: Callable[[JobQueue], Awaitable[None]]) -> None:
    queue = JobQueue(url)
    await method(queue)
    await queue.close()


def on_cluster() -> dict[str, float]:
    """Return the cost of a job on a cluster whose address is that of a server without the queue."""
    with RedisCluster("--appendonly", "yes") as cluster:
        owner = cluster.owner("pipeline:{ai-processing}:waiting")
        other = next(server for server in cluster.servers if server is not owner)
        return drained(other.url, owner)


def on_one_server() -> dict[str, float]:
    """Return the cost of a job on a server that is in no cluster."""
    with RedisServer() as server:
        return drained(server.url, server)


def measure(rounds: int) -> Report:
    """Measure all parts."""
    report = Report("growth", machine=machine.describe())
    measure_waiting(report, rounds)
    measure_store(report, rounds)
    columns = [Column("drain", "jobs/s", more_is_better=True), Column("CPU", "s per 1,000")]
    together = Comparison("Worker processes on one Redis", f"{SHARED:,} no-op jobs; five slots each.", columns)
    together.measure({f"{count}": partial(shared, count) for count in (1, 2, 4)}, rounds)
    cluster = Comparison("Redis Cluster", "Three masters; the queue is on one of them.", JOB_COST)
    cluster.measure({"one server": on_one_server, "three masters": on_cluster}, rounds)
    report.comparisons += [together, cluster]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.growth", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    measure(parser.parse_args().rounds).print()


if __name__ == "__main__":
    main()
