"""Background jobs: claimed in order when no other job is ready; paused, cancelled and restored as other jobs are."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.hold import BACKGROUND, ProviderReport, ProviderState, lane_behind
from pipeline.queue.job import Finish, JobState, Outcome
from pipeline.queue.queue import JobQueue
from tests.workers import Bench, Claimer, Handler, Job

LANES = {"": ("acme",), lane_behind(""): ("acme",), lane_behind("", "other"): ("other",)}


async def enqueue_background(queue: JobQueue, *names: str, lane: str = BACKGROUND) -> list[str]:
    """Enqueue background jobs; return their ids."""
    ids = [f"ai-processing:{name}" for name in names]
    for job_id in ids:
        await queue.enqueue(job_id, {"n": job_id}, group=BACKGROUND, lane=lane)
    return ids


@pytest.mark.parametrize("group", ["", "user-1"])
@pytest.mark.gen_test
async def test_background_jobs_are_claimed_last_and_in_order(bench: Bench, group: str) -> None:
    """Other jobs are claimed first, also later ones; then the oldest background job, but not in a reserved slot."""
    queue, claim = bench.queue, Claimer(bench.queue)
    a, b, c, d = await enqueue_background(queue, *"abcd")
    for name in "xyz":
        await queue.enqueue(name, {}, group=group)
    assert [job.id for job in await claim(2)] == ["x", "y"]
    stats = await queue.stats()
    assert (stats.waiting, stats.background, stats.active) == (1, 4, 2)
    assert await queue.backlog() == 1
    assert list((await queue.snapshot()).line) == ["z", a, b, c, d]
    step = await queue.step("w:1", [], 3, reserved=1)
    assert [job.id for job in step.claimed] == ["z", a] and not step.has_more
    assert (await queue.step("w:2", [], 1, reserved=1)).claimed == []
    (job,) = await claim(1)
    assert job.id == b and job.group == BACKGROUND
    # A released job, and a job of a worker process that was lost, return to the front of the background.
    await claim(0, Finish(job, Outcome.RELEASED, refunds_attempt=True))
    queue.clock_offset_ms += 60_000
    assert a in await queue.recover()
    stats = await queue.stats()
    assert (stats.background, stats.waiting) == (4, 3)
    assert [job.id for job in await claim(9)][3:] == [a, b, c, d]


@pytest.mark.gen_test
async def test_background_jobs_are_paused_cancelled_postponed_and_retried(bench: Bench) -> None:
    """A background job is paused, cancelled, postponed and retried as any other job; its id is enqueued only once."""
    queue, claim = bench.queue, Claimer(bench.queue)
    a, b, c = await enqueue_background(queue, *"abc")
    await queue.pause()
    assert await claim(5) == []
    await queue.resume()
    assert await queue.cancel(a) is JobState.WAITING
    assert await queue.postpone(b, 60)
    assert await queue.postpone(c, 60) and await queue.unpostpone(c)
    (job,) = await claim(5)
    assert job.id == c
    await claim(0, Finish(job, Outcome.RETRY, 1000, error="no"))
    queue.clock_offset_ms += 61_000
    await queue.enqueue("x", {})
    assert [each.id for each in await claim(5)][0] == "x"
    assert (await queue.stats()).background == 0
    assert not await queue.enqueue(c, {}, group=BACKGROUND)


@pytest.mark.gen_test
async def test_held_provider_parks_only_its_background_jobs(redis_url: str) -> None:
    """Jobs of another provider are claimed; parked background jobs are no backlog and delay no upload."""
    queue = JobQueue(redis_url, lanes=LANES)
    claim = Claimer(queue)
    parked = await enqueue_background(queue, *"abc")
    (free,) = await enqueue_background(queue, "d", lane=lane_behind("", "other"))
    busy = ProviderReport("acme", ProviderState.BUSY, 5, "busy", "")
    step = await queue.step("w:1", [], 5, [busy])
    assert [job.id for job in step.claimed] == [free]
    await queue.enqueue("x", {})
    assert await claim(5) == []
    stats = await queue.stats()
    assert (stats.waiting, stats.background) == (1, 3) and await queue.backlog() == 1
    queue.clock_offset_ms += 6000
    assert [job.id for job in await claim(9)] == ["x", *parked]
    await queue.close()


@pytest.mark.gen_test(timeout=30)
async def test_upload_starts_at_once_with_many_background_jobs(bench: Bench) -> None:
    """500 background jobs wait and four of the five slots run such jobs: an upload starts in the fifth slot."""
    release = asyncio.Event()

    async def work(job: Job) -> None:
        if job.group == BACKGROUND:
            await release.wait()

    handler = Handler(work)
    names = [f"{number:04}" for number in range(500)]
    await enqueue_background(bench.queue, *names)
    bench.start(handler)
    assert [(await handler.started.get()).group for _ in range(4)] == [BACKGROUND] * 4
    for number in range(20):
        await bench.queue.enqueue(f"upload-{number}", {})
        assert (await handler.started.get()).id == f"upload-{number}"
        await handler.ended.get()
    release.set()
    seen = [(await handler.started.get()).id for _ in range(496)]
    assert sorted(seen) == [f"ai-processing:{name}" for name in names[4:]]
    await bench.until(lambda stats: stats.completed == 520)
