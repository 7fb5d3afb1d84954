"""Daily AI budgets: refusals at the limit, the next day, outages of Redis and of the store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
from tests.factories import make_asset

EVENING = datetime(2026, 3, 31, 23, 50, tzinfo=UTC).timestamp()


class SharedBudgets:
    """Budgets of several processes with one store, one Redis and a clock that the test sets."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.store = SqliteAssetStore(folder / "assets.sqlite")
        self.queue = JobQueue(redis_url)
        self.now = EVENING

    def process(self, **budgets: float) -> Budgets:
        """Return the budgets as one process has them, with these limits."""
        limits = {"per_day": 0.0, "per_user_per_day": 0.0} | budgets
        return Budgets(self.store, self.queue, **limits, currency="USD", now=lambda: self.now)  # type: ignore[arg-type]

    async def wipe_redis(self) -> None:
        """Delete all keys, as a restart of Redis without persistence does."""
        await self.queue._call(lambda link: link.ask("FLUSHALL"))

    async def close(self) -> None:
        await self.queue.close()
        await self.store.close()


@pytest.fixture
def shared(io_loop: IOLoop, redis_url: str, tmp_path: Path) -> Iterator[SharedBudgets]:
    shared = SharedBudgets(tmp_path, redis_url)
    io_loop.run_sync(shared.store.open)
    yield shared
    io_loop.run_sync(shared.close)


@pytest.mark.gen_test
async def test_budget_of_the_day_counts_all_processes_and_ends_at_midnight(shared: SharedBudgets) -> None:
    """All processes count to one sum, also when Redis has lost it. A refusal ends after a minute or at midnight."""
    one, other = shared.process(per_day=1.0), shared.process(per_day=1.0)
    assert await one.refusal("acme", "ann") is None
    await one.record("acme", "ann", Usage(cost=0.4))
    await other.record("acme", "ben", Usage(cost=0.35))
    assert await other.refusal("acme", "ann") is None
    await shared.wipe_redis()
    await one.record("acme", "ann", Usage(cost=0.3))
    for process in (one, other, shared.process(per_day=1.0)):
        refusal = await process.refusal("acme", "cem")
        assert refusal is not None and (refusal.message, refusal.provider) == ("Daily AI budget reached", "acme")
        assert (refusal.retry_after_seconds, refusal.spends_attempt) == (60, False)
    shared.now += 570
    refusal = await one.refusal("acme", "ann")
    assert refusal is not None and refusal.retry_after_seconds == 30
    shared.now += 30
    assert await one.refusal("acme", "ann") is None
    await one.record("acme", "ann", Usage(cost=0.9))
    assert await other.refusal("acme", "ann") is None
    shared.now += 9 * 86_400
    await one.purge()
    assert await shared.store.records("spending", limit=9) == []


@pytest.mark.gen_test
async def test_cost_of_a_command_counts_to_the_budget_of_the_day(shared: SharedBudgets) -> None:
    """Commands count the cost at once. The service counts it once, at its next purge, also when Redis lost the sums."""
    budgets = shared.process(per_day=1.0)
    command = CommandSpending(shared.store, per_day=1.0, currency="USD", now=lambda: shared.now)
    await budgets.record("acme", "ann", Usage(cost=0.4))
    assert await command.record("acme", Usage(cost=0.35))
    assert await command.record("acme", Usage(cost=0, currency="EUR"))
    assert not await command.record("acme", None) and not await command.record("acme", Usage(cost=1, currency="EUR"))
    assert not await command.is_reached()
    for wipes in (False, True, False):
        if wipes:
            await shared.wipe_redis()
        await budgets.purge()
        assert await budgets.refusal("acme", "ann") is None
        assert (await shared.queue.sums("2026-03-31", ["all"]))[0] == pytest.approx(0.75)
    await shared.wipe_redis()
    assert await command.record("acme", Usage(cost=0.25)) and await command.is_reached()
    await budgets.purge()
    assert await budgets.refusal("acme", "ann") is not None and await command.is_reached()
    shared.now += 600
    assert not await command.is_reached()


@pytest.mark.parametrize("away", ["sums", "records"])
@pytest.mark.gen_test
async def test_unknown_sums_refuse_a_call_as_an_outage(
    shared: SharedBudgets, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """Without Redis, or without the store after Redis was wiped, the job is retried and its attempt refunded."""
    budgets = shared.process(per_day=1.0)
    await budgets.record("acme", "ann", Usage(cost=2))
    await shared.wipe_redis()

    async def fail(*_: Any, **__: Any) -> None:
        raise DependencyUnavailable("away")

    monkeypatch.setattr(shared.queue if away == "sums" else shared.store, away, fail)
    with pytest.raises(DependencyUnavailable) as caught:
        await budgets.refusal("acme", "ann")
    finish = decide_finish(caught.value, Job("id", {}, 1, 0, "lease", 0, 0), RetryPolicy(), 1)
    assert (finish.outcome, finish.refunds_attempt) == (Outcome.RETRY, True)


@pytest.mark.gen_test
async def test_budget_of_a_user_delays_no_other_user(shared: SharedBudgets) -> None:
    """The refusal names no provider: only this job waits.

    When the user's record is deleted, the sum of the day stays.
    """
    budgets = shared.process(per_day=5, per_user_per_day=0.5)
    await budgets.record("acme", "ann", Usage(cost=0.5))
    refusal = await budgets.refusal("acme", "ann")
    assert refusal is not None and (refusal.message, refusal.provider) == ("Your daily AI budget is reached", "")
    assert await budgets.refusal("acme", "ben") is None
    (record,) = await shared.store.records_of("ann")
    await shared.store.delete_records(record.kind, record.id)
    await shared.wipe_redis()
    assert await budgets.refusal("acme", "ann") is None
    assert await shared.queue.sums("2026-03-31", ["all"]) == [0.5]


@pytest.mark.parametrize("usage", [None, Usage(10, 10), Usage(cost=0.1, currency="EUR")])
@pytest.mark.gen_test
async def test_provider_whose_price_is_not_known_is_over_budget(shared: SharedBudgets, usage: Usage | None) -> None:
    """After its first call the provider is refused until the next day; other providers and free ones are not."""
    budgets = shared.process(per_day=1)
    await budgets.record("acme", "ann", usage)
    refusal = await shared.process(per_day=1).refusal("acme", "ben")
    assert refusal is not None and refusal.provider == "acme" and "price" in refusal.message
    assert await budgets.refusal("other", "ann") is None
    await budgets.record("other", "ann", Usage(cost=0, currency="EUR"))
    assert await budgets.refusal("other", "ann") is None
    shared.now += 600
    assert await budgets.refusal("acme", "ann") is None


@pytest.mark.gen_test
async def test_cost_is_not_lost_in_an_outage_of_the_store(
    shared: SharedBudgets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cost that could not be stored raises no error and is stored with the next cost."""
    budgets, put_record = shared.process(per_day=1), shared.store.put_record

    async def away(record: Any) -> None:
        raise DependencyUnavailable("away")

    monkeypatch.setattr(shared.store, "put_record", away)
    await budgets.record("acme", "ann", Usage(cost=0.7))
    # Until then the process itself knows the cost, whatever the sums in Redis are.
    await (knowing := shared.process(per_day=0.7)).record("acme", "ann", Usage(cost=0.7))
    assert await knowing.refusal("acme", "ann") is not None
    assert await shared.process(per_day=0.7).refusal("acme", "ann") is None
    monkeypatch.setattr(shared.store, "put_record", put_record)
    await asyncio.gather(*(budgets.record("acme", "ann", Usage(cost=0.1)) for _ in range(3)))
    assert await budgets.refusal("acme", "ann") is not None
    await shared.wipe_redis()
    assert await shared.process(per_day=1).refusal("acme", "ann") is not None


@pytest.mark.gen_test
async def test_stored_partial_result_is_for_its_job_only(shared: SharedBudgets) -> None:
    """The stored result of the first stage of a cascade costs nothing, and only the same job reads it."""
    asset, found = make_asset(), Analysis(Attribute("Nike", 0.9), usage=Usage(cost=0.5))
    permits = Permits(shared.queue, {"slow": Pace(2.0)}, partial=ResultCache(shared.store, days=1))
    one, other = (permits.of(Job(name, {}, 1, 0, "lease", 0, 0), asset) for name in ("one", "other"))
    assert NO_LIMITS not in (one, other) and await one.earlier_answer("acme") is None
    await one.store_partial("acme", found)
    known = await one.earlier_answer("acme")
    assert known is not None and known.brand == found.brand and known.is_cached and known.usage == Usage(cost=0)
    assert await other.earlier_answer("acme") is None and await one.earlier_answer("slow") is None
    plain = Permits(shared.queue, {"slow": Pace(2.0)}).of(Job("one", {}, 1, 0, "lease", 0, 0), asset)
    assert plain is not NO_LIMITS and await plain.earlier_answer("acme") is None
    await one.store_partial("slow", replace(found, processed_image_url="https://images.example/x.jpg"))
    assert await one.earlier_answer("slow") is None


def test_job_that_waits_for_the_next_day_does_not_fail_because_of_its_age() -> None:
    """The job is retried after the time of the error; an old job is delayed, not parked."""
    policy, job = RetryPolicy(max_age_seconds=60), Job("id", {}, 1, 0, "lease", 0, 0)
    error = BudgetReached("Daily AI budget reached", retry_after_seconds=600)
    finish = decide_finish(error, job, policy, 1)
    assert (finish.outcome, finish.delay_ms, finish.refunds_attempt) == (Outcome.RETRY, 600_000, True)
    error.provider = "acme"
    assert decide_finish(error, job, policy, 1).outcome is Outcome.PARKED
    finish = decide_finish(error, job, policy, 61)
    assert (finish.outcome, finish.delay_ms) == (Outcome.RETRY, 600_000)
    assert decide_finish(PermanentJobError("no"), job, policy, 61).outcome is Outcome.FAILED


@pytest.mark.gen_test
async def test_sums_of_today_count_all_processes_and_survive_an_outage(shared: SharedBudgets) -> None:
    """Counts that could not be written to Redis are written later, once; a cost in another currency is unknown."""
    counts = [UsageCounters(Metrics()), UsageCounters(Metrics())]
    one, other = (
        AiUsage(shared.queue, each, shared.process(), currency="USD", now=lambda: shared.now) for each in counts
    )
    counts[0].count("acme", "m", Usage(100, 10, 0.25))
    counts[1].count("acme", "m", Usage(100, 10, 0.5, "EUR"))
    add, shared.queue.add_to_sums = shared.queue.add_to_sums, away  # type: ignore[method-assign]
    await one.close()
    assert (await one.today(["acme"])).providers is None
    shared.queue.add_to_sums = add  # type: ignore[method-assign]
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
    shared.now += 3600
    assert (await one.today(["acme"])).providers == {"acme": {**seen.providers["idle"]}}


async def away(*_: Any) -> None:
    raise DependencyUnavailable("Redis is away")
