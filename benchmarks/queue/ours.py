"""Our job queue with the roles of noop_job.py."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

import structlog

from benchmarks.queue.noop_job import GAP_SECONDS, PAYLOAD, SLOTS, TRICKLE, JobCounter, print_figures, stamped_payload
from pipeline.metrics import Metrics
from pipeline.queue.attempt import RetryPolicy
from pipeline.queue.job import Job, NewJob
from pipeline.queue.queue import JobQueue
from pipeline.queue.worker import Worker

BATCH = 1000
IDS = (f"ai-processing:{number:024x}" for number in itertools.count(time.time_ns()))


class Noop:
    """A JobHandler that only counts."""

    def __init__(self, counter: JobCounter) -> None:
        self._counter = counter

    async def process(self, job: Job) -> None:
        self._counter.count(dict(job.data))

    async def commit(self, job: Job, result: Any) -> None:
        return None

    async def give_up(self, job: Job, message: str) -> None:
        return None

    async def refund_attempt(self, job: Job) -> None:
        return None

    def describe(self, job: Job) -> Mapping[str, str]:
        return {}


async def main(role: str, url: str, count: int) -> None:
    # As in production, but without log lines below warnings.
    level = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(wrapper_class=level, cache_logger_on_first_use=True)
    queue = JobQueue(url)
    if role == "work":
        Worker(queue, Noop(JobCounter(count)), RetryPolicy(), Metrics(), concurrency=SLOTS).start()
        await asyncio.Event().wait()
    started_at = time.perf_counter()
    if role == "enqueue":
        for _ in range(count):
            await queue.enqueue(next(IDS), PAYLOAD)
    elif role == "bulk":
        jobs = [NewJob(next(IDS), PAYLOAD) for _ in range(count)]
        for first in range(0, count, BATCH):
            await queue.restore(jobs[first : first + BATCH])
    print_figures(seconds=time.perf_counter() - started_at)
    if role == "trickle":
        for _ in range(TRICKLE):
            await queue.enqueue(next(IDS), stamped_payload())
            await asyncio.sleep(GAP_SECONDS)
    await queue.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
