"""The job loop: five coroutine slots fed by one claiming coroutine.

One call of JobQueue.step acknowledges whatever finished and claims for whatever is free. All leases, also of jobs that
wait for their acknowledgement, are renewed in one call; a job whose lease was not renewed in time is cancelled before
the lease ends. Runs on the event loop, knows nothing of photos: the work itself is a JobHandler.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

import structlog

from pipeline.errors import DependencyUnavailable, JobError, RetryableJobError
from pipeline.metrics import Metrics
from pipeline.queue.job import Finish, Job, Outcome, RetryPolicy, reason
from pipeline.queue.queue import JobQueue

log = structlog.get_logger(__name__)

# A lease is given up this long before it ends, so that the next owner never starts beside us.
LEASE_MARGIN = 0.2
RECONNECT_SECONDS = (0.1, 2.0)
# How an outcome is called in metrics.
LABELS = {
    Outcome.COMPLETED: "completed",
    Outcome.RETRY: "retried",
    Outcome.FAILED: "failed",
    Outcome.RELEASED: "released",
}
# How long a job waits that could not be given up because the store was away.
GIVE_UP_AGAIN_MS = 5000


class JobHandler(Protocol):
    """What a worker does with a job. Both methods must bear being repeated."""

    async def process(self, job: Job) -> None:
        """Do the work; an exception is judged by RetryPolicy.decide. DependencyUnavailable does not count as an
        attempt.
        """

    async def give_up(self, job: Job, message: str) -> None:
        """Record that the job failed for good, and why."""

    def describe(self, job: Job) -> Mapping[str, str]:
        """Return what to log with every line about the job, e.g. {"assetId": ...}."""


class _Running:
    """A claim this process holds, from the step that brought it to the step that acknowledges it."""

    __slots__ = ("job", "lease_ends_at", "work_ends_at", "scope", "is_ended", "is_released")

    def __init__(self, job: Job, lease_ends_at: float) -> None:
        self.job = job
        # Both in loop time, which no clock change moves.
        self.lease_ends_at = lease_ends_at
        self.work_ends_at = 0.0
        self.scope: asyncio.Timeout | None = None  # set while the handler runs
        self.is_ended = False
        self.is_released = False

    async def bounded(self, work: Awaitable[None], seconds: float) -> None:
        """Await the handler for that long and no longer than the lease lasts; TimeoutError when either is over."""
        self.work_ends_at = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(min(self.lease_ends_at, self.work_ends_at)) as self.scope:
                await work
        finally:
            self.scope = None

    def renewed(self, lease_ends_at: float) -> None:
        """The lease lasts longer now."""
        if not self.is_ended:
            self._move_end(lease_ends_at)

    def end(self) -> None:
        """Cancel the handler now, as if the lease had ended; no renewal that is still on its way undoes it."""
        self.is_ended = True
        self._move_end(asyncio.get_running_loop().time())

    def _move_end(self, lease_ends_at: float) -> None:
        self.lease_ends_at = lease_ends_at
        if self.scope is not None and not self.scope.expired():
            self.scope.reschedule(min(self.lease_ends_at, self.work_ends_at))

    @property
    def has_lease(self) -> bool:
        """True while nobody else can have claimed the job."""
        return asyncio.get_running_loop().time() < self.lease_ends_at


class Worker:
    """Runs a queue's jobs until it is drained."""

    def __init__(
        self,
        queue: JobQueue,
        handler: JobHandler,
        policy: RetryPolicy,
        metrics: Metrics,
        *,
        concurrency: int = 5,
        lease_seconds: float = 15,
        renew_seconds: float = 5,
        on_reconnect: Callable[[], None] = lambda: None,
    ) -> None:
        """on_reconnect: called when Redis answers again after it did not."""
        self._queue = queue
        self._handler = handler
        self._policy = policy
        self._metrics = metrics
        self._concurrency = concurrency
        self._lease_seconds = lease_seconds
        self._renew_seconds = renew_seconds
        self._on_reconnect = on_reconnect
        self._id = secrets.token_hex(8)
        self._steps = 0
        self._held: dict[str, _Running] = {}
        self._claimed: asyncio.Queue[_Running] = asyncio.Queue()
        self._finishes: list[Finish] = []
        self._changed = asyncio.Event()
        self._marker: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_draining = self._is_drained = False
        self._is_connected = True
        self._tasks: list[asyncio.Task[None]] = []
        metrics.slots.set(concurrency)

    def start(self) -> None:
        """Start the slots, the claiming and the renewing."""
        self._tasks = [asyncio.create_task(self._slot(), name=f"slot-{number}") for number in range(self._concurrency)]
        self._tasks.append(asyncio.create_task(self._renew_forever(), name="renew"))
        self._claiming = asyncio.create_task(self._claim_until_drained(), name="claim")

    async def drain(self, seconds: float) -> None:
        """Stop claiming, let running jobs finish for that long, hand back the rest without counting the attempt, and
        stop.
        """
        self._is_draining = True
        self._changed.set()
        _, pending = await asyncio.wait({self._claiming}, timeout=seconds)
        if pending:
            for running in self._held.values():
                running.is_released = True
                running.end()
            self._changed.set()
            # Bounded, because Redis may be away; the leases run out by themselves then.
            await asyncio.wait({self._claiming}, timeout=2)
        await self._stop_tasks()

    async def _stop_tasks(self) -> None:
        tasks = [*self._tasks, self._claiming, *([self._marker] if self._marker else [])]
        await cancel(tasks)
        if self._timer:
            self._timer.cancel()

    # claiming

    async def _claim_until_drained(self) -> None:
        while not self._is_drained:
            try:
                await self._claim()
            except DependencyUnavailable as error:
                await self._wait_for_redis(error)
            except Exception:
                # Nothing known comes here, but a process that claims no more must not look alive.
                log.exception("claiming_failed")
                await asyncio.sleep(RECONNECT_SECONDS[1])

    async def _claim(self) -> None:
        """Acknowledge, claim, and wait until there is a reason to do so again."""
        self._changed.clear()
        # Newest first: each released job goes to the front of waiting, so the oldest has to come last.
        finishes = sorted(self._finishes, key=_age, reverse=True)
        free = 0 if self._is_draining else self._concurrency - len(self._held) + len(finishes)
        asked_at = asyncio.get_running_loop().time()
        self._steps += 1
        if not self._is_connected:
            await self._queue.release_unknown(self._id, self._held)
        step = await self._queue.step(f"{self._id}:{self._steps}", finishes, free)
        self._reconnected()
        del self._finishes[: len(finishes)]
        for finish in finishes:
            self._held.pop(finish.job.lease, None)
        self._metrics.leases_lost.inc(len(step.lost))
        for job in step.claimed:
            running = _Running(job, self._lease_end(asked_at))
            self._held[job.lease] = running
            self._claimed.put_nowait(running)
        self._metrics.jobs_claimed.inc(len(step.claimed))
        self._wake_in(step.next_due_ms)
        if self._is_draining:
            if not self._held:
                self._is_drained = True
                return
        elif len(self._held) < self._concurrency:
            if step.waiting and not step.is_paused:
                return  # ids without a job were popped; there may be real ones behind them
            self._listen()
        await self._changed.wait()

    def _listen(self) -> None:
        """Block on the wake-up marker beside the running jobs; the call is never cancelled, so no marker is lost."""
        if self._marker is None or self._marker.done():
            self._marker = asyncio.create_task(self._queue.wait_for_work(), name="wait_for_work")
            self._marker.add_done_callback(self._heard)

    def _heard(self, marker: asyncio.Task[None]) -> None:
        if not marker.cancelled():
            marker.exception()  # an unreachable Redis shows in the step that follows
        self._changed.set()

    def _wake_in(self, due_ms: int | None) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if due_ms is not None:
            # One more millisecond: Redis rounds down, and a step that comes too early would spin.
            self._timer = asyncio.get_running_loop().call_later((due_ms + 1) / 1000, self._changed.set)

    async def _wait_for_redis(self, error: DependencyUnavailable) -> None:
        first, longest = RECONNECT_SECONDS
        if self._is_connected:
            log.warning("queue_unreachable", error=repr(error.__cause__))
            self._is_connected = False
            self._reconnect_delay = first
        await asyncio.sleep(self._reconnect_delay)
        self._reconnect_delay = min(longest, self._reconnect_delay * 2)

    def _reconnected(self) -> None:
        if not self._is_connected:
            self._is_connected = True
            log.info("queue_reconnected")
            self._on_reconnect()

    # leases

    async def _renew_forever(self) -> None:
        while True:
            try:
                await self._renew()
                if recovered := await self._queue.recover():
                    self._metrics.jobs_recovered.inc(len(recovered))
                    log.warning("jobs_recovered", jobIds=recovered)
                await self._queue.trim()
            except DependencyUnavailable:
                pass  # the claiming coroutine says so; each job's own deadline ends it when this lasts
            except Exception:
                log.exception("renewing_failed")
            await asyncio.sleep(self._renew_seconds)

    async def _renew(self) -> None:
        if not self._held:
            return
        asked_at = asyncio.get_running_loop().time()
        asked = dict(self._held)
        lost = set(await self._queue.renew(list(asked)))
        for lease, running in asked.items():
            if lease in lost:
                running.end()
            else:
                running.renewed(self._lease_end(asked_at))

    def _lease_end(self, asked_at: float) -> float:
        return asked_at + self._lease_seconds * (1 - LEASE_MARGIN)

    # slots

    async def _slot(self) -> None:
        while True:
            running = await self._claimed.get()
            job = running.job
            fields = {
                "jobId": job.id,
                "attempt": job.attempt,
                "requestId": job.request_id,
                **self._handler.describe(job),
            }
            with structlog.contextvars.bound_contextvars(**fields):
                self._metrics.slots_busy.inc()
                finish = await self._run(running)
                self._metrics.slots_busy.dec()
            if finish is None:
                self._held.pop(job.lease, None)
            else:
                self._finishes.append(finish)
            self._changed.set()

    async def _run(self, running: _Running) -> Finish | None:
        """Run one claim to its end; None when the lease was lost, so that there is nothing to acknowledge."""
        job = running.job
        started_at = time.monotonic()
        if job.attempt == 1 and not job.stalls:
            self._metrics.job_wait_seconds.observe((job.claimed_at_ms - job.enqueued_at_ms) / 1000)
        self._metrics.job_attempts.labels(str(job.attempt) if job.attempt <= 3 else "more").inc()
        log.info("job_claimed", stalls=job.stalls)
        spent = self._policy.spent(job)
        finish = await (self._attempt(running) if spent is None else self._give_up(running, spent))
        seconds = time.monotonic() - started_at
        outcome = LABELS[finish.outcome] if finish else "lost"
        self._metrics.jobs_finished.labels(outcome).inc()
        self._metrics.job_seconds.labels(outcome).observe(seconds)
        fields: dict[str, Any] = {"durationMs": round(seconds * 1000)}
        if finish is None:
            self._metrics.leases_lost.inc()
            log.warning("lease_lost", **fields)
        elif finish.outcome is Outcome.COMPLETED:
            log.info("job_completed", **fields)
        elif finish.outcome is Outcome.RETRY:
            log.warning("job_retrying", error=finish.error, delayMs=finish.delay_ms, **fields)
        elif finish.outcome is Outcome.FAILED:
            log.warning("job_failed", error=finish.error, **fields)
        else:
            log.info("job_released", **fields)
        return finish

    async def _attempt(self, running: _Running) -> Finish | None:
        job = running.job
        error: Exception
        try:
            await running.bounded(self._handler.process(job), self._policy.timeout_seconds)
            return Finish(job, Outcome.COMPLETED)
        except DependencyUnavailable as unavailable:
            # Redis, the store or the storage is away: not the job's fault, so no attempt is spent.
            return Finish(job, Outcome.RETRY, self._policy.backoff_ms, gives_back=True, error=unavailable.message)
        except Exception as raised:  # the border of a slot: whatever a plugin raises ends here
            error = raised
        if running.is_released:
            return Finish(job, Outcome.RELEASED, gives_back=True)
        if not running.has_lease:
            return None
        if isinstance(error, TimeoutError):
            error = RetryableJobError(f"Processing took longer than {self._policy.timeout_seconds:g} s")
        elif not isinstance(error, JobError):
            log.warning("job_raised", exc_info=error)
        delay_ms = self._policy.decide(error, job.attempt)
        if delay_ms is None:
            return await self._give_up(running, reason(error, job.attempt))
        return Finish(job, Outcome.RETRY, delay_ms, error=reason(error, job.attempt))

    async def _give_up(self, running: _Running, message: str) -> Finish | None:
        try:
            await running.bounded(self._handler.give_up(running.job, message), self._policy.timeout_seconds)
        except Exception as error:  # the border of a slot
            if not running.has_lease and not running.is_released:
                return None
            log.warning("give_up_failed", error=repr(error))
            return Finish(running.job, Outcome.RETRY, GIVE_UP_AGAIN_MS, error=message)
        return Finish(running.job, Outcome.FAILED, error=message)


async def cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """End the tasks, asking again where the Redis client took a cancellation for a failed connection."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.5)


def _age(finish: Finish) -> tuple[int, str]:
    return finish.job.enqueued_at_ms, finish.job.id
