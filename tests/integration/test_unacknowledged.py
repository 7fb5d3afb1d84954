"""Jobs are acknowledged when their event is published, on a real queue; the test decides when that is."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from redis import Redis

import pipeline.queue.unacknowledged
from pipeline.errors import PermanentJobError
from pipeline.queue.job import Job
from tests.slowdown import slowdown
from tests.workers import Bench, Handler, count, failing, nothing

pytestmark = pytest.mark.fault("R4")


class Events:
    """The events of the jobs, which are published when the test calls `publish`."""

    def __init__(self) -> None:
        self.unpublished: dict[str, asyncio.Future[None]] = {}

    def __call__(self, job: Job) -> asyncio.Future[None]:
        return self.unpublished.setdefault(job.id, asyncio.get_running_loop().create_future())

    def publish(self) -> None:
        """Report all events as published."""
        for event in self.unpublished.values():
            event.set_result(None)


def start(bench: Bench, handler: Handler, events: Events, **options: Any) -> Any:
    """Start a worker with a short lease whose jobs wait for these events."""
    return bench.start(handler, unpublished=events, **{"lease_seconds": 1, "renew_seconds": 0.2} | options)


@pytest.mark.gen_test(timeout=20)
async def test_job_is_acknowledged_when_its_event_is_published(bench: Bench) -> None:
    """Until the event is published the job is active and its lease is renewed, but its slot takes the next job."""
    events, handler = Events(), Handler(nothing)
    bench.queue_options |= {"lease_seconds": 1}
    _, metrics = start(bench, handler, events, concurrency=1)
    await bench.enqueue(3)
    for _ in range(3):
        await handler.started.get()
    await bench.until(lambda stats: (stats.active, stats.waiting) == (3, 0))
    # As long as three leases: a lease that is not renewed expires in that time.
    ends_at = time.monotonic() + 3
    while time.monotonic() < ends_at:
        assert (await bench.queue.stats()).active == 3
        await asyncio.sleep(0.1)
    assert handler.started.empty() and count(metrics, "pipeline_slots_busy") == 0
    assert metrics.registry.get_sample_value("pipeline_job_running_seconds", {"queue": "ai-processing"}) == 0
    events.publish()
    await bench.until(lambda stats: (stats.completed, stats.active) == (3, 0))
    assert count(metrics, "pipeline_leases_lost_total") == 0


@pytest.mark.gen_test(timeout=20)
async def test_dead_letter_waits_for_its_event_too(bench: Bench) -> None:
    """A job that is given up has an event, too, and stays active until it is published."""
    events, handler = Events(), Handler(failing(PermanentJobError("no")))
    start(bench, handler, events)
    await bench.enqueue(1)
    await handler.given_up.get()
    assert (await bench.until(lambda stats: stats.active == 1)).failed == 0
    events.publish()
    await bench.until(lambda stats: stats.failed == 1)


@pytest.mark.gen_test(timeout=20)
async def test_drain_releases_jobs_with_an_unpublished_event(bench: Bench) -> None:
    """A drain waits a second; then the next process gets the job with its attempt refunded, and no stall."""
    events, handler = Events(), Handler(nothing)
    worker, _ = start(bench, handler, events)
    (job_id,) = await bench.enqueue(1)
    await handler.started.get()
    started_at = time.monotonic()
    await worker.drain(30)
    assert time.monotonic() - started_at < 2 * slowdown()
    next_handler = Handler(nothing)
    bench.start(next_handler)
    job = await next_handler.started.get()
    assert (job.id, job.attempt, job.stalls) == (job_id, 1, 0)
    await bench.until(lambda stats: stats.completed == 1)


@pytest.mark.gen_test(timeout=20)
async def test_drain_acknowledges_jobs_whose_event_is_published_in_time(bench: Bench) -> None:
    """A job whose event is published within that second is not repeated."""
    events, handler = Events(), Handler(nothing)
    worker, _ = start(bench, handler, events)
    await bench.enqueue(1)
    await handler.started.get()
    asyncio.get_running_loop().call_later(0.3, events.publish)
    await worker.drain(30)
    stats = await bench.queue.stats()
    assert (stats.completed, stats.active, stats.waiting) == (1, 0, 0)


@pytest.mark.gen_test(timeout=20)
async def test_oldest_jobs_are_acknowledged_when_no_event_can_be_published(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a number of jobs the oldest is acknowledged, so that jobs end when Redis refuses to publish."""
    monkeypatch.setattr(pipeline.queue.unacknowledged, "UNACKNOWLEDGED_AT_MOST", 3)
    events, handler = Events(), Handler(nothing)
    start(bench, handler, events)
    ids = await bench.enqueue(20)
    await bench.until(lambda stats: (stats.completed, stats.active) == (17, 3))
    assert [(await bench.queue.fields(job_id))["state"] for job_id in ids] == ["completed"] * 17 + ["active"] * 3


@pytest.mark.gen_test(timeout=20)
async def test_job_whose_lease_is_lost_is_forgotten(bench: Bench, redis: Redis) -> None:
    """Another process takes over such a job; this process forgets it, and can drain."""
    events, handler = Events(), Handler(nothing)
    worker, metrics = start(bench, handler, events)
    await bench.enqueue(1)
    await handler.started.get()
    await bench.until(lambda stats: stats.active == 1)
    redis.delete("pipeline:{ai-processing}:leases")
    await bench.queue.enqueue("ai-processing:" + "0" * 24, {})
    # The job is waiting after its lease was lost, and this worker is the only one that claims it.
    await handler.started.get()
    events.publish()
    await bench.until(lambda stats: (stats.completed, stats.active) == (1, 0))
    await worker.drain(5)
    assert handler.started.empty()
