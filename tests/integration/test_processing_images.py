"""The images of a job: the original that the provider gets, and the processed image that the provider makes."""

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
async def test_provider_that_needs_the_image_gets_it(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """The bytes are read from the storage, and metadata that an earlier version stored is removed.

    A missing image, or one that cannot be read, fails the job for good.
    """
    plugins.needs_image = True
    asset, job = await submit(store)
    with pytest.raises(PermanentJobError, match="no longer there"):
        await run(processing, job)
    photo = make_image()
    plugins.images[asset.original.public_id] = with_segments(photo, segment(0xFE, b"the owner"))
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
    """A process of version 0.1 may retry an asset without original: the job fails without a call of the storage."""
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
async def test_original_that_was_moved_during_the_job_is_read_from_its_new_storage(
    processing: Processing, plugins: Plugins, store: SqliteAssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`move --storage` moves the original while the job waits for its provider."""
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
async def test_processed_image_has_the_fence_of_the_run_in_its_name(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins
) -> None:
    """The image of the provider is saved with that name, and asset and event have its URL."""
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
    """The result is committed without the image, and the provider is called once."""
    plugins.analysis = replace(FOUND, processed_image=ProcessedImage(WEBP, "image/webp"))
    plugins.refuses_images = True
    asset, job = await submit(store)
    await run(processing, job)
    finished = await store.get(asset.id)
    assert finished is not None and (finished.status, finished.processed) == (AssetStatus.ACTIVE, None)
    assert len(plugins.requests) == 1 and "processedImageUrl" not in plugins.events[0][0]


@pytest.mark.gen_test
async def test_cleaning_can_be_switched_off() -> None:
    """With KEEP_METADATA images are stored unchanged. A provider gets a cleaned copy if the format allows it."""
    private, cleaning = with_chunks(PNG, [chunk(b"tEXt", b"Author\0me")]), Cleaning(keeps_metadata=True)
    assert await cleaning.for_storing(private, "image/png") is private
    assert await cleaning.for_provider(private, "image/png") == PNG
    assert await cleaning.for_provider(private, "image/gif") is private


@pytest.mark.fault("U1")
@pytest.mark.gen_test
async def test_processed_image_is_stored_without_metadata(
    processing: Processing, store: SqliteAssetStore, plugins: Plugins, logs: list[Any]
) -> None:
    """Metadata of the provider is removed. An image with a damaged structure is not stored."""
    for content, images in ((with_chunks(PNG, [chunk(b"tEXt", b"prompt\0words")]), [PNG]), (PNG[:40], [])):
        plugins.images.clear()
        plugins.analysis = replace(FOUND, processed_image=ProcessedImage(content, "image/png"))
        asset, job = await submit(store)
        await run(processing, job)
        done = await store.get(asset.id)
        assert done is not None and done.status is AssetStatus.ACTIVE and bool(done.processed) == bool(images)
        assert list(plugins.images.values()) == images
    assert [line["event"] for line in logs].count("processed_image_refused") == 1


@pytest.mark.gen_test
@pytest.mark.parametrize("end", ["refused", "cancelled", "deleted"])
async def test_image_of_a_run_without_commit_is_removed(
    processing: Processing,
    store: SqliteAssetStore,
    plugins: Plugins,
    orphaned_images: OrphanedImages,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    """The store refuses the result, the run is cancelled, or the asset is deleted."""
    monkeypatch.setattr("pipeline.usecases.orphaned_images.RETRY_SECONDS", (0.01, 0.01))
    plugins.analysis = Analysis(FOUND.brand, FOUND.model, processed_image=ProcessedImage(WEBP, "image/webp"))
    asset, job = await submit(store)

    async def end_without_commit(*arguments: Any, **values: Any) -> Asset | None:
        assert list(plugins.images) == [f"{asset.id}/processed-1"]
        if end == "deleted":
            return None
        raise ValueError("refused") if end == "refused" else asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr(store, "finish", end_without_commit)
        if end == "deleted":
            await store.delete(asset.id, asset.user_id)
            result = Result(replace(asset, fence=1), plugins.analysis, Attempt(job), None)
            await processing.commit(job, result)
        else:
            with pytest.raises((ValueError, asyncio.CancelledError)):
                await run(processing, job)
            # The next run of the job gets a new fence, so the image is not needed any more.
            await store.begin(asset.id, asset.user_id, job.id)
    while orphaned_images.tasks:
        await asyncio.gather(*orphaned_images.tasks)
    assert plugins.images == {}


@pytest.mark.gen_test
async def test_image_of_a_run_that_was_cancelled_after_its_commit_stays(
    processing: Processing,
    store: SqliteAssetStore,
    plugins: Plugins,
    orphaned_images: OrphanedImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run is cancelled during the commit, but the store has the result, which names the image."""
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
async def test_result_that_cannot_be_stored_fails_only_its_job(
    processing: Processing,
    store: SqliteAssetStore,
    plugins: Plugins,
    orphaned_images: OrphanedImages,
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a worker the job costs one attempt, its owner gets a short text, no image is left. The next job is done."""
    monkeypatch.setattr("pipeline.usecases.orphaned_images.RETRY_SECONDS", (0.01, 0.01))
    plugins.analysis = Analysis(
        Attribute("x" * 17_000_000, 1), Attribute("y", 1), processed_image=ProcessedImage(PNG, "image/png")
    )
    bad, good = make_asset(), make_asset()
    for asset in (bad, good):
        assert await store.create(asset)
        await bench.queue.enqueue(asset.processing_job_id, job_data(asset))

    async def answer_normally() -> None:
        if len(plugins.requests) == 2:
            plugins.analysis = FOUND

    plugins.before_answer = answer_normally
    bench.start(processing, concurrency=1)
    await bench.until(lambda stats: stats.completed == 1 and stats.failed == 1)
    failed = await store.get(bad.id)
    assert failed is not None and failed.status is AssetStatus.FAILED
    assert failed.ai_metadata.error == "The asset store cannot hold this document: it is too large"
    assert [event["status"] for event, _user in plugins.events] == ["failed", "active"]
    while orphaned_images.tasks:
        await asyncio.gather(*orphaned_images.tasks)
    assert (len(plugins.requests), plugins.images) == (2, {})
