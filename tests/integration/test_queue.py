"""JobQueue on a real Redis: every state move, its refusals and its order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from tornado.ioloop import IOLoop

from pipeline.queue.job import Finish, Mode, Job, JobState, NewJob, Outcome
from pipeline.queue.queue import JobQueue, QueueFull
from tests.contract.contracts import check_job
from tests.redis_server import RedisServer
from tests.workers import Claimer

DATA = {
    "assetId": "65a1b2c3d4e5f60718293a4b",
    "userId": "user-1",
    "imageUrl": "https://images.example.com/a.jpg",
    "category": "sneaker",
    "createdAt": "2026-01-31T12:00:00.000Z",
}
HOUR_MS = 3_600_000


@pytest.fixture
def queue(io_loop: IOLoop, redis_url: str) -> Iterator[JobQueue]:
    queue = JobQueue(redis_url, lease_seconds=15, block_seconds=1)
    yield queue
    io_loop.run_sync(queue.close)


async def enqueue(queue: JobQueue, *numbers: int) -> list[str]:
    ids = [f"ai-processing:{number:024x}" for number in numbers]
    for job_id in ids:
        assert await queue.enqueue(job_id, DATA, request_id="r-1")
    return ids


async def states(queue: JobQueue, ids: list[str]) -> list[str | None]:
    return [(await queue.fields(job_id)).get("state") for job_id in ids]


def ids_of(jobs: list[Job]) -> list[str]:
    return [job.id for job in jobs]


@pytest.mark.spec("T018")
@pytest.mark.gen_test
async def test_enqueue_keeps_exactly_the_contract_payload(queue: JobQueue) -> None:
    """What a worker gets is the payload of ai-job.schema.json and nothing else."""
    (job_id,) = await enqueue(queue, 1)
    (job,) = await Claimer(queue)()
    check_job(job.data)
    assert dict(job.data) == DATA
    assert (job.id, job.attempt, job.stalls, job.request_id) == (job_id, 1, 0, "r-1")


@pytest.mark.gen_test
async def test_enqueue_is_idempotent_by_id(queue: JobQueue) -> None:
    """The same id again changes nothing, whatever state the job is in."""
    (job_id,) = await enqueue(queue, 1)
    assert not await queue.enqueue(job_id, DATA)
    claim = Claimer(queue)
    (job,) = await claim(5)
    assert not await queue.enqueue(job_id, DATA)
    await claim(0, Finish(job, Outcome.COMPLETED))
    assert not await queue.enqueue(job_id, DATA)
    assert (await queue.stats()).completed == 1


@pytest.mark.gen_test
async def test_enqueue_revives_only_finished_jobs(queue: JobQueue) -> None:
    """A completed or failed job starts over with fresh attempts; a waiting one is left alone."""
    (job_id,) = await enqueue(queue, 1)
    assert not await queue.enqueue(job_id, DATA, revive=True)
    claim = Claimer(queue)
    (job,) = await claim()
    await claim(0, Finish(job, Outcome.FAILED, error="no"))
    assert await queue.enqueue(job_id, DATA, revive=True)
    stats = await queue.stats()
    assert (stats.waiting, stats.failed) == (1, 0)
    (again,) = await claim()
    assert (again.attempt, again.error) == (1, "")


@pytest.mark.gen_test
async def test_step_claims_in_order_of_submission(queue: JobQueue) -> None:
    """First in, first out, never more than the free slots."""
    ids = await enqueue(queue, 3, 1, 2, 5, 4)
    claim = Claimer(queue)
    assert ids_of(await claim(2)) == ids[:2]
    assert ids_of(await claim(5)) == ids[2:]
    assert await claim(5) == []


@pytest.mark.gen_test
async def test_step_acknowledges_and_claims_in_one_call(queue: JobQueue) -> None:
    """One step finishes the old jobs and brings the next ones."""
    ids = await enqueue(queue, 1, 2)
    claim = Claimer(queue)
    (job,) = await claim(1)
    assert ids_of(await claim(1, Finish(job, Outcome.COMPLETED))) == ids[1:]
    stats = await queue.stats()
    assert (stats.completed, stats.active, stats.waiting) == (1, 1, 0)
    assert await states(queue, ids) == [JobState.COMPLETED, JobState.ACTIVE]


@pytest.mark.gen_test
async def test_step_refuses_a_foreign_or_repeated_finish(queue: JobQueue) -> None:
    """Who does not hold the lease changes nothing and is told so."""
    await enqueue(queue, 1)
    claim = Claimer(queue)
    (job,) = await claim()
    foreign = Job(**{field: getattr(job, field) for field in Job._fields} | {"lease": f"{job.id}|worker-b:9"})
    assert (await claim.step(0, Finish(foreign, Outcome.COMPLETED))).lost == [foreign.lease]
    assert await states(queue, [job.id]) == [JobState.ACTIVE]
    assert (await claim.step(0, Finish(job, Outcome.COMPLETED))).lost == []
    assert (await claim.step(0, Finish(job, Outcome.FAILED))).lost == [job.lease]
    assert await states(queue, [job.id]) == [JobState.COMPLETED]


@pytest.mark.gen_test
async def test_retry_waits_its_backoff_and_then_behind_what_is_ready(queue: JobQueue) -> None:
    """A delayed job is not claimed early and does not hold up others, also not when it is due: ten photos that fail
    three times each delay a good one by their first attempts alone.
    """
    ids = await enqueue(queue, 1, 2, 3)
    claim = Claimer(queue)
    (first,) = await claim(1)
    step = await claim.step(1, Finish(first, Outcome.RETRY, 2000, error="busy"))
    assert ids_of(step.claimed) == ids[1:2]
    assert 1900 < step.next_due_ms <= 2000
    queue.clock_offset_ms += 1900
    assert (await claim.step(0)).next_due_ms <= 100
    queue.clock_offset_ms += 200
    other, again = await claim(2)
    assert other.id == ids[2]
    assert (again.id, again.attempt, again.error) == (ids[0], 2, "busy")


@pytest.mark.fault("E18")
@pytest.mark.gen_test
async def test_many_delayed_jobs_come_in_due_order(queue: JobQueue) -> None:
    """350 jobs due at once, claimed five at a time: in the order in which they became due, whatever came since."""
    ids = await enqueue(queue, *range(1, 351))
    claim = Claimer(queue)
    jobs = await claim(350)
    await claim(0, *(Finish(job, Outcome.RETRY, 1000 + number) for number, job in enumerate(jobs)))
    queue.clock_offset_ms += 1500
    late = await enqueue(queue, 999)
    claimed: list[str] = []
    while more := await claim(5):
        claimed += ids_of(more)
    assert claimed == late + ids


@pytest.mark.gen_test
async def test_what_is_away_for_long_is_asked_less_and_less(queue: JobQueue) -> None:
    """Each start that is given back doubles the wait, up to eightfold; the attempt is never spent."""
    await enqueue(queue, 1)
    claim = Claimer(queue)
    for seconds in (1, 2, 4, 8, 8):
        (job,) = await claim(1)
        assert job.attempt == 1
        step = await claim.step(1, give_back(job, delay_ms=1000))
        assert (seconds - 0.1) * 1000 < step.next_due_ms <= seconds * 1000
        queue.clock_offset_ms += seconds * 1000


@pytest.mark.gen_test
async def test_delayed_jobs_with_equal_times_stay_in_order(queue: JobQueue) -> None:
    """Jobs due at the same millisecond start in the order of their ids, which is that of submission."""
    ids = await enqueue(queue, *range(1, 8))
    claim = Claimer(queue)
    jobs = await claim(7)
    await claim(0, *(Finish(job, Outcome.RETRY, 1000) for job in reversed(jobs)))
    queue.clock_offset_ms += 1001
    assert ids_of(await claim(7)) == ids


@pytest.mark.gen_test
async def test_released_job_goes_back_without_counting(queue: JobQueue) -> None:
    """A job handed back at shutdown is the next to start, and its attempt was not spent."""
    ids = await enqueue(queue, 1, 2)
    claim = Claimer(queue)
    (job,) = await claim(1)
    await claim(0, Finish(job, Outcome.RELEASED, refunds_attempt=True))
    (again,) = await claim(1)
    assert (again.id, again.attempt, again.stalls) == (ids[0], 1, 0)


@pytest.mark.gen_test
async def test_lease_keeps_a_job_until_it_ends(queue: JobQueue) -> None:
    """Recovery leaves live leases alone; an expired one brings the job back to the front, the attempt given back."""
    ids = await enqueue(queue, 1, 2, 3)
    claim = Claimer(queue)
    jobs = await claim(2)
    queue.clock_offset_ms += 14_000
    assert await queue.recover() == []
    assert (await queue.renew([job.lease for job in jobs])).lost == []
    queue.clock_offset_ms += 14_000
    assert await queue.recover() == []
    queue.clock_offset_ms += 2_000
    assert sorted(await queue.recover()) == ids[:2]
    again = await Claimer(queue, "worker-b")(3)
    assert ids_of(again) == ids
    assert [(job.attempt, job.stalls) for job in again] == [(1, 1), (1, 1), (1, 0)]
    assert (await queue.renew([job.lease for job in jobs])).lost == [job.lease for job in jobs]
    assert (await claim.step(0, Finish(jobs[0], Outcome.COMPLETED))).lost == [jobs[0].lease]


@pytest.mark.gen_test
async def test_recover_everything_takes_live_leases_too(queue: JobQueue) -> None:
    """With a Redis of our own nobody else holds a lease, so a restart need not wait for it."""
    ids = await enqueue(queue, *range(1, 4))
    await Claimer(queue)(3)
    assert sorted(await queue.recover(everything=True)) == ids
    assert ids_of(await Claimer(queue, "b")(3)) == ids


@pytest.mark.gen_test
async def test_release_unknown_puts_back_only_our_lost_claims(queue: JobQueue) -> None:
    """A claim whose reply was lost comes back at once; what we know of and what others hold stays."""
    ids = await enqueue(queue, 1, 2, 3, 4)
    mine, theirs = Claimer(queue, "mine"), Claimer(queue, "theirs")
    (known,) = await mine(1)
    await theirs(1)
    await mine(2)  # as if this reply had never arrived
    assert await queue.release_unknown("mine", [known.lease]) == 2
    again = await mine(5)
    assert ids_of(again) == ids[2:]
    assert [job.attempt for job in again] == [1, 1]


@pytest.mark.gen_test
async def test_paused_queue_claims_nothing(queue: JobQueue) -> None:
    """Pause holds every process, also delayed jobs; resume goes on where it was."""
    ids = await enqueue(queue, 1)
    await queue.pause()
    claim = Claimer(queue)
    step = await claim.step(5)
    assert (step.claimed, step.mode, (await queue.stats()).is_paused) == ([], Mode.PAUSED, True)
    await queue.resume()
    assert ids_of(await claim(5)) == ids


@pytest.mark.gen_test
async def test_trim_removes_what_is_past_retention(queue: JobQueue, redis: Redis) -> None:
    """Completed jobs go after 24 h, failed ones after 7 days, with all they left in Redis."""
    await enqueue(queue, 1, 2, 3)
    claim = Claimer(queue)
    done, dead, _ = await claim(3)
    await claim(0, Finish(done, Outcome.COMPLETED), Finish(dead, Outcome.FAILED, error="no"))
    queue.clock_offset_ms += 23 * HOUR_MS
    assert await queue.trim() == 0
    queue.clock_offset_ms += 2 * HOUR_MS
    assert await queue.trim() == 1
    assert await states(queue, [done.id, dead.id]) == [None, JobState.FAILED]
    assert redis.keys("*:record:" + done.id) == []
    queue.clock_offset_ms += 6 * 24 * HOUR_MS
    assert await queue.trim() == 1
    stats = await queue.stats()
    assert (stats.completed, stats.failed, stats.active) == (0, 0, 1)
    assert redis.keys("*:" + dead.id) == []


@pytest.mark.gen_test
async def test_wait_for_work_wakes_on_enqueue(queue: JobQueue, redis: Redis) -> None:
    """An idle worker hears of a job at once, and at most one marker is ever left behind."""
    waiting = asyncio.ensure_future(queue.wait_for_work())
    while not redis.info("clients")["blocked_clients"]:
        await asyncio.sleep(0)
    await enqueue(queue, 1, 2, 3)
    await waiting
    await enqueue(queue, 4, 5, 6)
    assert redis.llen("pipeline:{ai-processing}:wake") == 1


@pytest.mark.gen_test
async def test_ids_without_a_job_are_passed_over(queue: JobQueue, redis: Redis) -> None:
    """An id whose record is gone neither blocks the queue nor reaches a worker."""
    ids = await enqueue(queue, 1, 2)
    redis.delete(f"pipeline:{{ai-processing}}:record:{ids[0]}")
    claim = Claimer(queue)
    claimed = await claim(1) or await claim(1)
    assert ids_of(claimed) == ids[1:]


@pytest.mark.gen_test
async def test_damaged_jobs_harm_no_other(queue: JobQueue, redis: Redis) -> None:
    """A record that holds no JSON or not what it should is claimed with an empty payload; one of another type is passed
    over as if it were gone, and restored.
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
    again = [Finish(job, Outcome.RETRY, error="no") for job in jobs[:2]] + [Finish(jobs[2], Outcome.RELEASED)]
    assert sorted(ids_of(await claim(5, *again))) == ids[:4]


@pytest.mark.gen_test
async def test_id_that_stands_twice_is_claimed_once(queue: JobQueue, redis: Redis) -> None:
    """Twice in one step, while it runs, while it is delayed and after it is done."""
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
async def test_every_key_is_permanent_by_name_or_goes_with_retention(queue: JobQueue, redis: Redis) -> None:
    """After all jobs are past retention only the named permanent keys are left."""
    await enqueue(queue, *range(1, 6))
    claim = Claimer(queue)
    jobs = await claim(5)
    outcomes = [Outcome.COMPLETED, Outcome.FAILED, Outcome.RETRY, Outcome.RELEASED, Outcome.COMPLETED]
    await claim(0, *(Finish(job, outcome) for job, outcome in zip(jobs, outcomes, strict=True)))
    await claim(0, *(Finish(job, Outcome.COMPLETED) for job in await claim(5)))
    await queue.own("store-1", is_paused=False)
    await queue.acquire_lock("slow", "me", 30)
    await queue.pause()
    queue.clock_offset_ms += 8 * 24 * HOUR_MS
    await queue.trim()
    left = {key for key in redis.keys("*") if redis.ttl(key) == -1}
    base = "pipeline:{ai-processing}:"
    assert left <= {base + name for name in ("wake", "paused", "owner")}


@pytest.mark.gen_test
async def test_stats_tell_the_age_of_the_oldest_waiting_job(queue: JobQueue) -> None:
    """The age grows with the clock and is None when nothing waits."""
    assert (await queue.stats()).oldest_ready_seconds is None
    await enqueue(queue, 1)
    queue.clock_offset_ms += 5000
    await enqueue(queue, 2)
    assert 5 <= ((await queue.stats()).oldest_ready_seconds or 0) < 10


@pytest.mark.gen_test
async def test_scripts_come_back_after_a_script_flush(queue: JobQueue, redis: Redis) -> None:
    """A Redis that forgot the scripts (restart, failover) is served all the same."""
    await enqueue(queue, 1)
    redis.script_flush()
    assert len(await Claimer(queue)(1)) == 1


def give_back(job: Job, **fields: Any) -> Finish:
    return Finish(job, Outcome.RETRY, refunds_attempt=True, **fields)


async def enqueue_for(queue: JobQueue, user: str, *numbers: int) -> list[str]:
    ids = [f"ai-processing:{number:024x}" for number in numbers]
    for job_id in ids:
        assert await queue.enqueue(job_id, DATA, group=user)
    return ids


@pytest.mark.gen_test
async def test_groups_take_turns(queue: JobQueue) -> None:
    """A thousand jobs of one user delay the first of another by one claim; each user's own jobs stay in order."""
    many = await enqueue_for(queue, "anna", *range(1, 1001))
    claim = Claimer(queue)
    assert ids_of(await claim(5)) == many[:5]
    few = await enqueue_for(queue, "ben", 2001, 2002)
    claimed = ids_of(await claim(5))
    assert claimed == [many[5], few[0], many[6], few[1], many[7]]
    assert (await queue.stats()).waiting == 1000 + 2 - 10
    assert await queue.backlog() == 992


@pytest.mark.gen_test
async def test_groups_keep_the_order_over_every_way_back(queue: JobQueue) -> None:
    """Released and recovered jobs go to the front of their own group, also when its list had run empty."""
    ids = await enqueue_for(queue, "anna", 1, 2, 3)
    claim = Claimer(queue)
    jobs = await claim(3)
    await claim(0, *(Finish(job, Outcome.RELEASED, refunds_attempt=True) for job in reversed(jobs)))
    jobs = await claim(3)
    assert ids_of(jobs) == ids
    assert await queue.recover(everything=True) == ids[::-1]
    jobs = await claim(3)
    assert ids_of(jobs) == ids
    assert await queue.release_unknown("worker-a", []) == 3
    other = await enqueue_for(queue, "ben", 4)
    assert ids_of(await claim(5)) == [ids[0], other[0], ids[1], ids[2]]
    assert (await queue.stats()).waiting == 0


@pytest.mark.gen_test
async def test_jobs_of_both_kinds_are_claimed(queue: JobQueue) -> None:
    """After a change of QUEUE_FAIRNESS the jobs that waited before it are claimed too."""
    first = await enqueue_for(queue, "anna", 1)
    second = await enqueue(queue, 2)
    assert sorted(ids_of(await Claimer(queue)(5))) == first + second


def new_jobs(*ids: str) -> list[NewJob]:
    return [NewJob(job_id, DATA) for job_id in ids]


@pytest.mark.gen_test
async def test_restore_enqueues_what_redis_lost(queue: JobQueue, redis: Redis) -> None:
    """After a wipe all come back in the order given; doing it again changes nothing."""
    ids = await enqueue(queue, 1, 2, 3)
    redis.flushall()
    assert await queue.restore(new_jobs(*ids)) == 3
    assert await queue.restore(new_jobs(*ids)) == 0
    assert ids_of(await Claimer(queue)(5)) == ids


@pytest.mark.parametrize("group", ["", "anna"])
@pytest.mark.gen_test
async def test_restore_puts_back_an_id_missing_from_its_list(queue: JobQueue, redis: Redis, group: str) -> None:
    """A waiting id that left the list, a delayed one without its time, a running one without its lease."""
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
    jobs_again = await claim(5)
    assert sorted(ids_of(jobs_again)) == ids
    assert {job.id: job.attempt for job in jobs_again} == {ids[0]: 2, ids[1]: 1, ids[2]: 1, ids[3]: 1}
    assert (await claim.step(0, Finish(running, Outcome.COMPLETED))).lost == [running.lease]


@pytest.mark.gen_test
async def test_clock_set_back_by_an_hour_leaves_nothing_waiting_for_it(queue: JobQueue) -> None:
    """Leases and delays made before Redis' clock was set back end as they would have."""
    await enqueue(queue, 1, 2)
    claim = Claimer(queue)
    leased, delayed = await claim(2)
    await claim(0, give_back(delayed, delay_ms=30_000))
    queue.clock_offset_ms -= HOUR_MS
    assert await queue.recover() == []
    queue.clock_offset_ms += 15_100
    assert await queue.recover() == [leased.id]
    assert sorted(ids_of(await claim(5))) == sorted([leased.id, delayed.id])


@pytest.mark.gen_test
async def test_clock_set_forward_by_an_hour_ends_leases_and_nothing_else(queue: JobQueue) -> None:
    """A running job is taken over, and the slot that had it is told so by its next renewal."""
    await enqueue(queue, 1)
    (job,) = await Claimer(queue)()
    queue.clock_offset_ms += HOUR_MS
    assert await queue.recover() == [job.id]
    assert (await queue.renew([job.lease])).lost == [job.lease]


@pytest.mark.gen_test(timeout=60)
async def test_full_redis_goes_on_with_what_it_has(io_loop: IOLoop) -> None:
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
async def test_full_redis_gives_up_finished_jobs_for_new_ones(io_loop: IOLoop) -> None:
    """What is completed is only remembered: it is removed before its time when there is no room for a new job."""
    with RedisServer("--maxmemory-policy", "noeviction") as server:
        queue, redis = JobQueue(server.url), server.client()
        await enqueue(queue, *range(1, 1001))
        claim = Claimer(queue)
        for _ in range(10):
            await claim(0, *(Finish(job, Outcome.COMPLETED) for job in await claim(100)))
        # More than Redis gives back by itself when the buffers of idle connections shrink.
        redis.config_set("maxmemory", redis.info("memory")["used_memory"] - 50_000)
        await enqueue(queue, 2000)
        assert (await queue.stats()).completed in (0, 500)
        redis.config_set("maxmemory", 1)
        with pytest.raises(QueueFull):
            await enqueue(queue, 2001)
        assert (await queue.stats()).completed == 0
        await queue.close()
