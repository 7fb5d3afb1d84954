"""What a start of a job costs: each line of the table in queue/attempt.py, the age at which waiting ends, and what the
log says of it.
"""

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
    error.provider = provider
    return error


ANSWERED_BADLY = RetryableJobError("AI service unavailable")
REFUSED = PermanentJobError("No product in the image")
AWAY = of("acme", RetryableJobError("AI service unavailable", spends_attempt=False))
BUSY = of("acme", RetryableJobError("AI service is busy", retry_after_seconds=30))
NOBODY_IN_PARTICULAR = RetryableJobError("AI service is busy", spends_attempt=False)
STORE_AWAY = DependencyUnavailable("The store cannot be reached")
# For each: is it spent at the first attempt, and how does the job go on?
TABLE = [
    (ANSWERED_BADLY, True, Outcome.RETRY, "AI service unavailable after 1 attempt"),
    (KeyError("a bug"), True, Outcome.RETRY, "Processing failed after 1 attempt"),
    (REFUSED, True, Outcome.FAILED, "No product in the image"),
    (AWAY, False, Outcome.PARKED, "AI service unavailable"),
    (BUSY, False, Outcome.PARKED, "AI service is busy"),
    (NOBODY_IN_PARTICULAR, False, Outcome.RETRY, "AI service is busy"),
    (STORE_AWAY, False, Outcome.RETRY, "The store cannot be reached"),
]
IDS = ["answered badly", "unknown", "refused", "away", "busy", "a chain in part", "store away"]
GIVEN_BACK = [AWAY, BUSY, NOBODY_IN_PARTICULAR, STORE_AWAY]


@pytest.mark.parametrize(("error", "is_spent", "outcome", "told"), TABLE, ids=IDS)
def test_judge_follows_the_table(error: Exception, is_spent: bool, outcome: Outcome, told: str) -> None:
    """An attempt is spent when the work was tried and answered; whatever else happens gives it back."""
    finish = decide_finish(error, make_job(), POLICY, 0.1)
    assert (finish.outcome, finish.error, finish.refunds_attempt) == (outcome, told, not is_spent)
    assert finish.delay_ms == (0 if outcome is Outcome.FAILED else 2000)


@pytest.mark.parametrize("error", [ANSWERED_BADLY, KeyError("a bug")], ids=["answered badly", "unknown"])
def test_attempts_that_are_spent_come_to_an_end(error: Exception) -> None:
    """Three, each wait twice the one before."""
    finishes = [decide_finish(error, make_job(attempt), POLICY, 0.1) for attempt in (1, 2, 3)]
    assert [finish.outcome for finish in finishes] == [Outcome.RETRY, Outcome.RETRY, Outcome.FAILED]
    assert [finish.delay_ms for finish in finishes] == [2000, 4000, 0]
    assert finishes[-1].error.endswith(" after 3 attempts")


@pytest.mark.parametrize("error", GIVEN_BACK, ids=str)
def test_last_attempt_that_is_given_back_fails_nothing(error: Exception) -> None:
    """It is the last one still, as soon as the work can be tried."""
    finish = decide_finish(error, make_job(attempt=3), POLICY, 0.1)
    assert finish.outcome in (Outcome.PARKED, Outcome.RETRY) and finish.refunds_attempt


def test_wait_that_a_spent_attempt_asks_for_is_kept() -> None:
    """A provider that says of its own failure when to come again, and that it did try: no earlier, no attempt more."""
    error = RetryableJobError("Model is loading", retry_after_seconds=30, spends_attempt=True)
    finish = decide_finish(error, make_job(), POLICY, 0.1)
    assert (finish.outcome, finish.delay_ms, finish.refunds_attempt) == (Outcome.RETRY, 30_000, False)
    assert decide_finish(error, make_job(attempt=3), POLICY, 0.1).outcome is Outcome.FAILED


@pytest.mark.fault("E8")
@pytest.mark.parametrize("error", GIVEN_BACK, ids=str)
@pytest.mark.parametrize(
    ("age_seconds", "took_seconds", "is_over", "remark"),
    [
        (0, 0.1, False, "it has just come"),
        (59.8, 0.1, False, "it has a moment left"),
        (60, 0, True, "it was claimed at its very end"),
        (59.8, 0.3, True, "the attempt itself took the rest"),
        (86_400, 0, True, "it came back after a wipe of Redis: what counts is when it first came"),
    ],
)
def test_waiting_ends_at_an_age(
    error: Exception, age_seconds: float, took_seconds: float, is_over: bool, remark: str
) -> None:
    """A job that is always given back ends all the same, with its last reason."""
    job = make_job(age_seconds=age_seconds)
    finish = decide_finish(error, job, POLICY, took_seconds)
    assert (finish.outcome is Outcome.FAILED) is is_over, remark
    if is_over:
        assert finish.error == f"{error}, given up after 60 seconds"


def test_age_ends_no_job_that_is_tried() -> None:
    """Its attempts do: a photo that has waited for a day for its provider still has all of them."""
    assert decide_finish(ANSWERED_BADLY, make_job(age_seconds=86_400), POLICY, 1).outcome is Outcome.RETRY


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
def test_age_is_told_in_words(seconds: float, words: str) -> None:
    """In the largest unit of which there are two, as its owner reads it."""
    finish = decide_finish(BUSY, make_job(age_seconds=seconds), RetryPolicy(max_age_seconds=seconds), 0)
    assert finish.error == f"AI service is busy, given up after {words}"


@pytest.mark.fault("P11")
def test_text_of_a_dependency_is_cleaned() -> None:
    """A storage plugin's words go into the asset, the queue and the log."""
    finish = decide_finish(DependencyUnavailable("The \x1b[31mdisk\x07 is\nfull"), make_job(), POLICY, 0)
    assert finish.error == "The disk is full"


# one start, from its claim to its end


class Handler:
    """Does with each job as it is told; `refunded` and `given_up` have what it was asked to record."""

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
    """Runs one claim as a worker does."""

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
        """Return the finished jobs by outcome, less those of which there are none."""
        samples = (sample for family in self.metrics.registry.collect() for sample in family.samples)
        found = [each for each in samples if each.name == "pipeline_jobs_finished_total" and each.value]
        return {each.labels["outcome"]: each.value for each in found}


@pytest.fixture
def bench(io_loop: IOLoop) -> Bench:
    return Bench()


def caused(error: Any, cause: Exception) -> Any:
    error.__cause__ = cause
    return error


@pytest.mark.fault("E26")
@pytest.mark.parametrize(
    ("outcome", "attempt", "event", "label", "excused"),
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
async def test_line_of_an_attempt_tells_what_was_behind_it(
    bench: Bench, outcome: Exception, attempt: int, event: str, label: str, excused: int
) -> None:
    """Its owner's text as `error`, type and text of what caused it as `cause`; each outcome counted as itself."""
    handler = Handler(outcome)
    finish = await bench.run(handler, make_job(attempt))
    assert finish is not None and bench.finishes == [finish]
    line = bench.lines[-1]
    assert (line["event"], line["error"], line["cause"]) == (event, finish.error, "OSError: HTTP 500")
    assert bench.counted() == {label: 1}
    assert len(handler.refunded) == excused
    assert handler.given_up == ([finish.error] if label == "failed" else [])


@pytest.mark.gen_test
async def test_job_that_a_shutdown_ends_is_given_back(bench: Bench) -> None:
    """Whatever its cancellation made of it, its own fault it is not."""
    handler = Handler(KeyError("it was interrupted"))
    finish = await bench.run(handler, make_job(3), is_released=True)
    assert finish is not None and (finish.outcome, finish.refunds_attempt) == (Outcome.RELEASED, True)
    assert (len(handler.refunded), handler.given_up) == (1, [])
    assert bench.lines[-1]["event"] == "job_released" and bench.counted() == {"released": 1}


@pytest.mark.gen_test
async def test_start_beyond_the_last_attempt_only_gives_up(bench: Bench) -> None:
    """The process was lost giving it up: it is not tried again."""
    handler = Handler(AssertionError("it must not run"))
    finish = await bench.run(handler, make_job(4, error="AI service unavailable after 3 attempts"))
    assert finish is not None and finish.outcome is Outcome.FAILED
    assert handler.given_up == ["AI service unavailable after 3 attempts"]
