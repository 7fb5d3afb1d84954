"""The images of a job: the original that the provider gets, and the processed image that is stored."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from pipeline.assets.asset import Asset, AssetStatus, job_data
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.errors import PermanentJobError
from pipeline.hooks import Analysis, Attribute, ProcessedImage
from pipeline.images import ImageName
from pipeline.usecases.analysis import Attempt, Result
from pipeline.usecases.cleaning import Cleaning
from pipeline.usecases.orphaned_images import OrphanedImages
from pipeline.usecases.processing import Processing
from tests.factories import make_asset, make_image
from tests.integration.processed_jobs import (
    FOUND,
    PNG,
    WEBP,
    Plugins,
    metrics,
    orphaned_images,
    plugins,
    processing,
    run,
    submit,
)
from tests.private_pictures import chunk, segment, with_chunks, with_segments
from tests.workers import Bench

__all__ = ["metrics", "orphaned_images", "plugins", "processing"]  # fixtures


@pytest.mark.gen_test
async def test_provider_that_wants_the_image_gets_it(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """The bytes come from the storage, without metadata that an earlier version left there; an image that is gone ends
    the job for good.
    """
    plugins.needs_image = True
    asset, job = await submit(store)
    with pytest.raises(PermanentJobError, match="no longer there"):
        await run(processing, job)
    photo = make_image()
    plugins.images[asset.original.public_id] = with_segments(photo, segment(0xFE, b"whose it is"))
    await run(processing, job)
    assert [request.image for request in plugins.requests] == [photo]
    asset, job = await submit(store)
    plugins.images[asset.original.public_id] = b"no photo"
    with pytest.raises(PermanentJobError, match="cannot be read"):
        await run(processing, job)


@pytest.mark.gen_test
async def test_asset_without_its_original_fails_at_once(
    store: SqliteAssetStore, processing: Processing, plugins: Plugins
) -> None:
    """A process of version 0.1 lets an asset run again whose original is gone: it does not wait for a storage."""
    asset, job = await submit(store)
    await store._write(
        "UPDATE assets SET original = json_set(original, '$.backend', '', '$.publicId', NULL, '$.url', ''), "
        "originalGone = 1 WHERE id = :id RETURNING id",
        {"id": asset.id},
    )
    with pytest.raises(PermanentJobError, match="no longer there"):
        await processing.process(job)
    assert plugins.requests == []


@pytest.mark.fault("U17")
@pytest.mark.gen_test
async def test_original_that_moves_after_the_job_has_begun_is_read_where_it_is(
    processing: Processing, plugins: Plugins, store: SqliteAssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`move --storage` names it elsewhere and removes it from where it was while the job waits for its provider."""
    plugins.needs_image = True
    asset, job = await submit(store)
    old = asset.image_names[0]
    new = replace(asset.original, backend="elsewhere")
    read: list[str] = []

    async def read_there(name: ImageName) -> bytes:
        if name == old:
            await store.replace_image(asset.id, old, new)
            raise FileNotFoundError(name.public_id)
        read.append(name.backend)
        return make_image()

    monkeypatch.setattr(plugins, "read", read_there)
    await run(processing, job)
    current = await store.get(asset.id)
    assert current is not None and current.status is AssetStatus.ACTIVE and read == ["elsewhere"]


@pytest.mark.gen_test
async def test_processed_image_is_kept_under_the_runs_own_name(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """Bytes that the provider made are saved, named by the fence, and linked in asset and event."""
    plugins.analysis = Analysis(FOUND.brand, FOUND.model, processed_image=ProcessedImage(WEBP, "image/webp"))
    asset, job = await submit(store)
    await run(processing, job)
    name = f"{asset.id}/processed-1"
    assert plugins.images == {name: WEBP}
    assert plugins.events[0][0]["processedImageUrl"] == f"https://images.example/{name}"


@pytest.mark.fault("U19")
@pytest.mark.gen_test
async def test_processed_image_that_the_storage_refuses_is_left_out(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """The result stands without it, and the provider is asked once."""
    plugins.analysis = replace(FOUND, processed_image=ProcessedImage(WEBP, "image/webp"))
    plugins.refuses_images = True
    asset, job = await submit(store)
    await run(processing, job)
    finished = await store.get(asset.id)
    assert finished is not None and (finished.status, finished.processed) == (AssetStatus.ACTIVE, None)
    assert len(plugins.requests) == 1 and "processedImageUrl" not in plugins.events[0][0]


@pytest.mark.gen_test
async def test_cleaning_may_be_switched_off() -> None:
    """With KEEP_METADATA all is stored as it is; a provider gets clean what can be cleaned."""
    private, cleaning = with_chunks(PNG, [chunk(b"tEXt", b"Author\0me")]), Cleaning(keeps_metadata=True)
    assert await cleaning.for_storing(private, "image/png") is private
    assert await cleaning.for_provider(private, "image/png") == PNG
    assert await cleaning.for_provider(private, "image/gif") is private


@pytest.mark.fault("U1")
@pytest.mark.gen_test
async def test_processed_image_is_stored_without_metadata(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, logs: list[Any]
) -> None:
    """What a provider wrote beside its picture goes; without a structure to follow there is no processed image."""
    for content, stored in ((with_chunks(PNG, [chunk(b"tEXt", b"prompt\0words")]), [PNG]), (PNG[:40], [])):
        plugins.images.clear()
        plugins.analysis = replace(FOUND, processed_image=ProcessedImage(content, "image/png"))
        asset, job = await submit(store)
        await run(processing, job)
        done = await store.get(asset.id)
        assert done is not None and done.status is AssetStatus.ACTIVE and bool(done.processed) == bool(stored)
        assert list(plugins.images.values()) == stored
    assert [line["event"] for line in logs].count("processed_image_refused") == 1


@pytest.mark.gen_test
@pytest.mark.parametrize("end", ["refused", "cancelled", "deleted"])
async def test_image_of_a_run_that_was_not_committed_goes(
    processing: Processing,
    store: SqliteAssetStore,
    plugins: Plugins,
    orphaned_images: OrphanedImages,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    """The store refuses the result for good, the lease is lost in the middle, or the asset is deleted meanwhile."""
    monkeypatch.setattr("pipeline.usecases.orphaned_images.RETRY_SECONDS", (0.01, 0.01))
    plugins.analysis = Analysis(FOUND.brand, FOUND.model, processed_image=ProcessedImage(WEBP, "image/webp"))
    asset, job = await submit(store)

    async def ends(*arguments: Any, **values: Any) -> Asset | None:
        assert list(plugins.images) == [f"{asset.id}/processed-1"]
        if end == "deleted":
            return None
        raise ValueError("refused") if end == "refused" else asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr(store, "finish", ends)
        if end == "deleted":
            await store.delete(asset.id, asset.user_id)
            result = Result(replace(asset, fence=1), plugins.analysis, Attempt(job), None)
            await processing.commit(job, result)
        else:
            with pytest.raises((ValueError, asyncio.CancelledError)):
                await run(processing, job)
            # The next run of the job takes the fence, so the image is of no use any more.
            await store.begin(asset.id, asset.user_id, job.id)
    while orphaned_images.tasks:
        await asyncio.gather(*orphaned_images.tasks)
    assert plugins.images == {}


@pytest.mark.gen_test
async def test_image_of_a_result_that_stands_after_all_stays(
    processing: Processing,
    store: SqliteAssetStore,
    plugins: Plugins,
    orphaned_images: OrphanedImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run is cancelled while its result is being committed: the store has the result, which names the image."""
    monkeypatch.setattr("pipeline.usecases.orphaned_images.RETRY_SECONDS", (0.01, 0.01))
    plugins.analysis = Analysis(FOUND.brand, FOUND.model, processed_image=ProcessedImage(WEBP, "image/webp"))
    asset, job = await submit(store)
    finish = store.finish

    async def finish_and_end(*arguments: Any, **values: Any) -> Asset | None:
        await finish(*arguments, **values)
        raise asyncio.CancelledError

    monkeypatch.setattr(store, "finish", finish_and_end)
    with pytest.raises(asyncio.CancelledError):
        await run(processing, job)
    while orphaned_images.tasks:
        await asyncio.gather(*orphaned_images.tasks)
    assert list(plugins.images) == [f"{asset.id}/processed-1"]


@pytest.mark.fault("E32")
@pytest.mark.gen_test
async def test_result_that_cannot_be_stored_fails_its_job_alone(
    processing: Processing,
    store: SqliteAssetStore,
    plugins: Plugins,
    orphaned_images: OrphanedImages,
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through a worker: one attempt, a small text for the owner, no image left; the next job is done."""
    monkeypatch.setattr("pipeline.usecases.orphaned_images.RETRY_SECONDS", (0.01, 0.01))
    plugins.analysis = Analysis(
        Attribute("x" * 17_000_000, 1), Attribute("y", 1), processed_image=ProcessedImage(PNG, "image/png")
    )
    bad, good = make_asset(), make_asset()
    for asset in (bad, good):
        assert await store.create(asset)
        await bench.queue.enqueue(asset.processing_job_id, job_data(asset))

    async def heal() -> None:
        if len(plugins.requests) == 2:
            plugins.analysis = FOUND

    plugins.before_answer = heal
    bench.start(processing, concurrency=1)
    await bench.until(lambda stats: stats.completed == 1 and stats.failed == 1)
    failed = await store.get(bad.id)
    assert failed is not None and failed.status is AssetStatus.FAILED
    assert failed.ai_metadata.error == "The asset store cannot hold this document: it is too large"
    assert [event["status"] for event, _user in plugins.events] == ["failed", "active"]
    while orphaned_images.tasks:
        await asyncio.gather(*orphaned_images.tasks)
    assert (len(plugins.requests), plugins.images) == (2, {})
