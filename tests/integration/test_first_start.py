"""The first start of a job takes no fence where its upload was taken; what must hold all the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from pipeline.assets.asset import Asset, AssetStatus
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.hooks import Analysis, Attribute, ProcessedImage
from pipeline.metrics import Metrics
from pipeline.queue.job import Finish, Job, NewJob, Outcome
from pipeline.queue.queue import JobQueue
from pipeline.usecases import new_assets as new_assets_module
from pipeline.usecases.new_assets import NewAssets
from tests.factories import make_asset, make_image
from tests.integration.processed_jobs import FOUND, Plugins, make_job, make_processing, run, stale_results
from tests.workers import Claimer

OTHER = Analysis(Attribute("Lego", 0.9), Attribute("10497", 0.8))


class Taker:
    """A process that has just taken an upload, and one that has not."""

    def __init__(self, store: SqliteAssetStore) -> None:
        self.store, self.plugins, self.metrics, self.new_assets = store, Plugins(), Metrics(), NewAssets()
        self.processing = make_processing(store, self.plugins, self.metrics, new_assets=self.new_assets)
        self.elsewhere = make_processing(store, self.plugins, self.metrics)

    async def take(self) -> tuple[Asset, Job]:
        asset = make_asset()
        assert await self.store.create(asset)
        self.new_assets.add(asset)
        return asset, make_job(asset, is_first=True)

    async def stored(self, asset: Asset) -> Asset:
        found = await self.store.get(asset.id)
        assert found is not None
        return found


@pytest.fixture
def taker(store: SqliteAssetStore) -> Taker:
    return Taker(store)


@pytest.mark.gen_test
async def test_first_start_takes_no_fence(taker: Taker) -> None:
    """The asset ends, its owner hears of it, and its document was written twice: once by the upload."""
    asset, job = await taker.take()
    await run(taker.processing, job)
    done = await taker.stored(asset)
    assert (done.status, done.fence, len(taker.plugins.events)) == (AssetStatus.ACTIVE, 0, 1)


@pytest.mark.parametrize("why", ["started before", "again", "elsewhere"])
@pytest.mark.gen_test
async def test_any_other_start_takes_one(taker: Taker, why: str) -> None:
    """One that Redis knows to have been started, a second one in this process, and one in any other process."""
    asset, job = await taker.take()
    if why == "again":
        taker.plugins.analysis = RuntimeError("a crash")
        with pytest.raises(RuntimeError):
            await taker.processing.process(job)
        taker.plugins.analysis = FOUND
    job = job if why == "elsewhere" else job._replace(is_first=why == "again")
    await run(taker.elsewhere if why == "elsewhere" else taker.processing, job)
    done = await taker.stored(asset)
    assert (done.status, done.fence) == (AssetStatus.ACTIVE, 1)


@pytest.mark.gen_test
async def test_first_start_that_was_overtaken_changes_nothing(taker: Taker) -> None:
    """Another process has started the job meanwhile: what comes of the first start is dropped, also after the end."""
    asset, job = await taker.take()

    async def overtake() -> None:
        taker.plugins.before_answer, taker.plugins.analysis = None, OTHER
        await run(taker.elsewhere, job._replace(is_first=False, stalls=1))
        taker.plugins.analysis = FOUND

    taker.plugins.before_answer = overtake
    await run(taker.processing, job)
    done = await taker.stored(asset)
    assert done.ai_metadata.brand == {"value": "Lego", "confidence": 0.9}
    assert (done.fence, len(taker.plugins.events), stale_results(taker.metrics)) == (1, 1, 1)


@pytest.mark.gen_test
async def test_of_two_first_starts_one_result_stands(taker: Taker) -> None:
    """Where Redis has forgotten the first: what was committed first stays, and the second tells of that once more."""
    asset, job = await taker.take()

    async def start_again() -> None:
        taker.plugins.before_answer, taker.plugins.analysis = None, OTHER
        taker.new_assets.add(asset)
        await run(taker.processing, job)
        taker.plugins.analysis = FOUND

    taker.plugins.before_answer = start_again
    await run(taker.processing, job)
    done = await taker.stored(asset)
    assert done.ai_metadata.brand == {"value": "Lego", "confidence": 0.9}
    assert [event["aiMetadata"]["brand"]["value"] for event, _ in taker.plugins.events] == ["Lego", "Lego"]


@pytest.mark.gen_test
async def test_processed_image_needs_a_fence_for_its_name(taker: Taker) -> None:
    """It is taken before the image is saved; an asset that was cancelled meanwhile keeps none."""
    made = replace(FOUND, processed_image=ProcessedImage(make_image("WEBP"), "image/webp"))
    taker.plugins.analysis = made
    asset, job = await taker.take()
    await run(taker.processing, job)
    assert (await taker.stored(asset)).fence == 1
    assert list(taker.plugins.images) == [f"{asset.id}/processed-1"]
    taker.plugins.images.clear()
    asset, job = await taker.take()

    async def cancel() -> None:
        await taker.store.cancel(asset.id, job.id, finished_at=asset.created_at)

    taker.plugins.before_answer = cancel
    await run(taker.processing, job)
    assert (taker.plugins.images, (await taker.stored(asset)).is_cancelled) == ({}, True)


@pytest.mark.gen_test
async def test_queue_knows_what_was_never_claimed(redis_url: str, redis: Redis) -> None:
    """New jobs are first starts; those that were claimed, given back or lost by Redis are none, nor damaged ones."""
    queue = JobQueue(redis_url)
    claim = Claimer(queue)
    await queue.enqueue(queue.job_id("1"), {})
    (job,) = await claim()
    assert job.is_first
    (again,) = await claim(1, Finish(job, Outcome.RELEASED, refunds_attempt=True))
    assert (again.id, again.attempt, again.is_first) == (job.id, 1, False)
    await claim(0, Finish(again, Outcome.COMPLETED))
    await queue.restore([NewJob(queue.job_id("2"), {}, submitted_at_ms=1)])
    assert [each.is_first for each in await claim()] == [False]
    await queue.enqueue(queue.job_id("3"), {})
    redis.set(f"pipeline:{{ai-processing}}:state:{queue.job_id('3')}", "damaged")
    assert [each.is_first for each in await claim()] == [False]
    await queue.close()


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes beyond takes a fence; where others take the jobs there is room again after a minute."""
    new_assets, now = NewAssets(most=2), 1000.0
    monkeypatch.setattr(new_assets_module, "time", _Clock(lambda: now))
    assets = [make_asset() for _ in range(3)]
    for asset in assets:
        new_assets.add(asset)
    assert [new_assets.take(make_job(asset, is_first=True)) for asset in assets] == [*assets[:2], None]
    for asset in assets[:2]:
        new_assets.add(asset)
    now += new_assets_module.FRESH_SECONDS + 1
    new_assets.add(assets[2])
    assert [new_assets.take(make_job(asset, is_first=True)) for asset in assets] == [None, *assets[1:]]
    assert len(new_assets._assets) == 0
    for forget in (lambda: new_assets.drop(assets[0].processing_job_id), new_assets.clear):
        new_assets.add(assets[0])
        forget()
        assert new_assets.take(make_job(assets[0], is_first=True)) is None
    NewAssets(most=0).add(assets[0])


class _Clock:
    def __init__(self, read: Any) -> None:
        self.monotonic = read
