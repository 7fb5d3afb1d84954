"""One job results in one finished asset and one event, also when it runs twice, too late or without its asset."""

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
async def test_job_sends_the_provider_its_complete_request(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """The request has URL, category, ids, attempt and time limit. It has the bytes only if the provider needs them."""
    asset, job = await submit(store)
    await run(processing, job)
    url = f"https://images.example/{asset.original.public_id}"
    assert plugins.requests == [
        AnalyzeRequest(
            url, "sneaker", asset.id, job.id, "r-1", attempt=1, timeout_seconds=90, content_type="image/jpeg"
        )
    ]


@pytest.mark.gen_test
async def test_job_that_tries_a_held_provider_names_it(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """Redis has chosen the job to try the provider. Other jobs try none."""
    for tries in ("acme", ""):
        asset, _ = await submit(store)
        await run(processing, make_job(asset, tries=tries))
    assert plugins.tried == ["acme", ""]


@pytest.mark.gen_test
async def test_job_that_is_repeated_after_its_commit_sends_only_its_event(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """After a crash between commit and acknowledgement the same event is sent. The provider is called only once."""
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
async def test_result_of_an_older_run_is_dropped_with_its_image(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, metrics: Metrics
) -> None:
    """A newer run of the job has begun: the older result is not stored but counted, and its image is removed."""
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
async def test_older_run_cannot_fail_the_asset(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, metrics: Metrics
) -> None:
    """Only the run with the newest fence can mark the asset as failed."""
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
    """The asset was deleted, belongs to another user, or has a newer job: the old job completes without an event."""
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
    # The job of a deleted asset is no dead letter.
    with pytest.raises(AlreadyOver) if change == "deleted" else nullcontext():
        await processing.give_up(job, "no")
    assert len(await store.records_of(job.data["userId"])) == (0 if change == "deleted" else 1)
    assert (plugins.requests, plugins.events) == ([], [])
    assert await store.get(asset.id) == before


@pytest.mark.gen_test
@pytest.mark.parametrize("data", [{}, {"assetId": 7, "userId": "u"}, {"assetId": "x"}])
async def test_foreign_payload_is_refused_for_good(processing: Processing, plugins: Plugins, data: Any) -> None:
    """A payload that is not that of a photo fails for good, and giving the job up sends no event."""
    job = make_job(make_asset(), data=data)
    with pytest.raises(PermanentJobError):
        await run(processing, job)
    await processing.give_up(job, "no")
    assert plugins.events == []


@pytest.mark.gen_test
async def test_provider_error_leaves_the_asset_processing(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """The retry is decided outside of the use case, and no event is sent."""
    plugins.analysis = RetryableJobError("AI service unavailable")
    asset, job = await submit(store)
    with pytest.raises(RetryableJobError):
        await run(processing, job)
    current = await store.get(asset.id)
    assert current is not None and current.status is AssetStatus.PROCESSING
    assert plugins.events == []


@pytest.mark.gen_test
async def test_commit_waits_for_the_store_and_calls_the_provider_once(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """When the store is unavailable at the commit, the commit is repeated with the same result."""
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
async def test_commit_whose_reply_was_lost_counts_as_committed(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, metrics: Metrics
) -> None:
    """The store wrote the result, but its reply was lost: one event is sent, the image stays, no result is stale."""
    plugins.analysis = Analysis(FOUND.brand, FOUND.model, processed_image=ProcessedImage(WEBP, "image/webp"))
    asset, job = await submit(store)
    finish, replies_to_lose = store.finish, [1]

    async def finish_without_reply(*arguments: Any, **values: Any) -> Asset | None:
        done = await finish(*arguments, **values)
        if replies_to_lose:
            replies_to_lose.pop()
            raise DependencyUnavailable("no reply")
        return done

    store.finish = finish_without_reply  # type: ignore[method-assign]
    await run(processing, job)
    assert (len(plugins.events), len(plugins.images), stale_results(metrics)) == (1, 1, 0)


async def cancel(store: SqliteAssetStore, asset: Asset) -> None:
    """Cancel the asset in the store, as another process does."""
    assert await store.cancel(asset.id, asset.processing_job_id, finished_at=utc_now())


def errors(plugins: Plugins) -> list[str | None]:
    """Return the error texts of the events."""
    return [event.get("error") for event, _ in plugins.events]


@pytest.mark.gen_test
async def test_job_of_a_cancelled_asset_ends_with_its_event(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """The process that cancelled the asset may have ended before the event. The provider is not called."""
    asset, job = await submit(store)
    await cancel(store, asset)
    assert await processing.process(job) is None
    assert (errors(plugins), plugins.requests) == (["Cancelled"], [])


@pytest.mark.gen_test
async def test_result_of_a_cancelled_asset_is_dropped(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, metrics: Metrics
) -> None:
    """The event is that of the cancelled asset, and the image of the result is removed."""
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
    """Giving the job up finds that it has ended, also when it was cancelled at the same moment."""
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
