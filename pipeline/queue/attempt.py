"""How one start of a job ends, and what that costs: the only place where it is decided.

An attempt counts when the work itself was tried and answered. Every other end gives it back:

what happened                    raised as                                  attempt     jobs that wait
-------------------------------  -----------------------------------------  ----------  -------------------------------
answered badly: 5xx, garbage,    RetryableJobError, anything unknown        spent       this job, its backoff
  took too long at its work
this payload was refused         PermanentJobError                          spent       none: the job has failed
could not be asked: refused,     RetryableJobError(spends_attempt=False)    given back  all jobs that would ask the same
  DNS, TLS, no thread or child     and .provider                                          provider; single ones try it
  free, held already
busy: 429, Retry-After           RetryableJobError(retry_after_seconds=n)   given back  the same jobs, for n seconds
                                   and .provider
budget of the day is spent       BudgetReached, and .provider where it is   given back  the same jobs, or this one, for
                                   not one user's                                         n seconds, however old it is
no call of a provider in time    RetryableJobError(spends_attempt=False)    given back  the same jobs, until a call is
                                   and .provider                                          free (lua/reservations.lua)
Redis, store or storage away     DependencyUnavailable                      given back  this job, longer each time
shutdown                         Claim.is_released                          given back  this job
cancelled                        Claim.is_cancelled                         -           none: the job is over
lease lost, process killed       Claim.has_lease, lua/recover.lua           a stall     none

A job older than max_age_seconds is not given back but fails with its last reason; a job in the background waits on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from pipeline.errors import BudgetReached, DependencyUnavailable, JobError, PermanentJobError, RetryableJobError
from pipeline.hold import BACKGROUND
from pipeline.queue_metrics import QueueMetrics
from pipeline.queue.claim import Claim
from pipeline.queue.job import Finish, Job, Outcome
from pipeline.queue.job_handler import AlreadyOver, JobHandler
from pipeline.texts import cause_of, clean
from pipeline.tracing import OFF, Span, Tracing, inherited_trace, trace_id

log = structlog.get_logger(__name__)

# The label of each outcome in metrics.
LABELS = {
    Outcome.COMPLETED: "completed",
    Outcome.RETRY: "retried",
    Outcome.PARKED: "parked",
    Outcome.FAILED: "failed",
    Outcome.RELEASED: "released",
    Outcome.CANCELLED: "cancelled",
}
# The retry delay of a job that could not be given up because the store was away.
GIVE_UP_RETRY_MS = 5000
REFUND_SECONDS = 1.0
# A job whose process was lost so often fails: the job may be the reason.
MAX_STALLS = 3
# A drain has one second to hand all jobs back (queue/worker.py), and half of it may be gone.
RELEASED_REFUND_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Attempts, backoff and time limits of a queue's jobs.

    max_age_seconds: how long after its submission a job may still be given back.
    Source: queue configuration in the specification (3 attempts, exponential from 2000 ms, timeout 120 s).
    """

    attempts: int = 3
    backoff_ms: int = 2000
    timeout_seconds: float = 120
    max_stalls: int = MAX_STALLS
    max_age_seconds: float = 86_400

    def decide(self, error: Exception, attempt: int) -> int | None:
        """Return the wait before the next attempt in milliseconds, or None to give up.

        attempt: how many times the job has been started, from 1.
        Doubles from backoff_ms: 2000, 4000. The last attempt and any PermanentJobError give None. Unknown errors are
        retried.
        """
        if isinstance(error, PermanentJobError) or attempt >= self.attempts:
            return None
        least_ms = 0
        if isinstance(error, RetryableJobError):
            if error.max_attempts is not None and attempt >= error.max_attempts:
                return None
            least_ms = round((error.retry_after_seconds or 0) * 1000) if error.spends_attempt else 0
        backoff_ms: int = self.backoff_ms * 2 ** (attempt - 1)
        return max(least_ms, backoff_ms)

    def refusal(self, job: Job) -> str | None:
        """Return why this claim must not run at all, or None.

        A start beyond the limit means that a process was lost while it gave the job up.
        """
        if job.stalls >= self.max_stalls:
            return f"Processing stalled {job.stalls} times"
        if job.attempt > self.attempts:
            return job.error or f"Processing failed after {self.attempts} attempts"
        return None


def decide_finish(error: Exception, job: Job, policy: RetryPolicy, seconds: float) -> Finish:
    """Return the end of a start that raised the error; FAILED has yet to be carried out.

    seconds: how long the start took.
    """
    if _spends_attempt(error):
        delay_ms = policy.decide(error, job.attempt)
        message = reason(error, job.attempt)
        return Finish(job, Outcome.FAILED if delay_ms is None else Outcome.RETRY, delay_ms or 0, error=message)
    age_seconds = (job.claimed_at_ms - job.submitted_at_ms) / 1000 + seconds
    is_old = age_seconds >= policy.max_age_seconds and job.group != BACKGROUND
    if is_old and not isinstance(error, BudgetReached):
        message = f"{_text(error)}, given up after {_duration(policy.max_age_seconds)}"
        return Finish(job, Outcome.FAILED, error=message)
    # An old job would be claimed from the parked jobs at once.
    is_held = isinstance(error, RetryableJobError) and error.provider and not is_old
    outcome = Outcome.PARKED if is_held else Outcome.RETRY
    # A job of a held provider waits for the hold to end, however long the provider asked to wait.
    asked_seconds = 0 if is_held or not isinstance(error, RetryableJobError) else error.retry_after_seconds or 0
    delay_ms = max(policy.backoff_ms, round(asked_seconds * 1000))
    return Finish(job, outcome, delay_ms, refunds_attempt=True, error=_text(error))


def reason(error: Exception, attempt: int) -> str:
    """Return the text of a job's last error for its owner: the error's own when it was raised on purpose, never an
    internal one.
    """
    text = _text(error)
    return text if isinstance(error, PermanentJobError) else f"{text} after {attempt} attempt{'s' * (attempt != 1)}"


def _spends_attempt(error: Exception) -> bool:
    if isinstance(error, RetryableJobError):
        return error.spends_attempt
    return not isinstance(error, DependencyUnavailable)


def _text(error: Exception) -> str:
    return clean(error.message) if isinstance(error, (JobError, DependencyUnavailable)) else "Processing failed"


def _duration(seconds: float) -> str:
    for unit, length in (("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds >= 2 * length or length == 1:
            count = f"{seconds / length:.0f}"
            return f"{count} {unit}{'s' * (count != '1')}"
    raise AssertionError("the last unit always fits")


class Attempts:
    """Runs the starts of jobs, each from its claim to its Finish."""

    def __init__(
        self,
        handler: JobHandler,
        policy: RetryPolicy,
        metrics: QueueMetrics,
        *,
        queue_name: str,
        on_start: Callable[[Job], None],
        on_finish: Callable[[Finish, float], None],
        tracing: Tracing = OFF,
    ) -> None:
        self._handler = handler
        self._policy = policy
        self._metrics = metrics
        self._queue_name = queue_name
        self._on_start = on_start
        self._on_finish = on_finish
        self._tracing = tracing
        # Bound once: the module's logger is bound anew by every line.
        self._log = log.bind()

    async def run(self, claim: Claim) -> Finish | None:
        """Run one claim to its end; None when the lease was lost, so that there is nothing to acknowledge."""
        job = claim.job
        fields = {"jobId": job.id, "attempt": job.attempt, "requestId": job.request_id, **self._handler.describe(job)}
        with self._tracing.process(self._queue_name, job) as span:
            inherited_trace.set(job.trace_context)
            if trace := trace_id(span.trace_context or job.trace_context):
                fields["traceId"] = trace
            # The fields of the slot's next job replace these; nothing is logged in between.
            structlog.contextvars.clear_contextvars()
            structlog.contextvars.bind_contextvars(**fields)
            claim.started_at = time.monotonic()
            if (wait_seconds := job.first_wait_seconds) is not None:
                self._metrics.job_wait_seconds.observe(wait_seconds)
            self._metrics.started(job.attempt)
            self._log.info("job_claimed", stalls=job.stalls)
            self._on_start(job)
            refusal = self._policy.refusal(job)
            finish = await (self._attempt(claim, span) if refusal is None else self._give_up(claim, refusal))
            if claim.is_cancelled:
                # However it ended: nothing of it is stored.
                finish = Finish(job, Outcome.CANCELLED, error="Cancelled")
            if finish is None or finish.error:
                span.fail(finish.error if finish else "The lease was lost")
        claim.ended_at = time.monotonic()
        return finish

    async def _attempt(self, claim: Claim, span: Span) -> Finish | None:
        job = claim.job
        error: Exception
        try:
            result = await claim.bounded(self._handler.process(job), self._policy.timeout_seconds)
            if result is None:
                return Finish(job, Outcome.COMPLETED)
            # Work that blocked the loop past the lease ends here: it could not be cancelled.
            if not claim.has_lease:
                return None
            await claim.bounded(self._handler.commit(job, result))
            return Finish(job, Outcome.COMPLETED)
        except Exception as raised:  # the border of a slot: any exception of a plugin ends here
            error = raised
        if claim.is_released:
            await self._refund(job, RELEASED_REFUND_SECONDS)
            return Finish(job, Outcome.RELEASED, refunds_attempt=True)
        span.record(error)
        if not claim.has_lease:
            return None
        if isinstance(error, TimeoutError):
            error = RetryableJobError(f"Processing took longer than {self._policy.timeout_seconds:g} s")
        elif not isinstance(error, (JobError, DependencyUnavailable)):
            self._log.warning("job_raised", exc_info=error)
        return await self._carry_out(claim, error)

    async def _carry_out(self, claim: Claim, error: Exception) -> Finish | None:
        claim.cause = cause_of(error)
        finish = decide_finish(error, claim.job, self._policy, time.monotonic() - claim.started_at)
        if finish.outcome is Outcome.FAILED:
            return await self._give_up(claim, finish.error)
        if finish.refunds_attempt:
            await self._refund(claim.job)
        return finish

    async def _refund(self, job: Job, seconds: float = REFUND_SECONDS) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._handler.refund_attempt(job)
        except Exception as error:  # the border of a slot; at worst the start counts
            self._log.warning("refund_failed", error=cause_of(error))

    async def _give_up(self, claim: Claim, message: str) -> Finish | None:
        try:
            await claim.bounded(self._handler.give_up(claim.job, message))
        except AlreadyOver:
            return Finish(claim.job, Outcome.COMPLETED)
        except Exception as error:  # the border of a slot
            if not claim.has_lease and not claim.is_released:
                return None
            self._log.warning("give_up_failed", error=cause_of(error))
            return Finish(claim.job, Outcome.RETRY, GIVE_UP_RETRY_MS, error=message)
        return Finish(claim.job, Outcome.FAILED, error=message)

    def report(self, claim: Claim, finish: Finish | None) -> None:
        """Report to metrics, observers and the log how a claim ended; the acknowledgement goes before that."""
        seconds = claim.ended_at - claim.started_at
        is_postponed = finish is not None and finish.outcome is Outcome.RETRY and finish.refunds_attempt
        outcome = "lost" if finish is None else "postponed" if is_postponed else LABELS[finish.outcome]
        self._metrics.jobs_finished[outcome].inc()
        self._metrics.job_seconds[outcome].observe(seconds)
        fields: dict[str, Any] = {"durationMs": round(seconds * 1000)}
        if finish is None:
            self._metrics.leases_lost.inc()
            self._log.warning("lease_lost", **fields)
            return
        self._on_finish(finish, seconds)
        if finish.error:
            fields |= {"error": finish.error, "cause": claim.cause}
        if finish.outcome is Outcome.COMPLETED:
            self._log.info("job_completed", **fields)
        elif finish.outcome is Outcome.RETRY:
            event = "job_postponed" if is_postponed else "job_retrying"
            self._log.warning(event, delayMs=finish.delay_ms, **fields)
        elif finish.outcome is Outcome.PARKED:
            self._log.warning("job_parked", **fields)
        elif finish.outcome is Outcome.FAILED:
            self._log.warning("job_failed", **fields)
        elif finish.outcome is Outcome.CANCELLED:
            # It may have been cancelled because all data of its user is being erased.
            structlog.contextvars.unbind_contextvars("userId")
            self._log.info("job_cancelled", **fields)
        else:
            self._log.info("job_released", **fields)
