"""JobQueue on a real Redis: enqueue, claim, retry, lease, pause and retention."""

from __future__ import annotations

import asyncio

import pytest
from redis import Redis

from pipeline.queue.job import Finish, Mode, Job, JobState, Outcome
from pipeline.queue.queue import JobQueue
from tests.contract.contracts import check_job
from tests.integration.queue_jobs import DATA, HOUR_MS, enqueue, ids_of, refund, states
from tests.integration.queue_jobs import queue  # noqa: F811
from tests.workers import Claimer

__all__ = ["queue"]


@pytest.mark.spec("T018")
@pytest.mark.gen_test
async def test_enqueue_passes_on_exactly_the_contract_payload(queue: JobQueue) -> None:
    """A worker gets the payload of ai-job.schema.json and nothing else."""
    (job_id,) = await enqueue(queue, 1)
    (job,) = await Claimer(queue)()
    check_job(job.data)
    assert dict(job.data) == DATA
    assert (job.id, job.attempt, job.stalls, job.request_id) == (job_id, 1, 0, "r-1")


@pytest.mark.gen_test
async def test_enqueue_is_idempotent_by_id(queue: JobQueue) -> None:
    """A second enqueue of the same id changes nothing, in every state of the job."""
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
    """`revive` gives a completed or failed job all its attempts back; a waiting job does not change."""
    (job_id,) = await enqueue(queue, 1)
    assert not await queue.enqueue(job_id, DATA, revive=True)
    claim = Claimer(queue)
    (job,) = await claim()
    await claim(0, Finish(job, Outcome.FAILED, error="no"))
    assert await queue.enqueue(job_id, DATA, revive=True)
    stats = await queue.stats()
    assert (stats.waiting, stats.failed) == (1, 0)
    (revived,) = await claim()
    assert (revived.attempt, revived.error) == (1, "")


@pytest.mark.gen_test
async def test_step_claims_in_order_of_submission(queue: JobQueue) -> None:
    """Jobs are claimed first in, first out, and never more than the free slots."""
    ids = await enqueue(queue, 3, 1, 2, 5, 4)
    claim = Claimer(queue)
    assert ids_of(await claim(2)) == ids[:2]
    assert ids_of(await claim(5)) == ids[2:]
    assert await claim(5) == []


@pytest.mark.gen_test
async def test_step_acknowledges_and_claims_in_one_call(queue: JobQueue) -> None:
    """One step acknowledges the finished jobs and claims the next ones."""
    ids = await enqueue(queue, 1, 2)
    claim = Claimer(queue)
    (job,) = await claim(1)
    assert ids_of(await claim(1, Finish(job, Outcome.COMPLETED))) == ids[1:]
    stats = await queue.stats()
    assert (stats.completed, stats.active, stats.waiting) == (1, 1, 0)
    assert await states(queue, ids) == [JobState.COMPLETED, JobState.ACTIVE]


@pytest.mark.gen_test
async def test_step_refuses_a_foreign_or_repeated_finish(queue: JobQueue) -> None:
    """A finish without the current lease changes nothing, and its lease is reported as lost."""
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
async def test_retry_is_claimed_after_its_backoff_and_after_waiting_jobs(queue: JobQueue) -> None:
    """A delayed job is not claimed before it is due, and then it is claimed after the jobs that wait.

    So ten photos that fail three times each delay a good photo by their first attempts alone.
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
    other, retried = await claim(2)
    assert other.id == ids[2]
    assert (retried.id, retried.attempt, retried.error) == (ids[0], 2, "busy")


@pytest.mark.fault("E18")
@pytest.mark.gen_test
async def test_many_delayed_jobs_come_in_due_order(queue: JobQueue) -> None:
    """350 delayed jobs are claimed five at a time in the order in which they became due, after a newer waiting job."""
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
async def test_refunded_attempts_double_the_wait_up_to_eightfold(queue: JobQueue) -> None:
    """Each start whose attempt is refunded doubles the wait, up to eightfold; the attempt stays 1."""
    await enqueue(queue, 1)
    claim = Claimer(queue)
    for seconds in (1, 2, 4, 8, 8):
        (job,) = await claim(1)
        assert job.attempt == 1
        step = await claim.step(1, refund(job, delay_ms=1000))
        assert (seconds - 0.1) * 1000 < step.next_due_ms <= seconds * 1000
        queue.clock_offset_ms += seconds * 1000


@pytest.mark.gen_test
async def test_delayed_jobs_with_equal_times_stay_in_order(queue: JobQueue) -> None:
    """Jobs due at the same millisecond are claimed in the order of their ids, which is the order of submission."""
    ids = await enqueue(queue, *range(1, 8))
    claim = Claimer(queue)
    jobs = await claim(7)
    await claim(0, *(Finish(job, Outcome.RETRY, 1000) for job in reversed(jobs)))
    queue.clock_offset_ms += 1001
    assert ids_of(await claim(7)) == ids


@pytest.mark.gen_test
async def test_released_job_is_claimed_next_with_its_attempt_refunded(queue: JobQueue) -> None:
    """A job that is released at shutdown is claimed before the others, and its attempt is not counted."""
    ids = await enqueue(queue, 1, 2)
    claim = Claimer(queue)
    (job,) = await claim(1)
    await claim(0, Finish(job, Outcome.RELEASED, refunds_attempt=True))
    (claimed,) = await claim(1)
    assert (claimed.id, claimed.attempt, claimed.stalls) == (ids[0], 1, 0)


@pytest.mark.gen_test
async def test_job_is_recovered_when_its_lease_has_expired(queue: JobQueue) -> None:
    """Recovery takes no job with a live lease; an expired lease puts the job to the front, its attempt refunded."""
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
    recovered = await Claimer(queue, "worker-b")(3)
    assert ids_of(recovered) == ids
    assert [(job.attempt, job.stalls) for job in recovered] == [(1, 1), (1, 1), (1, 0)]
    assert (await queue.renew([job.lease for job in jobs])).lost == [job.lease for job in jobs]
    assert (await claim.step(0, Finish(jobs[0], Outcome.COMPLETED))).lost == [jobs[0].lease]


@pytest.mark.gen_test
async def test_recover_everything_takes_live_leases_too(queue: JobQueue) -> None:
    """With an embedded Redis no other process has a lease, so a restart does not wait until leases expire."""
    ids = await enqueue(queue, *range(1, 4))
    await Claimer(queue)(3)
    assert sorted(await queue.recover(everything=True)) == ids
    assert ids_of(await Claimer(queue, "b")(3)) == ids


@pytest.mark.gen_test
async def test_release_unknown_puts_back_only_claims_with_a_lost_reply(queue: JobQueue) -> None:
    """A claim whose reply was lost is waiting at once; known claims and those of other workers stay."""
    ids = await enqueue(queue, 1, 2, 3, 4)
    mine, theirs = Claimer(queue, "mine"), Claimer(queue, "theirs")
    (known,) = await mine(1)
    await theirs(1)
    await mine(2)  # as if this reply had never arrived
    assert await queue.release_unknown("mine", [known.lease]) == 2
    released = await mine(5)
    assert ids_of(released) == ids[2:]
    assert [job.attempt for job in released] == [1, 1]


@pytest.mark.gen_test
async def test_paused_queue_claims_nothing(queue: JobQueue) -> None:
    """A paused queue claims no job for any process; after `resume` the same jobs are claimed."""
    ids = await enqueue(queue, 1)
    await queue.pause()
    claim = Claimer(queue)
    step = await claim.step(5)
    assert (step.claimed, step.mode, (await queue.stats()).is_paused) == ([], Mode.PAUSED, True)
    await queue.resume()
    assert ids_of(await claim(5)) == ids


@pytest.mark.gen_test
async def test_trim_removes_jobs_past_retention(queue: JobQueue, redis: Redis) -> None:
    """Completed jobs are removed after 24 h, failed jobs after 7 days, with all their keys in Redis."""
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
    """An enqueue wakes an idle worker at once, and at most one wake-up marker is left in Redis."""
    waiting = asyncio.ensure_future(queue.wait_for_work())
    while not redis.info("clients")["blocked_clients"]:
        await asyncio.sleep(0)
    await enqueue(queue, 1, 2, 3)
    await waiting
    await enqueue(queue, 4, 5, 6)
    assert redis.llen("pipeline:{ai-processing}:wake") == 1


@pytest.mark.gen_test
async def test_every_key_is_permanent_by_name_or_removed_after_retention(queue: JobQueue, redis: Redis) -> None:
    """When all jobs are past retention, only the named permanent keys are left without an expiry."""
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
async def test_stats_have_the_age_of_the_oldest_waiting_job(queue: JobQueue) -> None:
    """The age grows with the clock, and is None when no job waits."""
    assert (await queue.stats()).oldest_ready_seconds is None
    await enqueue(queue, 1)
    queue.clock_offset_ms += 5000
    await enqueue(queue, 2)
    assert 5 <= ((await queue.stats()).oldest_ready_seconds or 0) < 10
