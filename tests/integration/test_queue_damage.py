"""JobQueue after losses: damaged or missing keys, a full Redis, and a clock that is set."""

from __future__ import annotations


import pytest
from redis import Redis
from tornado.ioloop import IOLoop

from pipeline.queue.job import Finish, NewJob, Outcome
from pipeline.queue.calls import QueueFull
from pipeline.queue.queue import JobQueue
from tests.integration.queue_jobs import DATA, HOUR_MS, enqueue, ids_of, new_jobs, refund, states
from tests.integration.queue_jobs import queue  # noqa: F811
from tests.redis_server import RedisServer
from tests.workers import Claimer

__all__ = ["queue"]


@pytest.mark.gen_test
async def test_ids_without_a_record_are_skipped(queue: JobQueue, redis: Redis) -> None:
    """An id without a record does not block the queue, and no worker gets it."""
    ids = await enqueue(queue, 1, 2)
    redis.delete(f"pipeline:{{ai-processing}}:record:{ids[0]}")
    claim = Claimer(queue)
    claimed = await claim(1) or await claim(1)
    assert ids_of(claimed) == ids[1:]


@pytest.mark.gen_test
async def test_damaged_jobs_harm_no_other(queue: JobQueue, redis: Redis) -> None:
    """A record with no JSON or with wrong values is claimed with an empty payload.

    A record of another Redis type is skipped as if it were missing, and can be restored.
    """
    ids = await enqueue(queue, 1, 2, 3, 4, 5)
    record, state = "pipeline:{ai-processing}:record:", "pipeline:{ai-processing}:state:"
    redis.set(record + ids[0], "{broken")
    redis.set(record + ids[1], '{"data": 5, "group": {}, "trace": [], "enqueuedAt": "x"}')
    redis.delete(record + ids[2])
    redis.lpush(record + ids[2], "x")
    redis.set(state + ids[4], "{broken")
    claim = Claimer(queue)
    jobs = await claim(5)
    assert [(job.id, dict(job.data), job.attempt) for job in jobs] == [
        (ids[0], {}, 1),
        (ids[1], {}, 1),
        (ids[3], DATA, 1),
        (ids[4], DATA, 1),
    ]
    assert await queue.restore(new_jobs(ids[2])) == 1
    finishes = [Finish(job, Outcome.RETRY, error="no") for job in jobs[:2]] + [Finish(jobs[2], Outcome.RELEASED)]
    assert sorted(ids_of(await claim(5, *finishes))) == ids[:4]


@pytest.mark.gen_test
async def test_id_that_is_listed_twice_is_claimed_once(queue: JobQueue, redis: Redis) -> None:
    """The second entry may be in the same step, or come while the job is active, delayed or completed."""
    (job_id,) = await enqueue(queue, 1)
    waiting = "pipeline:{ai-processing}:waiting"
    redis.rpush(waiting, job_id, job_id)
    claim = Claimer(queue)
    (job,) = await claim(2)
    assert await claim(2) == []
    redis.rpush(waiting, job_id)
    assert await claim(2, Finish(job, Outcome.RETRY, 1000)) == []
    queue.clock_offset_ms += 1001
    (job,) = await claim(2)
    redis.rpush(waiting, job_id)
    assert await claim(2, Finish(job, Outcome.COMPLETED)) == []


@pytest.mark.gen_test
async def test_scripts_are_loaded_after_a_script_flush(queue: JobQueue, redis: Redis) -> None:
    """A Redis that lost the scripts (restart, failover) gets them with the next call."""
    await enqueue(queue, 1)
    redis.script_flush()
    assert len(await Claimer(queue)(1)) == 1


@pytest.mark.gen_test
async def test_restore_enqueues_jobs_that_redis_lost(queue: JobQueue, redis: Redis) -> None:
    """After a wipe all jobs are waiting in the given order; a second restore changes nothing."""
    ids = await enqueue(queue, 1, 2, 3)
    redis.flushall()
    assert await queue.restore(new_jobs(*ids)) == 3
    assert await queue.restore(new_jobs(*ids)) == 0
    assert ids_of(await Claimer(queue)(5)) == ids


@pytest.mark.parametrize("group", ["", "anna"])
@pytest.mark.gen_test
async def test_restore_puts_back_an_id_missing_from_its_list(queue: JobQueue, redis: Redis, group: str) -> None:
    """A waiting id missing from its list, a delayed id without a time and an active id without a lease are restored."""
    base = "pipeline:{ai-processing}:"
    waiting_list = base + (f"group:{group}" if group else "waiting")
    ids = [f"ai-processing:{number:024x}" for number in range(1, 5)]
    for job_id in ids:
        await queue.enqueue(job_id, DATA, group=group)
        queue.clock_offset_ms += 10
    claim = Claimer(queue)
    delayed, running = await claim(2)
    await claim(0, Finish(delayed, Outcome.RETRY, 1000))
    jobs = [NewJob(job_id, DATA, group=group) for job_id in ids]
    assert await queue.restore(jobs) == 0
    redis.lrem(waiting_list, 0, ids[2])
    redis.delete(base + "delayed", base + "leases")
    assert await queue.restore(jobs) == 3
    assert (await states(queue, ids)) == ["waiting"] * 4
    restored = await claim(5)
    assert sorted(ids_of(restored)) == ids
    assert {job.id: job.attempt for job in restored} == {ids[0]: 2, ids[1]: 1, ids[2]: 1, ids[3]: 1}
    assert (await claim.step(0, Finish(running, Outcome.COMPLETED))).lost == [running.lease]


@pytest.mark.gen_test
async def test_clock_set_back_by_an_hour_does_not_lengthen_leases_and_delays(queue: JobQueue) -> None:
    """Leases and delays made before the clock of Redis was set back end when they would have ended."""
    await enqueue(queue, 1, 2)
    claim = Claimer(queue)
    leased, delayed = await claim(2)
    await claim(0, refund(delayed, delay_ms=30_000))
    queue.clock_offset_ms -= HOUR_MS
    assert await queue.recover() == []
    queue.clock_offset_ms += 15_100
    assert await queue.recover() == [leased.id]
    assert sorted(ids_of(await claim(5))) == sorted([leased.id, delayed.id])


@pytest.mark.gen_test
async def test_clock_set_forward_by_an_hour_ends_leases(queue: JobQueue) -> None:
    """An active job is recovered, and the next renewal of its slot reports the lease as lost."""
    await enqueue(queue, 1)
    (job,) = await Claimer(queue)()
    queue.clock_offset_ms += HOUR_MS
    assert await queue.recover() == [job.id]
    assert (await queue.renew([job.lease])).lost == [job.lease]


@pytest.mark.gen_test(timeout=60)
async def test_full_redis_still_serves_the_jobs_it_has(io_loop: IOLoop) -> None:
    """With maxmemory reached and no eviction, jobs are still claimed, renewed, recovered and finished."""
    with RedisServer("--maxmemory-policy", "noeviction") as server:
        queue, redis = JobQueue(server.url), server.client()
        await enqueue(queue, *range(1, 6))
        redis.config_set("maxmemory", 1)
        claim = Claimer(queue)
        done, failed, retried, released, lost = await claim(5)
        assert (await queue.renew([job.lease for job in (done, failed, retried, released, lost)])).lost == []
        await claim(
            0,
            Finish(done, Outcome.COMPLETED),
            Finish(failed, Outcome.FAILED, error="no"),
            Finish(retried, Outcome.RETRY, 60_000),
            Finish(released, Outcome.RELEASED),
        )
        assert await queue.recover(everything=True) == [lost.id]
        stats = await queue.stats()
        assert (stats.completed, stats.failed, stats.delayed, stats.waiting) == (1, 1, 1, 2)
        with pytest.raises(QueueFull):
            await enqueue(queue, 9)
        redis.config_set("maxmemory", 0)
        await enqueue(queue, 9)
        await queue.close()


@pytest.mark.gen_test(timeout=60)
async def test_full_redis_removes_completed_jobs_for_new_ones(io_loop: IOLoop) -> None:
    """A completed job is removed before its retention is over when there is no memory for a new job."""
    with RedisServer("--maxmemory-policy", "noeviction") as server:
        queue, redis = JobQueue(server.url), server.client()
        await enqueue(queue, *range(1, 1001))
        claim = Claimer(queue)
        for _ in range(10):
            await claim(0, *(Finish(job, Outcome.COMPLETED) for job in await claim(100)))
        # More than Redis frees by itself when the buffers of idle connections shrink.
        redis.config_set("maxmemory", redis.info("memory")["used_memory"] - 50_000)
        await enqueue(queue, 2000)
        assert (await queue.stats()).completed in (0, 500)
        redis.config_set("maxmemory", 1)
        with pytest.raises(QueueFull):
            await enqueue(queue, 2001)
        assert (await queue.stats()).completed == 0
        await queue.close()
