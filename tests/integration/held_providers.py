"""A queue with lanes whose providers are held: its jobs, its claimers, and the reports that begin and end a hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.hold import ProviderReport, ProviderState
from pipeline.queue.job import Finish, Job, Outcome
from pipeline.queue.queue import JobQueue
from tests.workers import Claimer as OneStepClaimer

LANES = {"sneaker": ("acme",), "boots": ("acme",), "lego": ("acme", "other"), "": ("other",)}
DAY_MS = 86_400_000
BASE = "pipeline:{ai-processing}:"


@pytest.fixture
def queue(io_loop: IOLoop, redis_url: str) -> Iterator[JobQueue]:
    queue = JobQueue(redis_url, lanes=LANES)
    yield queue
    io_loop.run_sync(queue.close)


class Claimer(OneStepClaimer):
    """A claimer that repeats its step while the queue reports that there is more."""

    async def __call__(self, free: int = 1, *finishes: Finish, **options: Any) -> list[Job]:
        step = await self.step(free, *finishes, **options)
        claimed: list[Job] = step.claimed
        while step.has_more and len(claimed) < free:
            step = await self.step(free - len(claimed))
            claimed += step.claimed
        return claimed


async def enqueue(queue: JobQueue, lane: str, *numbers: int, group: str = "") -> list[str]:
    ids = [f"ai-processing:{number:024x}" for number in numbers]
    for job_id in ids:
        assert await queue.enqueue(job_id, {}, lane=lane, group=group)
    return ids


def ids_of(jobs: Sequence[Job]) -> list[str]:
    return [job.id for job in jobs]


def parked(job: Job) -> Finish:
    """Return the end of an attempt whose provider could not be asked."""
    return Finish(job, Outcome.PARKED, refunds_attempt=True, error="AI service unavailable")


def away(provider: str = "acme") -> ProviderReport:
    """Return the report that a provider could not be asked: single jobs try it."""
    return ProviderReport(provider, ProviderState.AWAY, 15, "AI service unavailable", "ConnectionRefusedError: no")


def still_away(provider: str = "acme") -> ProviderReport:
    """Return the report of a job that tried a held provider without success."""
    return away(provider)._replace(state=ProviderState.TRIED)


def busy(seconds: float, provider: str = "acme") -> ProviderReport:
    """Return the report that a provider asked for a wait of so many seconds."""
    return ProviderReport(provider, ProviderState.BUSY, seconds, "AI service is busy", "HTTP 429")
