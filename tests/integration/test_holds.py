"""Holds on a real Redis: jobs of a held provider are parked in order, and the jobs of other lanes pass them."""

from __future__ import annotations

import pytest
from redis import Redis

from pipeline.hold import ProviderReport, ProviderState
from pipeline.queue.job import Mode, NewJob
from pipeline.queue.queue import JobQueue
from tests.integration.held_providers import BASE, DAY_MS, Claimer, away, busy, enqueue, ids_of, parked, queue

__all__ = ["queue"]  # fixtures


@pytest.mark.fault("E6")
@pytest.mark.gen_test
async def test_jobs_of_other_lanes_pass_those_of_a_held_provider(queue: JobQueue) -> None:
    """A job waits only if all its providers are held. It takes no slot, loses no attempt and stays in order."""
    sneakers = await enqueue(queue, "sneaker", *range(1, 6))
    claim = Claimer(queue)
    (first,) = await claim(1)
    cameras = await enqueue(queue, "camera", 11, 12)
    legos = await enqueue(queue, "lego", 21)
    assert ids_of(await claim(5, parked(first), reports=[busy(8)])) == cameras + legos
    assert await claim(5) == []
    stats = await queue.stats()
    assert (stats.waiting, stats.active, stats.oldest_ready_seconds) == (5, 3, None)
    assert [(hold.provider, hold.reason) for hold in stats.holds] == [("acme", "AI service is busy")]
    assert 7 < stats.holds[0].left_seconds <= 8
    assert await queue.backlog() == 5
    queue.clock_offset_ms += 8001
    jobs = await claim(5)
    assert ids_of(jobs) == sneakers
    assert {job.attempt for job in jobs} == {1} and not (await queue.stats()).holds


@pytest.mark.gen_test
async def test_lane_stays_open_while_one_of_its_providers_may_be_asked(queue: JobQueue) -> None:
    """A lane is closed only while all its providers are held; a job of an unknown lane uses the lane without a name."""
    legos, unknown = await enqueue(queue, "lego", 1), await enqueue(queue, "shoe box", 2)
    claim = Claimer(queue)
    step = await claim.step(0, reports=[busy(30, "other")])
    assert ids_of(await claim(5)) == legos
    await enqueue(queue, "lego", 3)
    assert await claim(5, reports=[busy(10)]) == []
    assert [hold.provider for hold in sorted(step.holds)] == ["other"]
    queue.clock_offset_ms += 10_001
    assert ids_of(await claim(5)) == [f"ai-processing:{3:024x}"]
    queue.clock_offset_ms += 20_001
    assert ids_of(await claim(5)) == unknown


@pytest.mark.gen_test
async def test_hold_is_no_longer_than_ten_minutes(queue: JobQueue) -> None:
    """The limit counts for a longer wait that a service asks for, and after a clock was set back."""
    ids = await enqueue(queue, "sneaker", 1)
    claim = Claimer(queue)
    await claim.step(0, reports=[busy(86_400)])
    queue.clock_offset_ms += 600_100
    assert ids_of(await claim(1)) == ids
    await enqueue(queue, "sneaker", 2)
    await claim.step(0, reports=[busy(600)])
    queue.clock_offset_ms -= 3_600_000
    await claim.step(0)
    queue.clock_offset_ms += 600_100
    assert len(await claim(1)) == 1


@pytest.mark.gen_test
async def test_longer_of_two_waits_counts(queue: JobQueue) -> None:
    """Of two concurrent calls one got a wait of 10 s and the next one of 1 s: the hold is 10 s."""
    claim = Claimer(queue)
    await claim.step(0, reports=[busy(10)])
    (hold,) = (await claim.step(0, reports=[busy(1)])).holds
    assert 9 < hold.left_seconds <= 10


@pytest.mark.gen_test
async def test_parked_jobs_wake_no_worker(queue: JobQueue, redis: Redis) -> None:
    """While only parked jobs wait, the list that wakes idle workers is empty; when the hold ends it has one entry."""
    await enqueue(queue, "sneaker", 1, 2, 3)
    claim = Claimer(queue)
    redis.delete(BASE + "wake")
    await claim.step(5, reports=[busy(1)])
    assert not redis.exists(BASE + "wake")
    queue.clock_offset_ms += 1001
    await claim(1)
    assert redis.llen(BASE + "wake") == 1


@pytest.mark.fault("E8")
@pytest.mark.gen_test
async def test_parked_job_that_is_too_old_is_claimed_during_the_hold(queue: JobQueue) -> None:
    """Its worker can then end the job, also a job that was lost and restored. Younger jobs stay parked."""
    now_ms = 1_795_000_000_000
    old = NewJob(f"ai-processing:{1:024x}", {}, lane="sneaker", submitted_at_ms=now_ms)
    assert await queue.restore([old]) == 1
    ids = await enqueue(queue, "sneaker", 2, 3)
    claim = Claimer(queue)
    assert (await claim.step(5, reports=[busy(600)])).next_due_ms == 0
    (claimed,) = await claim(5)
    assert (claimed.id, claimed.submitted_at_ms, claimed.tries) == (old.id, now_ms, "")
    assert await claim(5) == []
    assert (await claim.step(1)).next_due_ms <= 600_000
    assert (await claim.step(0)).next_due_ms is None  # without a free slot there is nothing to claim
    queue.clock_offset_ms += DAY_MS - 1000
    step = await claim.step(5, reports=[busy(600)])
    assert step.claimed == [] and 0 < step.next_due_ms <= 1000
    queue.clock_offset_ms += 1001
    assert ids_of(await claim(5)) == ids


@pytest.mark.gen_test
async def test_restore_leaves_parked_jobs_where_they_are(queue: JobQueue, redis: Redis) -> None:
    """Restore adds no job that is parked. After a wipe of the parked list, or of all keys, it adds the jobs."""
    jobs = [NewJob(f"ai-processing:{number:024x}", {}, lane="sneaker") for number in range(1, 4)]
    assert await queue.restore(jobs) == 3
    claim = Claimer(queue)
    await claim.step(5, reports=[busy(30)])
    assert await queue.restore(jobs) == 0
    redis.delete(BASE + "parked")
    assert await queue.restore(jobs) == 3
    await claim.step(5)
    assert (await queue.stats()).waiting == 3
    redis.flushall()
    assert await queue.restore(jobs) == 3
    assert len(await claim(5)) == 3


@pytest.mark.gen_test
async def test_process_that_asks_another_provider_takes_the_parked_jobs(redis_url: str, queue: JobQueue) -> None:
    """While the processes of a fleet change AI_PROVIDER one by one, each process uses its own providers."""
    ids = await enqueue(queue, "sneaker", 1, 2)
    assert await Claimer(queue)(5, reports=[busy(30)]) == []
    changed = JobQueue(redis_url, lanes={"": ("new",)})
    assert ids_of(await Claimer(changed, "worker-b")(5)) == ids
    await changed.close()


@pytest.mark.gen_test
async def test_users_alternate_after_a_hold(queue: JobQueue) -> None:
    """Hundreds of parked jobs of one user are not claimed before the first job of another user."""
    many = await enqueue(queue, "sneaker", *range(1, 301), group="anna")
    few = await enqueue(queue, "sneaker", 1001, group="ben")
    claim = Claimer(queue)
    assert await claim(5, reports=[busy(1)]) == []
    assert (await queue.stats()).waiting == 301
    queue.clock_offset_ms += 1001
    for _ in range(4):
        await claim.step(0)
    claimed = await claim(4)
    assert set(ids_of(claimed)) == {*many[:3], *few}
    assert await queue.backlog() == 297


@pytest.mark.gen_test
async def test_paused_queue_parks_and_claims_nothing(queue: JobQueue) -> None:
    """An operator paused the queue: no job is claimed, not even one that would try the provider."""
    await enqueue(queue, "sneaker", 1)
    claim = Claimer(queue)
    await claim.step(5, reports=[away()])
    await queue.pause()
    queue.clock_offset_ms += DAY_MS + 1000
    step = await claim.step(5)
    assert step.claimed == [] and step.mode is Mode.PAUSED
    await queue.resume()
    assert len(await claim(5)) == 1


@pytest.mark.fault("E6")
@pytest.mark.gen_test(timeout=60)
async def test_ten_thousand_parked_jobs_delay_another_job_by_a_few_steps(queue: JobQueue) -> None:
    """Redis parks a thousand jobs per step; after that they cost no step."""
    jobs = [NewJob(f"ai-processing:{number:024x}", {}, lane="sneaker") for number in range(1, 10_001)]
    await queue.restore(jobs)
    good = await enqueue(queue, "camera", 20_000)
    claim = Claimer(queue)
    assert ids_of(await claim(5, reports=[busy(30)])) == good
    assert claim.steps <= 12
    step = await claim.step(5)
    assert step.claimed == [] and not step.has_more and (await queue.stats()).waiting == 10_000


@pytest.mark.gen_test
async def test_answer_does_not_end_a_wait_that_the_provider_asked_for(queue: JobQueue) -> None:
    """Of two concurrent calls one got a wait, and then the other one an answer: the hold stays."""
    claim = Claimer(queue)
    await claim.step(0, reports=[busy(10)])
    (hold,) = (await claim.step(0, reports=[ProviderReport("acme", ProviderState.ANSWERED), away()])).holds
    assert hold.wait_seconds == 0 and 9 < hold.left_seconds <= 10


@pytest.mark.gen_test
async def test_worker_leaves_jobs_of_avoided_lanes_to_other_workers(queue: JobQueue) -> None:
    """The jobs stay at the front, in order, until another worker claims them, also a job that tries the provider."""
    ids = await enqueue(queue, "sneaker", 1, 2)
    cameras = await enqueue(queue, "camera", 11)
    broken, good = Claimer(queue, "broken"), Claimer(queue, "good")
    step = await broken.step(5, avoided=["sneaker"])
    assert ids_of(step.claimed) == cameras and not step.has_more
    assert ids_of(await good(2)) == ids
    later = await enqueue(queue, "sneaker", 3)
    assert await broken(5, avoided=["sneaker", ""], reports=[away()]) == []
    queue.clock_offset_ms += 1001
    step = await broken.step(5, avoided=["sneaker"])
    assert step.claimed == [] and step.next_due_ms > 1000
    (trying,) = await good(5)
    assert (trying.id, trying.tries) == (later[0], "acme")
