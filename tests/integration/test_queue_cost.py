"""The number of calls and commands that a job costs in Redis.

Counts do not vary with the machine, so these tests limit them; times are measured in benchmarks/.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from redis import Redis

from pipeline.metrics import Metrics
from pipeline.queue.attempt import RetryPolicy
from pipeline.queue.job import Job, NewJob
from pipeline.queue.queue import JobQueue
from pipeline.queue.worker import Worker
from tests.redis_server import RedisServer
from tests.workers import Handler, nothing

JOBS = 1000


@pytest.fixture
def redis(own_redis: RedisServer) -> Iterator[Redis]:
    yield own_redis.client()


def counts(redis: Redis) -> tuple[int, int]:
    """Return how many calls clients made and how many commands Redis ran, those inside scripts included."""
    stats: dict[str, dict[str, int]] = redis.info("commandstats")  # type: ignore[assignment]
    commands = sum(figures["calls"] for name, figures in stats.items() if "info" not in name and "zcard" not in name)
    calls = sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "blpop"))
    return calls, commands


@pytest.mark.parametrize(("group", "most"), [("", 4), ("user-1", 7)])
@pytest.mark.gen_test(timeout=60)
async def test_job_costs_few_calls_and_commands(own_redis: RedisServer, redis: Redis, group: str, most: int) -> None:
    """With five slots one call acknowledges five jobs and claims five, with single commands for all of them."""
    queue = JobQueue(own_redis.url)
    await queue.restore([NewJob(f"ai-processing:{number:024x}", {"n": number}, group=group) for number in range(JOBS)])
    done = asyncio.Event()
    seen = 0

    async def work(job: Job) -> None:
        nonlocal seen
        seen += 1
        if seen == JOBS:
            done.set()

    worker = Worker(queue, Handler(work), RetryPolicy(), Metrics())
    calls, commands = counts(redis)
    worker.start()
    await done.wait()
    while redis.zcard("pipeline:{ai-processing}:completed") < JOBS:
        await asyncio.sleep(0.01)
    calls_after, commands_after = counts(redis)
    assert (calls_after - calls) / JOBS <= 0.25
    assert (commands_after - commands) / JOBS <= most
    await worker.drain(1)
    await queue.close()


@pytest.mark.gen_test(timeout=60)
async def test_completed_job_leaves_its_id_and_nothing_else(own_redis: RedisServer, redis: Redis) -> None:
    """Redis stores the id of a completed job, not its payload."""
    queue = JobQueue(own_redis.url)
    await queue.restore([NewJob(f"ai-processing:{number:024x}", {"n": "x" * 300}) for number in range(50)])
    worker = Worker(queue, Handler(nothing), RetryPolicy(), Metrics())
    worker.start()
    while redis.zcard("pipeline:{ai-processing}:completed") < 50:
        await asyncio.sleep(0.01)
    assert {key.rpartition(":")[2] for key in redis.keys("*")} <= {"completed", "wake"}
    await worker.drain(1)
    await queue.close()
