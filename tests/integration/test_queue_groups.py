"""The order of jobs in a queue that is fair to groups, one group for each user."""

from __future__ import annotations


import pytest

from pipeline.queue.job import Finish, Outcome
from pipeline.queue.queue import JobQueue
from tests.integration.queue_jobs import enqueue, enqueue_for, ids_of
from tests.integration.queue_jobs import queue  # noqa: F811
from tests.workers import Claimer

__all__ = ["queue"]


@pytest.mark.gen_test
async def test_groups_are_claimed_in_rotation(queue: JobQueue) -> None:
    """A thousand jobs of one user delay another user's first job by one claim; each user's jobs stay in order."""
    many = await enqueue_for(queue, "anna", *range(1, 1001))
    claim = Claimer(queue)
    assert ids_of(await claim(5)) == many[:5]
    few = await enqueue_for(queue, "ben", 2001, 2002)
    claimed = ids_of(await claim(5))
    assert claimed == [many[5], few[0], many[6], few[1], many[7]]
    assert (await queue.stats()).waiting == 1000 + 2 - 10
    assert await queue.backlog() == 992


@pytest.mark.gen_test
async def test_jobs_put_back_keep_the_order_of_their_group(queue: JobQueue) -> None:
    """Released and recovered jobs go to the front of their own group, also when its list was empty."""
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
async def test_jobs_with_and_without_a_group_are_claimed(queue: JobQueue) -> None:
    """After a change of QUEUE_FAIRNESS the jobs that were waiting before it are claimed too."""
    first = await enqueue_for(queue, "anna", 1)
    second = await enqueue(queue, 2)
    assert sorted(ids_of(await Claimer(queue)(5))) == first + second
