"""Workers on a real Redis whose provider is busy or cannot be reached: holds, tries and refunds."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.errors import DependencyUnavailable, RetryableJobError
from pipeline.hooks.breaker import Breaker, SharedBreakers
from pipeline.queue import calls as queue_calls
from pipeline.queue.attempt import RetryPolicy
from pipeline.queue.job import Job
from tests.integration.worker_jobs import started
from tests.workers import Bench, Handler, count, failing


class Provider:
    """A provider that jobs of a worker call through a breaker, as hooks/providers.py does."""

    def __init__(self) -> None:
        self.error: RetryableJobError | None = None
        self.breaker = Breaker(5, 0.2)
        self.holds = SharedBreakers({"acme": self.breaker}, {"": ("acme",)})

    async def call(self, job: Job) -> None:
        if job.tries:
            self.breaker.tries()
        elif not self.breaker.lets_through():
            raise self._held(RetryableJobError(self.breaker.reason, spends_attempt=False))
        if self.error is None:
            self.breaker.answered()
            return
        if self.error.retry_after_seconds is not None:
            self.breaker.busy(self.error.retry_after_seconds, self.error.message)
        else:
            self.breaker.unreachable(self.error.message)
        raise self._held(self.error)

    @staticmethod
    def _held(error: RetryableJobError) -> RetryableJobError:
        error.provider = "acme"
        return error


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first wait of a hold is 50 ms."""
    monkeypatch.setattr("pipeline.hooks.breaker.FIRST_WAIT_SECONDS", 0.05)
    monkeypatch.setattr("pipeline.hooks.breaker.LEAST_BUSY_SECONDS", 0.05)
    source = queue_calls._source

    def short(verb: str) -> str:
        script = source(verb).replace("FIRST_WAIT_MS = 1000", "FIRST_WAIT_MS = 50")
        assert verb != "step" or "FIRST_WAIT_MS = 50" in script
        return script

    monkeypatch.setattr(queue_calls, "_source", short)


@pytest.mark.gen_test(timeout=20)
async def test_retry_after_holds_every_worker_and_spends_no_attempt(bench: Bench, short_waits: None) -> None:
    """After a Retry-After no worker calls the provider until then, and no attempt is spent."""
    bench.queue_options["lanes"] = {"": ("acme",)}
    limited, idle = Provider(), Provider()
    limited.error = RetryableJobError("Busy", retry_after_seconds=0.5)
    first, second = Handler(limited.call), Handler(idle.call)
    bench.start(first, concurrency=1, holds=limited.holds)
    await bench.enqueue(1)
    limited_job = await first.started.get()
    await bench.until(lambda stats: stats.holds)
    limited.error = None
    bench.start(second, holds=idle.holds)
    await bench.queue.enqueue("ai-processing:other", {})
    stats = await bench.until(lambda stats: stats.completed == 2)
    assert stats.failed == 0
    jobs = started(first) + started(second)
    assert sorted(job.attempt for job in jobs) == [1, 1]
    assert min(job.claimed_at_ms for job in jobs) - limited_job.claimed_at_ms >= 500
    assert (await first.refunded.get()).id == limited_job.id


@pytest.mark.gen_test(timeout=30)
async def test_outage_of_a_provider_fails_no_job(bench: Bench, short_waits: None) -> None:
    """While the provider cannot be reached single jobs try it, no attempt is spent, and later all 25 jobs complete."""
    bench.queue_options["lanes"] = {"": ("acme",)}
    provider = Provider()
    provider.error = RetryableJobError("AI service unavailable", spends_attempt=False)
    handler = Handler(provider.call)
    _, metrics = bench.start(handler, RetryPolicy(backoff_ms=100), holds=provider.holds)
    await bench.enqueue(25)
    # Many more tries than a job has attempts, each by one job.
    while count(metrics, "pipeline_jobs_finished_total", outcome="parked") < 15:
        await handler.started.get()
    assert (await bench.queue.stats()).active <= 1
    provider.error = None
    stats = await bench.until(lambda stats: stats.completed == 25)
    assert not stats.holds and handler.given_up.empty()
    assert {job.attempt for job in started(handler)} == {1}


@pytest.mark.fault("E8")
@pytest.mark.gen_test(timeout=20)
@pytest.mark.parametrize("error", ["busy", "away", "store"])
async def test_job_that_is_refunded_for_too_long_fails_with_the_last_reason(
    bench: Bench, short_waits: None, error: str
) -> None:
    """A job ends at its maximum age when a provider is always busy or away, or the store is away."""
    bench.queue_options |= {"lanes": {"": ("acme",)}, "max_age_seconds": 0.6}
    provider = Provider()
    wait = {"retry_after_seconds": 0.1} if error == "busy" else {"spends_attempt": False}
    provider.error = RetryableJobError("No answer", **wait)  # type: ignore[arg-type]
    away = DependencyUnavailable("No answer")
    handler = Handler(failing(away) if error == "store" else provider.call)
    bench.start(handler, RetryPolicy(backoff_ms=20, max_age_seconds=0.6), holds=provider.holds)
    await bench.enqueue(3)
    for _ in range(3):
        job, message = await handler.given_up.get()
        assert message == "No answer, given up after 1 second" and job.attempt == 1
    stats = await bench.until(lambda stats: stats.failed == 3)
    assert (stats.waiting, stats.delayed, stats.active) == (0, 0, 0)


@pytest.mark.gen_test(timeout=20)
async def test_failing_jobs_hold_no_other_job(bench: Bench) -> None:
    """Twenty jobs fail three times each, nothing is held, and each of twenty good jobs runs once."""

    async def work(job: Job) -> None:
        if int(job.data["n"][-2:], 16) % 2:
            raise RetryableJobError("AI service unavailable")

    handler = Handler(work)
    bench.start(handler, RetryPolicy(backoff_ms=20))
    await bench.enqueue(40)
    stats = await bench.until(lambda stats: (stats.completed, stats.failed) == (20, 20))
    assert not stats.holds and len(started(handler)) == 20 * 3 + 20


@pytest.mark.gen_test(timeout=30)
async def test_only_process_that_cannot_reach_the_provider_stops_claiming(
    bench: Bench, short_waits: None
) -> None:
    """One of two workers cannot reach the provider: no attempt is spent, and the other worker does nearly all jobs."""
    bench.queue_options["lanes"] = {"": ("acme",)}
    unreachable, reachable = Provider(), Provider()
    unreachable.error = RetryableJobError("AI service unavailable", spends_attempt=False)
    broken, good = Handler(unreachable.call), Handler(reachable.call)
    bench.start(broken, holds=unreachable.holds)
    bench.start(good, holds=reachable.holds)
    for number in range(300):
        await bench.queue.enqueue(f"ai-processing:{number:024x}", {})
        await asyncio.sleep(0.005)  # one by one, so that both workers claim some
    await bench.until(lambda stats: stats.completed == 300)
    assert broken.given_up.empty() and good.given_up.empty()
    assert 1 <= broken.started.qsize() < 60
    unreachable.error = None
    for number in range(300, 900):
        await bench.queue.enqueue(f"ai-processing:{number:024x}", {})
        await asyncio.sleep(0.005)
        if unreachable.breaker.left_seconds == 0 and not unreachable.breaker.is_held:
            return
    raise AssertionError("the first worker never tries the provider")
