"""The cost of single steps on this machine, in any service: python -m benchmarks.floor

Measured one by one: a Redis round trip on the event loop, a commit to SQLite with fsync (WAL, synchronous=FULL), a file
of 100 KB written with fsync and renamed, and a call in a thread. A service that waits for these steps cannot be faster
than they are, nor cost less CPU.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from redis.asyncio import Redis

from benchmarks import machine
from benchmarks.comparison import Column, Comparison, Report
from tests.redis_server import RedisServer

CALLS = 1_000
IMAGE = secrets.token_bytes(100_000)
COLUMNS = [
    Column("p50", "ms"),
    Column("p99", "ms"),
    Column("per second", more_is_better=True),
    Column("CPU", "ms"),
]


async def figures(call: Callable[[], Awaitable[object]], *pids: int) -> dict[str, float]:
    """Return the milliseconds of a call, the calls per second, and the CPU milliseconds of a call.

    pids: other processes whose CPU counts too.
    """
    waits = []
    measured = [os.getpid(), *pids]
    cpu = machine.cpu_seconds(measured)
    for _ in range(CALLS):
        began_at = time.perf_counter()
        await call()
        waits.append(1000 * (time.perf_counter() - began_at))
    cpu = machine.cpu_seconds(measured) - cpu
    percentiles = statistics.quantiles(waits, n=100)
    rate = 1000 * CALLS / sum(waits)
    return {"p50": percentiles[49], "p99": percentiles[98], "per second": rate, "CPU": 1000 * cpu / CALLS}


def redis_round_trip() -> dict[str, float]:
    async def run() -> dict[str, float]:
        with RedisServer("--appendonly", "yes") as server:
            async with Redis.from_url(server.url) as client:
                return await figures(lambda: client.set("key", "value"), server.pid)

    return asyncio.run(run())


def sqlite_commit() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        database = sqlite3.connect(f"{folder}/floor.db", isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE assets (id TEXT PRIMARY KEY, document TEXT) WITHOUT ROWID")

        async def insert() -> None:
            database.execute("INSERT INTO assets VALUES (?, ?)", (secrets.token_hex(12), "x" * 600))

        try:
            return asyncio.run(figures(insert))
        finally:
            database.close()


def stored_file() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        handle = os.open(folder, os.O_RDONLY)

        async def store() -> None:
            path = Path(folder, secrets.token_hex(8))
            with path.open("wb") as file:
                file.write(IMAGE)
                file.flush()
                os.fsync(file.fileno())
            path.rename(path.with_suffix(".png"))
            os.fsync(handle)

        try:
            return asyncio.run(figures(store))
        finally:
            os.close(handle)


def thread_hop() -> dict[str, float]:
    return asyncio.run(figures(lambda: asyncio.to_thread(int)))


def measure(rounds: int) -> Report:
    """Measure each step."""
    report = Report("floor", machine=machine.describe())
    what = f"{CALLS:,} calls one after the other, nothing else runs. CPU: of the caller, and of Redis."
    comparison = Comparison("What single steps cost", what, COLUMNS)
    steps = {
        "Redis round trip (SET)": redis_round_trip,
        "SQLite commit, on the disk": sqlite_commit,
        "file of 100 KB, on the disk": stored_file,
        "to a thread and back": thread_hop,
    }
    comparison.measure(steps, rounds)
    report.comparisons.append(comparison)
    return report


if __name__ == "__main__":
    measure(3).print()
