"""Several processes on one port, with one Redis and one SQLite file: python -m benchmarks.processes

1, 2 and 4 processes with REUSE_PORT; 2,000 uploads of 100 KB over 32 connections, to the last event. The CPU shares of
the parts show the bottleneck: where all cores are busy, it is the cores. The kernel chooses a process for each
connection. Linux only.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks import machine
from benchmarks.comparison import Column, Comparison, Report
from benchmarks.uploads.suite import SMALL, Running, drive
from tests.redis_server import RedisServer
from tests.service import AiService, Service
from tests.toxiproxy import free_port

UPLOADS = 2_000
COLUMNS = [
    Column("accepted", "/s", more_is_better=True),
    Column("end to end", "/s", more_is_better=True),
    Column("busy", "% of the cores"),
    Column("services", "% of a core"),
    Column("Redis", "% of a core"),
    Column("CPU", "ms per photo"),
    Column("least of one", "% of the jobs"),
]


def measure_one(count: int) -> dict[str, float]:
    """Return the figures of that many processes."""
    with ExitStack() as stack:
        ai_service = stack.enter_context(AiService(delay_ms=5))
        redis = stack.enter_context(RedisServer("--appendonly", "yes"))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        settings = {"REDIS_URL": redis.url, "PORT": str(free_port()), "REUSE_PORT": "true", "LOG_FORMAT": "json"}
        services = [Service(folder, ai_service.url, SHUTDOWN_SECONDS="1", **settings) for _ in range(count)]
        for service in services:
            service.start()
            stack.callback(service.kill)
        running = Running(int(settings["PORT"]), services[0].pid)
        drive(running, "events", 200, image=20_000)
        pids = [service.pid for service in services]
        before = [len(service.find("job_completed")) for service in services]
        cpu, redis_cpu = machine.cpu_seconds(pids), machine.cpu_seconds([redis.pid])
        busy, began_at = machine.busy_seconds(), time.monotonic()
        times = drive(running, "events", UPLOADS, image=SMALL)
        seconds = time.monotonic() - began_at
        busy = machine.busy_seconds() - busy
        cpu, redis_cpu = machine.cpu_seconds(pids) - cpu, machine.cpu_seconds([redis.pid]) - redis_cpu
        for service, jobs in zip(services, before, strict=True):
            service.wait_status(waiting=0, active=0)
        done = [len(service.find("job_completed")) - jobs for service, jobs in zip(services, before, strict=True)]
    return {
        "accepted": UPLOADS / times["accepted"],
        "end to end": UPLOADS / times["total"],
        "busy": 100 * busy / seconds / (os.cpu_count() or 1),
        "services": 100 * cpu / seconds,
        "Redis": 100 * redis_cpu / seconds,
        "CPU": 1000 * (cpu + redis_cpu) / UPLOADS,
        "least of one": 100 * min(done) / max(1, sum(done)),
    }


def measure(rounds: int) -> Report:
    """Measure one, two and four processes."""
    report = Report("processes", machine=machine.describe())
    what = f"{UPLOADS:,} uploads of 100 KB over 32 connections to one port (REUSE_PORT), to the last event."
    comparison = Comparison("Processes on one port", what, COLUMNS)
    candidates = {f"{count} process{'es' * (count > 1)}": partial(measure_one, count) for count in (1, 2, 4)}
    comparison.measure(candidates, rounds)
    report.comparisons.append(comparison)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.processes", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    measure(parser.parse_args().rounds).print()


if __name__ == "__main__":
    main()
