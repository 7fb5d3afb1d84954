"""No-op jobs through the whole job loop, and what each costs Redis: python -m benchmarks.queue_drain

A real Redis, one Worker with five slots in this process, a payload of about 300 bytes. Prints jobs a second while
10,000 waiting jobs are drained, CPU seconds of this process per 1,000 jobs, calls to and commands inside Redis per job
(counts do not wobble with the machine), and how long a single job waits on an idle queue. Compare ratios of runs on one
machine only.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
import time
from collections.abc import Mapping
from typing import Any

import structlog

from pipeline.metrics import Metrics
from pipeline.queue.job import Job, RetryPolicy
from pipeline.queue.queue import JobQueue
from pipeline.queue.worker import Worker
from tests.redis_server import RedisServer

PAYLOAD = {
    "assetId": "0" * 24,
    "userId": "user-1",
    "imageUrl": "https://images.example/" + "x" * 140,
    "category": "lego",
}
IDLE_JOBS = 100
IDLE_GAP_SECONDS = 0.02


class Nothing:
    """A handler that does nothing but tell when all jobs are done, and how long each waited."""

    def __init__(self) -> None:
        self.left = 0
        self.is_done = asyncio.Event()
        self.enqueued_at: dict[str, float] = {}
        self.waits: list[float] = []

    async def process(self, job: Job) -> None:
        if job.id in self.enqueued_at:
            self.waits.append(time.perf_counter() - self.enqueued_at[job.id])
        self.left -= 1
        if not self.left:
            self.is_done.set()

    async def commit(self, job: Job, result: Any) -> None:
        return None

    async def give_up(self, job: Job, message: str) -> None:
        return None

    async def excuse(self, job: Job) -> None:
        return None

    def describe(self, job: Job) -> Mapping[str, str]:
        return {}


def count_commands(server: RedisServer) -> tuple[int, int]:
    """Return how many calls clients have made and how many commands Redis has run, those inside scripts included."""
    stats: dict[str, dict[str, int]] = server.client().info("commandstats")  # type: ignore[assignment]
    calls = {name.removeprefix("cmdstat_"): figures["calls"] for name, figures in stats.items()}
    return calls.get("evalsha", 0) + calls.get("blpop", 0), sum(calls.values()) - calls.get("info", 0)


async def measure(server: RedisServer, count: int) -> dict[str, float]:
    server.client().flushall()
    queue, metrics, handler = JobQueue(server.url), Metrics(), Nothing()
    for number in range(count):
        await queue.enqueue(f"ai-processing:{number:024x}", PAYLOAD)
    handler.left = count
    worker = Worker(queue, handler, RetryPolicy(), metrics)
    calls, commands = count_commands(server)
    started_at, cpu = time.perf_counter(), time.process_time()
    worker.start()
    await handler.is_done.wait()
    seconds, cpu = time.perf_counter() - started_at, time.process_time() - cpu
    while (await queue.stats()).completed < count:
        await asyncio.sleep(0.001)
    calls_after, commands_after = count_commands(server)
    for number in range(IDLE_JOBS):
        await asyncio.sleep(IDLE_GAP_SECONDS)
        job_id = f"ai-processing:{count + number:024x}"
        handler.enqueued_at[job_id] = time.perf_counter()
        await queue.enqueue(job_id, PAYLOAD)
    while len(handler.waits) < IDLE_JOBS:
        await asyncio.sleep(0.01)
    await worker.drain(1)
    await queue.close()
    waits = statistics.quantiles(handler.waits, n=100)
    return {
        "jobs/s": count / seconds,
        "CPU s/1000": cpu / count * 1000,
        "calls/job": (calls_after - calls) / count,
        "commands/job": (commands_after - commands) / count,
        "idle p50 ms": waits[49] * 1000,
        "idle p99 ms": waits[98] * 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    # As in production, less the writing of the log.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with RedisServer() as server:
        for number in range(options.runs):
            result = asyncio.run(measure(server, options.count))
            print(
                f"run {number + 1}: " + "  ".join(f"{name} {value:.3g}" for name, value in result.items()), flush=True
            )


if __name__ == "__main__":
    main()
