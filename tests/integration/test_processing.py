"""One job becomes one finished asset and one event, also when it runs twice, too late or for nobody."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from pipeline.assets.asset import Asset, AssetStatus, job_data
from pipeline.clock import utc_now
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.errors import DependencyUnavailable, PermanentJobError, RetryableJobError
from pipeline.hooks import Analysis, AnalyzeRequest, ProcessedImage
from pipeline.metrics import Metrics
from pipeline.queue.job_handler import AlreadyOver
from pipeline.usecases.processing import Processing
from tests.factories import make_asset
from tests.integration.processed_jobs import (
    FOUND,
    PNG,
    WEBP,
    Plugins,
    make_job,
    metrics,
    orphaned_images,
    plugins,
    processing,
    run,
    stale_results,
    submit,
)

__all__ = ["metrics", "orphaned_images", "plugins", "processing"]  # fixtures


@pytest.mark.gen_test
async def test_job_asks_the_provider_with_all_it_needs(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """URL, category, ids, attempt and time budget; the bytes only when it wants them."""
    asset, job = await submit(store)
    await run(processing, job)
    url = f"https://images.example/{asset.original.public_id}"
    assert plugins.requests == [
        AnalyzeRequest(
            url, "sneaker", asset.id, job.id, "r-1", attempt=1, timeout_seconds=90, content_type="image/jpeg"
        )
    ]


@pytest.mark.gen_test
async def test_job_that_tries_a_held_provider_says_so(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """Redis has picked it for that; any other job names none."""
    for tries in ("acme", ""):
        asset, _ = await submit(store)
        await run(processing, make_job(asset, tries=tries))
    assert plugins.tried == ["acme", ""]


@pytest.mark.gen_test
async def test_job_that_runs_again_after_its_commit_only_notifies_again(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """A crash between commit and acknowledgement: same event again, no second question, same asset, no dead letter."""
    asset, job = await submit(store)
    await run(processing, job)
    done = await store.get(asset.id)
    await run(processing, job)
    with pytest.raises(AlreadyOver):
        await processing.give_up(job, "too late")
    assert len(plugins.requests) == 1
    assert plugins.events == [plugins.events[0]] * 3
    assert await store.get(asset.id) == done


@pytest.mark.gen_test
async def test_overtaken_run_is_dropped_with_what_it_made(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, metrics: Metrics
) -> None:
    """A newer run has begun meanwhile: the older result matches nothing, is counted, and its image goes."""
    plugins.analysis = Analysis(FOUND.brand, FOUND.model, processed_image=ProcessedImage(WEBP, "image/webp"))
    asset, job = await submit(store)

    async def newer_run() -> None:
        plugins.before_answer = None
        await store.begin(asset.id, asset.user_id, job.id)

    plugins.before_answer = newer_run
    await run(processing, job)
    current = await store.get(asset.id)
    assert current is not None and (current.status, current.fence) == (AssetStatus.PROCESSING, 2)
    assert (plugins.images, plugins.events, stale_results(metrics)) == ({}, [], 1)


@pytest.mark.gen_test
async def test_overtaken_run_cannot_fail_the_asset(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, metrics: Metrics
) -> None:
    """Giving up, too, needs the newest fence."""
    asset, job = await submit(store)
    begin = store.begin

    async def begin_and_lose(*arguments: Any) -> Asset | None:
        begun = await begin(*arguments)
        await begin(*arguments)
        return begun

    store.begin = begin_and_lose  # type: ignore[method-assign]
    await processing.give_up(job, "no")
    current = await store.get(asset.id)
    assert current is not None and current.status is AssetStatus.PROCESSING
    assert (plugins.events, stale_results(metrics)) == ([], 1)


@pytest.mark.gen_test
@pytest.mark.parametrize("change", ["deleted", "another user's", "retried"])
async def test_job_without_its_asset_does_nothing(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, change: str
) -> None:
    """The asset is gone, belongs to somebody else, or has a newer job: the old job completes quietly."""
    asset, job = await submit(store)
    if change == "deleted":
        await store.delete(asset.id, asset.user_id)
    elif change == "retried":
        await processing.give_up(job, "no")
        await store.requeue(asset.id, asset.user_id, "ai-processing:new")
        plugins.events.clear()
    else:
        job = make_job(asset, data=job_data(asset) | {"userId": "user-2"})
    before = await store.get(asset.id)
    await run(processing, job)
    # What is deleted leaves no dead letter.
    with pytest.raises(AlreadyOver) if change == "deleted" else nullcontext():
        await processing.give_up(job, "no")
    assert len(await store.records_of(job.data["userId"])) == (0 if change == "deleted" else 1)
    assert (plugins.requests, plugins.events) == ([], [])
    assert await store.get(asset.id) == before


@pytest.mark.gen_test
@pytest.mark.parametrize("data", [{}, {"assetId": 7, "userId": "u"}, {"assetId": "x"}])
async def test_foreign_payload_is_refused_for_good(processing: Processing, plugins: Plugins, data: Any) -> None:
    """A payload that is not a photo's fails permanently and can be given up."""
    job = make_job(make_asset(), data=data)
    with pytest.raises(PermanentJobError):
        await run(processing, job)
    await processing.give_up(job, "no")
    assert plugins.events == []


@pytest.mark.gen_test
async def test_provider_error_leaves_the_asset_processing(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """Whether to try again is not decided here; nobody is told anything yet."""
    plugins.analysis = RetryableJobError("AI service unavailable")
    asset, job = await submit(store)
    with pytest.raises(RetryableJobError):
        await run(processing, job)
    current = await store.get(asset.id)
    assert current is not None and current.status is AssetStatus.PROCESSING
    assert plugins.events == []


@pytest.mark.gen_test
async def test_commit_waits_for_the_store_and_asks_the_provider_once(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """A store that is away at the commit is asked again with the result at hand."""
    asset, job = await submit(store)
    finish, faults = store.finish, [DependencyUnavailable("away")] * 2

    async def finish_later(*arguments: Any, **values: Any) -> Asset | None:
        if faults:
            raise faults.pop()
        return await finish(*arguments, **values)

    store.finish = finish_later  # type: ignore[method-assign]
    await run(processing, job)
    current = await store.get(asset.id)
    assert current is not None and current.status is AssetStatus.ACTIVE
    assert len(plugins.requests) == 1


@pytest.mark.gen_test
async def test_commit_whose_answer_was_lost_is_still_ours(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, metrics: Metrics
) -> None:
    """The write went through and the connection broke: one event, the image stays, nothing counts as stale."""
    plugins.analysis = Analysis(FOUND.brand, FOUND.model, processed_image=ProcessedImage(WEBP, "image/webp"))
    asset, job = await submit(store)
    finish, answers_to_lose = store.finish, [1]

    async def finish_silently(*arguments: Any, **values: Any) -> Asset | None:
        done = await finish(*arguments, **values)
        if answers_to_lose:
            answers_to_lose.pop()
            raise DependencyUnavailable("no answer")
        return done

    store.finish = finish_silently  # type: ignore[method-assign]
    await run(processing, job)
    assert (len(plugins.events), len(plugins.images), stale_results(metrics)) == (1, 1, 0)


async def cancel(store: SqliteAssetStore, asset: Asset) -> None:
    assert await store.cancel(asset.id, asset.processing_job_id, finished_at=utc_now())


def errors(plugins: Plugins) -> list[str | None]:
    return [event.get("error") for event, _ in plugins.events]


@pytest.mark.gen_test
async def test_job_of_a_cancelled_asset_is_told_of_and_over(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """The process that cancelled it may have died before it told anybody; the provider is not asked."""
    asset, job = await submit(store)
    await cancel(store, asset)
    assert await processing.process(job) is None
    assert (errors(plugins), plugins.requests) == (["Cancelled"], [])


@pytest.mark.gen_test
async def test_result_that_comes_after_a_cancel_is_dropped(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, metrics: Metrics
) -> None:
    """What stands is told; the result's image is removed."""
    asset, job = await submit(store)
    plugins.analysis = replace(FOUND, processed_image=ProcessedImage(PNG, "image/png"))
    plugins.before_answer = lambda: cancel(store, asset)
    await run(processing, job)
    assert (errors(plugins), stale_results(metrics), plugins.images) == (["Cancelled"], 1, {})


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.gen_test
async def test_cancelled_job_is_no_dead_letter(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """Giving it up finds that it is over, also when the cancel came in between."""
    asset, job = await submit(store)
    if is_late:
        fail = store.fail

        async def fail_late(*args: Any, **fields: Any) -> Asset | None:
            await cancel(store, asset)
            return await fail(*args, **fields)

        monkeypatch.setattr(store, "fail", fail_late)
    else:
        await cancel(store, asset)
    with pytest.raises(AlreadyOver):
        await processing.give_up(job, "too bad")
    assert errors(plugins) == ["Cancelled"]
    assert await store.records("job of ai-processing", limit=9) == [] or is_late
