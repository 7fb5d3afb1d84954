"""What is kept for as long as wanted goes then, and what no asset names goes from every storage in use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis
from tornado.ioloop import IOLoop

from pipeline.assets.asset import Asset, AssetStatus, ImageRef
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from pipeline.errors import Conflict, DependencyUnavailable
from pipeline.hooks import StoredImage
from pipeline.hooks.threads import DaemonThreads
from pipeline.images import ImageName
from pipeline.metrics import Metrics
from pipeline.queue.job import FailedJob
from pipeline.queue.queue import JobQueue
from pipeline.usecases.expiry import PAGE, PAGES_PER_ROUND, Expiry
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.job_records import JobRecords, UnfinishedAssets
from pipeline.usecases.orphaned_images import OrphanedImages
from pipeline.usecases.removing import QueueJobs, Removing
from pipeline.usecases.retention import LEAST_AGE, OWNERS, Sweeper
from pipeline.usecases.submission import Submission
from tests.factories import make_asset
from tests.memory_storage import MemoryStorage

DAY = timedelta(days=1)


class TwoStorages(MemoryStorage):
    """The current one, `memory`, and an older one, whose name is `old`."""

    def __init__(self) -> None:
        super().__init__()
        self.old = MemoryStorage()
        self.backends = ("memory", "old")

    def of(self, backend: str) -> MemoryStorage:
        return self.old if backend == "old" else self

    async def delete(self, name: ImageName) -> None:
        await (self.old.delete(name) if name.backend == "old" else super().delete(name))

    async def list_images(self, backend: str, prefix: str, at_once: int) -> AsyncIterator[Sequence[StoredImage]]:
        parts = (
            self.old.list_images(backend, prefix, at_once)
            if backend == "old"
            else super().list_images(backend, prefix, at_once)
        )
        async for images in parts:
            yield images


@dataclass
class House:
    """A store, a Redis and two storages, with what removes."""

    store: SqliteAssetStore
    storage: TwoStorages
    queue: JobQueue
    orphaned_images: OrphanedImages
    removing: Removing
    metrics: Metrics
    redis: Redis

    def expiry(self, *, assets: float = 0, originals: float = 0) -> Expiry:
        return Expiry(
            *(self.store, self.queue, self.removing, self.orphaned_images, self.metrics),
            keep_assets_days=assets,
            keep_originals_days=originals,
        )

    async def add(
        self, days_ago: float = 0, status: AssetStatus = AssetStatus.ACTIVE, backend: str = "memory"
    ) -> Asset:
        """Insert an asset that was finished so long ago, with an original and a smaller picture."""
        at = utc_now() - days_ago * DAY
        asset = make_asset(status=status, created_at=at, finished_at=at if status.value != "processing" else None)
        preview = ImageRef(backend, f"{asset.id}/preview/320", sha256="0" * 64)
        asset = replace(asset, original=replace(asset.original, backend=backend), previews={"320": preview})
        self.storage.of(backend).put(*(name.public_id for name in asset.image_names), at=at)
        assert await self.store.create(asset)
        return asset

    async def sweep(self) -> None:
        """Sweep as if the last one were long ago, a day from now."""
        self.redis.delete("pipeline:{ai-processing}:turn:sweep")
        now = lambda: utc_now() + DAY  # noqa: E731
        await Sweeper(self.store, self.storage, self.queue, self.metrics, now=now).sweep()

    def stored(self, backend: str = "memory") -> set[str]:
        return {name for name in self.storage.of(backend).images if not name.startswith(OWNERS)}


@pytest.fixture
def house(io_loop: IOLoop, store: SqliteAssetStore, redis_url: str, redis: Redis) -> Iterator[House]:
    storage, queue, notifications = TwoStorages(), JobQueue(redis_url), JobQueue(redis_url, name="notifications")
    orphaned_images = OrphanedImages(store, storage)
    kept = [JobRecords(store, each, keep_failed_seconds=60, max_age_seconds=60) for each in (queue, notifications)]
    removing = Removing(store, orphaned_images, QueueJobs(queue, kept[0]), QueueJobs(notifications, kept[1]))
    yield House(store, storage, queue, orphaned_images, removing, Metrics(), redis)
    io_loop.run_sync(queue.close)
    io_loop.run_sync(notifications.close)


@pytest.mark.gen_test
async def test_assets_go_whole_when_they_have_been_kept_for_long_enough(house: House) -> None:
    """Eight days old with seven wanted: document, images and dead letter go; younger, open and archived ones stay."""
    old = await house.add(8)
    dead = FailedJob(old.processing_job_id, old.created_at, {"userId": "user-1"}, "no", 3, 0, old.created_at, "")
    await house.queue.restore_failed([dead])
    stay = [await house.add(6), await house.add(9, AssetStatus.PROCESSING), await house.add(9, AssetStatus.ARCHIVED)]
    await house.expiry(assets=7).round()
    assert await house.store.get(old.id) is None
    assert [await house.store.get(asset.id) for asset in stay] == stay
    assert house.stored() == {name.public_id for asset in stay for name in asset.image_names}
    assert await house.queue.failed_job(dead.id) is None
    assert house.metrics.registry.get_sample_value("pipeline_expired_total", {"kind": "assets"}) == 1


@pytest.mark.gen_test
async def test_originals_go_alone_and_cannot_be_run_again(house: House) -> None:
    """The picture and what was found stay; a retry is a conflict that says why."""
    old, young = await house.add(8, AssetStatus.FAILED), await house.add(6)
    await house.expiry(originals=7).round()
    current = await house.store.get(old.id)
    assert current is not None and not current.has_original and current.previews == old.previews
    assert house.stored() == {f"{old.id}/preview/320", *(name.public_id for name in young.image_names)}
    submission = Submission(
        *(house.store, house.storage, house.queue, house.metrics),
        orphaned_images=house.orphaned_images,
        urls=ImageUrls(house.storage),
        pool=DaemonThreads(1, "tested"),
    )
    with pytest.raises(Conflict, match="Its original is no longer kept"):
        await submission.retry(old.id, "user-1", "r-1")
    house.redis.delete("pipeline:{ai-processing}:turn:expiry")
    await house.expiry(assets=7).round()
    assert await house.store.get(old.id) is None
    assert house.stored() == {name.public_id for name in young.image_names}


@pytest.mark.gen_test
async def test_round_is_bounded_and_one_process_has_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many pages a round, the rest in the next one; a second process does nothing meanwhile."""
    monkeypatch.setattr("pipeline.usecases.expiry.PAGE", 3)
    monkeypatch.setattr("pipeline.usecases.expiry.PAGES_PER_ROUND", 2)
    monkeypatch.setattr("pipeline.usecases.expiry.REST_SECONDS", 0)
    assert (PAGE, PAGES_PER_ROUND) == (100, 20)
    for _ in range(10):
        await house.add(8)
    first, second = house.expiry(assets=7), house.expiry(assets=7)
    await first.round()
    assert len(await house.store.expired(utc_now(), limit=100)) == 4
    await second.round()
    assert len(await house.store.expired(utc_now(), limit=100)) == 4
    await first.round()
    assert await house.store.expired(utc_now(), limit=100) == []


@pytest.mark.gen_test
async def test_every_storage_in_use_is_swept(house: House) -> None:
    """Orphaned images, superseded images and smaller pictures of gone assets, in the current storage and in that of
    before, once both carry our mark; what an asset names in its own storage stays.
    """
    mark = f"{OWNERS}{await house.store.identity()}"
    house.storage.old.put(mark, at=utc_now() - DAY)
    here, there = await house.add(), await house.add(backend="old")
    gone = make_asset().id
    for backend in ("memory", "old"):
        house.storage.of(backend).put(f"{gone}/original-1", f"{gone}/preview/320", f"{here.id}/processed-1")
    await house.sweep()
    house.storage.saved_at[mark] = utc_now() - LEAST_AGE
    house.storage.backends = ("memory",)
    await house.sweep()
    assert house.stored() == {name.public_id for name in here.image_names}
    assert house.stored("old") == {name.public_id for name in there.image_names}


@pytest.mark.gen_test
async def test_storage_without_our_mark_that_is_not_the_current_one_is_left_alone(house: House) -> None:
    """Nobody knows whose images these are; and one that is away keeps no other one from being swept."""
    house.storage.old.put(f"{make_asset().id}/original-1")
    before = house.stored("old")
    await house.sweep()
    await house.sweep()
    assert house.stored("old") == before
    house.storage.put(f"{make_asset().id}/original-1")
    house.storage.old.is_away = True
    house.storage.backends = ("old", "memory")
    with pytest.raises(DependencyUnavailable):
        await house.sweep()
    assert house.stored() == set()


@pytest.mark.gen_test
async def test_images_of_a_damaged_document_stay(house: House) -> None:
    """Nobody knows which ones it names."""
    asset = await house.add()
    await house.store._write("UPDATE assets SET aiMetadata = 'damaged' WHERE id = :id", {"id": asset.id})
    await house.sweep()
    await house.sweep()
    assert house.stored() == {name.public_id for name in asset.image_names}


@pytest.mark.gen_test
async def test_damaged_document_stops_no_search_for_lost_jobs(house: House) -> None:
    """Of three unfinished assets in pages of one the damaged one, the second, is passed over: the third is enqueued."""
    assets = [await house.add(number, AssetStatus.PROCESSING) for number in (3, 2, 1)]
    await house.store._write("UPDATE assets SET original = '{' WHERE id = :id", {"id": assets[1].id})
    source = UnfinishedAssets(house.store, house.queue, ImageUrls(house.storage), age_seconds=60, is_fair=False)
    after, found = None, 0
    for _ in assets:
        restored, after = await source.repair(utc_now(), after, 1)
        found += restored
        if after is None:
            break
    assert found == 2
    assert (await house.queue.fields(assets[2].processing_job_id))["state"] == "waiting"


@pytest.mark.fault("U14")
@pytest.mark.gen_test
async def test_delete_while_redis_is_away_is_made_up_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The asset goes, and its dead letter as soon as Redis is back."""
    asset = await house.add(1, AssetStatus.FAILED)
    dead = FailedJob(asset.processing_job_id, asset.created_at, {"userId": "user-1"}, "no", 3, 0, None, "")
    await house.queue.restore_failed([dead])

    async def away(*_: Any) -> Any:
        raise DependencyUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(house.queue, "_call", away)
        await house.removing.delete(asset.id, "user-1")
    assert await house.store.get(asset.id) is None
    assert await house.queue.failed_job(dead.id) is not None
    await house.removing.retry()
    assert await house.queue.failed_job(dead.id) is None
