"""Jobs that are claimed before a slot is free: only while jobs are very quick, and none waits behind a slow job."""

from __future__ import annotations

import asyncio

import pytest
from redis import Redis

from pipeline.hold import BACKGROUND
from pipeline.queue.prefetch import PREFETCH_AT_MOST, LATE_SECONDS, REMEMBERED, Prefetch
from pipeline.queue.job import Job
from tests.workers import Bench, Handler, nothing


@pytest.mark.parametrize(
    ("seconds", "running", "count"),
    [(0, 0, PREFETCH_AT_MOST), (0.005, 0, 10), (0.02, 0, 2), (0.051, 0, 0), (0, 0.02, 2), (0, 0.06, 0)],
)
def test_only_jobs_that_start_within_10_ms_are_claimed_ahead(seconds: float, running: float, count: int) -> None:
    """The estimate is the slowest of the last jobs and of the running jobs."""
    ahead = Prefetch(5)
    ahead.ended(seconds)
    for _ in range(REMEMBERED - 2):
        ahead.ended(0.0)
    assert ahead.count(0) == 0, "too few jobs have ended"
    ahead.ended(0.0)
    assert ahead.count(running) == count
    for _ in range(REMEMBERED):
        ahead.ended(0.0)
    assert ahead.count(0) == PREFETCH_AT_MOST


@pytest.mark.gen_test(timeout=20)
async def test_slow_jobs_never_wait_in_memory(bench: Bench) -> None:
    """A worker with five slots never has more than five slow jobs."""
    most = 0

    async def work(job: Job) -> None:
        nonlocal most
        await asyncio.sleep(0.06)
        most = max(most, (await bench.queue.stats()).active)

    bench.start(Handler(work))
    await bench.enqueue(60)
    await bench.until(lambda stats: stats.completed == 60)
    assert most == 5


@pytest.mark.gen_test(timeout=20)
async def test_jobs_behind_slow_ones_are_given_back(bench: Bench) -> None:
    """After a hundred quick jobs come slow ones: the jobs claimed ahead go back to the queue.

    They start in their order and have lost no attempt.
    """
    release = asyncio.Event()

    async def work(job: Job) -> None:
        if int(job.data["n"].rpartition(":")[2], 16) >= 100:
            await release.wait()

    handler = Handler(work)
    ids = await bench.enqueue(130)
    bench.start(handler)
    started = [await handler.started.get() for _ in range(105)]
    await bench.until(lambda stats: (stats.active, stats.waiting) == (5, 25))
    await asyncio.sleep(2 * LATE_SECONDS)  # nothing more is claimed meanwhile
    assert (await bench.queue.stats()).active == 5
    release.set()
    started += [await handler.started.get() for _ in range(25)]
    assert [job.id for job in started] == ids
    assert {job.attempt for job in started} == {1} and {job.stalls for job in started} == {0}
    await bench.until(lambda stats: stats.completed == 130)


@pytest.mark.gen_test(timeout=20)
async def test_two_workers_share_quick_jobs(bench: Bench) -> None:
    """Each job starts once. A drain gives back the jobs that were claimed ahead and have not started."""
    handlers = [Handler(nothing), Handler(nothing)]
    workers = [bench.start(handler)[0] for handler in handlers]
    await bench.enqueue(500)
    await handlers[0].started.get()
    await workers[0].drain(5)
    await bench.until(lambda stats: stats.completed == 500 and stats.active == 0)
    assert handlers[0].started.qsize() + 1 + handlers[1].started.qsize() == 500


@pytest.mark.gen_test(timeout=20)
async def test_background_jobs_are_not_claimed_ahead(bench: Bench) -> None:
    """Also while background jobs are quick, one slot stays free for other jobs."""
    most = 0

    async def work(job: Job) -> None:
        nonlocal most
        await asyncio.sleep(0)
        most = max(most, handler.running)

    handler = Handler(work)
    for number in range(200):
        await bench.queue.enqueue(f"ai-processing:{number:024x}", {}, group=BACKGROUND)
    bench.start(handler)
    await bench.until(lambda stats: stats.completed == 200)
    assert most <= 4


@pytest.mark.gen_test(timeout=20)
async def test_quick_jobs_need_few_calls(bench: Bench, redis: Redis) -> None:
    """Jobs that are claimed ahead share one call of Redis."""
    await bench.enqueue(1000)
    redis.config_resetstat()
    bench.start(Handler(nothing))
    while redis.zcard("pipeline:{ai-processing}:completed") < 1000:
        await asyncio.sleep(0.01)
    stats = redis.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] / 1000 <= 0.1  # type: ignore[index]
