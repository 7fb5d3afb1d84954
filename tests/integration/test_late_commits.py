"""A result that reached the store is announced, also when the run was cancelled meanwhile or Redis is away."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest

from pipeline.assets.asset import Asset, AssetStatus
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.hooks.notifiers import EventContext
from pipeline.metrics import Metrics
from pipeline.queue.job import FailedJob, Finish, Job, NewJob, Outcome
from pipeline.queue.queue import JobQueue
from pipeline.supervision import cancel
from pipeline.usecases.job_records import JobRecords
from pipeline.usecases.processing import Processing
from pipeline.usecases.reconciler import CLOCKS_APART, Reconciler
from tests.factories import make_asset
from tests.integration.processed_jobs import Plugins, make_job, make_processing, run, submit
from tests.workers import Bench

KIND = "job of ai-processing"


@pytest.fixture
def plugins() -> Plugins:
    return Plugins()


@pytest.fixture
def processing(store: SqliteAssetStore, plugins: Plugins) -> Processing:
    return make_processing(store, plugins)


async def start_end(processing: Processing, job: Job, end: str) -> asyncio.Task[Any]:
    """Start to end the job with a result, or as failed, and return the task that does it."""
    if end == "active":
        result = await processing.process(job)
        assert result is not None
        return asyncio.create_task(processing.commit(job, result))
    return asyncio.create_task(processing.give_up(job, "no"))


@pytest.mark.fault("E21")
@pytest.mark.gen_test
@pytest.mark.parametrize("end", ["active", "failed"])
async def test_commit_under_way_when_the_lease_is_lost_is_announced(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, end: str
) -> None:
    """The store takes the result after the run was cancelled: the owner gets the event, and a dead letter is stored.

    No other run does this, because Redis may have lost the job.
    """
    asset, job = await submit(store)
    begun, is_free, announced = asyncio.Event(), asyncio.Event(), asyncio.Event()
    name = "finish" if end == "active" else "fail"
    write, announce = getattr(store, name), plugins.announce

    async def write_late(*arguments: Any, **values: Any) -> Asset | None:
        begun.set()
        await is_free.wait()
        result: Asset | None = await write(*arguments, **values)
        return result

    async def announce_and_set(event: Mapping[str, Any], user_id: str, about: EventContext) -> None:
        await announce(event, user_id, about)
        announced.set()

    setattr(store, name, write_late)
    plugins.announce = announce_and_set  # type: ignore[method-assign]
    running = await start_end(processing, job, end)
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    is_free.set()
    async with asyncio.timeout(30):
        await announced.wait()
        while end == "failed" and "failed" not in (await store.records(KIND, limit=9))[0].data:
            await asyncio.sleep(0.01)
    current = await store.get(asset.id)
    assert current is not None and current.status is AssetStatus(end)
    assert [event["status"] for event, _ in plugins.events] == [end]
    assert [record.id for record in await store.records(KIND, limit=9)] == ([job.id] if end == "failed" else [])


@pytest.mark.fault("E21")
@pytest.mark.gen_test
@pytest.mark.parametrize("end", ["active", "failed"])
async def test_record_of_a_job_stays_until_its_event_is_accepted(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, end: str
) -> None:
    """Redis is away and takes no event: the record of the job stays, although its asset has ended."""
    plugins.is_durable = True
    asset, job = await submit(store)

    async def refuse(event: Mapping[str, Any], user_id: str, about: EventContext) -> None:
        raise DependencyUnavailable("The queue cannot be reached")

    announce, plugins.announce = plugins.announce, refuse  # type: ignore[method-assign]
    with pytest.raises(DependencyUnavailable):
        await (run(processing, job) if end == "active" else processing.give_up(job, "no"))
    current = await store.get(asset.id)
    assert current is not None and current.status is AssetStatus(end)
    (record,) = await store.records(KIND, limit=9)
    assert record.id == job.id and "failed" not in record.data
    plugins.announce = announce  # type: ignore[method-assign]
    _, job = await submit(store)
    await run(processing, job)
    assert [each.id for each in await store.records(KIND, limit=9)] == [record.id]


@pytest.mark.fault("E21")
@pytest.mark.gen_test
async def test_record_that_is_stored_after_the_end_of_its_job_is_deleted(store: SqliteAssetStore, bench: Bench) -> None:
    """The record of an event that is announced twice is stored after the delivery: the search deletes it."""
    records = JobRecords(store, bench.queue, keep_failed_seconds=60, max_age_seconds=60)
    await bench.queue.enqueue("ai-processing:one", {})
    (job,) = (await bench.queue.step("worker:1", [], 1)).claimed
    await bench.queue.step("worker:2", [Finish(job, Outcome.COMPLETED)], 0)
    for job_id in ("ai-processing:one", "ai-processing:two"):
        await records.put(NewJob(job_id, {}))
    assert await records.repair(utc_now() + timedelta(seconds=1), None, 10) == (1, None)
    assert [each.id for each in await store.records(KIND, limit=9)] == ["ai-processing:two"]


@pytest.mark.fault("E21")
@pytest.mark.gen_test
async def test_dead_letter_that_is_removed_during_a_search_stays_removed(
    store: SqliteAssetStore, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search has read two records, and one dead letter is removed before the search restores both."""
    records = JobRecords(store, bench.queue, keep_failed_seconds=60, max_age_seconds=60)
    for job_id in ("ai-processing:one", "ai-processing:two"):
        await records.put_failed(make_job(make_asset(), id=job_id), "no")
    restore = bench.queue.restore_failed

    async def remove_and_restore(dead: Sequence[FailedJob]) -> int:
        await records.forget("ai-processing:one")
        await bench.queue.remove_failed("ai-processing:one")
        return await restore(dead)

    monkeypatch.setattr(bench.queue, "restore_failed", remove_and_restore)
    await records.repair(utc_now() + timedelta(seconds=1), None, 10)
    assert [dead.id for dead in (await bench.queue.failed_jobs(9)).jobs] == ["ai-processing:two"]


@pytest.mark.fault("E21")
@pytest.mark.gen_test
async def test_damaged_record_does_not_block_other_dead_letters(
    store: SqliteAssetStore, bench: Bench
) -> None:
    """A dead letter with an impossible instant is listed without it, and the next dead letter is listed, too."""
    records = JobRecords(store, bench.queue, keep_failed_seconds=60, max_age_seconds=60)
    _, job = await submit(store)
    await records.put_failed(job._replace(id="ai-processing:" + "a" * 24, enqueued_at_ms=10**18), "no")
    await records.put_failed(job, "no")
    assert await records.repair(utc_now() + CLOCKS_APART, None, 9) == (2, None)
    listed = {dead.id: dead.enqueued_at for dead in (await bench.queue.failed_jobs(9)).jobs}
    assert set(listed) == {job.id, "ai-processing:" + "a" * 24}
    assert listed["ai-processing:" + "a" * 24] is None


@pytest.mark.gen_test
async def test_source_that_cannot_be_read_does_not_block_other_sources(store: SqliteAssetStore, bench: Bench) -> None:
    """The error of the source is logged with a trace, and the search continues with the next source."""

    class Unreadable:
        async def repair(self, *_: Any) -> Any:
            raise KeyError("publicId")

    searched = asyncio.Event()

    class Readable:
        async def repair(self, *_: Any) -> tuple[int, None]:
            searched.set()
            return 0, None

    async def purge() -> None:
        pass

    sources: Any = [Unreadable(), Readable()]
    reconciler = Reconciler(store, bench.queue, sources, Metrics(), purge=purge)
    running = asyncio.create_task(reconciler.run())
    await asyncio.wait_for(searched.wait(), 10)
    assert not running.done()
    await cancel([running])


@pytest.mark.gen_test
async def test_second_queue_belongs_to_the_store_that_owns_the_first(store: SqliteAssetStore, bench: Bench) -> None:
    """Else two stores on one Redis could each own one of the two queues, and both services would end."""

    async def purge() -> None:
        pass

    first, second = bench.queue, JobQueue(bench.url, name="second")
    reconciler = Reconciler(store, second, [], Metrics(), purge=purge, after=first)
    await first.own("another store", is_paused=False)
    with pytest.raises(DependencyUnavailable, match="is not ours yet"):
        await reconciler.look()
    assert await second.owned_by() == ""
    await first.own(await store.identity(), is_paused=False, takes_over=True)
    assert await reconciler.look()
    assert await second.owned_by() == await store.identity()
    await second.close()
