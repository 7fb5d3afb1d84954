"""Workers while Redis is down, does not reply, or has no work for them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis import Redis
from tornado.ioloop import IOLoop

from pipeline.errors import DependencyUnavailable
from pipeline.queue.queue import JobQueue
from tests.integration.worker_jobs import waiting_for
from tests.redis_server import RedisServer
from tests.workers import Bench, Handler, nothing


@pytest.mark.gen_test(timeout=20)
async def test_job_ends_before_a_lease_that_cannot_be_renewed(io_loop: IOLoop) -> None:
    """While Redis is down the job is cancelled before its lease ends; later it is started a second time."""
    with RedisServer() as server:
        bench = Bench(server.url, lease_seconds=1)
        release = asyncio.Event()
        handler = Handler(waiting_for(release))
        bench.start(handler, lease_seconds=1, renew_seconds=0.1)
        await bench.enqueue(1)
        first = await handler.started.get()
        started_at = io_loop.time()
        server.stop()
        assert await handler.ended.get() == "cancelled"
        assert io_loop.time() - started_at < 1
        release.set()
        server.start()
        second = await handler.started.get()
        assert (second.id, second.attempt) == (first.id, 1)
        await bench.until(lambda stats: stats.completed == 1)
        await bench.close()


@pytest.mark.gen_test(timeout=20)
async def test_worker_goes_on_after_a_redis_restart(io_loop: IOLoop) -> None:
    """A worker claims jobs after a restart of Redis, also when it was idle in a blocking call."""
    with RedisServer() as server:
        bench = Bench(server.url, block_seconds=10)
        handler = Handler(nothing)
        reconnected = asyncio.Event()
        bench.start(handler, on_reconnect=reconnected.set)
        await bench.enqueue(1)
        await handler.started.get()
        # The loop is blocked while Redis is down, so the worker must be inside a call to see the restart.
        while not server.client().info("clients")["blocked_clients"]:
            await asyncio.sleep(0.01)
        server.stop()
        server.start()
        await reconnected.wait()
        await bench.queue.enqueue("ai-processing:after", {})
        assert (await handler.started.get()).id == "ai-processing:after"
        await bench.close()


@pytest.mark.gen_test(timeout=20)
async def test_claim_with_a_lost_reply_is_repeated_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of a step with a lost reply are claimed without a wait for the lease, with no spent attempt and no stall."""
    handler = Handler(nothing)
    step, replies_to_lose = JobQueue.step, [1]

    async def step_without_reply(queue: JobQueue, *arguments: Any) -> Any:
        done = await step(queue, *arguments)
        if done.claimed and replies_to_lose:
            replies_to_lose.pop()
            raise DependencyUnavailable("no reply")
        return done

    monkeypatch.setattr(JobQueue, "step", step_without_reply)
    ids = await bench.enqueue(3)
    bench.start(handler)
    jobs = [await handler.started.get() for _ in ids]
    assert [(job.id, job.attempt, job.stalls) for job in jobs] == [(job_id, 1, 0) for job_id in ids]


@pytest.mark.gen_test(timeout=20)
async def test_idle_worker_makes_few_calls_and_wakes_at_once(bench: Bench, redis_server: RedisServer) -> None:
    """An idle worker calls Redis about once a second, and a new job is started at once."""
    bench.queue_options["block_seconds"] = 2
    handler = Handler(nothing)
    bench.start(handler)
    client: Redis = redis_server.client()
    while not client.info("clients")["blocked_clients"]:
        await asyncio.sleep(0.01)
    before = calls(client)
    await asyncio.sleep(2.2)  # a little longer than one blocking call
    assert calls(client) - before <= 4
    await bench.enqueue(1)
    await handler.started.get()


def calls(client: Redis) -> int:
    """Return how many calls of workers this Redis has served."""
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval", "blpop"))
