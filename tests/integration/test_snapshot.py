"""Snapshots of the queue on a real Redis: what they contain, and how often Redis is asked for one."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from redis import Redis

from pipeline.queue.job import Finish, JobState, Mode, NewJob, Outcome
from pipeline.queue.job_lookup import LINE_AT_MOST
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.progress import Progress
from tests.factories import make_asset
from tests.memory_storage import MemoryStorage
from tests.workers import Bench, Claimer


def job_id(number: int) -> str:
    return f"ai-processing:{number:024x}"


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("users", [0, 1, 7, 400], ids=lambda users: f"{users} users")
async def test_positions_are_the_order_in_which_jobs_are_claimed(bench: Bench, users: int) -> None:
    """Positions are the order of the claims, with and without groups; jobs without a group are claimed first."""
    chosen = random.Random(users)
    jobs = [NewJob(job_id(n), {}, group=f"user-{chosen.randrange(users)}" if users else "") for n in range(1000)]
    jobs += [NewJob(job_id(1000 + n), {}) for n in range(5)]
    await bench.queue.restore(jobs)
    snapshot = await bench.queue.snapshot()
    claim = Claimer(bench.queue)
    claimed = [job.id for _ in range(11) for job in await claim(100)]
    assert [snapshot.info(each).position for each in claimed] == list(range(1, 1006))  # type: ignore[union-attr]


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("users", [0, 3], ids=lambda users: f"{users} users")
async def test_positions_are_exact_in_the_first_ten_thousand(bench: Bench, users: int) -> None:
    """A job after the first ten thousand has no position; a snapshot that is asked for it shows it as waiting."""
    await bench.queue.restore(
        [NewJob(job_id(number), {}, group=f"user-{number % users}" if users else "") for number in range(12_000)]
    )
    snapshot = await bench.queue.snapshot([job_id(11_999)])
    infos = [snapshot.info(job_id(number)) for number in (0, 9_999)]
    assert [(each.state, each.position) for each in infos if each] == [
        (JobState.WAITING, 1), (JobState.WAITING, LINE_AT_MOST)
    ]
    assert snapshot.info(job_id(10_000)) is None
    last = snapshot.info(job_id(11_999))
    assert last is not None and (last.state, last.position) == (JobState.WAITING, None)


@pytest.mark.gen_test(timeout=60)
async def test_snapshot_has_jobs_that_are_not_waiting(bench: Bench) -> None:
    """A snapshot shows an active job, a job before its retry, a refunded one, a completed one and an unknown one."""
    ids = await bench.enqueue(5)
    claim = Claimer(bench.queue)
    running, retried, given_back, done = await claim(4)
    await claim(
        0,
        Finish(retried, Outcome.RETRY, 60_000, error="AI service answered 500 after 1 attempt"),
        Finish(given_back, Outcome.RETRY, 60_000, refunds_attempt=True, error="The storage cannot be reached"),
        Finish(done, Outcome.COMPLETED),
    )
    await bench.queue.report({running.id: {"attempt": 1, "provider": "http", "share": 0.5}})
    snapshot = await bench.queue.snapshot([done.id, job_id(99)])
    found: dict[str, Any] = {each: snapshot.info(each) for each in (*ids, job_id(99))}
    assert (found[running.id].state, found[running.id].attempt) == (JobState.ACTIVE, 1)
    assert found[running.id].report == {"attempt": 1, "provider": "http", "share": 0.5}
    assert found[retried.id].state is found[given_back.id].state is JobState.DELAYED
    assert (found[retried.id].attempt, found[given_back.id].attempt) == (1, 0)
    assert not found[retried.id].is_given_back and found[given_back.id].is_given_back
    assert 50 < (found[retried.id].due_at - snapshot.taken_at).total_seconds() <= 60
    assert found[done.id].state is JobState.COMPLETED and found[job_id(99)].state is None
    assert found[ids[4]].position == 1
    assert (snapshot.ended_in_last_minute, snapshot.mode) == (1, Mode.RUNNING)


@pytest.mark.gen_test(timeout=60)
async def test_queue_reports_that_it_is_watched(bench: Bench) -> None:
    """After a snapshot the reply to each step and each enqueue says that the queue is watched; before, it does not."""
    worker = bench.make_queue()
    bench.queues.append(worker)
    calls: list[str] = []
    worker.on_watched = lambda: calls.append("watched")
    claim = Claimer(worker)
    await bench.enqueue(1)
    await claim()
    assert (worker.is_watched, bench.queue.is_watched, calls) == (False, False, [])
    await bench.queue.snapshot()
    await bench.queue.enqueue(job_id(1), {})
    await claim()
    await claim()
    assert (worker.is_watched, bench.queue.is_watched, calls) == (True, True, ["watched"])


@pytest.mark.gen_test(timeout=60)
async def test_redis_is_asked_for_one_snapshot_a_second(bench: Bench, redis: Redis) -> None:
    """A thousand clients that ask for a photo each, for two seconds, cause three calls at most, and all get a reply."""
    assets = [make_asset(processing_job_id=job_id(number)) for number in range(1000)]
    await bench.queue.restore([NewJob(job_id(number), {}) for number in range(1000)])
    progress = Progress(bench.queue, {}, ImageUrls(MemoryStorage()))
    calls = counted_snapshots(bench)
    loop = asyncio.get_running_loop()
    ends_at, rounds = loop.time() + 2, 0
    while loop.time() < ends_at:
        shown = await asyncio.gather(*(progress.shown([asset]) for asset in assets))
        assert [each["progress"]["position"] for (each,) in shown] == list(range(1, 1001))
        rounds += 1
    assert len(calls) <= 3 < rounds


@pytest.mark.gen_test(timeout=60)
async def test_photo_newer_than_a_snapshot_is_shown_with_the_next_one(bench: Bench) -> None:
    """A photo uploaded after a snapshot began is shown with the next snapshot, also while the first one is read."""
    progress = Progress(bench.queue, {}, ImageUrls(MemoryStorage()))
    await bench.queue.restore([NewJob(job_id(0), {})])
    old, new, lost = (make_asset(processing_job_id=job_id(number)) for number in range(3))
    first = asyncio.ensure_future(progress.shown([old]))
    await asyncio.sleep(0)
    await bench.queue.restore([NewJob(job_id(1), {})])
    shown = await asyncio.gather(first, progress.shown([new]), progress.shown([lost]))
    found = [each["progress"] for (each,) in shown]
    assert [(each["state"], each["position"]) for each in found] == [("queued", 1), ("queued", 2), ("queued", None)]


def counted_snapshots(bench: Bench) -> list[None]:
    """Return a list that gets an entry with each snapshot that Redis is asked for."""
    calls: list[None] = []
    ask = bench.queue.snapshot

    async def counted(job_ids: Any = ()) -> Any:
        calls.append(None)
        return await ask(job_ids)

    bench.queue.snapshot = counted  # type: ignore[method-assign]
    return calls
