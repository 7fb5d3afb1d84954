"""A process dies between two steps of a job's end, and Redis loses the job as well: the store says what is owed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis
from tornado.ioloop import IOLoop

from pipeline.assets.asset import AiMetadata, Asset, AssetStatus, job_data, utc_now
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.metrics import Metrics
from pipeline.queue.job import Job
from pipeline.queue.queue import JobQueue
from pipeline.usecases.kept_jobs import KeptJobs, judge_dead_photos
from pipeline.usecases.notifying import Notifying
from pipeline.usecases.reconciler import CLOCKS_APART
from pipeline.usecases.untold import KIND, UntoldResults
from tests.factories import make_asset


class Plugins:
    """One durable notifier; told: what plain ones hear."""

    def __init__(self, *durable: str) -> None:
        self.durable = durable
        self.told: list[Mapping[str, Any]] = []

    async def notify(self, event: Mapping[str, Any], user_id: str) -> None:
        self.told.append(event)

    async def deliver(self, *args: Any) -> None:
        raise AssertionError("nothing is delivered here")


class House(SimpleNamespace):
    """The parts of one process, and how far a job of it got before the process died."""

    store: SqliteAssetStore
    photos: JobQueue
    notifications: JobQueue
    plugins: Plugins
    notifying: Notifying
    untold: UntoldResults
    kept: KeptJobs

    async def begin(self) -> tuple[Asset, Job]:
        asset = make_asset()
        assert await self.store.create(asset)
        begun = await self.store.begin(asset.id, asset.user_id, asset.processing_job_id)
        assert begun is not None
        return begun, Job(asset.processing_job_id, job_data(asset), 3, 0, "lease", 1_000, 2_000, "request-1")

    async def finish(self, asset: Asset) -> None:
        assert await self.store.finish(
            asset.id,
            asset.processing_job_id,
            asset.fence,
            status=AssetStatus.ACTIVE,
            ai_metadata=AiMetadata(brand={"value": "Nike", "confidence": 1}, processed_at=utc_now()),
            processed=None,
            finished_at=utc_now(),
        )

    async def fail(self, asset: Asset) -> None:
        job_id, now = asset.processing_job_id, utc_now()
        assert await self.store.fail(asset.id, job_id, asset.fence, error="no", finished_at=now)

    async def search(self, source: Any) -> int:
        found, place = await source.mend(utc_now() + CLOCKS_APART, None, 100)
        assert place is None
        return int(found)


@pytest.fixture
def house(io_loop: IOLoop, tmp_path: Path, redis_url: str) -> Iterator[House]:
    store, plugins = SqliteAssetStore(tmp_path / "assets.sqlite"), Plugins("webhook")
    photos, notifications = JobQueue(redis_url), JobQueue(redis_url, name="notifications")
    options = {"keep_failed_seconds": 604_800, "max_age_seconds": 86_400}
    kept = KeptJobs(store, photos, judge=partial(judge_dead_photos, store), **options)  # type: ignore[arg-type]
    notifying = Notifying(plugins, notifications, KeptJobs(store, notifications, **options), store, Metrics())
    io_loop.run_sync(store.open)
    yield House(
        store=store,
        photos=photos,
        notifications=notifications,
        plugins=plugins,
        notifying=notifying,
        untold=UntoldResults(store, notifying.announce),
        kept=kept,
    )
    for each in (photos, notifications, store):
        io_loop.run_sync(each.close)


@pytest.mark.fault("E21")
@pytest.mark.parametrize("outcome", ["finish", "fail"])
@pytest.mark.gen_test
async def test_committed_result_is_told_though_its_process_and_its_job_are_gone(house: House, outcome: str) -> None:
    """The search finds the record, tells everybody once, and has nothing left to do."""
    asset, job = await house.begin()
    await house.notifying.promise(job)
    await getattr(house, outcome)(asset)
    assert await house.search(house.untold) == 1
    assert [event["assetId"] for event in house.plugins.told] == [asset.id]
    assert (await house.notifications.stats()).waiting == 1
    assert await house.search(house.untold) == 0
    assert await house.store.kept(KIND, limit=9) == []


@pytest.mark.gen_test
async def test_result_that_is_not_committed_is_left_to_the_next_run(house: House) -> None:
    """The record stays as long as the job may yet commit."""
    _, job = await house.begin()
    await house.notifying.promise(job)
    assert await house.search(house.untold) == 0
    assert house.plugins.told == []
    assert [kept.id for kept in await house.store.kept(KIND, limit=9)] == [job.id]


@pytest.mark.parametrize("end", ["deleted", "run again"])
@pytest.mark.gen_test
async def test_result_that_is_superseded_is_forgotten(house: House, end: str) -> None:
    """Its asset is gone, or has another job by now, which tells its own result."""
    asset, job = await house.begin()
    await house.notifying.promise(job)
    await house.fail(asset)
    if end == "deleted":
        await house.store.delete(asset.id, asset.user_id)
    else:
        await house.store.requeue(asset.id, asset.user_id, house.photos.job_id("f" * 24))
    assert await house.search(house.untold) == 0
    assert house.plugins.told == [] and await house.store.kept(KIND, limit=9) == []


@pytest.mark.gen_test
async def test_without_durable_notifiers_nothing_is_written(house: House) -> None:
    """No job pays for what nobody needs."""
    house.plugins.durable = ()
    _, job = await house.begin()
    await house.notifying.promise(job)
    await house.notifying.fulfil(job.id)
    assert await house.store.kept(KIND, limit=9) == []


@pytest.mark.fault("E21")
@pytest.mark.gen_test
async def test_dead_letter_counts_once_its_asset_has_failed(house: House, redis: Redis) -> None:
    """It is kept first: a process that dies right after that leaves a job that is run again, and may end well."""
    asset, job = await house.begin()
    await house.kept.bury(job, "no after 3 attempts")
    assert await house.search(house.kept) == 0
    assert (await house.photos.failed_jobs(9)).jobs == []
    await house.fail(asset)
    assert await house.search(house.kept) == 1
    (dead,) = (await house.photos.failed_jobs(9)).jobs
    assert (dead.id, dead.error, dead.attempts, dead.request_id) == (job.id, "no after 3 attempts", 3, "request-1")
    redis.flushall()
    other, other_job = await house.begin()
    await house.kept.bury(other_job, "no after 3 attempts")
    await house.finish(other)
    assert await house.search(house.kept) == 1
    assert [each.id for each in (await house.photos.failed_jobs(9)).jobs] == [job.id]
    assert [kept.id for kept in await house.store.kept("job of ai-processing", limit=9)] == [job.id]


@pytest.mark.gen_test
async def test_dead_letter_that_names_no_asset_stands(house: House) -> None:
    """A damaged payload is all there is of it."""
    _, job = await house.begin()
    await house.kept.bury(job._replace(data={}), "The job's payload is not that of a photo")
    await house.kept.bury(job._replace(id="ai-processing:" + "a" * 24, data={"assetId": "b" * 24}), "gone")
    assert await house.search(house.kept) == 1
    assert [each.id for each in (await house.photos.failed_jobs(9)).jobs] == [job.id]
