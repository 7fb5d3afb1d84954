"""Jobs that try a held provider, one at a time, on a real Redis: which job, how often, and what its result changes."""

from __future__ import annotations

import pytest

from pipeline.hold import ProviderReport, ProviderState
from pipeline.queue.job import Finish, Outcome
from pipeline.queue.queue import JobQueue
from tests.integration.held_providers import Claimer, away, busy, enqueue, ids_of, parked, queue, still_away

__all__ = ["queue"]  # fixtures


@pytest.mark.gen_test
async def test_single_jobs_try_a_provider_that_could_not_be_asked(queue: JobQueue) -> None:
    """One job at a time tries it, over all processes, each time another one; an answer releases all jobs."""
    ids = await enqueue(queue, "sneaker", *range(1, 8))
    one, other = Claimer(queue), Claimer(queue, "worker-b")
    (first,) = await one(1)
    step = await one.step(5, parked(first), reports=[away()])
    assert step.claimed == [] and 900 < step.next_due_ms <= 1000
    queue.clock_offset_ms += 1001
    (trying,) = await other(5)
    assert (trying.id, trying.tries, trying.attempt) == (ids[1], "acme", 1)
    assert await one(5) == []
    step = await other.step(5, parked(trying), reports=[still_away()])
    assert step.claimed == [] and 1900 < step.next_due_ms <= 2000
    queue.clock_offset_ms += 2001
    (trying,) = await one(5)
    assert trying.id == ids[2]
    step = await one.step(
        5, Finish(trying, Outcome.COMPLETED), reports=[ProviderReport("acme", ProviderState.ANSWERED)]
    )
    assert ids_of(step.claimed) == [*ids[:2], *ids[3:6]] and step.holds == [] and not step.claimed[0].tries


@pytest.mark.gen_test
async def test_job_that_tries_and_dies_is_followed_by_another(queue: JobQueue) -> None:
    """The first job reports nothing; after the same wait the next job tries the provider."""
    await enqueue(queue, "sneaker", 1, 2)
    claim = Claimer(queue)
    await claim.step(0, reports=[away()])
    for number in (1, 2):
        queue.clock_offset_ms += 1001
        (trying,) = await claim(5)
        assert (trying.id, trying.tries) == (f"ai-processing:{number:024x}", "acme")


@pytest.mark.gen_test
async def test_job_that_makes_its_provider_fail_does_not_block_others(queue: JobQueue) -> None:
    """The first job makes its provider unreachable each time: another job tries it next and gets an answer."""
    ids = await enqueue(queue, "sneaker", *range(1, 4))
    claim = Claimer(queue)
    for _ in range(2):
        (bad,) = await claim(1)
        assert await claim(5, parked(bad), reports=[away()]) == []
        queue.clock_offset_ms += 1001
        (trying,) = await claim(5)
        assert (bad.id, trying.tries) == (ids[0], "acme") and trying.id != bad.id
        await claim.step(0, Finish(trying, Outcome.COMPLETED), reports=[ProviderReport("acme", ProviderState.ANSWERED)])
    assert (await queue.stats()).completed == 2


@pytest.mark.fault("E1")
@pytest.mark.gen_test
async def test_each_job_tries_the_provider_once_before_any_repeats(queue: JobQueue) -> None:
    """Every job of every lane tries it, however many jobs in front of it make the provider unreachable."""
    ids = {*await enqueue(queue, "sneaker", *range(1, 9)), *await enqueue(queue, "boots", *range(11, 19))}
    claim = Claimer(queue)
    await claim.step(0, reports=[away()])
    queue.clock_offset_ms += 1001
    tried = set()
    (trying,) = await claim(5)
    for _ in range(len(ids) + 1):  # one more: the first try is not part of the round
        tried.add(trying.id)
        assert await claim(5, parked(trying), reports=[still_away()]) == []
        queue.clock_offset_ms += 15_001
        (trying,) = await claim(5)
    assert tried == ids


@pytest.mark.gen_test
async def test_new_job_tries_the_provider_when_no_job_waits(queue: JobQueue) -> None:
    """A provider that was away an hour ago is tried by the next job."""
    claim = Claimer(queue)
    await claim.step(0, reports=[away()])
    queue.clock_offset_ms += 3_600_000
    ids = await enqueue(queue, "sneaker", 1, 2)
    (trying,) = await claim(5)
    assert (trying.id, trying.tries) == (ids[0], "acme")


@pytest.mark.gen_test
async def test_waits_between_jobs_that_try_double_up_to_the_longest(queue: JobQueue) -> None:
    """The waits are 1, 2, 4, 8, 15, 15 s. Reports of other calls do not change them; an answer starts them anew."""
    await enqueue(queue, "sneaker", *range(1, 20))
    claim = Claimer(queue)
    (job,) = await claim(1)
    await claim.step(0, parked(job), reports=[away()])
    for seconds in (1, 2, 4, 8, 15, 15):
        step = await claim.step(5, reports=[away()])
        assert step.claimed == [] and (seconds - 0.1) * 1000 < step.next_due_ms <= seconds * 1000
        queue.clock_offset_ms += seconds * 1000
        (trying,) = await claim(5)
        await claim.step(0, parked(trying), reports=[still_away()])
    await claim.step(0, reports=[ProviderReport("acme", ProviderState.ANSWERED)])
    (hold,) = (await claim.step(0, reports=[away()])).holds
    assert (hold.wait_seconds, hold.reason, hold.cause) == (1, "AI service unavailable", "ConnectionRefusedError: no")


@pytest.mark.gen_test
async def test_provider_that_asks_to_wait_counts_as_reachable(queue: JobQueue) -> None:
    """A provider that could not be asked and then answers 429 is asked by all jobs after that time."""
    ids = await enqueue(queue, "sneaker", *range(1, 4))
    claim = Claimer(queue)
    await claim.step(0, reports=[away()])
    queue.clock_offset_ms += 1001
    (trying,) = await claim(5)
    await claim.step(0, parked(trying), reports=[busy(3)])
    queue.clock_offset_ms += 3001
    assert ids_of(await claim(5)) == ids


@pytest.mark.gen_test
async def test_held_provider_of_an_open_lane_is_tried_by_single_jobs(queue: JobQueue) -> None:
    """Another provider keeps the lane open; one of its jobs at a time tries the held provider."""
    await enqueue(queue, "lego", *range(1, 9))
    claim = Claimer(queue)
    assert [job.tries for job in await claim(2, reports=[away()])] == ["", ""]
    queue.clock_offset_ms += 1001
    assert [job.tries for job in await claim(3)] == ["acme", "", ""]
    assert [job.tries for job in await claim(1)] == [""]
