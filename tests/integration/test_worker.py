"""The job loop on a real Redis: slots, retries, leases and retention."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.errors import DependencyUnavailable, PermanentJobError, RetryableJobError
from pipeline.queue.attempt import RetryPolicy
from pipeline.queue.job import Job, JobState
from tests.integration.worker_jobs import wait_forever, waiting_for
from tests.redis_server import RedisServer
from tests.workers import Bench, Handler, count, failing, nothing


@pytest.mark.gen_test(timeout=20)
async def test_worker_runs_every_job_once_in_order(bench: Bench) -> None:
    """A hundred jobs start in the order of submission, each exactly once."""
    handler = Handler(nothing)
    bench.start(handler)
    ids = await bench.enqueue(100)
    assert [(await handler.started.get()).id for _ in ids] == ids
    await bench.until(lambda stats: stats.completed == 100)
    assert handler.started.empty()


@pytest.mark.gen_test(timeout=20)
async def test_worker_runs_at_most_five_at_once(bench: Bench) -> None:
    """Five slots work at the same time; the sixth job waits for one of them."""
    release = asyncio.Event()
    handler = Handler(waiting_for(release))
    _, metrics = bench.start(handler)
    await bench.enqueue(12)
    await bench.until(lambda stats: (stats.active, stats.waiting) == (5, 7))
    assert count(metrics, "pipeline_slots_busy") == 5
    release.set()
    await bench.until(lambda stats: stats.completed == 12)
    assert handler.most_running == 5


@pytest.mark.gen_test(timeout=20)
async def test_retryable_error_is_tried_three_times_with_doubling_backoff(bench: Bench) -> None:
    """Attempts 1, 2 and 3 start one backoff after the other, then the job is given up with the reason."""
    handler = Handler(failing(RetryableJobError("AI service unavailable")))
    bench.start(handler, RetryPolicy(backoff_ms=100))
    (job_id,) = await bench.enqueue(1)
    starts = [await handler.started.get() for _ in range(3)]
    assert [job.attempt for job in starts] == [1, 2, 3]
    first, second = backoffs(starts)
    assert first >= 100 and second >= 200
    _, message = await handler.given_up.get()
    assert message == "AI service unavailable after 3 attempts"
    await bench.until(lambda stats: stats.failed == 1)
    assert (await bench.queue.fields(job_id))["error"] == message


@pytest.mark.gen_test(timeout=20)
async def test_permanent_error_is_not_tried_again(bench: Bench) -> None:
    """A job with a permanent error is started once and given up."""
    handler = Handler(failing(PermanentJobError("Not a photo")))
    bench.start(handler)
    await bench.enqueue(1)
    job, message = await handler.given_up.get()
    assert (job.attempt, message) == (1, "Not a photo")
    await bench.until(lambda stats: stats.failed == 1)


@pytest.mark.gen_test(timeout=20)
async def test_unavailable_dependency_spends_no_attempt(bench: Bench) -> None:
    """While the store cannot be reached a job is started many times, each time as its first attempt."""
    handler = Handler(failing(DependencyUnavailable("The store cannot be reached")))
    bench.start(handler, RetryPolicy(backoff_ms=1))
    await bench.enqueue(1)
    assert [(await handler.started.get()).attempt for _ in range(6)] == [1] * 6
    handler.work = nothing
    await bench.until(lambda stats: stats.completed == 1)
    assert handler.given_up.empty()


@pytest.mark.gen_test(timeout=20)
async def test_job_timeout_cancels_and_retries(bench: Bench) -> None:
    """A job that takes too long is cancelled and counts as a failed attempt."""
    handler = Handler(wait_forever)
    bench.start(handler, RetryPolicy(attempts=1, timeout_seconds=0.1))
    await bench.enqueue(1)
    assert await handler.ended.get() == "cancelled"
    assert (await handler.given_up.get())[1] == "Processing took longer than 0.1 s after 1 attempt"


@pytest.mark.gen_test(timeout=20)
async def test_long_job_keeps_its_lease(bench: Bench) -> None:
    """A job eight times longer than its lease runs once, although a second worker recovers expired leases."""
    bench.queue_options["lease_seconds"] = 0.25

    async def work(job: Job) -> None:
        await asyncio.sleep(2)  # eight times as long as the lease

    handler = Handler(work)
    for _ in range(2):
        bench.start(handler, lease_seconds=0.25, renew_seconds=0.05)
    await bench.enqueue(1)
    await bench.until(lambda stats: stats.completed == 1)
    assert handler.started.qsize() == 1


@pytest.mark.gen_test(timeout=20)
async def test_lost_lease_cancels_the_job_and_is_counted(bench: Bench, redis_server: RedisServer) -> None:
    """When another process has taken over the job, this process stops it and acknowledges nothing."""
    handler = Handler(wait_forever)
    _, metrics = bench.start(handler, renew_seconds=0.05)
    await bench.enqueue(1)
    await handler.started.get()
    redis_server.client().delete("pipeline:{ai-processing}:leases")
    assert await handler.ended.get() == "cancelled"
    assert handler.given_up.empty()
    while not count(metrics, "pipeline_leases_lost_total"):
        await asyncio.sleep(0.01)
    assert count(metrics, "pipeline_jobs_finished_total", outcome="lost") == 1


@pytest.mark.gen_test(timeout=20)
async def test_job_that_stalls_too_often_is_given_up_by_the_next_worker(bench: Bench) -> None:
    """After three stalls the job is given up instead of started, so that its owner gets an event."""
    (job_id,) = await bench.enqueue(1)
    for number in range(3):
        await bench.queue.step(f"dying:{number}", [], 1)
        await bench.queue.recover(everything=True)
    handler = Handler(nothing)
    bench.start(handler)
    assert (await handler.given_up.get())[1] == "Processing stalled 3 times"
    await bench.until(lambda stats: stats.failed == 1)
    assert handler.started.empty()
    assert (await bench.queue.fields(job_id))["state"] == JobState.FAILED


@pytest.mark.gen_test(timeout=20)
async def test_giving_up_is_repeated_until_it_succeeds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose failure cannot be recorded is not acknowledged as failed, and its work is not repeated."""
    monkeypatch.setattr("pipeline.queue.attempt.GIVE_UP_RETRY_MS", 10)
    handler = Handler(failing(RetryableJobError("AI service unavailable")))
    handler.give_up_error = DependencyUnavailable("The store cannot be reached")
    bench.start(handler, RetryPolicy(attempts=1))
    await bench.enqueue(1)
    for _ in range(3):
        _, message = await handler.given_up.get()
        assert message == "AI service unavailable after 1 attempt"
    handler.give_up_error = None
    await bench.until(lambda stats: stats.failed == 1)
    assert handler.started.qsize() == 1


@pytest.mark.gen_test(timeout=20)
async def test_two_workers_share_the_work_without_doubling(bench: Bench) -> None:
    """Two processes on one queue run each job once between them."""
    first, second = Handler(nothing), Handler(nothing)
    bench.start(first)
    bench.start(second)
    await bench.enqueue(200)
    await bench.until(lambda stats: stats.completed == 200)
    assert first.started.qsize() + second.started.qsize() == 200


def backoffs(starts: list[Job]) -> list[int]:
    """Return the milliseconds between one start and the next."""
    return [later.claimed_at_ms - earlier.claimed_at_ms for earlier, later in zip(starts, starts[1:], strict=False)]


@pytest.mark.gen_test(timeout=20)
async def test_commit_may_take_longer_than_the_job(bench: Bench) -> None:
    """When the work is done, the worker waits for the commit as long as the store needs; the work is not repeated."""
    release = asyncio.Event()
    handler = Handler(nothing, waiting_for(release))
    bench.queue_options["lease_seconds"] = 0.5
    _, metrics = bench.start(handler, RetryPolicy(timeout_seconds=0.1), lease_seconds=0.5, renew_seconds=0.1)
    await bench.enqueue(1)
    await handler.ended.get()
    await asyncio.sleep(1)  # ten times the time limit of the job, twice its lease
    assert not count(metrics, "pipeline_jobs_finished_total", outcome="retried")
    release.set()
    await bench.until(lambda stats: stats.completed == 1)
    assert handler.started.qsize() == 1


@pytest.mark.gen_test(timeout=20)
async def test_retry_of_a_paused_queue_starts_after_resume(bench: Bench) -> None:
    """A retry that is due while the queue is paused starts after `resume`, with its attempt number."""
    handler = Handler(failing(RetryableJobError("AI service unavailable")))
    bench.start(handler, RetryPolicy(backoff_ms=50))
    await bench.enqueue(1)
    await handler.started.get()
    await bench.until(lambda stats: stats.delayed == 1)
    await bench.queue.pause()
    await asyncio.sleep(0.3)  # the retry is due in this time
    assert handler.started.empty()
    handler.work = nothing
    await bench.queue.resume()
    assert (await handler.started.get()).attempt == 2
    await bench.until(lambda stats: stats.completed == 1)


@pytest.mark.gen_test(timeout=20)
async def test_backoff_is_two_and_four_seconds(bench: Bench) -> None:
    """With the specified options the second attempt starts after 2 s, and the third after 4 more seconds."""
    handler = Handler(failing(RetryableJobError("AI service unavailable")))
    bench.start(handler, RetryPolicy())
    await bench.enqueue(1)
    starts = [await handler.started.get() for _ in range(3)]
    first, second = backoffs(starts)
    assert 2000 <= first < 3000 and 4000 <= second < 5000


@pytest.mark.gen_test(timeout=20)
async def test_completed_jobs_are_removed_after_retention_without_new_jobs(bench: Bench) -> None:
    """Completed jobs are removed in time although no job is enqueued."""
    bench.queue_options["keep_completed_seconds"] = 0.2
    bench.start(Handler(nothing), renew_seconds=0.05)
    ids = await bench.enqueue(5)
    await bench.until(lambda stats: stats.completed == 5)
    await bench.until(lambda stats: stats.completed == 0)
    assert [await bench.queue.fields(job_id) for job_id in ids] == [{}] * 5
