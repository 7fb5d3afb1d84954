"""Jobs that tests of the queue enqueue, finish and restore."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.queue.job import Finish, Job, NewJob, Outcome
from pipeline.queue.queue import JobQueue

DATA = {
    "assetId": "65a1b2c3d4e5f60718293a4b",
    "userId": "user-1",
    "imageUrl": "https://images.example.com/a.jpg",
    "category": "sneaker",
    "createdAt": "2026-01-31T12:00:00.000Z",
}
HOUR_MS = 3_600_000


async def enqueue(queue: JobQueue, *numbers: int) -> list[str]:
    """Enqueue a job for each number, and return the ids."""
    ids = [f"ai-processing:{number:024x}" for number in numbers]
    for job_id in ids:
        assert await queue.enqueue(job_id, DATA, request_id="r-1")
    return ids


async def states(queue: JobQueue, ids: list[str]) -> list[str | None]:
    return [(await queue.fields(job_id)).get("state") for job_id in ids]


def ids_of(jobs: list[Job]) -> list[str]:
    return [job.id for job in jobs]


def refund(job: Job, **fields: Any) -> Finish:
    """Return a finish that retries the job and refunds its attempt."""
    return Finish(job, Outcome.RETRY, refunds_attempt=True, **fields)


async def enqueue_for(queue: JobQueue, user: str, *numbers: int) -> list[str]:
    """Enqueue a job in the user's group for each number, and return the ids."""
    ids = [f"ai-processing:{number:024x}" for number in numbers]
    for job_id in ids:
        assert await queue.enqueue(job_id, DATA, group=user)
    return ids


def new_jobs(*ids: str) -> list[NewJob]:
    return [NewJob(job_id, DATA) for job_id in ids]


@pytest.fixture
def queue(io_loop: IOLoop, redis_url: str) -> Iterator[JobQueue]:
    """A queue on the shared Redis."""
    queue = JobQueue(redis_url, lease_seconds=15, block_seconds=1)
    yield queue
    io_loop.run_sync(queue.close)
