"""Faults of Redis, of the clock and of handlers under the job loop: work resumes by itself, and no job is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.errors import DependencyUnavailable
from pipeline.queue.job import Finish, Job, Outcome
from pipeline.queue.queue import JobQueue
from tests.slowdown import slowdown
from tests.redis_server import RedisServer
from tests.workers import Bench, Handler, count, nothing

HOUR_MS = 3_600_000


@pytest.fixture
def bench(io_loop: IOLoop, own_redis: RedisServer) -> Iterator[Bench]:
    bench = Bench(own_redis.url)
    yield bench
    io_loop.run_sync(bench.close)


async def until_check(worker: Any, is_ready: bool) -> None:
    """Return once the worker's own check passes, or fails if `is_ready` is false."""
    while True:
        try:
            await worker.check()
            if is_ready:
                return
        except DependencyUnavailable:
            if not is_ready:
                return
        await asyncio.sleep(0.01)


@pytest.mark.gen_test(timeout=30)
async def test_foreign_owner_cannot_change_a_job(bench: Bench) -> None:
    """A process without the lease cannot finish, fail, retry, release or renew the job."""
    await bench.enqueue(1)
    (job,) = (await bench.queue.step("owner:1", [], 1)).claimed
    before = await bench.queue.fields(job.id)
    for foreign in (f"{job.id}|other:1", f"{job.id}|owner:2", f"{job.id}|"):
        claim = Job(job.id, {}, 1, 0, foreign, 0, 0)
        for number, outcome in enumerate(Outcome):
            step = await bench.queue.step(f"other:{foreign}:{number}", [Finish(claim, outcome, error="stolen")], 0)
            assert step.lost == [foreign]
        assert (await bench.queue.renew([foreign])).lost == [foreign]
    assert await bench.queue.release_unknown("other", []) == 0
    assert await bench.queue.fields(job.id) == before
    assert (await bench.queue.stats()).active == 1


@pytest.mark.gen_test(timeout=30)
async def test_blocked_loop_loses_its_leases(bench: Bench) -> None:
    """A handler that blocks its loop loses the lease: another worker takes over, and the late result is refused."""
    bench.queue_options["lease_seconds"] = 0.5
    blocked, release = threading.Event(), threading.Event()

    async def block(job: Job) -> None:
        blocked.set()
        release.wait(20)

    late = Handler(block)
    outcome: dict[str, float] = {}

    def run_late_worker() -> None:
        async def main() -> None:
            late_bench = Bench(bench.url, **bench.queue_options)
            _, metrics = late_bench.start(late, lease_seconds=0.5, renew_seconds=0.1, concurrency=1)
            while not count(metrics, "pipeline_jobs_finished_total", outcome="lost"):
                await asyncio.sleep(0.01)
            outcome["lost"] = count(metrics, "pipeline_jobs_finished_total", outcome="lost")
            outcome["completed"] = count(metrics, "pipeline_jobs_finished_total", outcome="completed")
            await late_bench.close()

        asyncio.run(main())

    thread = threading.Thread(target=run_late_worker, daemon=True)
    thread.start()
    await bench.enqueue(1)
    await asyncio.to_thread(blocked.wait, 20)
    handler = Handler(nothing)
    bench.start(handler, lease_seconds=0.5, renew_seconds=0.1)
    assert (await handler.started.get()).stalls == 1
    await bench.until(lambda stats: stats.completed == 1)
    release.set()
    await asyncio.to_thread(thread.join)
    assert outcome == {"lost": 1, "completed": 0}


@pytest.mark.gen_test(timeout=30)
async def test_shutdown_of_an_idle_worker_loses_no_job(bench: Bench) -> None:
    """A worker that waits on the empty queue stops at once, and another worker gets the next jobs."""
    bench.queue_options["block_seconds"] = 5
    handler = Handler(nothing)
    idle, _ = bench.start(handler)
    redis = own_client(bench)
    while not redis.info("clients")["blocked_clients"]:
        await asyncio.sleep(0.01)
    started_at = time.monotonic()
    await idle.drain(5)
    assert time.monotonic() - started_at < 2 * slowdown()
    ids = await bench.enqueue(20)
    bench.start(handler)
    assert [(await handler.started.get()).id for _ in ids] == ids


def own_client(bench: Bench) -> Any:
    from redis import Redis

    return Redis.from_url(bench.url, decode_responses=True)


@pytest.mark.gen_test(timeout=30)
async def test_redis_down_longer_than_a_blocking_call(bench: Bench, own_redis: RedisServer) -> None:
    """Jobs from before and after the outage are done; the check fails in between."""
    handler = Handler(nothing)
    worker, _ = bench.start(handler)
    await bench.enqueue(3)
    await bench.until(lambda stats: stats.completed == 3)
    own_redis.stop()
    await until_check(worker, is_ready=False)
    await asyncio.sleep(1)  # the length matters: five times a blocking call
    own_redis.start()
    await until_check(worker, is_ready=True)
    await bench.queue.enqueue("ai-processing:after", {})
    await bench.until(lambda stats: stats.completed == 4)


@pytest.mark.gen_test(timeout=40)
async def test_dropped_connections_lose_and_repeat_no_job(bench: Bench, own_redis: RedisServer) -> None:
    """All connections are cut six times while 300 jobs run: each is committed, and none is given up."""
    committed: list[str] = []

    async def work(job: Job) -> None:
        await asyncio.sleep(0.02)  # so that the jobs run while connections are cut

    async def keep(job: Job) -> None:
        committed.append(job.id)

    handler = Handler(work, keep)
    bench.start(handler)
    ids = await bench.enqueue(300)
    await handler.started.get()
    for _ in range(6):
        await asyncio.sleep(0.4)  # spread over the time the jobs take
        own_redis.client().execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await settled(bench, 300)
    assert set(committed) == set(ids) and handler.given_up.empty()


async def settled(bench: Bench, completed: int) -> None:
    """Return once so many jobs are completed, over connections that may be cut."""
    while True:
        try:
            if (await bench.queue.stats()).completed == completed:
                return
        except DependencyUnavailable:
            pass
        await asyncio.sleep(0.05)


@pytest.mark.gen_test(timeout=60)
async def test_paused_redis_is_noticed_and_survived(bench: Bench, own_redis: RedisServer) -> None:
    """During a CLIENT PAUSE longer than any timeout the check fails; afterwards all jobs are done."""
    handler = Handler(nothing)
    worker, _ = bench.start(handler)
    await bench.enqueue(3)
    await bench.until(lambda stats: stats.completed == 3)
    own_redis.client().execute_command("CLIENT", "PAUSE", 12_000, "ALL")
    await until_check(worker, is_ready=False)
    await until_check(worker, is_ready=True)
    await bench.queue.enqueue("ai-processing:after", {})
    await bench.until(lambda stats: stats.completed == 4)


@pytest.mark.gen_test(timeout=60)
async def test_stopped_redis_is_noticed_and_survived(bench: Bench, own_redis: RedisServer) -> None:
    """While Redis is connected but silent, running jobs end before their leases do; later they run again."""
    bench.queue_options["lease_seconds"] = 2
    release = asyncio.Event()

    async def work(job: Job) -> None:
        await release.wait()

    handler = Handler(work)
    worker, _ = bench.start(handler, lease_seconds=2, renew_seconds=0.5)
    await bench.enqueue(1)
    await handler.started.get()
    os.kill(own_redis.pid, signal.SIGSTOP)
    try:
        assert await handler.ended.get() == "cancelled"
        await until_check(worker, is_ready=False)
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)
    release.set()
    await bench.until(lambda stats: stats.completed == 1)


@pytest.mark.gen_test(timeout=30)
async def test_blocking_call_that_never_returns_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that hangs without an error delays an idle worker by seconds, not for ever."""
    hung = asyncio.Event()

    async def never(*_: Any, **__: Any) -> None:
        hung.set()
        await asyncio.Event().wait()

    handler = Handler(nothing)
    bench.start(handler)
    blocking = bench.queues[-1]._blocking
    original = blocking._open_link
    monkeypatch.setattr(blocking, "_call_seconds", 0.5)
    monkeypatch.setattr(blocking, "_open_link", never)
    await hung.wait()
    await bench.enqueue(1)
    await handler.started.get()
    monkeypatch.setattr(blocking, "_open_link", original)


@pytest.mark.gen_test(timeout=30)
@pytest.mark.parametrize("jump_ms", [HOUR_MS, -HOUR_MS])
async def test_clock_jump_of_an_hour_stops_nothing(bench: Bench, jump_ms: int) -> None:
    """The clock of Redis moves by an hour while jobs run, wait, and wait for their retry: all are done soon."""
    bench.queue_options["lease_seconds"] = 1
    release, failed = asyncio.Event(), set[str]()

    async def work(job: Job) -> None:
        if job.id.endswith("3") and job.id not in failed:
            failed.add(job.id)
            raise ValueError("once")
        await release.wait()

    handler = Handler(work)
    bench.start(handler, lease_seconds=1, renew_seconds=0.1)
    await bench.enqueue(12)
    for _ in range(6):
        await handler.started.get()
    for queue in bench.queues:
        queue.clock_offset_ms += jump_ms
    release.set()
    stats = await bench.until(lambda stats: stats.completed == 12)
    assert (stats.failed, stats.waiting, stats.delayed, stats.active) == (0, 0, 0, 0)


@pytest.mark.gen_test(timeout=30)
@pytest.mark.parametrize("moment", ["claimed", "started", "worked", "committed"])
async def test_recovery_at_every_await_of_a_claim(bench: Bench, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Wherever between claim and acknowledgement the lease is taken away, the job ends once and is not lost."""
    step = JobQueue.step
    taken: list[str] = []

    async def take_away(now: str) -> None:
        if now == moment and not taken:
            taken.append(now)
            assert len(await bench.queue.recover(everything=True)) == 1

    async def step_and_lose(queue: JobQueue, *arguments: Any) -> Any:
        done = await step(queue, *arguments)
        if done.claimed:
            await take_away("claimed")
        return done

    async def work(job: Job) -> None:
        await take_away("started")
        await asyncio.sleep(0)
        await take_away("worked")

    async def keep(job: Job) -> None:
        await take_away("committed")

    monkeypatch.setattr(JobQueue, "step", step_and_lose)
    handler = Handler(work, keep)
    _, metrics = bench.start(handler, renew_seconds=0.05)
    await bench.enqueue(1)
    stats = await bench.until(lambda stats: stats.completed == 1)
    assert taken == [moment]
    assert (stats.waiting, stats.active, stats.delayed, stats.failed) == (0, 0, 0, 0)
    assert handler.started.qsize() == 2
    assert count(metrics, "pipeline_leases_lost_total") == 1
