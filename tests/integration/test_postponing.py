"""JobQueue.postpone on a real Redis: the state of a postponed job, when it is ready, and that it is never lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis
from tornado.ioloop import IOLoop

from pipeline.queue.job import Finish, JobState, NewJob, Outcome
from pipeline.queue.queue import LONGEST_POSTPONEMENT_SECONDS, JobQueue
from pipeline.queue.snapshot import POSTPONED
from tests.integration.queue_jobs import enqueue, ids_of
from tests.workers import Claimer

POSTPONED_KEY = "pipeline:{ai-processing}:postponed"


@pytest.fixture
def queue(io_loop: IOLoop, redis_url: str) -> Iterator[JobQueue]:
    queue = JobQueue(redis_url, block_seconds=1)
    yield queue
    io_loop.run_sync(queue.close)


@pytest.mark.gen_test
async def test_postponed_job_waits_and_other_jobs_run(queue: JobQueue) -> None:
    """Until its time the job is delayed, with the reason and the due time. Then it is ready, after other jobs."""
    first, second = await enqueue(queue, 1, 2)
    assert await queue.postpone(first, 60)
    stats = await queue.stats()
    assert (stats.waiting, stats.delayed, await queue.backlog()) == (1, 1, 2)
    for info in ((await queue.job_infos([first]))[first], (await queue.snapshot([first])).info(first)):
        assert info is not None and (info.state, info.error) == (JobState.DELAYED, POSTPONED)
        assert info.due_at is not None and info.is_given_back
    claim = Claimer(queue)
    (job,) = await claim(5)
    assert job.id == second
    step = await queue.step("w:9", [], 1)
    assert step.next_due_ms is not None and 50_000 < step.next_due_ms <= 60_000
    queue.clock_offset_ms += 60_001
    (job,) = await claim(5)
    assert (job.id, job.attempt) == (first, 1)
    assert not await queue.postpone(first, 60)
    await claim(0, Finish(job, Outcome.RETRY, 1000))
    assert not await queue.postpone(first, 60) and not await queue.unpostpone(first)
    assert (await queue.job_infos([first]))[first].error != POSTPONED


@pytest.mark.parametrize("group", ["", "user-1"])
@pytest.mark.gen_test
async def test_resumed_job_is_the_first_of_its_group(queue: JobQueue, group: str) -> None:
    """A second resume has no effect, and neither has the resume of a job that is not postponed."""
    ids = [f"ai-processing:{number:024x}" for number in range(4)]
    await queue.restore([NewJob(job_id, {"n": 1}, group=group) for job_id in ids])
    for job_id in ids[:2]:
        assert await queue.postpone(job_id, 3600)
    for job_id in reversed(ids[:2]):
        assert await queue.unpostpone(job_id)
        assert not await queue.unpostpone(job_id)
    assert not await queue.unpostpone(ids[3]) and not await queue.unpostpone("ai-processing:" + "f" * 24)
    assert ids_of(await Claimer(queue)(5)) == ids


@pytest.mark.gen_test
async def test_postponed_job_is_not_lost_and_not_doubled(queue: JobQueue, redis: Redis) -> None:
    """The reconciler does not change it, and a cancel ends it. A job that the set has lost is restored as waiting."""
    first, second = await enqueue(queue, 1, 2)
    for job_id in (first, second):
        assert await queue.postpone(job_id, 3600)
    assert await queue.restore([NewJob(first, {"n": 1})]) == 0
    assert (await queue.stats()).delayed == 2
    assert await queue.cancel(second) is JobState.DELAYED
    assert await queue.completed([second]) == [second] and redis.zcard(POSTPONED_KEY) == 1
    redis.delete(POSTPONED_KEY)
    assert await queue.restore([NewJob(first, {"n": 1})]) == 1
    assert "postponedUntil" not in await queue.fields(first)
    assert ids_of(await Claimer(queue)(5)) == [first]


@pytest.mark.gen_test
async def test_clock_set_back_does_not_prolong_a_postponement(queue: JobQueue) -> None:
    """A postponement beyond the longest allowed time ends at once. A shorter one is not changed."""
    first, second = await enqueue(queue, 1, 2)
    queue.clock_offset_ms += 7 * 86_400_000
    assert await queue.postpone(first, LONGEST_POSTPONEMENT_SECONDS)
    queue.clock_offset_ms -= 7 * 86_400_000
    assert await queue.postpone(second, LONGEST_POSTPONEMENT_SECONDS)
    await queue.recover()
    assert ids_of(await Claimer(queue)(5)) == [first]


@pytest.mark.gen_test
async def test_running_and_delayed_jobs_are_listed_with_their_assets(queue: JobQueue) -> None:
    """Each state has its own list, with a mark whether the list is complete."""
    ids = [f"ai-processing:{number:024x}" for number in range(3)]
    await queue.restore([NewJob(job_id, {"assetId": job_id[-24:]}) for job_id in ids])
    (job,) = await Claimer(queue)(1)
    assert await queue.postpone(ids[1], 3600)
    assert await queue.background_counts(JobState.ACTIVE, at_most=5) == ([job.id[-24:]], True)
    assert await queue.background_counts(JobState.DELAYED, at_most=5) == ([ids[1][-24:]], True)
    both, is_all = await queue.background_counts(JobState.ACTIVE, JobState.DELAYED, at_most=1)
    assert (sorted(both), is_all) == (sorted(each[-24:] for each in ids[:2]), False)
