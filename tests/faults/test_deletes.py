"""Deleting an asset: first its document, surely, then its images, and only those that were stored."""

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
from tests.memory_storage import MemoryStorage
from tests.packages import install
from tests.service import AiService, Service

KEY = "k-1"


class Store(SqliteAssetStore):
    """Misses the document in its next deletes, as DocumentDB does one that is changed at the same moment; `beside` is
    called then. Or loses the answers.
    """

    misses = 0
    loses_answers = False
    beside: Any = None

    async def delete(self, asset_id: str, user_id: str, **options: Any) -> Asset | None:
        if self.misses:
            self.misses -= 1
            if self.beside is not None:
                await self.beside()
            return None
        removed = await super().delete(asset_id, user_id, **options)
        if self.loses_answers:
            raise DependencyUnavailable("The asset store cannot be reached")
        return removed


@dataclass
class House:
    store: Store
    storage: MemoryStorage
    orphaned_images: OrphanedImages
    submission: Submission
    removing: Removing

    async def add(self, status: AssetStatus = AssetStatus.ACTIVE, fence: int = 1, processed: int = 0) -> Asset:
        """Insert an asset with its images. processed: of which run, 0 for none."""
        asset = make_asset(status=status, fence=fence)
        if processed:
            public_id = processed_public_id(asset.id, processed)
            asset = replace(asset, processed=ImageRef("memory", public_id, "https://images.example/p", "0" * 64))
        self.storage.put(*(name.public_id for name in asset.image_names))
        assert await self.store.create(asset)
        return asset

    async def settle(self) -> None:
        """Wait for what is removed later."""
        while self.orphaned_images.tasks:
            await asyncio.gather(*self.orphaned_images.tasks)


@pytest.fixture(params=[True, False], ids=["storage lists", "storage cannot list"])
def house(
    io_loop: IOLoop, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[House]:
    monkeypatch.setattr("pipeline.usecases.orphaned_images.RETRY_SECONDS", (0.01, 0.01, 0.01))
    monkeypatch.setattr("pipeline.usecases.removing.DELETE_RETRY_SECONDS", 0.001)
    store, storage = Store(tmp_path / "assets.sqlite"), MemoryStorage(can_list=request.param)
    orphaned_images, queue = OrphanedImages(store, storage), JobQueue(redis_url)
    pool = DaemonThreads(1, "tested")
    io_loop.run_sync(store.open)
    urls = ImageUrls(storage)
    submission = Submission(store, storage, queue, Metrics(), orphaned_images=orphaned_images, urls=urls, pool=pool)
    jobs = QueueJobs(queue, JobRecords(store, queue, keep_failed_seconds=60, max_age_seconds=60))
    yield House(store, storage, orphaned_images, submission, Removing(store, orphaned_images, jobs, jobs))
    io_loop.run_sync(queue.close)
    io_loop.run_sync(store.close)


@pytest.mark.fault("E12")
@pytest.mark.gen_test
@pytest.mark.parametrize("status", [AssetStatus.ACTIVE, AssetStatus.PROCESSING], ids=["finished", "running"])
async def test_delete_after_many_starts_removes_only_what_was_stored(house: House, status: AssetStatus) -> None:
    """A night without AI, 1,920 starts: two images were stored and two are removed, no call for each start."""
    asset = await house.add(status, fence=1920, processed=1920)
    await house.removing.delete(asset.id, asset.user_id)
    assert sorted(house.storage.deleted) == sorted(name.public_id for name in asset.image_names)
    assert house.storage.images == {}


@pytest.mark.fault("E12")
@pytest.mark.gen_test
async def test_delete_removes_what_stale_runs_left_where_it_can_be_listed(house: House) -> None:
    """Also images that the document does not name, and none of a neighbour whose id begins alike."""
    asset = await house.add(fence=9, processed=9)
    stale, neighbour = processed_public_id(asset.id, 4), f"{asset.id}0/original"
    house.storage.put(stale, neighbour)
    await house.removing.delete(asset.id, asset.user_id)
    left = {neighbour} if house.storage.is_listable else {neighbour, stale}
    assert house.storage.images.keys() == left


@pytest.mark.fault("E30")
@pytest.mark.gen_test
async def test_delete_that_missed_the_document_is_repeated(house: House) -> None:
    """A run finishes at the same moment, twice missed: the document goes and with it the image that run has added."""
    asset = await house.add(AssetStatus.PROCESSING, fence=1)
    processed = processed_public_id(asset.id, 1)

    async def finish() -> None:
        house.storage.put(processed)
        await house.store.finish(
            *(asset.id, asset.processing_job_id, 1),
            status=AssetStatus.ACTIVE,
            ai_metadata=AiMetadata(),
            processed=ImageRef("memory", processed, "https://images.example/p", "0" * 64),
            finished_at=utc_now(),
        )

    house.store.misses, house.store.beside = 2, finish
    await house.removing.delete(asset.id, asset.user_id)
    assert await house.store.get(asset.id) is None
    assert house.storage.images == {}


@pytest.mark.fault("E30")
@pytest.mark.gen_test
async def test_delete_that_never_finds_the_document_leaves_its_images(house: House) -> None:
    """The client hears 503 and may try again; the asset is as it was, with its images."""
    asset = await house.add(fence=1, processed=1)
    house.store.misses = 1000
    with pytest.raises(DependencyUnavailable):
        await house.removing.delete(asset.id, asset.user_id)
    await house.settle()
    assert await house.store.get(asset.id) == asset
    assert set(house.storage.images) == {name.public_id for name in asset.image_names}
    assert house.store.misses > 900


@pytest.mark.fault("E30")
@pytest.mark.gen_test
async def test_delete_whose_answer_was_lost_removes_the_images_later(house: House) -> None:
    """503 for the client, who finds the asset gone when it tries again; nothing of it stays in the storage."""
    asset = await house.add(fence=1, processed=1)
    house.store.loses_answers = True
    with pytest.raises(DependencyUnavailable):
        await house.removing.delete(asset.id, asset.user_id)
    with pytest.raises(NotFound):
        await house.removing.delete(asset.id, asset.user_id)
    await house.settle()
    assert house.storage.images == {}


@pytest.mark.fault("E30")
@pytest.mark.gen_test
async def test_two_deletes_at_once_both_succeed(house: House) -> None:
    """The slower one finds nothing to remove, which is what it wanted."""
    asset = await house.add(fence=1, processed=1)
    await asyncio.gather(*(house.removing.delete(asset.id, asset.user_id) for _ in range(2)))
    assert (await house.store.get(asset.id), house.storage.images) == (None, {})


@pytest.mark.fault("E30")
@pytest.mark.gen_test
async def test_image_that_cannot_be_removed_is_tried_again(house: House) -> None:
    """The asset is deleted all the same, the other image too; the storage gets it right a little later."""
    asset = await house.add(fence=1, processed=1)
    house.storage.refused = {asset.original.public_id}
    await house.removing.delete(asset.id, asset.user_id)
    assert await house.store.get(asset.id) is None
    assert set(house.storage.images) == house.storage.refused
    house.storage.refused = set()
    await house.settle()
    assert house.storage.images == {}


@pytest.mark.fault("E30")
@pytest.mark.gen_test
async def test_removal_that_comes_late_spares_an_upload_that_took_the_id_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is still there, as when its upload is under way during the delete, gives the new asset the old id, and
    its run an image of the old name.
    """
    monkeypatch.setattr(house.store, "discard_keys", AsyncMock())
    image = ImageInfo(3, 64, 48, "image/jpeg")
    upload = Upload("user-1", "lego", io.BytesIO(b"abc"), image, "0" * 64, "r-1", KEY)
    asset_id = (await house.submission.submit(upload)).asset_id
    old = processed_public_id(asset_id, 1)
    house.storage.refused = {old}
    for _ in range(2):
        asset = await house.store.get(asset_id)
        assert asset is not None
        begun = await house.store.begin(asset_id, "user-1", asset.processing_job_id)
        assert begun is not None and begun.fence == 1
        house.storage.put(old)
        await house.store.finish(
            *(asset_id, asset.processing_job_id, 1),
            status=AssetStatus.ACTIVE,
            ai_metadata=AiMetadata(),
            processed=ImageRef("memory", old, "https://images.example/p", "0" * 64),
            finished_at=utc_now(),
        )
        if not house.orphaned_images.tasks:
            await house.removing.delete(asset_id, "user-1")
            assert (await house.submission.submit(upload)).asset_id == asset_id
    house.storage.refused = set()
    await house.settle()
    current = await house.store.get(asset_id)
    assert current is not None and set(house.storage.images) == {name.public_id for name in current.image_names}


@pytest.mark.gen_test
async def test_image_of_a_partial_asset_goes_when_it_is_run_again(house: House) -> None:
    """Its new run makes its own; the original stays."""
    asset = await house.add(AssetStatus.PARTIAL, fence=3, processed=3)
    await house.submission.retry(asset.id, asset.user_id, "r-1")
    requeued = await house.store.get(asset.id)
    assert requeued is not None
    await house.store.begin(asset.id, asset.user_id, requeued.processing_job_id)
    await house.settle()
    assert set(house.storage.images) == {asset.original.public_id}


REFUSES = """
from pipeline.errors import DependencyUnavailable
from pipeline.hooks import hookimpl
from pipeline.usecases.image_urls import ImageUrls
from pipeline.plugins.storage_local import LocalStorage

class Refuses(LocalStorage):
    def __init__(self, folder):
        super().__init__(folder / "media", "http://127.0.0.1:8080")
        self.folder = folder

    def delete(self, public_id):
        if (self.folder / "refuse").exists():
            raise DependencyUnavailable("no")
        super().delete(public_id)

@hookimpl
def register_storage_backends(settings):
    yield "refuses", lambda: Refuses(settings.data_dir)
"""


@pytest.mark.fault("E30")
def test_delete_while_the_storage_refuses_is_answered_and_made_up_for(tmp_path: Path, ai_service: AiService) -> None:
    """204, the asset is gone, the log says which image was left behind; it goes once the storage takes it."""
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
