"""The cost of the counters behind the console's charts, per job, and the cost of reading a chart.

    python -m benchmarks.charts [--jobs 100000] [--rounds 7] [--processes 20]

Prints the microseconds per job (all five calls that a job makes), the milliseconds of one write, which happens every 15
seconds, and the milliseconds to read each chart after --processes processes were busy for a week. Each figure is the
median of the rounds, with the lowest and the highest. The store is SQLite in a temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import cast

from pipeline.assets.asset import AssetStatus
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import Record
from pipeline.clock import utc_now
from pipeline.instants import instant_of
from pipeline.queue.job import Finish, Job, Outcome
from pipeline.queue.queue import JobQueue
from pipeline.usecases.job_statistics import RETENTION_SECONDS, WINDOWS, JobStatistics

JOB = Job("ai-processing:1", {}, 1, 0, "lease", enqueued_at_ms=0, claimed_at_ms=1234)
RETRY, DONE = Finish(JOB, Outcome.RETRY), Finish(JOB, Outcome.COMPLETED)
# One process's counts of an hour, with more buckets than most processes have.
BUSY = {"enqueued": 900, "completed": 900, "waits": {n: 30 for n in range(30)}, "runs": {n: 30 for n in range(30)}}


def count_job(job_statistics: JobStatistics) -> None:
    """Make all counter calls of one job with two attempts."""
    job_statistics.count_enqueued()
    job_statistics.count_start(JOB)
    job_statistics.count_attempt(RETRY, 1.5)
    job_statistics.count_attempt(DONE, 0.7)
    job_statistics.count_end(AssetStatus.ACTIVE)


def counting(job_statistics: JobStatistics, jobs: int) -> float:
    """Return the microseconds to count one job."""
    started_at = perf_counter()
    for _ in range(jobs):
        count_job(job_statistics)
    return (perf_counter() - started_at) / jobs * 1e6


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Return the milliseconds of one call."""
    started_at = perf_counter()
    await work()
    return (perf_counter() - started_at) * 1000


async def fill(store: SqliteAssetStore, processes: int) -> None:
    """Write the counts of that many busy processes for the whole time that counts are kept."""
    now = int(utc_now().timestamp())
    for step, seconds in RETENTION_SECONDS.items():
        for number in range(seconds // step):
            at = instant_of((now // step - number) * step * 1000)
            records = [Record(f"tally {step}", f"{number}-{process}", at, BUSY) for process in range(processes)]
            await asyncio.gather(*map(store.put_record, records))


async def measure(folder: Path, jobs: int, rounds: int, processes: int) -> dict[str, list[float]]:
    """Return the figures of all rounds, by the name of the measurement."""
    store = SqliteAssetStore(folder / "assets.sqlite")
    await store.open()
    await fill(store, processes)
    results: dict[str, list[float]] = {}
    for _ in range(rounds):
        job_statistics = JobStatistics(store, cast(JobQueue, None))
        results.setdefault("counting one job, us", []).append(counting(job_statistics, jobs))
        results.setdefault("one writing, ms", []).append(await timed(job_statistics.write))
        for window in WINDOWS:
            name = f"reading {window}, {processes} processes, ms"
            results.setdefault(name, []).append(await timed(partial(job_statistics.chart, window)))
    await store.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.charts", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processes", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = asyncio.run(measure(Path(folder), options.jobs, options.rounds, options.processes))
    for name, figures in results.items():
        print(f"{name:40} {statistics.median(figures):8.1f}  ({min(figures):.1f} - {max(figures):.1f})")


if __name__ == "__main__":
    main()
