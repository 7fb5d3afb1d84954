"""Jobs are acknowledged when their event is published, on a real queue; the publishing is what the test says it is."""

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
    """The events of the jobs: published when the test says so."""

    def __init__(self) -> None:
        self.owed: dict[str, asyncio.Future[None]] = {}

    def __call__(self, job: Job) -> asyncio.Future[None]:
        return self.owed.setdefault(job.id, asyncio.get_running_loop().create_future())

    def publish(self) -> None:
        """Redis has them all."""
        for event in self.owed.values():
            event.set_result(None)


def start(bench: Bench, handler: Handler, events: Events, **options: Any) -> Any:
    return bench.start(handler, unpublished=events, **{"lease_seconds": 1, "renew_seconds": 0.2} | options)


@pytest.mark.gen_test(timeout=20)
async def test_job_is_acknowledged_when_its_event_is_published(bench: Bench) -> None:
    """Until then it is active and its lease goes on; its slot takes the next job."""
    events, handler = Events(), Handler(nothing)
    bench.queue_options |= {"lease_seconds": 1}
    _, metrics = start(bench, handler, events, concurrency=1)
    await bench.enqueue(3)
    for _ in range(3):
        await handler.started.get()
    await bench.until(lambda stats: (stats.active, stats.waiting) == (3, 0))
    # Three leases' length: whoever lets one run out loses its job.
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
    """A failure is as much of an event; an attempt that will be repeated has none."""
    events, handler = Events(), Handler(failing(PermanentJobError("no")))
    start(bench, handler, events)
    await bench.enqueue(1)
    await handler.given_up.get()
    assert (await bench.until(lambda stats: stats.active == 1)).failed == 0
    events.publish()
    await bench.until(lambda stats: stats.failed == 1)


@pytest.mark.gen_test(timeout=20)
async def test_drain_hands_back_what_is_not_published(bench: Bench) -> None:
    """It waits a second; the next process gets the job with its attempt given back, and no stall."""
    events, handler = Events(), Handler(nothing)
    worker, _ = start(bench, handler, events)
    (job_id,) = await bench.enqueue(1)
    await handler.started.get()
    begun = time.monotonic()
    await worker.drain(30)
    assert time.monotonic() - begun < 2 * slowdown()
    again = Handler(nothing)
    bench.start(again)
    job = await again.started.get()
    assert (job.id, job.attempt, job.stalls) == (job_id, 1, 0)
    await bench.until(lambda stats: stats.completed == 1)


@pytest.mark.gen_test(timeout=20)
async def test_drain_acknowledges_what_is_published_meanwhile(bench: Bench) -> None:
    """An event that comes through in that second costs no repetition."""
    events, handler = Events(), Handler(nothing)
    worker, _ = start(bench, handler, events)
    await bench.enqueue(1)
    await handler.started.get()
    asyncio.get_running_loop().call_later(0.3, events.publish)
    await worker.drain(30)
    stats = await bench.queue.stats()
    assert (stats.completed, stats.active, stats.waiting) == (1, 0, 0)


@pytest.mark.gen_test(timeout=20)
async def test_jobs_go_on_where_nothing_can_be_published(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the oldest is acknowledged all the same: a photo must not wait for a right in Redis."""
    monkeypatch.setattr(pipeline.queue.unacknowledged, "UNACKNOWLEDGED_AT_MOST", 3)
    events, handler = Events(), Handler(nothing)
    start(bench, handler, events)
    ids = await bench.enqueue(20)
    await bench.until(lambda stats: (stats.completed, stats.active) == (17, 3))
    assert [(await bench.queue.fields(job_id))["state"] for job_id in ids] == ["completed"] * 17 + ["active"] * 3


@pytest.mark.gen_test(timeout=20)
async def test_lease_that_is_lost_meanwhile_is_let_go(bench: Bench, redis: Redis) -> None:
    """Another process sees to the job; this one forgets it and is not kept from ending."""
    events, handler = Events(), Handler(nothing)
    worker, metrics = start(bench, handler, events)
    await bench.enqueue(1)
    await handler.started.get()
    await bench.until(lambda stats: stats.active == 1)
    redis.delete("pipeline:{ai-processing}:leases")
    await bench.queue.enqueue("ai-processing:" + "0" * 24, {})
    # It stands in line again, and comes to whoever asks first: this worker.
    await handler.started.get()
    events.publish()
    await bench.until(lambda stats: (stats.completed, stats.active) == (1, 0))
    await worker.drain(5)
    assert handler.started.empty()
