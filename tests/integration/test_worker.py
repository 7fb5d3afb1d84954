"""The job loop on a real Redis: slots, leases, retries, holds, drain."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis import Redis
from tornado.ioloop import IOLoop

from pipeline.errors import DependencyUnavailable, PermanentJobError, RetryableJobError
from pipeline.hooks.breaker import Breaker, SharedBreakers
from pipeline.queue import calls as queue_calls
from pipeline.queue.attempt import RetryPolicy
from pipeline.queue.job import Job, JobState
from pipeline.queue.queue import JobQueue
from tests.redis_server import RedisServer
from tests.workers import Bench, Handler, count, failing, nothing


@pytest.mark.gen_test(timeout=20)
async def test_worker_runs_every_job_once_in_order(bench: Bench) -> None:
    """A hundred jobs start in the order of submission, each exactly once."""
    handler = Handler(nothing)
    bench.start(handler)
    ids = await bench.enqueue(100)
    assert [(await handler.started.get()).id for _ in ids] == ids
    await bench.until(lambda stats: stats.completed == 100)
    assert handler.started.empty()


@pytest.mark.gen_test(timeout=20)
async def test_worker_runs_at_most_five_at_once(bench: Bench) -> None:
    """Five slots work side by side; the sixth job waits for one of them."""
    release = asyncio.Event()

    async def work(job: Job) -> None:
        await release.wait()

    handler = Handler(work)
    _, metrics = bench.start(handler)
    await bench.enqueue(12)
    await bench.until(lambda stats: (stats.active, stats.waiting) == (5, 7))
    assert count(metrics, "pipeline_slots_busy") == 5
    release.set()
    await bench.until(lambda stats: stats.completed == 12)
    assert handler.most_running == 5


@pytest.mark.gen_test(timeout=20)
async def test_retryable_error_is_tried_three_times_with_doubling_backoff(bench: Bench) -> None:
    """Attempts 1, 2 and 3, each a backoff later than the one before, then the job is given up with the reason."""
    handler = Handler(failing(RetryableJobError("AI service unavailable")))
    bench.start(handler, RetryPolicy(backoff_ms=100))
    (job_id,) = await bench.enqueue(1)
    starts = [await handler.started.get() for _ in range(3)]
    assert [job.attempt for job in starts] == [1, 2, 3]
    waits = [later.claimed_at_ms - earlier.claimed_at_ms for earlier, later in zip(starts, starts[1:], strict=False)]
    assert waits[0] >= 100 and waits[1] >= 200
    _, message = await handler.given_up.get()
    assert message == "AI service unavailable after 3 attempts"
    await bench.until(lambda stats: stats.failed == 1)
    assert (await bench.queue.fields(job_id))["error"] == message


@pytest.mark.gen_test(timeout=20)
async def test_permanent_error_is_not_tried_again(bench: Bench) -> None:
    """One start, then the dead letter."""
    handler = Handler(failing(PermanentJobError("Not a photo")))
    bench.start(handler)
    await bench.enqueue(1)
    job, message = await handler.given_up.get()
    assert (job.attempt, message) == (1, "Not a photo")
    await bench.until(lambda stats: stats.failed == 1)


@pytest.mark.gen_test(timeout=20)
async def test_unavailable_dependency_spends_no_attempt(bench: Bench) -> None:
    """While the store is away a job comes round and round as its first attempt."""
    handler = Handler(failing(DependencyUnavailable("The store cannot be reached")))
    bench.start(handler, RetryPolicy(backoff_ms=1))
    await bench.enqueue(1)
    assert [(await handler.started.get()).attempt for _ in range(6)] == [1] * 6
    handler.work = nothing
    await bench.until(lambda stats: stats.completed == 1)
    assert handler.given_up.empty()


@pytest.mark.gen_test(timeout=20)
async def test_job_timeout_cancels_and_retries(bench: Bench) -> None:
    """A job that takes too long is cancelled and counts as a failed attempt."""

    async def work(job: Job) -> None:
        await asyncio.Event().wait()

    handler = Handler(work)
    bench.start(handler, RetryPolicy(attempts=1, timeout_seconds=0.1))
    await bench.enqueue(1)
    assert await handler.ended.get() == "cancelled"
    assert (await handler.given_up.get())[1] == "Processing took longer than 0.1 s after 1 attempt"


@pytest.mark.gen_test(timeout=20)
async def test_long_job_keeps_its_lease(bench: Bench) -> None:
    """A job eight times longer than its lease runs once, beside a second worker that recovers what it can."""
    bench.queue_options["lease_seconds"] = 0.25

    async def work(job: Job) -> None:
        await asyncio.sleep(2)  # the length is the point: eight leases

    handler = Handler(work)
    for _ in range(2):
        bench.start(handler, lease_seconds=0.25, renew_seconds=0.05)
    await bench.enqueue(1)
    await bench.until(lambda stats: stats.completed == 1)
    assert handler.started.qsize() == 1


@pytest.mark.gen_test(timeout=20)
async def test_lost_lease_cancels_the_job_and_is_counted(bench: Bench, redis_server: RedisServer) -> None:
    """When another process took the job over, this one stops quietly and acknowledges nothing."""

    async def work(job: Job) -> None:
        await asyncio.Event().wait()

    handler = Handler(work)
    _, metrics = bench.start(handler, renew_seconds=0.05)
    await bench.enqueue(1)
    await handler.started.get()
    redis_server.client().delete("pipeline:{ai-processing}:leases")
    assert await handler.ended.get() == "cancelled"
    assert handler.given_up.empty()
    while not count(metrics, "pipeline_leases_lost_total"):
        await asyncio.sleep(0.01)
    assert count(metrics, "pipeline_jobs_finished_total", outcome="lost") == 1


@pytest.mark.gen_test(timeout=20)
async def test_job_ends_before_a_lease_that_cannot_be_renewed(io_loop: IOLoop) -> None:
    """With Redis away the job is cancelled while its lease still holds, and runs again once Redis is back."""
    with RedisServer() as server:
        bench = Bench(server.url, lease_seconds=1)
        block = asyncio.Event()

        async def work(job: Job) -> None:
            await block.wait()

        handler = Handler(work)
        bench.start(handler, lease_seconds=1, renew_seconds=0.1)
        await bench.enqueue(1)
        first = await handler.started.get()
        started_at = io_loop.time()
        server.stop()
        assert await handler.ended.get() == "cancelled"
        assert io_loop.time() - started_at < 1
        block.set()
        server.start()
        again = await handler.started.get()
        assert (again.id, again.attempt) == (first.id, 1)
        await bench.until(lambda stats: stats.completed == 1)
        await bench.close()


@pytest.mark.gen_test(timeout=20)
async def test_drain_lets_jobs_finish_and_claims_no_more(bench: Bench) -> None:
    """A drained worker ends its running jobs as completed and leaves the rest waiting."""
    release = asyncio.Event()

    async def work(job: Job) -> None:
        await release.wait()

    handler = Handler(work)
    worker, _ = bench.start(handler)
    await bench.enqueue(8)
    await bench.until(lambda stats: stats.active == 5)
    draining = asyncio.ensure_future(worker.drain(60))
    await asyncio.sleep(0)
    release.set()
    await draining
    stats = await bench.queue.stats()
    assert (stats.completed, stats.waiting, stats.active) == (5, 3, 0)


@pytest.mark.gen_test(timeout=20)
async def test_drain_hands_back_what_does_not_finish(bench: Bench) -> None:
    """At the deadline running jobs go back to the front, in order, without a spent attempt or a stall."""

    async def work(job: Job) -> None:
        await asyncio.Event().wait()

    handler = Handler(work)
    worker, metrics = bench.start(handler)
    ids = await bench.enqueue(6)
    await bench.until(lambda stats: stats.active == 5)
    await worker.drain(0.05)
    assert (await bench.queue.stats()).waiting == 6
    assert count(metrics, "pipeline_jobs_finished_total", outcome="released") == 5
    other = Handler(nothing)
    bench.start(other)
    jobs = [await other.started.get() for _ in ids]
    assert [job.id for job in jobs] == ids
    assert {(job.attempt, job.stalls) for job in jobs} == {(1, 0)}


@pytest.mark.fault("E16")
@pytest.mark.gen_test(timeout=20)
async def test_drain_hands_back_while_the_store_hangs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a start was in vain cannot be recorded then: no reason to let the lease run out."""

    async def hang(job: Job) -> None:
        await asyncio.Event().wait()

    handler = Handler(hang)
    monkeypatch.setattr(handler, "refund_attempt", hang)
    worker, metrics = bench.start(handler)
    await bench.enqueue(1)
    await handler.started.get()
    await worker.drain(0.05)
    stats = await bench.queue.stats()
    assert (stats.waiting, stats.active) == (1, 0)
    assert count(metrics, "pipeline_jobs_finished_total", outcome="released") == 1


@pytest.mark.gen_test(timeout=20)
async def test_job_that_stalls_too_often_is_given_up_by_the_next_worker(bench: Bench) -> None:
    """A fourth lost process is not risked: the job is given up instead of run, so that its owner hears of it."""
    (job_id,) = await bench.enqueue(1)
    for number in range(3):
        await bench.queue.step(f"dying:{number}", [], 1)
        await bench.queue.recover(everything=True)
    handler = Handler(nothing)
    bench.start(handler)
    assert (await handler.given_up.get())[1] == "Processing stalled 3 times"
    await bench.until(lambda stats: stats.failed == 1)
    assert handler.started.empty()
    assert (await bench.queue.fields(job_id))["state"] == JobState.FAILED


@pytest.mark.gen_test(timeout=20)
async def test_giving_up_is_repeated_until_it_succeeds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose failure could not be recorded is not acknowledged as failed, and its work is not done again."""
    monkeypatch.setattr("pipeline.queue.attempt.GIVE_UP_RETRY_MS", 10)
    handler = Handler(failing(RetryableJobError("AI service unavailable")))
    handler.give_up_error = DependencyUnavailable("The store cannot be reached")
    bench.start(handler, RetryPolicy(attempts=1))
    await bench.enqueue(1)
    for _ in range(3):
        _, message = await handler.given_up.get()
        assert message == "AI service unavailable after 1 attempt"
    handler.give_up_error = None
    await bench.until(lambda stats: stats.failed == 1)
    assert handler.started.qsize() == 1


@pytest.mark.gen_test(timeout=20)
async def test_two_workers_share_the_work_without_doubling(bench: Bench) -> None:
    """Two processes on one queue run each job once between them."""
    first, second = Handler(nothing), Handler(nothing)
    bench.start(first)
    bench.start(second)
    await bench.enqueue(200)
    await bench.until(lambda stats: stats.completed == 200)
    assert first.started.qsize() + second.started.qsize() == 200


@pytest.mark.gen_test(timeout=20)
async def test_worker_goes_on_after_a_redis_restart(io_loop: IOLoop) -> None:
    """Work resumes by itself when Redis comes back, also an idle worker's blocking call."""
    with RedisServer() as server:
        bench = Bench(server.url, block_seconds=10)
        handler = Handler(nothing)
        reconnected = asyncio.Event()
        bench.start(handler, on_reconnect=reconnected.set)
        await bench.enqueue(1)
        await handler.started.get()
        # The loop stands still while Redis is away, so only a call that is under way can notice.
        while not server.client().info("clients")["blocked_clients"]:
            await asyncio.sleep(0.01)
        server.stop()
        server.start()
        await reconnected.wait()
        await bench.queue.enqueue("ai-processing:after", {})
        assert (await handler.started.get()).id == "ai-processing:after"
        await bench.close()


@pytest.mark.gen_test(timeout=20)
async def test_claim_whose_answer_was_lost_comes_back_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that claimed and whose reply never came costs neither a lease's time nor an attempt nor a stall."""
    handler = Handler(nothing)
    step, answers_to_lose = JobQueue.step, [1]

    async def step_silently(queue: JobQueue, *arguments: Any) -> Any:
        done = await step(queue, *arguments)
        if done.claimed and answers_to_lose:
            answers_to_lose.pop()
            raise DependencyUnavailable("no answer")
        return done

    monkeypatch.setattr(JobQueue, "step", step_silently)
    ids = await bench.enqueue(3)
    bench.start(handler)
    jobs = [await handler.started.get() for _ in ids]
    assert [(job.id, job.attempt, job.stalls) for job in jobs] == [(job_id, 1, 0) for job_id in ids]


@pytest.mark.gen_test(timeout=20)
async def test_idle_worker_is_quiet_and_wakes_at_once(bench: Bench, redis_server: RedisServer) -> None:
    """An idle worker asks about once a second, and a job still starts within a few milliseconds' work."""
    bench.queue_options["block_seconds"] = 2
    handler = Handler(nothing)
    bench.start(handler)
    client: Redis = redis_server.client()
    while not client.info("clients")["blocked_clients"]:
        await asyncio.sleep(0.01)
    before = calls(client)
    await asyncio.sleep(2.2)  # one whole blocking call
    assert calls(client) - before <= 4
    await bench.enqueue(1)
    await handler.started.get()


def calls(client: Redis) -> int:
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval", "blpop"))


def backoffs(starts: list[Job]) -> list[int]:
    return [later.claimed_at_ms - earlier.claimed_at_ms for earlier, later in zip(starts, starts[1:], strict=False)]


class Provider:
    """What the jobs of a worker ask, with this process' breaker of it, as hooks/providers.py uses one."""

    def __init__(self) -> None:
        self.error: RetryableJobError | None = None
        self.breaker = Breaker(5, 0.2)
        self.holds = SharedBreakers({"acme": self.breaker}, {"": ("acme",)})

    async def ask(self, job: Job) -> None:
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
    """Holds begin with a wait of 50 ms."""
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
    """One job is told to wait: nobody asks that provider until then, and it still has all its attempts."""
    bench.queue_options["lanes"] = {"": ("acme",)}
    limited, idle = Provider(), Provider()
    limited.error = RetryableJobError("Busy", retry_after_seconds=0.5)
    first, second = Handler(limited.ask), Handler(idle.ask)
    bench.start(first, concurrency=1, holds=limited.holds)
    await bench.enqueue(1)
    held = await first.started.get()
    await bench.until(lambda stats: stats.holds)
    limited.error = None
    bench.start(second, holds=idle.holds)
    await bench.queue.enqueue("ai-processing:other", {})
    stats = await bench.until(lambda stats: stats.completed == 2)
    assert stats.failed == 0
    started = [first.started.get_nowait() for _ in range(first.started.qsize())]
    started += [second.started.get_nowait() for _ in range(second.started.qsize())]
    assert sorted(job.attempt for job in started) == [1, 1]
    assert min(job.claimed_at_ms for job in started) - held.claimed_at_ms >= 500
    assert (await first.refunded.get()).id == held.id


@pytest.mark.gen_test(timeout=30)
async def test_outage_costs_no_job_and_ends_by_itself(bench: Bench, short_waits: None) -> None:
    """25 jobs while the provider cannot be asked: single ones try it, no attempt is spent, all 25 complete."""
    bench.queue_options["lanes"] = {"": ("acme",)}
    provider = Provider()
    provider.error = RetryableJobError("AI service unavailable", spends_attempt=False)
    handler = Handler(provider.ask)
    _, metrics = bench.start(handler, RetryPolicy(backoff_ms=100), holds=provider.holds)
    await bench.enqueue(25)
    # Far more tries than a job has attempts, each of a single job.
    while count(metrics, "pipeline_jobs_finished_total", outcome="parked") < 15:
        await handler.started.get()
    assert (await bench.queue.stats()).active <= 1
    provider.error = None
    stats = await bench.until(lambda stats: stats.completed == 25)
    assert not stats.holds and handler.given_up.empty()
    assert {job.attempt for job in started(handler)} == {1}


def started(handler: Handler) -> list[Job]:
    return [handler.started.get_nowait() for _ in range(handler.started.qsize())]


@pytest.mark.fault("E8")
@pytest.mark.gen_test(timeout=20)
@pytest.mark.parametrize("error", ["busy", "away", "store"])
async def test_job_that_is_given_back_for_too_long_fails_with_the_last_reason(
    bench: Bench, short_waits: None, error: str
) -> None:
    """A provider that is busy or away, or a store that is, for ever: sure to end, although no attempt is spent."""
    bench.queue_options |= {"lanes": {"": ("acme",)}, "max_age_seconds": 0.6}
    provider = Provider()
    wait = {"retry_after_seconds": 0.1} if error == "busy" else {"spends_attempt": False}
    provider.error = RetryableJobError("No answer", **wait)  # type: ignore[arg-type]
    away = DependencyUnavailable("No answer")
    handler = Handler(failing(away) if error == "store" else provider.ask)
    bench.start(handler, RetryPolicy(backoff_ms=20, max_age_seconds=0.6), holds=provider.holds)
    await bench.enqueue(3)
    for _ in range(3):
        job, message = await handler.given_up.get()
        assert message == "No answer, given up after 1 second" and job.attempt == 1
    stats = await bench.until(lambda stats: stats.failed == 3)
    assert (stats.waiting, stats.delayed, stats.active) == (0, 0, 0)


@pytest.mark.gen_test(timeout=20)
async def test_work_that_is_tried_and_answered_badly_is_held_against_nobody_else(bench: Bench) -> None:
    """Twenty jobs that fail three times each beside twenty good ones: no hold, and each good one runs once."""

    async def work(job: Job) -> None:
        if int(job.data["n"][-2:], 16) % 2:
            raise RetryableJobError("AI service unavailable")

    handler = Handler(work)
    bench.start(handler, RetryPolicy(backoff_ms=20))
    await bench.enqueue(40)
    stats = await bench.until(lambda stats: (stats.completed, stats.failed) == (20, 20))
    assert not stats.holds and len(started(handler)) == 20 * 3 + 20


@pytest.mark.gen_test(timeout=20)
async def test_one_bad_job_fails_beside_good_ones(bench: Bench) -> None:
    """Three attempts and the dead letter, while the others go on and nothing is held."""

    async def work(job: Job) -> None:
        if job.data.get("n", "").endswith("0"):
            raise RetryableJobError("AI service unavailable")

    handler = Handler(work)
    bench.start(handler, RetryPolicy(backoff_ms=20))
    await bench.enqueue(10)
    stats = await bench.until(lambda stats: (stats.completed, stats.failed) == (9, 1))
    assert not stats.holds


@pytest.mark.gen_test(timeout=20)
async def test_commit_may_take_longer_than_the_job(bench: Bench) -> None:
    """Once the work is done its result is kept for as long as the store takes, and the work is not done again."""
    release = asyncio.Event()

    async def keep(job: Job) -> None:
        await release.wait()

    handler = Handler(nothing, keep)
    bench.queue_options["lease_seconds"] = 0.5
    _, metrics = bench.start(handler, RetryPolicy(timeout_seconds=0.1), lease_seconds=0.5, renew_seconds=0.1)
    await bench.enqueue(1)
    await handler.ended.get()
    await asyncio.sleep(1)  # the length is the point: ten times the job's own time, twice its lease
    assert not count(metrics, "pipeline_jobs_finished_total", outcome="retried")
    release.set()
    await bench.until(lambda stats: stats.completed == 1)
    assert handler.started.qsize() == 1


@pytest.mark.gen_test(timeout=20)
async def test_pause_during_retries_keeps_them(bench: Bench) -> None:
    """A retry that falls due while the queue is paused starts when it is resumed, as the attempt it is."""
    handler = Handler(failing(RetryableJobError("AI service unavailable")))
    bench.start(handler, RetryPolicy(backoff_ms=50))
    await bench.enqueue(1)
    await handler.started.get()
    await bench.until(lambda stats: stats.delayed == 1)
    await bench.queue.pause()
    await asyncio.sleep(0.3)  # the retry falls due meanwhile
    assert handler.started.empty()
    handler.work = nothing
    await bench.queue.resume()
    assert (await handler.started.get()).attempt == 2
    await bench.until(lambda stats: stats.completed == 1)


@pytest.mark.gen_test(timeout=20)
async def test_backoff_is_two_and_four_seconds(bench: Bench) -> None:
    """With the specified options attempts start at 0, +2 s and +4 s."""
    handler = Handler(failing(RetryableJobError("AI service unavailable")))
    bench.start(handler, RetryPolicy())
    await bench.enqueue(1)
    starts = [await handler.started.get() for _ in range(3)]
    first, second = backoffs(starts)
    assert 2000 <= first < 3000 and 4000 <= second < 5000


@pytest.mark.gen_test(timeout=20)
async def test_finished_jobs_go_past_retention_without_new_jobs(bench: Bench) -> None:
    """Nothing has to be enqueued for completed jobs to be removed in time."""
    bench.queue_options["keep_completed_seconds"] = 0.2
    bench.start(Handler(nothing), renew_seconds=0.05)
    ids = await bench.enqueue(5)
    await bench.until(lambda stats: stats.completed == 5)
    await bench.until(lambda stats: stats.completed == 0)
    assert [await bench.queue.fields(job_id) for job_id in ids] == [{}] * 5


@pytest.mark.gen_test(timeout=30)
async def test_process_that_alone_cannot_reach_the_provider_stops_drawing_jobs(
    bench: Bench, short_waits: None
) -> None:
    """One of two workers reaches nothing: it costs no job its attempts, and the other does nearly all, unbroken."""
    bench.queue_options["lanes"] = {"": ("acme",)}
    cut_off, sound = Provider(), Provider()
    cut_off.error = RetryableJobError("AI service unavailable", spends_attempt=False)
    broken, good = Handler(cut_off.ask), Handler(sound.ask)
    bench.start(broken, holds=cut_off.holds)
    bench.start(good, holds=sound.holds)
    for number in range(300):
        await bench.queue.enqueue(f"ai-processing:{number:024x}", {})
        await asyncio.sleep(0.005)  # one by one, so that both take their share
    await bench.until(lambda stats: stats.completed == 300)
    assert broken.given_up.empty() and good.given_up.empty()
    assert 1 <= broken.started.qsize() < 60
    cut_off.error = None
    for number in range(300, 900):
        await bench.queue.enqueue(f"ai-processing:{number:024x}", {})
        await asyncio.sleep(0.005)
        if cut_off.breaker.left_seconds == 0 and not cut_off.breaker.is_held:
            return
    raise AssertionError("it never tries again")


@pytest.mark.gen_test(timeout=20)
async def test_suspended_worker_leaves_every_job_to_others(bench: Bench) -> None:
    """It claims nothing, takes nobody's wake-up, keeps what it runs, and goes on when it is resumed."""
    is_let_go = asyncio.Event()

    async def wait(job: Job) -> None:
        await is_let_go.wait()

    handler, other = Handler(wait), Handler(nothing)
    worker, _ = bench.start(handler, concurrency=2)
    (first, *rest) = [f"ai-processing:{number:024x}" for number in range(4)]
    await bench.queue.enqueue(first, {})
    assert (await handler.started.get()).id == first
    worker.suspend()
    assert not worker.is_claiming and [job.id for job in worker.running] == [first]
    busy, _ = bench.start(other, concurrency=1)
    for job_id in rest[:2]:
        await bench.queue.enqueue(job_id, {})
        assert (await other.started.get()).id == job_id
    is_let_go.set()
    await bench.until(lambda stats: stats.completed == 3)
    busy.suspend()
    await bench.queue.enqueue(rest[2], {})
    assert handler.started.empty()
    worker.resume()
    assert (await handler.started.get()).id == rest[2]
