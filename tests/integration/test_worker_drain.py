"""Workers on a real Redis that are drained or suspended."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.worker_jobs import wait_forever, waiting_for
from tests.workers import Bench, Handler, count, nothing


@pytest.mark.gen_test(timeout=20)
async def test_drain_lets_jobs_finish_and_claims_no_more(bench: Bench) -> None:
    """A drained worker completes its running jobs and leaves the others waiting."""
    release = asyncio.Event()
    handler = Handler(waiting_for(release))
    worker, _ = bench.start(handler)
    await bench.enqueue(8)
    await bench.until(lambda stats: stats.active == 5)
    draining = asyncio.ensure_future(worker.drain(60))
    await asyncio.sleep(0)
    release.set()
    await draining
    stats = await bench.queue.stats()
    assert (stats.completed, stats.waiting, stats.active) == (5, 3, 0)


@pytest.mark.gen_test(timeout=20)
async def test_drain_releases_jobs_that_do_not_finish(bench: Bench) -> None:
    """At the deadline running jobs are put to the front, in order, with no spent attempt and no stall."""
    handler = Handler(wait_forever)
    worker, metrics = bench.start(handler)
    ids = await bench.enqueue(6)
    await bench.until(lambda stats: stats.active == 5)
    await worker.drain(0.05)
    assert (await bench.queue.stats()).waiting == 6
    assert count(metrics, "pipeline_jobs_finished_total", outcome="released") == 5
    other = Handler(nothing)
    bench.start(other)
    jobs = [await other.started.get() for _ in ids]
    assert [job.id for job in jobs] == ids
    assert {(job.attempt, job.stalls) for job in jobs} == {(1, 0)}


@pytest.mark.fault("E16")
@pytest.mark.gen_test(timeout=20)
async def test_drain_releases_a_job_while_the_store_hangs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job is released although the refund of its attempt cannot be recorded in the store."""
    handler = Handler(wait_forever)
    monkeypatch.setattr(handler, "refund_attempt", wait_forever)
    worker, metrics = bench.start(handler)
    await bench.enqueue(1)
    await handler.started.get()
    await worker.drain(0.05)
    stats = await bench.queue.stats()
    assert (stats.waiting, stats.active) == (1, 0)
    assert count(metrics, "pipeline_jobs_finished_total", outcome="released") == 1


@pytest.mark.gen_test(timeout=20)
async def test_suspended_worker_leaves_every_job_to_others(bench: Bench) -> None:
    """A suspended worker claims nothing, takes no wake-up of another worker and finishes its jobs; later it resumes."""
    release = asyncio.Event()
    handler, other = Handler(waiting_for(release)), Handler(nothing)
    worker, _ = bench.start(handler, concurrency=2)
    (first, *rest) = [f"ai-processing:{number:024x}" for number in range(4)]
    await bench.queue.enqueue(first, {})
    assert (await handler.started.get()).id == first
    worker.suspend()
    assert not worker.is_claiming and [job.id for job in worker.running] == [first]
    busy, _ = bench.start(other, concurrency=1)
    for job_id in rest[:2]:
        await bench.queue.enqueue(job_id, {})
        assert (await other.started.get()).id == job_id
    release.set()
    await bench.until(lambda stats: stats.completed == 3)
    busy.suspend()
    await bench.queue.enqueue(rest[2], {})
    assert handler.started.empty()
    worker.resume()
    assert (await handler.started.get()).id == rest[2]
