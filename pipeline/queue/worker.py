"""The job loop: five coroutine slots fed by one claiming coroutine.

One call of JobQueue.step acknowledges whatever finished and claims for whatever is free. All leases, also of jobs that
wait for their acknowledgement, are renewed in one call; a job whose lease was not renewed in time is cancelled before
the lease ends. Runs on the event loop, knows nothing of photos: the work itself is a JobHandler.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import structlog

from pipeline.errors import DependencyUnavailable, JobError, PermanentJobError, RetryableJobError
from pipeline.metrics import Metrics
from pipeline.queue.breaker import OwnBreaker
from pipeline.queue.claim import Claim
from pipeline.queue.job import Finish, Job, Outcome, RetryPolicy, Verdict, reason
from pipeline.queue.queue import JobQueue
from pipeline.tracing import OFF, Span, Tracing

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
EXCUSE_SECONDS = 1.0
# Finished jobs past retention are removed with each so-many-th renewal.
TRIM_EVERY = 12
# How late a job may be cancelled; far less than LEASE_MARGIN of any lease that makes sense.
ENFORCE_SECONDS = 0.05
# Longer than an idle worker blocks and than two renewals are apart: who has heard nothing for so long does not work.
SILENT_SECONDS = 10.0


class JobHandler(Protocol):
    """What a worker does with a job. Every method must bear being repeated."""

    async def process(self, job: Job) -> object | None:
        """Do the work and return its result, or None when there was nothing to do.

        An exception is judged by RetryPolicy.decide; DependencyUnavailable does not count as an attempt, nor does a
        RetryableJobError that says how long to wait: all jobs wait then.
        """

    async def commit(self, job: Job, result: Any) -> None:
        """Keep the result, for as long as it takes; only the loss of the lease ends this."""

    async def give_up(self, job: Job, message: str) -> None:
        """Record that the job failed for good, and why."""

    async def excuse(self, job: Job) -> None:
        """Record that the job was started in vain through no fault of its own."""

    def describe(self, job: Job) -> Mapping[str, str]:
        """Return what to log with every line about the job, e.g. {"assetId": ...}."""


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
        on_start: Callable[[Job], None] = lambda job: None,
        on_finish: Callable[[Finish, float], None] = lambda finish, seconds: None,
        tracing: Tracing = OFF,
    ) -> None:
        """on_reconnect: called when Redis answers again after it did not.

        on_start, on_finish: called when an attempt begins and when it ends with its lease still held, after so many
        seconds; must not block or raise.
        """
        self._queue = queue
        self._handler = handler
        self._policy = policy
        self._metrics = metrics.of_queue(queue.name)
        self._concurrency = concurrency
        self._lease_seconds = lease_seconds
        self._renew_seconds = renew_seconds
        self._on_reconnect = on_reconnect
        self._on_start = on_start
        self._on_finish = on_finish
        self._tracing = tracing
        self._id = secrets.token_hex(8)
        # Bound once: the module's is bound anew by every line.
        self._log = log.bind()
        self._steps = 0
        self._held: dict[str, Claim] = {}
        self._claimed: asyncio.Queue[Claim] = asyncio.Queue()
        self._finishes: list[Finish] = []
        self._changed = asyncio.Event()
        self._marker: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_draining = self._is_drained = False
        self._is_connected = True
        self._is_breaker_open = False
        self._own_breaker = OwnBreaker(queue.breaker, self._metrics.probing)
        self._heard_at = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._busy = 0
        self._metrics.slots.set(concurrency)
        self._metrics.slots_busy.set_function(lambda: self._busy)
        self._metrics.job_running_seconds.set_function(self._longest_running_seconds)

    def _longest_running_seconds(self) -> float:
        now = time.monotonic()
        return max((now - claim.started_at for claim in self._held.values() if claim.started_at), default=0)

    async def check(self) -> None:
        """Return when this worker can claim: the queue has answered it lately. DependencyUnavailable otherwise."""
        silent_seconds = asyncio.get_running_loop().time() - self._heard_at
        if not self._is_connected or silent_seconds > max(SILENT_SECONDS, 2 * self._renew_seconds):
            raise DependencyUnavailable(f"The queue has not answered for {silent_seconds:.0f} s")

    def start(self) -> None:
        """Start the slots, the claiming and the renewing."""
        self._hear()
        self._tasks = [asyncio.create_task(self._slot(), name=f"slot-{number}") for number in range(self._concurrency)]
        self._tasks.append(asyncio.create_task(self._renew_forever(), name="renew"))
        self._tasks.append(asyncio.create_task(self._enforce_forever(), name="enforce"))
        self._claiming = asyncio.create_task(self._claim_until_drained(), name="claim")

    async def drain(self, seconds: float) -> None:
        """Stop claiming, let running jobs finish for that long, hand back the rest without counting the attempt, and
        stop.
        """
        self._is_draining = True
        self._changed.set()
        _, pending = await asyncio.wait({self._claiming}, timeout=seconds)
        if pending:
            for claim in self._held.values():
                claim.is_released = True
                claim.end()
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
                self._log.exception("claiming_failed")
                await asyncio.sleep(RECONNECT_SECONDS[1])

    async def _claim(self) -> None:
        """Acknowledge, claim, and wait until there is a reason to do so again."""
        self._changed.clear()
        # Newest first: each released job goes to the front of waiting, so the oldest has to come last.
        finishes = sorted(self._finishes, key=_age, reverse=True)
        free = 0 if self._is_draining else self._concurrency - len(self._held) + len(finishes)
        free = self._own_breaker.limit(free)
        asked_at = asyncio.get_running_loop().time()
        self._steps += 1
        if not self._is_connected:
            await self._queue.release_unknown(self._id, self._held)
        step = await self._queue.step(f"{self._id}:{self._steps}", finishes, free)
        self._hear()
        self._reconnected()
        self._note_breaker(step.is_breaker_open)
        del self._finishes[: len(finishes)]
        for finish in finishes:
            self._held.pop(finish.job.lease, None)
        self._metrics.leases_lost.inc(len(step.lost))
        for job in step.claimed:
            claim = Claim(job, self._lease_end(asked_at))
            self._held[job.lease] = claim
            self._claimed.put_nowait(claim)
        self._metrics.jobs_claimed.inc(len(step.claimed))
        if step.claimed and self._own_breaker.is_open:
            self._own_breaker.probed()
        own_wait_ms = self._own_breaker.wait_ms
        waits_ms = (step.next_due_ms, step.held_ms or None, own_wait_ms or None)
        self._wake_in([ms for ms in waits_ms if ms is not None])
        if self._is_draining:
            if not self._held:
                self._is_drained = True
                return
        elif len(self._held) < self._concurrency and not own_wait_ms:
            if step.has_more and not step.is_paused and not step.held_ms:
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
            if (error := marker.exception()) is None:
                self._hear()
            else:
                # The step that follows may find Redis there again and no trace of its restart.
                self._lose(error)
        self._changed.set()

    def _hear(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()

    def _wake_in(self, waits_ms: list[int]) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if waits_ms:
            # One more millisecond: Redis rounds down, and a step that comes too early would spin.
            self._timer = asyncio.get_running_loop().call_later((min(waits_ms) + 1) / 1000, self._changed.set)

    def _note_breaker(self, is_open: bool) -> None:
        if is_open != self._is_breaker_open:
            self._is_breaker_open = is_open
            self._log.warning("breaker_opened" if is_open else "breaker_closed")

    def _lose(self, error: BaseException) -> None:
        if self._is_connected:
            self._log.warning("queue_unreachable", error=repr(error.__cause__))
            self._is_connected = False
            self._reconnect_delay = RECONNECT_SECONDS[0]

    async def _wait_for_redis(self, error: DependencyUnavailable) -> None:
        self._lose(error)
        await asyncio.sleep(self._reconnect_delay)
        self._reconnect_delay = min(RECONNECT_SECONDS[1], self._reconnect_delay * 2)

    def _reconnected(self) -> None:
        if not self._is_connected:
            self._is_connected = True
            self._log.info("queue_reconnected")
            self._on_reconnect()

    # leases

    async def _renew_forever(self) -> None:
        for number in itertools.count():
            try:
                await self._renew()
                if recovered := await self._queue.recover():
                    self._metrics.jobs_recovered.inc(len(recovered))
                    self._log.warning("jobs_recovered", jobIds=recovered)
                if number % TRIM_EVERY == 0:
                    await self._queue.trim()
                self._hear()
            except DependencyUnavailable:
                pass  # the claiming coroutine says so; each job's own deadline ends it when this lasts
            except Exception:
                self._log.exception("renewing_failed")
            await asyncio.sleep(self._renew_seconds)

    async def _enforce_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(ENFORCE_SECONDS)
            for claim in self._held.values():
                claim.enforce(loop.time())

    async def _renew(self) -> None:
        if not self._held:
            return
        asked_at = asyncio.get_running_loop().time()
        asked = dict(self._held)
        lost = set(await self._queue.renew(list(asked)))
        for lease, claim in asked.items():
            if lease in lost:
                claim.end()
            else:
                claim.renewed(self._lease_end(asked_at))

    def _lease_end(self, asked_at: float) -> float:
        return asked_at + self._lease_seconds * (1 - LEASE_MARGIN)

    # slots

    async def _slot(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            claim = await self._claimed.get()
            job = claim.job
            fields = {
                "jobId": job.id,
                "attempt": job.attempt,
                "requestId": job.request_id,
                **self._handler.describe(job),
            }
            # The next job's take their place; nothing is logged in between.
            structlog.contextvars.bind_contextvars(**fields)
            self._busy += 1
            with self._tracing.process(self._queue.name, job) as span:
                finish = await self._run(claim, span)
            self._busy -= 1
            if finish is None:
                self._held.pop(job.lease, None)
            else:
                self._own_breaker.judge(finish)
                self._finishes.append(finish)
            self._changed.set()
            # After the claiming coroutine has asked Redis, while it waits for the answer.
            loop.call_soon(self._report, claim, finish, time.monotonic())

    async def _run(self, claim: Claim, span: Span) -> Finish | None:
        """Run one claim to its end; None when the lease was lost, so that there is nothing to acknowledge."""
        job = claim.job
        claim.started_at = time.monotonic()
        if job.attempt == 1 and not job.stalls:
            self._metrics.job_wait_seconds.observe((job.claimed_at_ms - job.enqueued_at_ms) / 1000)
        self._metrics.started(job.attempt)
        self._log.info("job_claimed", stalls=job.stalls)
        self._on_start(job)
        spent = self._policy.spent(job)
        finish = await (self._attempt(claim, span) if spent is None else self._give_up(claim, spent))
        if finish is None or finish.error:
            span.fail(finish.error if finish else "The lease was lost")
        return finish

    def _report(self, claim: Claim, finish: Finish | None, ended_at: float) -> None:
        """Tell metrics, observers and the log how a claim ended."""
        seconds = ended_at - (claim.started_at or ended_at)
        is_postponed = finish is not None and finish.outcome is Outcome.RETRY and finish.gives_back
        outcome = "lost" if finish is None else "postponed" if is_postponed else LABELS[finish.outcome]
        self._metrics.jobs_finished[outcome].inc()
        self._metrics.job_seconds[outcome].observe(seconds)
        if finish is not None:
            self._on_finish(finish, seconds)
        fields: dict[str, Any] = {"durationMs": round(seconds * 1000)}
        if finish is None:
            self._metrics.leases_lost.inc()
            self._log.warning("lease_lost", **fields)
        elif finish.outcome is Outcome.COMPLETED:
            self._log.info("job_completed", **fields)
        elif finish.outcome is Outcome.RETRY:
            event = "job_postponed" if is_postponed else "job_retrying"
            self._log.warning(event, error=finish.error, delayMs=finish.delay_ms, **fields)
        elif finish.outcome is Outcome.FAILED:
            self._log.warning("job_failed", error=finish.error, **fields)
        else:
            self._log.info("job_released", **fields)

    async def _attempt(self, claim: Claim, span: Span) -> Finish | None:
        job = claim.job
        error: Exception
        try:
            result = await claim.bounded(self._handler.process(job), self._policy.timeout_seconds)
            if result is None:
                return Finish(job, Outcome.COMPLETED)
            # Work that blocked the loop past the lease ends here: nothing could cancel it.
            if not claim.has_lease:
                return None
            await claim.bounded(self._handler.commit(job, result))
            return Finish(job, Outcome.COMPLETED, verdict=Verdict.GOOD)
        except Exception as raised:  # the border of a slot: whatever a plugin raises ends here
            error = raised
        if claim.is_released:
            await self._excuse(job)
            return Finish(job, Outcome.RELEASED, gives_back=True)
        span.record(error)
        if not claim.has_lease:
            return None
        return await self._judge(claim, error)

    async def _judge(self, claim: Claim, error: Exception) -> Finish | None:
        job = claim.job
        if isinstance(error, DependencyUnavailable):
            return await self._postpone(job, error.message, self._policy.backoff_ms, Verdict.BAD)
        if isinstance(error, TimeoutError):
            error = RetryableJobError(f"Processing took longer than {self._policy.timeout_seconds:g} s")
        elif not isinstance(error, JobError):
            self._log.warning("job_raised", exc_info=error)
        message = reason(error, job.attempt)
        if isinstance(error, RetryableJobError) and error.retry_after_seconds is not None:
            hold_ms = round(error.retry_after_seconds * 1000)
            return await self._postpone(job, message, hold_ms, Verdict.NONE, hold_ms)
        verdict = Verdict.GOOD if isinstance(error, PermanentJobError) else Verdict.BAD
        is_outage = job.is_probe or self._is_breaker_open or self._own_breaker.is_open
        if verdict is Verdict.BAD and is_outage:
            return await self._postpone(job, message, self._policy.backoff_ms, verdict)
        delay_ms = self._policy.decide(error, job.attempt)
        if delay_ms is None:
            return await self._give_up(claim, message, verdict)
        return Finish(job, Outcome.RETRY, delay_ms, error=message, verdict=verdict)

    async def _postpone(self, job: Job, message: str, delay_ms: int, verdict: Verdict, hold_ms: int = 0) -> Finish:
        """Return the end of a start that is not the job's fault: it costs no attempt."""
        await self._excuse(job)
        return Finish(job, Outcome.RETRY, delay_ms, gives_back=True, error=message, verdict=verdict, hold_ms=hold_ms)

    async def _excuse(self, job: Job) -> None:
        try:
            async with asyncio.timeout(EXCUSE_SECONDS):
                await self._handler.excuse(job)
        except Exception as error:  # the border of a slot; at worst the start counts
            self._log.warning("excuse_failed", error=repr(error))

    async def _give_up(self, claim: Claim, message: str, verdict: Verdict = Verdict.NONE) -> Finish | None:
        try:
            await claim.bounded(self._handler.give_up(claim.job, message))
        except Exception as error:  # the border of a slot
            if not claim.has_lease and not claim.is_released:
                return None
            self._log.warning("give_up_failed", error=repr(error))
            return Finish(claim.job, Outcome.RETRY, GIVE_UP_AGAIN_MS, error=message, verdict=verdict)
        return Finish(claim.job, Outcome.FAILED, error=message, verdict=verdict)


async def cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """End the tasks, asking again where the Redis client took a cancellation for a failed connection."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.5)


def _age(finish: Finish) -> tuple[int, str]:
    return finish.job.enqueued_at_ms, finish.job.id
