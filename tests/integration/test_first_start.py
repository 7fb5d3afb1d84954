"""The first start of a job takes no fence in the process that accepted its upload.

These tests show that no result is lost or overwritten all the same.
"""

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


class TwoProcesses:
    """A process that has just accepted an upload, and a second process that has not."""

    def __init__(self, store: SqliteAssetStore) -> None:
        self.store, self.plugins, self.metrics, self.new_assets = store, Plugins(), Metrics(), NewAssets()
        self.processing = make_processing(store, self.plugins, self.metrics, new_assets=self.new_assets)
        self.other_processing = make_processing(store, self.plugins, self.metrics)

    async def accept(self) -> tuple[Asset, Job]:
        asset = make_asset()
        assert await self.store.create(asset)
        self.new_assets.add(asset)
        return asset, make_job(asset, is_first=True)

    async def stored(self, asset: Asset) -> Asset:
        found = await self.store.get(asset.id)
        assert found is not None
        return found


@pytest.fixture
def processes(store: SqliteAssetStore) -> TwoProcesses:
    return TwoProcesses(store)


@pytest.mark.gen_test
async def test_first_start_takes_no_fence(processes: TwoProcesses) -> None:
    """The asset gets its result, its owner gets the event, and the asset has no fence."""
    asset, job = await processes.accept()
    await run(processes.processing, job)
    done = await processes.stored(asset)
    assert (done.status, done.fence, len(processes.plugins.events)) == (AssetStatus.ACTIVE, 0, 1)


@pytest.mark.parametrize("reason", ["started before", "second start", "other process"])
@pytest.mark.gen_test
async def test_any_other_start_takes_a_fence(processes: TwoProcesses, reason: str) -> None:
    """A job that Redis knows as started, a second start in this process, and a start in another process take one."""
    asset, job = await processes.accept()
    if reason == "second start":
        processes.plugins.analysis = RuntimeError("a crash")
        with pytest.raises(RuntimeError):
            await processes.processing.process(job)
        processes.plugins.analysis = FOUND
    job = job if reason == "other process" else job._replace(is_first=reason == "second start")
    await run(processes.other_processing if reason == "other process" else processes.processing, job)
    done = await processes.stored(asset)
    assert (done.status, done.fence) == (AssetStatus.ACTIVE, 1)


@pytest.mark.gen_test
async def test_first_start_that_was_overtaken_changes_nothing(processes: TwoProcesses) -> None:
    """Another process starts and ends the job during the first start: the result of the first start is dropped."""
    asset, job = await processes.accept()

    async def overtake() -> None:
        processes.plugins.before_answer, processes.plugins.analysis = None, OTHER
        await run(processes.other_processing, job._replace(is_first=False, stalls=1))
        processes.plugins.analysis = FOUND

    processes.plugins.before_answer = overtake
    await run(processes.processing, job)
    done = await processes.stored(asset)
    assert done.ai_metadata.brand == {"value": "Lego", "confidence": 0.9}
    assert (done.fence, len(processes.plugins.events), stale_results(processes.metrics)) == (1, 1, 1)


@pytest.mark.gen_test
async def test_two_first_starts_store_one_result(processes: TwoProcesses) -> None:
    """Redis has lost the first start: the result committed first stays, and the second start repeats its event."""
    asset, job = await processes.accept()

    async def start_second() -> None:
        processes.plugins.before_answer, processes.plugins.analysis = None, OTHER
        processes.new_assets.add(asset)
        await run(processes.processing, job)
        processes.plugins.analysis = FOUND

    processes.plugins.before_answer = start_second
    await run(processes.processing, job)
    done = await processes.stored(asset)
    assert done.ai_metadata.brand == {"value": "Lego", "confidence": 0.9}
    assert [event["aiMetadata"]["brand"]["value"] for event, _ in processes.plugins.events] == ["Lego", "Lego"]


@pytest.mark.gen_test
async def test_processed_image_needs_a_fence_for_its_name(processes: TwoProcesses) -> None:
    """The fence is taken before the image is saved; an asset that was cancelled meanwhile gets no image."""
    made = replace(FOUND, processed_image=ProcessedImage(make_image("WEBP"), "image/webp"))
    processes.plugins.analysis = made
    asset, job = await processes.accept()
    await run(processes.processing, job)
    assert (await processes.stored(asset)).fence == 1
    assert list(processes.plugins.images) == [f"{asset.id}/processed-1"]
    processes.plugins.images.clear()
    asset, job = await processes.accept()

    async def cancel() -> None:
        await processes.store.cancel(asset.id, job.id, finished_at=asset.created_at)

    processes.plugins.before_answer = cancel
    await run(processes.processing, job)
    assert (processes.plugins.images, (await processes.stored(asset)).is_cancelled) == ({}, True)


@pytest.mark.gen_test
async def test_queue_marks_jobs_that_were_never_claimed(redis_url: str, redis: Redis) -> None:
    """A new job is a first start. A job that was released, lost by Redis or damaged is not."""
    queue = JobQueue(redis_url)
    claim = Claimer(queue)
    await queue.enqueue(queue.job_id("1"), {})
    (job,) = await claim()
    assert job.is_first
    (released,) = await claim(1, Finish(job, Outcome.RELEASED, refunds_attempt=True))
    assert (released.id, released.attempt, released.is_first) == (job.id, 1, False)
    await claim(0, Finish(released, Outcome.COMPLETED))
    await queue.restore([NewJob(queue.job_id("2"), {}, submitted_at_ms=1)])
    assert [each.is_first for each in await claim()] == [False]
    await queue.enqueue(queue.job_id("3"), {})
    redis.set(f"pipeline:{{ai-processing}}:state:{queue.job_id('3')}", "damaged")
    assert [each.is_first for each in await claim()] == [False]
    await queue.close()


def test_number_of_remembered_assets_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An asset over the bound is not remembered. When other processes take the jobs, there is room after a minute."""
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
