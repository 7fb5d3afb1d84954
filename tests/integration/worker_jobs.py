"""Jobs that wait, and the starts of jobs that a handler recorded."""

from __future__ import annotations

import asyncio

from pipeline.queue.job import Job
from tests.workers import Handler, Work


async def wait_forever(job: Job) -> None:
    """Wait until the job is cancelled."""
    await asyncio.Event().wait()


def waiting_for(release: asyncio.Event) -> Work:
    """Return work that ends when the event is set."""

    async def work(job: Job) -> None:
        await release.wait()

    return work


def started(handler: Handler) -> list[Job]:
    """Return the starts that were not read before."""
    return [handler.started.get_nowait() for _ in range(handler.started.qsize())]
