"""A store, two storages and the use cases that remove assets: the set-up of tests of retention and erasure."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from redis import Redis
from tornado.ioloop import IOLoop

from pipeline.assets.asset import Asset, AssetStatus, ImageRef
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from pipeline.hooks import StoredImage
from pipeline.images import ImageName
from pipeline.metrics import Metrics
from pipeline.queue.queue import JobQueue
from pipeline.usecases.expiry import Expiry
from pipeline.usecases.job_records import JobRecords
from pipeline.usecases.orphaned_images import OrphanedImages
from pipeline.usecases.removing import QueueJobs, Removing
from pipeline.usecases.retention import OWNERS, Sweeper
from tests.factories import make_asset
from tests.memory_storage import MemoryStorage

DAY = timedelta(days=1)


class TwoStorages(MemoryStorage):
    """The current storage, `memory`, and an older one, `old`."""

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
class AssetRemoval:
    """A store, a Redis, two storages, and the use cases that remove assets."""

    store: SqliteAssetStore
    storage: TwoStorages
    queue: JobQueue
    orphaned_images: OrphanedImages
    removing: Removing
    metrics: Metrics
    redis: Redis

    def expiry(self, *, assets: float = 0, originals: float = 0) -> Expiry:
        """Return the use case that removes assets and originals after so many days."""
        return Expiry(
            *(self.store, self.queue, self.removing, self.orphaned_images, self.metrics),
            keep_assets_days=assets,
            keep_originals_days=originals,
        )

    async def add(
        self, days_ago: float = 0, status: AssetStatus = AssetStatus.ACTIVE, backend: str = "memory"
    ) -> Asset:
        """Insert an asset that was finished so many days ago, with an original and a smaller picture."""
        at = utc_now() - days_ago * DAY
        asset = make_asset(status=status, created_at=at, finished_at=at if status.value != "processing" else None)
        preview = ImageRef(backend, f"{asset.id}/preview/320", sha256="0" * 64)
        asset = replace(asset, original=replace(asset.original, backend=backend), previews={"320": preview})
        self.storage.of(backend).put(*(name.public_id for name in asset.image_names), at=at)
        assert await self.store.create(asset)
        return asset

    async def sweep(self) -> None:
        """Sweep with a clock a day ahead, as if the last sweep were long ago."""
        self.redis.delete("pipeline:{ai-processing}:turn:sweep")
        now = lambda: utc_now() + DAY  # noqa: E731
        await Sweeper(self.store, self.storage, self.queue, self.metrics, now=now).sweep()

    def stored(self, backend: str = "memory") -> set[str]:
        """Return the names of the stored images, without the marks of installations."""
        return {name for name in self.storage.of(backend).images if not name.startswith(OWNERS)}


@pytest.fixture
def removal(io_loop: IOLoop, store: SqliteAssetStore, redis_url: str, redis: Redis) -> Iterator[AssetRemoval]:
    storage, queue, notifications = TwoStorages(), JobQueue(redis_url), JobQueue(redis_url, name="notifications")
    orphaned_images = OrphanedImages(store, storage)
    records = [JobRecords(store, each, keep_failed_seconds=60, max_age_seconds=60) for each in (queue, notifications)]
    removing = Removing(store, orphaned_images, QueueJobs(queue, records[0]), QueueJobs(notifications, records[1]))
    yield AssetRemoval(store, storage, queue, orphaned_images, removing, Metrics(), redis)
    io_loop.run_sync(queue.close)
    io_loop.run_sync(notifications.close)
