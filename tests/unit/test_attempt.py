"""One attempt of a job: each line of the table in queue/attempt.py, the age at which a job fails, and the log lines."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs
from tornado.ioloop import IOLoop

from pipeline.errors import DependencyUnavailable, PermanentJobError, RetryableJobError
from pipeline.metrics import Metrics
from pipeline.queue.attempt import Attempts, RetryPolicy, decide_finish
from pipeline.queue.claim import Claim
from pipeline.queue.job import Finish, Job, Outcome

POLICY = RetryPolicy(attempts=3, backoff_ms=2000, max_age_seconds=60)
CLAIMED_AT_MS = 1_795_000_000_000


def make_job(attempt: int = 1, age_seconds: float = 0, **fields: Any) -> Job:
    standard: dict[str, Any] = {"data": {}, "stalls": 0, "lease": "job-1|worker:1", "enqueued_at_ms": CLAIMED_AT_MS}
    submitted_at_ms = CLAIMED_AT_MS - round(age_seconds * 1000)
    times = {"claimed_at_ms": CLAIMED_AT_MS, "submitted_at_ms": submitted_at_ms}
    return Job("job-1", attempt=attempt, **standard | times | fields)


def of(provider: str, error: RetryableJobError) -> RetryableJobError:
    """Return the error with the name of its provider."""
    error.provider = provider
    return error


ERROR_REPLY = RetryableJobError("AI service unavailable")
REFUSED = PermanentJobError("No product in the image")
UNREACHABLE = of("acme", RetryableJobError("AI service unavailable", spends_attempt=False))
BUSY = of("acme", RetryableJobError("AI service is busy", retry_after_seconds=30))
BUSY_WITHOUT_PROVIDER = RetryableJobError("AI service is busy", spends_attempt=False)
STORE_UNREACHABLE = DependencyUnavailable("The store cannot be reached")
# For each error: whether the first attempt is spent, the outcome of the job, and the message for its owner.
TABLE = [
    (ERROR_REPLY, True, Outcome.RETRY, "AI service unavailable after 1 attempt"),
    (KeyError("a bug"), True, Outcome.RETRY, "Processing failed after 1 attempt"),
    (REFUSED, True, Outcome.FAILED, "No product in the image"),
    (UNREACHABLE, False, Outcome.PARKED, "AI service unavailable"),
    (BUSY, False, Outcome.PARKED, "AI service is busy"),
    (BUSY_WITHOUT_PROVIDER, False, Outcome.RETRY, "AI service is busy"),
    (STORE_UNREACHABLE, False, Outcome.RETRY, "The store cannot be reached"),
]
IDS = ["error reply", "unknown", "refused", "unreachable", "busy", "part of a chain", "store unreachable"]
REFUNDED = [UNREACHABLE, BUSY, BUSY_WITHOUT_PROVIDER, STORE_UNREACHABLE]


@pytest.mark.parametrize(("error", "is_spent", "outcome", "message"), TABLE, ids=IDS)
def test_decision_follows_the_table(error: Exception, is_spent: bool, outcome: Outcome, message: str) -> None:
    """An attempt is spent if the provider got the photo and replied; every other error refunds the attempt."""
    finish = decide_finish(error, make_job(), POLICY, 0.1)
    assert (finish.outcome, finish.error, finish.refunds_attempt) == (outcome, message, not is_spent)
    assert finish.delay_ms == (0 if outcome is Outcome.FAILED else 2000)


@pytest.mark.parametrize("error", [ERROR_REPLY, KeyError("a bug")], ids=["error reply", "unknown"])
def test_job_fails_after_three_spent_attempts(error: Exception) -> None:
    """The third spent attempt fails the job; each retry delay is twice the one before."""
    finishes = [decide_finish(error, make_job(attempt), POLICY, 0.1) for attempt in (1, 2, 3)]
    assert [finish.outcome for finish in finishes] == [Outcome.RETRY, Outcome.RETRY, Outcome.FAILED]
    assert [finish.delay_ms for finish in finishes] == [2000, 4000, 0]
    assert finishes[-1].error.endswith(" after 3 attempts")


@pytest.mark.parametrize("error", REFUNDED, ids=str)
def test_refund_of_the_last_attempt_does_not_fail_the_job(error: Exception) -> None:
    """The job has its last attempt still, for the time when the provider can be called."""
    finish = decide_finish(error, make_job(attempt=3), POLICY, 0.1)
    assert finish.outcome in (Outcome.PARKED, Outcome.RETRY) and finish.refunds_attempt


def test_retry_after_of_a_spent_attempt_is_the_retry_delay() -> None:
    """A provider may fail, spend the attempt and set the retry delay; the number of attempts stays the same."""
    error = RetryableJobError("Model is loading", retry_after_seconds=30, spends_attempt=True)
    finish = decide_finish(error, make_job(), POLICY, 0.1)
    assert (finish.outcome, finish.delay_ms, finish.refunds_attempt) == (Outcome.RETRY, 30_000, False)
    assert decide_finish(error, make_job(attempt=3), POLICY, 0.1).outcome is Outcome.FAILED


@pytest.mark.fault("E8")
@pytest.mark.parametrize("error", REFUNDED, ids=str)
@pytest.mark.parametrize(
    ("age_seconds", "took_seconds", "is_over", "remark"),
    [
        (0, 0.1, False, "a new job"),
        (59.8, 0.1, False, "a job just under the limit"),
        (60, 0, True, "a job claimed at the limit"),
        (59.8, 0.3, True, "the attempt itself passed the limit"),
        (86_400, 0, True, "a job enqueued a second time after a wipe of Redis: its first submission counts"),
    ],
)
def test_job_with_refunded_attempts_fails_at_an_age(
    error: Exception, age_seconds: float, took_seconds: float, is_over: bool, remark: str
) -> None:
    """A job whose attempts are always refunded fails at the maximum age, with its last reason."""
    job = make_job(age_seconds=age_seconds)
    finish = decide_finish(error, job, POLICY, took_seconds)
    assert (finish.outcome is Outcome.FAILED) is is_over, remark
    if is_over:
        assert finish.error == f"{error}, given up after 60 seconds"


def test_age_fails_no_job_whose_attempt_is_spent() -> None:
    """A photo that waited a day for its provider has all its attempts still."""
    assert decide_finish(ERROR_REPLY, make_job(age_seconds=86_400), POLICY, 1).outcome is Outcome.RETRY


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "1 second"),
        (3, "3 seconds"),
        (0.4, "0 seconds"),
        (119, "119 seconds"),
        (120, "2 minutes"),
        (5400, "90 minutes"),
        (7200, "2 hours"),
        (86_400, "24 hours"),
        (604_800, "168 hours"),
    ],
)
def test_age_in_a_message_has_a_readable_unit(seconds: float, words: str) -> None:
    """The message has the largest unit of which the age has at least two."""
    finish = decide_finish(BUSY, make_job(age_seconds=seconds), RetryPolicy(max_age_seconds=seconds), 0)
    assert finish.error == f"AI service is busy, given up after {words}"


@pytest.mark.fault("P11")
def test_text_of_a_dependency_is_cleaned() -> None:
    """The message of a storage plugin is stored, queued and logged without its control characters."""
    finish = decide_finish(DependencyUnavailable("The \x1b[31mdisk\x07 is\nfull"), make_job(), POLICY, 0)
    assert finish.error == "The disk is full"


class Handler:
    """A handler that returns or raises `outcome` for each job.

    refunded: the ids of the jobs whose attempt was refunded.
    given_up: the message of each job that failed.
    """

    def __init__(self, outcome: Any = None) -> None:
        self.outcome = outcome
        self.refunded: list[str] = []
        self.given_up: list[str] = []

    async def process(self, job: Job) -> Any:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    async def commit(self, job: Job, result: Any) -> None:
        pass

    async def give_up(self, job: Job, message: str) -> None:
        self.given_up.append(message)

    async def refund_attempt(self, job: Job) -> None:
        self.refunded.append(job.id)

    def describe(self, job: Job) -> Mapping[str, str]:
        return {"assetId": "asset-1"}


class Bench:
    """Runs one claim as a worker does, and records its log lines and its finish."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.lines: list[Any] = []
        self.finishes: list[Finish] = []

    async def run(self, handler: Handler, job: Job, *, is_released: bool = False) -> Finish | None:
        claim = Claim(job, asyncio.get_running_loop().time() + 60)
        claim.is_released = is_released
        with capture_logs() as self.lines:
            attempts = Attempts(
                handler,
                POLICY,
                self.metrics.of_queue("tested"),
                queue_name="tested",
                on_start=lambda job: None,
                on_finish=lambda finish, seconds: self.finishes.append(finish),
            )
            finish = await attempts.run(claim)
            attempts.report(claim, finish)
        return finish

    def counted(self) -> dict[str, float]:
        """Return the number of finished jobs by outcome, without zeros."""
        samples = (sample for family in self.metrics.registry.collect() for sample in family.samples)
        found = [each for each in samples if each.name == "pipeline_jobs_finished_total" and each.value]
        return {each.labels["outcome"]: each.value for each in found}


@pytest.fixture
def bench(io_loop: IOLoop) -> Bench:
    return Bench()


def caused(error: Any, cause: Exception) -> Any:
    """Return the error with this cause."""
    error.__cause__ = cause
    return error


@pytest.mark.fault("E26")
@pytest.mark.parametrize(
    ("outcome", "attempt", "event", "label", "refunds"),
    [
        (caused(RetryableJobError("AI service unavailable"), OSError("HTTP 500")), 1, "job_retrying", "retried", 0),
        (caused(RetryableJobError("AI service unavailable"), OSError("HTTP 500")), 3, "job_failed", "failed", 0),
        (caused(PermanentJobError("No product"), OSError("HTTP 500")), 1, "job_failed", "failed", 0),
        (caused(of("acme", RetryableJobError("Busy", retry_after_seconds=3)), OSError("HTTP 500")), 1, "job_parked",
         "parked", 1),
        (caused(DependencyUnavailable("Away"), OSError("HTTP 500")), 1, "job_postponed", "postponed", 1),
        (OSError("HTTP 500"), 1, "job_retrying", "retried", 0),
    ],
    ids=["retrying", "out of attempts", "refused", "parked", "postponed", "unknown"],
)  # fmt: skip
@pytest.mark.gen_test
async def test_log_line_of_an_attempt_has_its_cause(
    bench: Bench, outcome: Exception, attempt: int, event: str, label: str, refunds: int
) -> None:
    """The line has the owner's message as `error` and the cause as `cause`; each outcome has its own count."""
    handler = Handler(outcome)
    finish = await bench.run(handler, make_job(attempt))
    assert finish is not None and bench.finishes == [finish]
    line = bench.lines[-1]
    assert (line["event"], line["error"], line["cause"]) == (event, finish.error, "OSError: HTTP 500")
    assert bench.counted() == {label: 1}
    assert len(handler.refunded) == refunds
    assert handler.given_up == ([finish.error] if label == "failed" else [])


@pytest.mark.gen_test
async def test_job_that_a_shutdown_ends_is_released(bench: Bench) -> None:
    """A job that the shutdown interrupts is released and its attempt is refunded, for any exception of its handler."""
    handler = Handler(KeyError("it was interrupted"))
    finish = await bench.run(handler, make_job(3), is_released=True)
    assert finish is not None and (finish.outcome, finish.refunds_attempt) == (Outcome.RELEASED, True)
    assert (len(handler.refunded), handler.given_up) == (1, [])
    assert bench.lines[-1]["event"] == "job_released" and bench.counted() == {"released": 1}


@pytest.mark.gen_test
async def test_claim_after_the_last_attempt_only_gives_up(bench: Bench) -> None:
    """A job whose process ended while it gave up the job is not processed; it fails with its last message."""
    handler = Handler(AssertionError("it must not run"))
    finish = await bench.run(handler, make_job(4, error="AI service unavailable after 3 attempts"))
    assert finish is not None and finish.outcome is Outcome.FAILED
    assert handler.given_up == ["AI service unavailable after 3 attempts"]
