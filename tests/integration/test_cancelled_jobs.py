"""Cancelled jobs on a real Redis: a waiting job leaves the queue, and the worker ends a running job."""

from __future__ import annotations

import asyncio

import pytest
from redis import Redis

from pipeline.hold import ProviderReport, ProviderState
from pipeline.queue.attempt import RetryPolicy
from pipeline.queue.job_handler import AlreadyOver
from pipeline.queue.job import Finish, Job, JobState, Outcome
from pipeline.queue.queue import JobQueue
from tests.workers import Bench, Claimer, Handler, count, failing, nothing

BASE = "pipeline:{ai-processing}:"


async def hang(job: Job) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("group", ["", "user-1"])
@pytest.mark.gen_test
async def test_cancelled_waiting_job_leaves_the_queue(bench: Bench, redis: Redis, group: str) -> None:
    """The other jobs keep their order; the job counts as completed; enqueueing its id a second time does nothing."""
    queue, ids = bench.queue, [f"ai-processing:{number:024x}" for number in range(3)]
    for job_id in ids:
        await queue.enqueue(job_id, {}, group=group)
    assert await queue.cancel(ids[1]) is JobState.WAITING
    stats = await queue.stats()
    assert (stats.waiting, stats.completed, stats.failed) == (2, 1, 0)
    assert await queue.cancel(ids[1]) is None
    assert not await queue.enqueue(ids[1], {}, group=group)
    assert [job.id for job in await Claimer(queue)(3)] == [ids[0], ids[2]]
    assert await queue.backlog() == 0
    assert not redis.exists(f"{BASE}record:{ids[1]}", f"{BASE}state:{ids[1]}")


@pytest.mark.gen_test
async def test_group_of_a_cancelled_job_is_claimed_with_its_next_job(bench: Bench, redis: Redis) -> None:
    """An empty group leaves the ring of groups, and its next job adds it once."""
    queue = bench.queue
    await queue.enqueue("ai-processing:a", {}, group="user-1")
    assert await queue.cancel("ai-processing:a") is JobState.WAITING
    assert redis.llen(f"{BASE}groups") == 0
    await queue.enqueue("ai-processing:b", {}, group="user-1")
    await queue.enqueue("ai-processing:c", {}, group="user-1")
    assert redis.llen(f"{BASE}groups") == 1
    assert [job.id for job in await Claimer(queue)(5)] == ["ai-processing:b", "ai-processing:c"]


@pytest.mark.gen_test
async def test_cancelled_delayed_job_is_never_claimed(bench: Bench) -> None:
    """A cancel of a job that waits for its retry ends the job as completed."""
    queue, claim = bench.queue, Claimer(bench.queue)
    (job_id,) = await bench.enqueue(1)
    (job,) = await claim()
    await claim(0, Finish(job, Outcome.RETRY, 1000, error="no"))
    assert await queue.cancel(job_id) is JobState.DELAYED
    queue.clock_offset_ms += 2000
    assert await claim() == []
    stats = await queue.stats()
    assert (stats.delayed, stats.waiting, stats.completed) == (0, 0, 1)


@pytest.mark.gen_test
async def test_lane_of_a_cancelled_parked_job_is_claimed(redis_url: str) -> None:
    """No parked job is left to try the provider: the next job of the lane tries it."""
    queue = JobQueue(redis_url, lanes={"sneaker": ("acme",), "": ("acme",)})
    claim = Claimer(queue)
    await queue.enqueue("ai-processing:a", {}, lane="sneaker")
    (job,) = await claim()
    away = ProviderReport("acme", ProviderState.AWAY, 15, "AI service unavailable", "refused")
    await claim.step(0, Finish(job, Outcome.PARKED, refunds_attempt=True, error="no"), reports=[away])
    assert await queue.cancel(job.id) is JobState.WAITING
    assert (await queue.stats()).waiting == 0
    queue.clock_offset_ms += 2000
    assert await claim(5) == []
    await queue.enqueue("ai-processing:b", {}, lane="sneaker")
    assert [each.id for each in await claim(5)] == ["ai-processing:b"]
    await queue.close()


@pytest.mark.gen_test
async def test_cancel_does_not_change_dead_letters_and_unknown_jobs(bench: Bench) -> None:
    """Cancelling a dead letter or an unknown job returns None."""
    claim = Claimer(bench.queue)
    (job_id,) = await bench.enqueue(1)
    (job,) = await claim()
    await claim(0, Finish(job, Outcome.FAILED, error="no"))
    assert await bench.queue.cancel(job_id) is None
    assert await bench.queue.cancel("ai-processing:never") is None
    assert (await bench.queue.failed_job(job_id)) is not None


@pytest.mark.gen_test(timeout=20)
async def test_running_job_ends_on_the_process_that_gets_the_cancel(bench: Bench) -> None:
    """The job's handler is cancelled at once, the slot takes the next job, and no job becomes a dead letter."""
    handler = Handler(hang)
    worker, metrics = bench.start(handler, concurrency=1)
    first, second = await bench.enqueue(2)
    assert (await handler.started.get()).id == first
    worker.cancel(first)
    assert await handler.ended.get() == "cancelled"
    assert (await handler.started.get()).id == second
    stats = await bench.until(lambda stats: stats.completed == 1)
    assert (stats.failed, stats.waiting, stats.active) == (0, 0, 1)
    assert count(metrics, "pipeline_jobs_finished_total", outcome="cancelled") == 1
    assert count(metrics, "pipeline_leases_lost_total") == 0
    assert handler.given_up.empty() and handler.refunded.empty()


@pytest.mark.gen_test(timeout=20)
async def test_running_job_ends_on_another_process_with_its_next_renewal(bench: Bench) -> None:
    """The worker process gets the cancel when it renews the lease; until it acknowledges, the job is active."""
    handler = Handler(hang)
    _, metrics = bench.start(handler, renew_seconds=0.2)
    (job_id,) = await bench.enqueue(1)
    await handler.started.get()
    assert await bench.queue.cancel(job_id) is JobState.ACTIVE
    assert await handler.ended.get() == "cancelled"
    await bench.until(lambda stats: (stats.completed, stats.active) == (1, 0))
    assert count(metrics, "pipeline_jobs_finished_total", outcome="cancelled") == 1
    assert count(metrics, "pipeline_leases_lost_total") == 0


@pytest.mark.parametrize("outcome", [Outcome.RETRY, Outcome.RELEASED, None])
@pytest.mark.gen_test
async def test_cancel_does_not_end_a_later_start_of_the_job(bench: Bench, outcome: Outcome | None) -> None:
    """A cancel that came too late for one start of a job does not cancel the next start."""
    queue, claim = bench.queue, Claimer(bench.queue)
    (job_id,) = await bench.enqueue(1)
    (job,) = await claim()
    assert await queue.cancel(job_id) is JobState.ACTIVE
    assert (await queue.renew([job.lease])).cancelled == [job.lease]
    if outcome is None:
        assert await queue.recover(everything=True) == [job_id]
    else:
        await claim(0, Finish(job, outcome, error="no"))
    (restarted,) = await claim()
    assert await queue.renew([restarted.lease]) == ([], [])


@pytest.mark.gen_test(timeout=20)
async def test_job_that_was_already_over_is_no_dead_letter(bench: Bench) -> None:
    """When the handler raises AlreadyOver from give_up, the job is acknowledged as completed."""

    class OverHandler(Handler):
        async def give_up(self, job: Job, message: str) -> None:
            raise AlreadyOver

    bench.start(OverHandler(failing(ValueError("no"))), RetryPolicy(attempts=1))
    await bench.enqueue(1)
    stats = await bench.until(lambda stats: stats.completed == 1)
    assert stats.failed == 0


@pytest.mark.gen_test(timeout=20)
async def test_cancel_of_jobs_during_claims_ends_each_once(bench: Bench) -> None:
    """200 jobs are cancelled while two workers claim them: each job ends as completed, in no other state."""
    for _ in range(2):
        bench.start(Handler(nothing), renew_seconds=0.1)
    ids = await bench.enqueue(200)
    await asyncio.gather(*(bench.queue.cancel(job_id) for job_id in reversed(ids)))
    stats = await bench.until(lambda stats: stats.completed == 200)
    assert (stats.waiting, stats.delayed, stats.active, stats.failed) == (0, 0, 0, 0)
