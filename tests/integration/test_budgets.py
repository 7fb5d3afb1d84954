"""Budgets for AI: they stop at the limit, hold jobs and fail none, and go on with the next day."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from tornado.ioloop import IOLoop

from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.errors import BudgetReached, DependencyUnavailable, PermanentJobError
from pipeline.hold import Pace
from pipeline.hooks import Analysis, Attribute, Usage
from pipeline.hooks.job_protocols import NO_LIMITS
from pipeline.hooks.usage import UsageCounters
from pipeline.metrics import Metrics
from pipeline.queue.attempt import RetryPolicy, decide_finish
from pipeline.queue.job import Job, Outcome
from pipeline.queue.queue import JobQueue
from pipeline.usecases.ai_usage import AiUsage
from pipeline.usecases.budgets import CommandSpending, Budgets
from pipeline.usecases.permits import Permits
from pipeline.usecases.result_cache import ResultCache
from tests.factories import make_asset, make_image
from tests.packages import install
from tests.service import Service

EVENING = datetime(2026, 3, 31, 23, 50, tzinfo=UTC).timestamp()


class Till:
    """Budgets of several processes over one store and one Redis, at an hour of their own."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.store = SqliteAssetStore(folder / "assets.sqlite")
        self.queue = JobQueue(redis_url)
        self.now = EVENING

    def process(self, **budgets: float) -> Budgets:
        limits = {"per_day": 0.0, "per_user_per_day": 0.0} | budgets
        return Budgets(self.store, self.queue, **limits, currency="USD", now=lambda: self.now)  # type: ignore[arg-type]

    async def wipe(self) -> None:
        await self.queue._call(lambda link: link.ask("FLUSHALL"))

    async def close(self) -> None:
        await self.queue.close()
        await self.store.close()


@pytest.fixture
def till(io_loop: IOLoop, redis_url: str, tmp_path: Path) -> Iterator[Till]:
    till = Till(tmp_path, redis_url)
    io_loop.run_sync(till.store.open)
    yield till
    io_loop.run_sync(till.close)


@pytest.mark.gen_test
async def test_budget_of_the_day_counts_all_processes_and_ends_at_midnight(till: Till) -> None:
    """Also when Redis has lost the sums; the hold lasts a minute at most, and till midnight in UTC."""
    one, other = till.process(per_day=1.0), till.process(per_day=1.0)
    assert await one.refusal("acme", "ann") is None
    await one.record("acme", "ann", Usage(cost=0.4))
    await other.record("acme", "ben", Usage(cost=0.35))
    assert await other.refusal("acme", "ann") is None
    await till.wipe()
    await one.record("acme", "ann", Usage(cost=0.3))
    for process in (one, other, till.process(per_day=1.0)):
        refusal = await process.refusal("acme", "cem")
        assert refusal is not None and (refusal.message, refusal.provider) == ("Daily AI budget reached", "acme")
        assert (refusal.retry_after_seconds, refusal.spends_attempt) == (60, False)
    till.now += 570
    refusal = await one.refusal("acme", "ann")
    assert refusal is not None and refusal.retry_after_seconds == 30
    till.now += 30
    assert await one.refusal("acme", "ann") is None
    await one.record("acme", "ann", Usage(cost=0.9))
    assert await other.refusal("acme", "ann") is None
    till.now += 9 * 86_400
    await one.purge()
    assert await till.store.records("spending", limit=9) == []


@pytest.mark.gen_test
async def test_what_a_command_spends_counts_to_the_day(till: Till) -> None:
    """At once for commands, and for the service when it has looked, once, whether or not Redis had lost the sums."""
    budgets = till.process(per_day=1.0)
    apart = CommandSpending(till.store, per_day=1.0, currency="USD", now=lambda: till.now)
    await budgets.record("acme", "ann", Usage(cost=0.4))
    assert await apart.record("acme", Usage(cost=0.35)) and await apart.record("acme", Usage(cost=0, currency="EUR"))
    assert not await apart.record("acme", None) and not await apart.record("acme", Usage(cost=1, currency="EUR"))
    assert not await apart.is_reached()
    for wipes in (False, True, False):
        if wipes:
            await till.wipe()
        await budgets.purge()
        assert await budgets.refusal("acme", "ann") is None
        assert (await till.queue.sums("2026-03-31", ["all"]))[0] == pytest.approx(0.75)
    await till.wipe()
    assert await apart.record("acme", Usage(cost=0.25)) and await apart.is_reached()
    await budgets.purge()
    assert await budgets.refusal("acme", "ann") is not None and await apart.is_reached()
    till.now += 600
    assert not await apart.is_reached()


@pytest.mark.parametrize("away", ["sums", "records"])
@pytest.mark.gen_test
async def test_nobody_spends_while_nobody_knows_what_was_spent(
    till: Till, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """Redis away, or wiped while the store is away: the job is given back as for any outage, and not asked for free."""
    budgets = till.process(per_day=1.0)
    await budgets.record("acme", "ann", Usage(cost=2))
    await till.wipe()

    async def fail(*_: Any, **__: Any) -> None:
        raise DependencyUnavailable("away")

    monkeypatch.setattr(till.queue if away == "sums" else till.store, away, fail)
    with pytest.raises(DependencyUnavailable) as caught:
        await budgets.refusal("acme", "ann")
    finish = decide_finish(caught.value, Job("id", {}, 1, 0, "lease", 0, 0), RetryPolicy(), 1)
    assert (finish.outcome, finish.refunds_attempt) == (Outcome.RETRY, True)


@pytest.mark.gen_test
async def test_budget_of_a_user_holds_nobody_else(till: Till) -> None:
    """The refusal names no provider: only this job waits. What is kept of a user goes with the user, the sum stays."""
    budgets = till.process(per_day=5, per_user_per_day=0.5)
    await budgets.record("acme", "ann", Usage(cost=0.5))
    refusal = await budgets.refusal("acme", "ann")
    assert refusal is not None and (refusal.message, refusal.provider) == ("Your daily AI budget is reached", "")
    assert await budgets.refusal("acme", "ben") is None
    (kept,) = await till.store.records_of("ann")
    await till.store.delete_records(kept.kind, kept.id)
    await till.wipe()
    assert await budgets.refusal("acme", "ann") is None
    assert await till.queue.sums("2026-03-31", ["all"]) == [0.5]


@pytest.mark.parametrize("usage", [None, Usage(10, 10), Usage(cost=0.1, currency="EUR")])
@pytest.mark.gen_test
async def test_provider_whose_price_is_not_known_is_over_budget(till: Till, usage: Usage | None) -> None:
    """After its first call, until the next day; one that costs nothing is not, and others are asked."""
    budgets = till.process(per_day=1)
    await budgets.record("acme", "ann", usage)
    refusal = await till.process(per_day=1).refusal("acme", "ben")
    assert refusal is not None and refusal.provider == "acme" and "price" in refusal.message
    assert await budgets.refusal("other", "ann") is None
    await budgets.record("other", "ann", Usage(cost=0, currency="EUR"))
    assert await budgets.refusal("other", "ann") is None
    till.now += 600
    assert await budgets.refusal("acme", "ann") is None


@pytest.mark.gen_test
async def test_spending_outlasts_an_outage_of_the_store(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that was made is not made again because its cost could not be kept; it is kept with the next one."""
    budgets, keep = till.process(per_day=1), till.store.put_record

    async def away(kept: Any) -> None:
        raise DependencyUnavailable("away")

    monkeypatch.setattr(till.store, "put_record", away)
    await budgets.record("acme", "ann", Usage(cost=0.7))
    # Until then the process itself knows, whatever Redis says.
    await (knowing := till.process(per_day=0.7)).record("acme", "ann", Usage(cost=0.7))
    assert await knowing.refusal("acme", "ann") is not None
    assert await till.process(per_day=0.7).refusal("acme", "ann") is None
    monkeypatch.setattr(till.store, "put_record", keep)
    await asyncio.gather(*(budgets.record("acme", "ann", Usage(cost=0.1)) for _ in range(3)))
    assert await budgets.refusal("acme", "ann") is not None
    await till.wipe()
    assert await till.process(per_day=1).refusal("acme", "ann") is not None


@pytest.mark.gen_test
async def test_an_answer_that_was_put_by_is_for_its_job_alone(till: Till) -> None:
    """It costs nothing again, and is looked for only where a cascade has a rate behind its first stage."""
    asset, found = make_asset(), Analysis(Attribute("Nike", 0.9), usage=Usage(cost=0.5))
    kept = ResultCache(till.store, days=1)
    permits = Permits(till.queue, {"slow": Pace(2.0)}, partial=kept)
    one, other = (permits.of(Job(name, {}, 1, 0, "lease", 0, 0), asset) for name in ("one", "other"))
    assert NO_LIMITS not in (one, other) and await one.earlier_answer("acme") is None
    await one.store_partial("acme", found)
    known = await one.earlier_answer("acme")
    assert known is not None and known.brand == found.brand and known.is_cached and known.usage == Usage(cost=0)
    assert await other.earlier_answer("acme") is None and await one.earlier_answer("slow") is None
    plain = Permits(till.queue, {"slow": Pace(2.0)}).of(Job("one", {}, 1, 0, "lease", 0, 0), asset)
    assert plain is not NO_LIMITS and await plain.earlier_answer("acme") is None
    await one.store_partial("slow", replace(found, processed_image_url="https://images.example/x.jpg"))
    assert await one.earlier_answer("slow") is None


def test_job_that_waits_for_the_next_day_never_fails_of_its_age() -> None:
    """It is asked for again after the time that was told, and an old one is delayed rather than parked."""
    policy, job = RetryPolicy(max_age_seconds=60), Job("id", {}, 1, 0, "lease", 0, 0)
    error = BudgetReached("Daily AI budget reached", retry_after_seconds=600)
    finish = decide_finish(error, job, policy, 1)
    assert (finish.outcome, finish.delay_ms, finish.refunds_attempt) == (Outcome.RETRY, 600_000, True)
    error.provider = "acme"
    assert decide_finish(error, job, policy, 1).outcome is Outcome.PARKED
    finish = decide_finish(error, job, policy, 61)
    assert (finish.outcome, finish.delay_ms) == (Outcome.RETRY, 600_000)
    assert decide_finish(PermanentJobError("no"), job, policy, 61).outcome is Outcome.FAILED


PRICED = """
import json, os, time
from pipeline.clock import CLOCK
from pipeline.hooks import Analysis, Attribute, Usage, hookimpl

API_VERSION = 2

class Priced:
    calls = 0

    async def analyze(self, request):
        self.calls += 1
        if self.calls == 4 and "NEAR_MIDNIGHT" in os.environ:
            # From now on it is two seconds before midnight, in UTC.
            offset = -CLOCK.now() % 86400 - 2
            CLOCK.learn = lambda reading: None
            CLOCK._course = None
            CLOCK._wall = lambda: time.time() + offset
        leica, m6, usage = Attribute("Leica", 0.9), Attribute("M6", 0.9), Usage(100, 10, 0.25)
        return Analysis(leica, m6, extra={"call": self.calls}, usage=usage, ai_model="m")

class Free(Priced):
    cost = 0

    async def analyze(self, request):
        return Analysis(Attribute("Lego", 0.9), Attribute("42083", 0.9))

@hookimpl
def register_ai_providers(settings):
    yield "priced", Priced
    yield "free", Free
"""


@pytest.mark.gen_test
async def test_sums_of_today_survive_an_outage_and_are_of_all_processes(till: Till) -> None:
    """What could not be told is told later, once; a cost in another currency is not known."""
    counts = [UsageCounters(Metrics()), UsageCounters(Metrics())]
    one, other = (
        AiUsage(till.queue, each, till.process(), currency="USD", now=lambda: till.now) for each in counts
    )
    counts[0].count("acme", "m", Usage(100, 10, 0.25))
    counts[1].count("acme", "m", Usage(100, 10, 0.5, "EUR"))
    add, till.queue.add_to_sums = till.queue.add_to_sums, away  # type: ignore[method-assign]
    await one.close()
    assert (await one.today(["acme"])).providers is None
    till.queue.add_to_sums = add  # type: ignore[method-assign]
    await other.close()
    for _ in range(2):
        seen = await one.today(["acme", "idle"])
        assert seen.providers is not None and seen.budget is None
        assert seen.providers["acme"] == {
            "calls": 2,
            "inputTokens": 200,
            "outputTokens": 20,
            "cost": 0.25,
            "currency": "USD",
            "unpricedCalls": 1,
        }
        assert seen.providers["idle"]["calls"] == 0
    till.now += 3600
    assert (await one.today(["acme"])).providers == {"acme": {**seen.providers["idle"]}}


async def away(*_: Any) -> None:
    raise DependencyUnavailable("Redis is away")


@pytest.mark.parametrize("is_near_midnight", [False, True])
def test_photos_beyond_the_budget_wait_for_the_next_day(tmp_path: Path, is_near_midnight: bool) -> None:
    """Four are paid for one after the other, the others wait and say why, without a lost attempt; a provider that costs
    nothing goes on. With the next day they are done. Operators see what was spent.
    """
    settings = install(tmp_path / "packages", priced=PRICED) | {"CONCURRENCY": "1"}
    settings |= {"AI_PROVIDER": "priced", "AI_PROVIDER_BY_CATEGORY": "lego=free", "AI_BUDGET_PER_DAY": "1"}
    settings |= {"NEAR_MIDNIGHT": "1"} if is_near_midnight else {}
    with Service(tmp_path / "data", **settings) as service:
        # Good for the next day as well.
        caller = service.headers(exp=int(time.time()) + 200_000)
        ids = [service.upload(headers=caller).json()["data"]["assetId"] for _ in range(6)]
        held = service.wait_log("plugin_held", plugin="priced")
        assert held["reason"] == "Daily AI budget reached"
        service.wait_log("job_parked")
        if is_near_midnight:
            for asset_id in ids:
                service.wait_log("asset_finished", assetId=asset_id, status="active")
        else:
            free = service.upload(category="lego").json()["data"]["assetId"]
            service.wait_log("asset_finished", assetId=free)
            assert [service.asset(each)["status"] for each in ids] == ["active"] * 4 + ["processing"] * 2
            progress = service.asset(ids[-1])["progress"]
            assert (progress["state"], progress["reason"]) == ("held", "Daily AI budget reached")
            assert progress["nextAt"]
            admin = service.headers("ops-1", role="admin")
            listed = httpx.get(f"{service.url}/api/plugins", headers=admin).json()["data"]
            today = {each["name"]: each["today"] for each in listed["items"] if each["kind"] == "provider"}
            of_priced = {"calls": 4, "inputTokens": 400, "outputTokens": 40, "cost": 1, "currency": "USD"}
            assert today["priced"] == of_priced | {"unpricedCalls": 0}
            assert (today["free"]["calls"], today["free"]["unpricedCalls"]) == (1, 0)
            assert listed["aiBudget"] == {"perDay": 1, "perUserPerDay": None, "spent": 1, "currency": "USD"}
        assert {line["attempt"] for line in service.find("job_claimed")} == {1}
        assert not service.find("job_failed")


def test_answer_is_given_again_for_the_same_photo(tmp_path: Path) -> None:
    """Only to the same photo in the same category, whoever sends it; it costs nothing, also no budget, and says so."""
    settings = install(tmp_path / "packages", priced=PRICED) | {"AI_PROVIDER": "priced", "AI_CACHE": "true"}
    settings |= {"AI_BUDGET_PER_DAY": "0.75"}
    with Service(tmp_path / "data", **settings) as service:

        def analyzed(sub: str, **photo: Any) -> dict[str, Any]:
            asset_id = service.upload(sub, **photo).json()["data"]["assetId"]
            service.wait_log("asset_finished", assetId=asset_id, status="active")
            return service.asset(asset_id, sub)

        other = make_image(size=(40, 30))
        calls = [
            analyzed("ann"),
            analyzed("ann", category="lego"),
            analyzed("ben", image=other),
            analyzed("ben"),
            analyzed("cem", image=other),
        ]
        assert [each["aiMetadata"]["extra"]["call"] for each in calls] == [1, 2, 3, 1, 3]
        assert [each["provenance"]["cached"] for each in calls] == [False] * 3 + [True] * 2
        assert [each["provenance"]["usage"]["cost"] for each in calls] == [0.25] * 3 + [0] * 2
        assert {(each["provenance"]["provider"], each["provenance"]["model"]) for each in calls} == {("priced", "m")}
