"""Workers on a real queue, with handlers that only record their calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from pipeline.hold import ProviderReport
from pipeline.metrics import Metrics
from pipeline.queue.attempt import RetryPolicy
from pipeline.queue.job import Finish, Job, Step
from pipeline.queue.queue import JobQueue
from pipeline.queue.worker import Worker

Work = Callable[[Job], Awaitable[None]]


class Handler:
    """A handler that awaits a coroutine function for each job and puts its calls into asyncio queues."""

    def __init__(self, work: Work, on_commit: Work | None = None) -> None:
        """Record nothing yet.

        work: awaited in `process`.
        on_commit: awaited in `commit`.
        """
        self.work, self.on_commit = work, on_commit or nothing
        self.started: asyncio.Queue[Job] = asyncio.Queue()
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.given_up: asyncio.Queue[tuple[Job, str]] = asyncio.Queue()
        self.refunded: asyncio.Queue[Job] = asyncio.Queue()
        self.running = self.most_running = 0
        self.give_up_error: Exception | None = None

    async def process(self, job: Job) -> object:
        self.started.put_nowait(job)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.work(job)
            self.ended.put_nowait("done")
            return "result"
        except asyncio.CancelledError:
            self.ended.put_nowait("cancelled")
            raise
        finally:
            self.running -= 1

    async def commit(self, job: Job, result: Any) -> None:
        assert result == "result"
        await self.on_commit(job)

    async def refund_attempt(self, job: Job) -> None:
        self.refunded.put_nowait(job)

    async def give_up(self, job: Job, message: str) -> None:
        self.given_up.put_nowait((job, message))
        if self.give_up_error is not None:
            raise self.give_up_error

    def describe(self, job: Job) -> Mapping[str, str]:
        return {}


class Bench:
    """A queue and its workers; `close` stops all workers."""

    def __init__(self, url: str, **queue_options: Any) -> None:
        self.url, self.queue_options = url, queue_options
        self.queue = self.make_queue()
        self.workers: list[Worker] = []
        self.queues = [self.queue]

    def make_queue(self) -> JobQueue:
        """Return a further client of the queue."""
        return JobQueue(self.url, **{"block_seconds": 0.2} | self.queue_options)

    def start(self, handler: Handler, policy: RetryPolicy | None = None, **options: Any) -> tuple[Worker, Metrics]:
        """Start a worker.

        options: of Worker.
        """
        metrics = Metrics()
        queue = self.make_queue()
        self.queues.append(queue)
        worker = Worker(queue, handler, policy or RetryPolicy(backoff_ms=50), metrics, **options)
        worker.start()
        self.workers.append(worker)
        return worker, metrics

    async def enqueue(self, count: int) -> list[str]:
        """Enqueue that many jobs and return their ids."""
        ids = [f"ai-processing:{number:024x}" for number in range(count)]
        for job_id in ids:
            await self.queue.enqueue(job_id, {"n": job_id})
        return ids

    async def until(self, condition: Callable[[Any], bool]) -> Any:
        """Poll the counts of the queue until the condition is true, and return them: Redis sends no signal for them."""
        while not condition(stats := await self.queue.stats()):
            await asyncio.sleep(0.01)
        return stats

    async def close(self) -> None:
        for worker in self.workers:
            await worker.drain(0)
        for queue in self.queues:
            await queue.close()


async def nothing(job: Job) -> None:
    """Do nothing for the job."""


def failing(error: Exception) -> Work:
    """Return a function that raises the error for each job."""

    async def work(job: Job) -> None:
        raise error

    return work


def count(metrics: Metrics, name: str, **labels: str) -> float:
    """Return the value of a metric of the queue."""
    return metrics.registry.get_sample_value(name, {"queue": "ai-processing"} | labels) or 0


class Claimer:
    """Calls JobQueue.step as a worker does, with a new mark each time."""

    def __init__(self, queue: JobQueue, worker_id: str = "worker-a") -> None:
        self.queue, self.worker_id, self.steps = queue, worker_id, 0

    async def __call__(self, free: int = 1, *finishes: Finish) -> list[Job]:
        return (await self.step(free, *finishes)).claimed

    async def step(
        self, free: int = 1, *finishes: Finish, reports: Sequence[ProviderReport] = (), avoided: Sequence[str] = ()
    ) -> Step:
        self.steps += 1
        return await self.queue.step(f"{self.worker_id}:{self.steps}", finishes, free, reports, avoided)
