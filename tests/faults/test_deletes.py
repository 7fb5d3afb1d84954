"""Deleting an asset removes its document first, then its images, and only those that were stored."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
from tornado.ioloop import IOLoop

from pipeline.assets.asset import AiMetadata, Asset, AssetStatus, ImageRef
from pipeline.assets.asset_ids import processed_public_id
from pipeline.assets.image import ImageInfo
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, NotFound
from pipeline.hooks.threads import DaemonThreads
from pipeline.metrics import Metrics
from pipeline.queue.queue import JobQueue
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.job_records import JobRecords
from pipeline.usecases.orphaned_images import OrphanedImages
from pipeline.usecases.removing import QueueJobs, Removing
from pipeline.usecases.submission import Submission
from pipeline.usecases.upload import Upload
from tests.factories import make_asset, make_image
from tests.faults.refusing_storage import REFUSES
from tests.memory_storage import MemoryStorage
from tests.packages import install
from tests.service import AiService, Service

KEY = "k-1"


class Store(SqliteAssetStore):
    """A store with faults in `delete`.

    misses: so many deletes do not find the document, as in DocumentDB when it is changed at the same moment.
    on_miss: called at each of these.
    loses_answers: the document is deleted, and the answer is lost.
    """

    misses = 0
    loses_answers = False
    on_miss: Any = None

    async def delete(self, asset_id: str, user_id: str, **options: Any) -> Asset | None:
        if self.misses:
            self.misses -= 1
            if self.on_miss is not None:
                await self.on_miss()
            return None
        removed = await super().delete(asset_id, user_id, **options)
        if self.loses_answers:
            raise DependencyUnavailable("The asset store cannot be reached")
        return removed


@dataclass
class Deletion:
    """A store, a storage and the use cases that delete."""

    store: Store
    storage: MemoryStorage
    orphaned_images: OrphanedImages
    submission: Submission
    removing: Removing

    async def add(self, status: AssetStatus = AssetStatus.ACTIVE, fence: int = 1, processed: int = 0) -> Asset:
        """Insert an asset with its images.

        processed: the run that made the processed image, 0 for none.
        """
        asset = make_asset(status=status, fence=fence)
        if processed:
            public_id = processed_public_id(asset.id, processed)
            asset = replace(asset, processed=ImageRef("memory", public_id, "https://images.example/p", "0" * 64))
        self.storage.put(*(name.public_id for name in asset.image_names))
        assert await self.store.create(asset)
        return asset

    async def settle(self) -> None:
        """Wait until the images that are removed later are removed."""
        while self.orphaned_images.tasks:
            await asyncio.gather(*self.orphaned_images.tasks)


@pytest.fixture(params=[True, False], ids=["storage lists", "storage cannot list"])
def deletion(
    io_loop: IOLoop, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Deletion]:
    monkeypatch.setattr("pipeline.usecases.orphaned_images.RETRY_SECONDS", (0.01, 0.01, 0.01))
    monkeypatch.setattr("pipeline.usecases.removing.DELETE_RETRY_SECONDS", 0.001)
    store, storage = Store(tmp_path / "assets.sqlite"), MemoryStorage(can_list=request.param)
    orphaned_images, queue = OrphanedImages(store, storage), JobQueue(redis_url)
    pool = DaemonThreads(1, "tested")
    io_loop.run_sync(store.open)
    urls = ImageUrls(storage)
    submission = Submission(store, storage, queue, Metrics(), orphaned_images=orphaned_images, urls=urls, pool=pool)
    jobs = QueueJobs(queue, JobRecords(store, queue, keep_failed_seconds=60, max_age_seconds=60))
    yield Deletion(store, storage, orphaned_images, submission, Removing(store, orphaned_images, jobs, jobs))
    io_loop.run_sync(queue.close)
    io_loop.run_sync(store.close)


@pytest.mark.fault("E12")
@pytest.mark.gen_test
@pytest.mark.parametrize("status", [AssetStatus.ACTIVE, AssetStatus.PROCESSING], ids=["finished", "running"])
async def test_delete_after_many_starts_removes_only_what_was_stored(deletion: Deletion, status: AssetStatus) -> None:
    """After 1,920 starts two images are stored and two are removed; there is no call for each start."""
    asset = await deletion.add(status, fence=1920, processed=1920)
    await deletion.removing.delete(asset.id, asset.user_id)
    assert sorted(deletion.storage.deleted) == sorted(name.public_id for name in asset.image_names)
    assert deletion.storage.images == {}


@pytest.mark.fault("E12")
@pytest.mark.gen_test
async def test_delete_removes_images_of_stale_runs_where_the_storage_lists(deletion: Deletion) -> None:
    """Images that the document does not name are removed too; those of an asset with a similar id stay."""
    asset = await deletion.add(fence=9, processed=9)
    stale, neighbour = processed_public_id(asset.id, 4), f"{asset.id}0/original"
    deletion.storage.put(stale, neighbour)
    await deletion.removing.delete(asset.id, asset.user_id)
    left = {neighbour} if deletion.storage.is_listable else {neighbour, stale}
    assert deletion.storage.images.keys() == left


@pytest.mark.fault("E30")
@pytest.mark.gen_test
async def test_delete_that_missed_the_document_is_repeated(deletion: Deletion) -> None:
    """A run finishes at the same moment and two deletes miss the document: it is removed with the image of that run."""
    asset = await deletion.add(AssetStatus.PROCESSING, fence=1)
    processed = processed_public_id(asset.id, 1)

    async def finish() -> None:
        deletion.storage.put(processed)
        await deletion.store.finish(
            *(asset.id, asset.processing_job_id, 1),
            status=AssetStatus.ACTIVE,
            ai_metadata=AiMetadata(),
            processed=ImageRef("memory", processed, "https://images.example/p", "0" * 64),
            finished_at=utc_now(),
        )

    deletion.store.misses, deletion.store.on_miss = 2, finish
    await deletion.removing.delete(asset.id, asset.user_id)
    assert await deletion.store.get(asset.id) is None
    assert deletion.storage.images == {}


@pytest.mark.fault("E30")
@pytest.mark.gen_test
async def test_delete_that_never_finds_the_document_leaves_its_images(deletion: Deletion) -> None:
    """The client gets 503 and may retry; the asset and its images are unchanged."""
    asset = await deletion.add(fence=1, processed=1)
    deletion.store.misses = 1000
    with pytest.raises(DependencyUnavailable):
        await deletion.removing.delete(asset.id, asset.user_id)
    await deletion.settle()
    assert await deletion.store.get(asset.id) == asset
    assert set(deletion.storage.images) == {name.public_id for name in asset.image_names}
    assert deletion.store.misses > 900


@pytest.mark.fault("E30")
@pytest.mark.gen_test
async def test_delete_whose_answer_was_lost_removes_the_images_later(deletion: Deletion) -> None:
    """The client gets 503, and 404 when it retries; all images are removed from the storage."""
    asset = await deletion.add(fence=1, processed=1)
    deletion.store.loses_answers = True
    with pytest.raises(DependencyUnavailable):
        await deletion.removing.delete(asset.id, asset.user_id)
    with pytest.raises(NotFound):
        await deletion.removing.delete(asset.id, asset.user_id)
    await deletion.settle()
    assert deletion.storage.images == {}


@pytest.mark.fault("E30")
@pytest.mark.gen_test
async def test_two_deletes_at_once_both_succeed(deletion: Deletion) -> None:
    """The slower one finds nothing to remove and succeeds too."""
    asset = await deletion.add(fence=1, processed=1)
    await asyncio.gather(*(deletion.removing.delete(asset.id, asset.user_id) for _ in range(2)))
    assert (await deletion.store.get(asset.id), deletion.storage.images) == (None, {})


@pytest.mark.fault("E30")
@pytest.mark.gen_test
async def test_image_that_cannot_be_removed_is_removed_later(deletion: Deletion) -> None:
    """The asset and its other image are deleted at once; the storage accepts the removal a little later."""
    asset = await deletion.add(fence=1, processed=1)
    deletion.storage.refused = {asset.original.public_id}
    await deletion.removing.delete(asset.id, asset.user_id)
    assert await deletion.store.get(asset.id) is None
    assert set(deletion.storage.images) == deletion.storage.refused
    deletion.storage.refused = set()
    await deletion.settle()
    assert deletion.storage.images == {}


@pytest.mark.fault("E30")
@pytest.mark.gen_test
async def test_late_removal_spares_a_new_upload_with_the_same_id(
    deletion: Deletion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A remaining key gives the new asset the old id, and the image of its run the old name.

    A key remains when its upload is under way during the delete.
    """
    monkeypatch.setattr(deletion.store, "discard_keys", AsyncMock())
    image = ImageInfo(3, 64, 48, "image/jpeg")
    upload = Upload("user-1", "lego", io.BytesIO(b"abc"), image, "0" * 64, "r-1", KEY)
    asset_id = (await deletion.submission.submit(upload)).asset_id
    old = processed_public_id(asset_id, 1)
    deletion.storage.refused = {old}
    for _ in range(2):
        asset = await deletion.store.get(asset_id)
        assert asset is not None
        begun = await deletion.store.begin(asset_id, "user-1", asset.processing_job_id)
        assert begun is not None and begun.fence == 1
        deletion.storage.put(old)
        await deletion.store.finish(
            *(asset_id, asset.processing_job_id, 1),
            status=AssetStatus.ACTIVE,
            ai_metadata=AiMetadata(),
            processed=ImageRef("memory", old, "https://images.example/p", "0" * 64),
            finished_at=utc_now(),
        )
        if not deletion.orphaned_images.tasks:
            await deletion.removing.delete(asset_id, "user-1")
            assert (await deletion.submission.submit(upload)).asset_id == asset_id
    deletion.storage.refused = set()
    await deletion.settle()
    current = await deletion.store.get(asset_id)
    assert current is not None and set(deletion.storage.images) == {name.public_id for name in current.image_names}


@pytest.mark.gen_test
async def test_image_of_a_partial_asset_is_removed_when_it_is_run_again(deletion: Deletion) -> None:
    """The new run makes a new image; the original stays."""
    asset = await deletion.add(AssetStatus.PARTIAL, fence=3, processed=3)
    await deletion.submission.retry(asset.id, asset.user_id, "r-1")
    requeued = await deletion.store.get(asset.id)
    assert requeued is not None
    await deletion.store.begin(asset.id, asset.user_id, requeued.processing_job_id)
    await deletion.settle()
    assert set(deletion.storage.images) == {asset.original.public_id}


@pytest.mark.fault("E30")
def test_image_that_the_storage_refuses_to_delete_is_deleted_later(tmp_path: Path, ai_service: AiService) -> None:
    """The client gets 204 and the log names the remaining image; it is deleted when the storage accepts that."""
    packages = install(tmp_path / "packages", refuses=REFUSES)
    data = tmp_path / "data"
    with Service(data, ai_service.url, **packages, STORAGE_BACKEND="refuses") as service:
        asset_id = service.upload(image=make_image()).json()["data"]["assetId"]
        service.wait_log("job_completed")
        (data / "refuse").touch()
        answered = httpx.delete(f"{service.url}/api/assets/{asset_id}", headers=service.headers())
        assert answered.status_code == 204
        assert service.get(f"/api/assets/{asset_id}").status_code == 404
        assert service.wait_log("image_left_behind")["publicId"].startswith(f"{asset_id}/original-")
        (data / "refuse").unlink()
        while (data / "media" / asset_id).exists():
            assert service.get("/api/assets").status_code == 200
