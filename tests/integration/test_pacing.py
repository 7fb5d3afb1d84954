"""The rate and the number of calls at once of a provider, over all processes: on a real Redis and in real processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from pydantic import SecretStr
from tornado.ioloop import IOLoop

from benchmarks.pacing import measure
from pipeline.commands.eval_limits import limits
from pipeline.errors import BudgetReached
from pipeline.hold import BACKGROUND, ProviderReport, ProviderState, Pace
from pipeline.hooks import Analysis
from pipeline.hooks.job_protocols import NO_LIMITS
from pipeline.queue.job import Finish, Job, Outcome
from pipeline.queue.queue import JobQueue
from pipeline.settings import Settings
from pipeline.usecases.budgets import Budgets
from pipeline.usecases.permits import Permits
from pipeline.usecases.result_cache import ResultCache, key_of
from tests.factories import make_asset
from tests.paced_ai import PacedAi
from tests.service import Service
from tests.workers import Claimer

LANES = {
    "sneaker": ("slow",),
    "~sneaker": ("slow",),
    "boots": ("slow",),
    "lego": ("slow", "free"),
    "camera": ("free",),
    "": ("few",),
}
PACES = {"slow": Pace(2.0), "few": Pace(0, 2)}
REASON = "Waiting for a turn at the AI service"


@pytest.fixture
def queue(io_loop: IOLoop, redis_url: str) -> Iterator[JobQueue]:
    queue = JobQueue(redis_url, lanes=LANES, paces=PACES)
    yield queue
    io_loop.run_sync(queue.close)


async def enqueue(queue: JobQueue, lane: str, *numbers: int, group: str = "") -> list[str]:
    """Enqueue jobs with these numbers in the lane; return their ids."""
    ids = [f"ai-processing:{number:024x}" for number in numbers]
    for job_id in ids:
        assert await queue.enqueue(job_id, {}, lane=lane, group=group)
        # Each job is submitted in another millisecond.
        queue.clock_offset_ms += 1
    return ids


def ids_of(jobs: list[Job]) -> list[str]:
    return [job.id for job in jobs]


def done(job: Job) -> Finish:
    return Finish(job, Outcome.COMPLETED)


@pytest.mark.fault("E6")
@pytest.mark.gen_test
async def test_claim_reserves_a_call_and_other_lanes_pass(queue: JobQueue) -> None:
    """The jobs of all workers and lanes get a provider's reserved calls in the order of submission.

    Jobs of other providers do not wait. A waiting job spends no attempt; its reason and the time left are shown.
    """
    first, second = await enqueue(queue, "sneaker", 1, 2)
    (boots,) = await enqueue(queue, "boots", 3)
    (lego,) = await enqueue(queue, "lego", 4)
    cameras = await enqueue(queue, "camera", 5, 6)
    one, other = Claimer(queue), Claimer(queue, "worker-b")
    step = await one.step(5)
    assert ids_of(step.claimed) == [first, lego, *cameras]
    assert [job.reservation.provider if job.reservation else None for job in step.claimed] == ["slow", None, None, None]
    assert 1500 < step.next_due_ms <= 1580 and step.holds == []
    assert await other(5) == []
    stats = await queue.stats()
    assert [(hold.provider, hold.reason, hold.is_paced) for hold in stats.holds] == [("slow", REASON, True)]
    assert 1.9 < stats.holds[0].left_seconds <= 2.08 and stats.waiting == 2
    snapshot = await queue.snapshot()
    assert snapshot.parked == {second, boots} and [hold.provider for hold in snapshot.holds] == ["slow"]
    (late,) = await enqueue(queue, "sneaker", 7)
    queue.clock_offset_ms += 1600
    (job,) = await other(5)
    assert (job.id, job.attempt) == (second, 1) and 0.3 < job.reservation.begins_at - time.monotonic() <= 0.5
    for expected in (boots, late):
        queue.clock_offset_ms += 2080
        assert ids_of(await one(5) + await other(5)) == [expected]
    queue.clock_offset_ms += 10_000
    assert await one(5) == [] and not (await queue.stats()).holds
    assert "turns" not in str(await queue._call(lambda link: link.ask("GET", queue._key["holds"])))


@pytest.mark.gen_test
async def test_calls_at_once_are_limited_over_all_processes(queue: JobQueue) -> None:
    """A reserved call is free when the call ends, when its job ends, and when its process is lost."""
    ids = await enqueue(queue, "shoe box", *range(1, 8))
    one, other = Claimer(queue), Claimer(queue, "worker-b")
    first, second = await one(5)
    assert ids_of([first, second]) == ids[:2] and await other(5) == []
    assert [hold.provider for hold in (await queue.stats()).holds] == ["few"]
    await queue.release_call("few", first.lease)
    (third,) = await other(5)
    assert third.id == ids[2]
    assert ids_of(await one(5, done(second))) == ids[3:4]
    assert await queue.release_unknown("worker-b", []) == 1
    assert ids_of(await one(5)) == [ids[2]] and await other(5) == []
    queue.clock_offset_ms += 15_001
    assert len(await queue.recover()) == 3
    assert len(await one(5)) == 2


@pytest.mark.gen_test
async def test_running_job_can_reserve_a_call(queue: JobQueue) -> None:
    """A job reserves a call of its second provider while it runs, no later than the job can wait.

    A job that did not use its reserved call in time gets another one.
    """
    reserve = queue.reserve_call
    assert await reserve("slow", "a", 5) == (True, 0)
    given, seconds = await reserve("slow", "b", 5)
    assert given and 2 < seconds <= 2.08
    given, seconds = await reserve("slow", "c", 3)
    assert not given and 0 < seconds <= 1.17
    queue.clock_offset_ms += 2540
    given, seconds = await reserve("slow", "b", 0, 0.5)
    assert (given, seconds) == (True, 0)
    await enqueue(queue, "sneaker", 1)
    assert await Claimer(queue)(1) == []
    queue.clock_offset_ms += 1580
    (job,) = await Claimer(queue)(1)
    given, seconds = await reserve("slow", job.lease, 5, 3)
    assert given and 1.5 < seconds < 2.6


@pytest.mark.gen_test
async def test_unused_call_is_reserved_for_the_next_job(queue: JobQueue) -> None:
    """The next job gets the same instant, so the rate is the same. An instant before the last reserved one is lost."""

    class Cache:
        async def find(self, key: str) -> Analysis | None:
            return Analysis() if key == known else None

    class CallUsage:
        async def refusal(self, provider: str, user_id: str) -> BudgetReached:
            return BudgetReached("Your daily AI budget is reached", retry_after_seconds=60)

    asset = make_asset()
    known = key_of(asset.original.sha256, asset.category, "slow", "", "")
    permits = Permits(queue, PACES, cache=cast(ResultCache, Cache()))
    ids, claim = await enqueue(queue, "sneaker", 1, 2, 3), Claimer(queue)
    (first,) = await claim(5)
    assert await claim(5) == []
    permit = permits.of(first, asset)
    assert permit is not NO_LIMITS and await permit.earlier_answer("slow") == Analysis()
    (second,) = await claim(5)
    assert ids_of([first, second]) == ids[:2] and abs(second.reservation.begins_at - first.reservation.begins_at) < 0.1
    permit = permits.of(second, replace(asset, category="boots"))
    assert permit is not NO_LIMITS and await permit.earlier_answer("slow") is None and await claim(5) == []
    # The call of a photo is also free when the budget of its user is spent.
    permit = Permits(queue, PACES, cast(Budgets, CallUsage())).of(second, asset)
    assert permit is not NO_LIMITS and await permit.allow("free") is not None and await claim(5) == []
    assert await permit.allow("slow") is not None
    (third,) = await claim(5)
    # The instant of the second job is over, and the third job has its own.
    await queue.release_call("slow", second.lease, 2.0)
    given, seconds = await queue.reserve_call("slow", "other", 5)
    assert third.id == ids[2] and given and seconds > 2


@pytest.mark.gen_test
async def test_eval_and_the_service_share_the_rate_of_a_provider(queue: JobQueue, redis_url: str) -> None:
    """With REDIS_URL they share it. Without, `eval` applies the rate to its own calls."""
    pace = PACES["slow"]
    async with limits(Settings(redis_url=SecretStr(redis_url)), PACES) as limited:
        await limited.wait_for_call("slow", pace)
        given, seconds = await queue.reserve_call("slow", "job", 5)
        assert given and 1.5 < seconds <= 2.08
    async with limits(Settings(), {"quick": Pace(0.05)}) as limited:
        started_at = time.monotonic()
        for _ in range(3):
            await limited.wait_for_call("quick", Pace(0.05))
        assert time.monotonic() - started_at >= 0.1


@pytest.mark.gen_test
async def test_processes_with_different_rates_apply_the_slower_one(redis_url: str) -> None:
    """The slower rate applies during a release and for a minute after it. An emptied Redis has no rate."""
    fast, slow = (JobQueue(redis_url, lanes=LANES, paces={"slow": Pace(each)}) for each in (0.5, 30.0))
    assert await fast.reserve_call("slow", "a", 0) == (True, 0)
    given, seconds = await slow.reserve_call("slow", "b", 10)
    assert given and 0 < seconds < 1
    fast.clock_offset_ms += 30_000
    given, seconds = await fast.reserve_call("slow", "c", 10)
    assert given and 0 < seconds < 3
    assert not (await fast.reserve_call("slow", "d", 10))[0]
    fast.clock_offset_ms += 34_000
    for lease, least in (("d", 0), ("e", 0.4)):
        given, seconds = await fast.reserve_call("slow", lease, 10)
        assert given and least <= seconds < 1
    await fast._call(lambda link: link.ask("FLUSHALL"))
    assert await fast.reserve_call("slow", "f", 0) == (True, 0)
    await fast.close()
    await slow.close()


@pytest.mark.gen_test
async def test_cascade_waits_for_its_second_provider(redis_url: str) -> None:
    """While calls of the second provider are reserved for seconds, the first waits. A chain does not wait."""
    lanes, behind = {"sneaker": ("free", "slow"), "": ("free", "slow")}, {"sneaker": ("slow",)}
    queue = JobQueue(redis_url, lanes=lanes, paces={"slow": Pace(2.0)}, behind=behind)
    (sneaker,) = await enqueue(queue, "sneaker", 1)
    (camera,) = await enqueue(queue, "camera", 2)
    for lease in "abc":
        assert (await queue.reserve_call("slow", lease, 5))[0]
    claim = Claimer(queue)
    step = await claim.step(5)
    assert ids_of(step.claimed) == [camera] and 3000 < step.next_due_ms <= 3240
    assert (await queue.snapshot()).parked == {sneaker}
    queue.clock_offset_ms += 3240
    (job,) = await claim(5)
    assert (job.id, job.reservation) == (sneaker, None)
    await queue.close()


@pytest.mark.gen_test
async def test_background_jobs_run_when_no_other_job_waits(queue: JobQueue) -> None:
    """A later upload runs first. A reserved slot stays free, with no claim at once. The jobs have no maximum age."""
    first, second, third = await enqueue(queue, "~sneaker", 1, 2, 3, group=BACKGROUND)
    assert ids_of(await Claimer(queue)(5)) == [first]
    upload, other = await enqueue(queue, "sneaker", 4, 5)
    assert await Claimer(queue)(5) == []
    for expected in (upload, other, second):
        queue.clock_offset_ms += 2100
        assert ids_of(await Claimer(queue)(5)) == [expected]
    queue.clock_offset_ms += 2 * 86_400_000
    step = await queue.step("w:1", [], 1, reserved=1)
    assert step.claimed == [] and step.next_due_ms is None and not step.has_more
    assert ids_of((await queue.step("w:2", [], 2, reserved=1)).claimed) == [third]


@pytest.mark.gen_test
async def test_clock_that_was_set_back_delays_jobs_by_seconds_only(queue: JobQueue) -> None:
    """Calls are reserved some seconds ahead at any clock time. A held provider with a rate is tried like others."""
    await enqueue(queue, "sneaker", 1, 2)
    assert len(await Claimer(queue)(1)) == 1
    queue.clock_offset_ms -= 3_600_000
    assert await Claimer(queue)(1) == []
    queue.clock_offset_ms += 12_100
    (job,) = await Claimer(queue)(1)
    await enqueue(queue, "sneaker", 3)
    away = ProviderReport("slow", ProviderState.AWAY, 15, "AI service unavailable", "no")
    claim = Claimer(queue, "worker-b")
    assert (await claim.step(1, reports=[away])).claimed == []
    queue.clock_offset_ms += 2100
    (trying,) = await claim(1)
    assert trying.tries == "slow"


@pytest.mark.fault("P2")
def test_photos_wait_for_the_rate_of_their_provider(tmp_path: Path) -> None:
    """No call is too early for an AI service with a rate. Photos of another provider do not wait.

    No attempt is spent, and owners see the reason why a photo waits.
    """
    with PacedAi(every_seconds=0.9) as ai_service:
        settings = ai_service.settings(tmp_path / "packages", rate=(1, 1), at_once=1)
        settings |= {"AI_PROVIDER_BY_CATEGORY": "lego=free"}
        with Service(tmp_path / "data", **settings) as service:
            slow = [service.upload().json()["data"]["assetId"] for _ in range(5)]
            free = [service.upload(category="lego").json()["data"]["assetId"] for _ in range(6)]
            for asset_id in free:
                service.wait_log("asset_finished", assetId=asset_id)
            assert len(ai_service.called_at) <= 2
            progress = service.asset(slow[-1])["progress"]
            assert (progress["state"], progress["reason"]) == ("held", REASON) and progress["nextAt"]
            for asset_id in slow:
                service.wait_log("asset_finished", assetId=asset_id, status="active")
            assert ai_service.assets == slow and ai_service.refused == 0 and ai_service.most_running == 1
            assert {line["attempt"] for line in service.find("job_claimed")} == {1}
            assert not service.find("job_parked") + service.find("job_postponed") + service.find("plugin_held")


def test_three_processes_share_a_rate(tmp_path: Path, redis_url: str) -> None:
    """Together they call the provider at most at its rate, and nearly at its rate; see benchmarks/pacing.py."""
    found = measure(tmp_path, redis_url, jobs=14, rate=5, processes=3)
    # The first call may take longer to arrive than the last one; without a shared rate there would be 15 in a second.
    assert found.most_in_a_second <= 6 and found.calls_a_second < 5.2
