"""A store, a Redis and a storage whose orphaned images are swept: the set-up of tests of the sweep."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from tornado.ioloop import IOLoop

from pipeline.assets.asset import Asset, AssetStatus, ImageRef
from pipeline.assets.asset_ids import processed_public_id
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from pipeline.errors import ConfigurationError
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.storages import Storages
from pipeline.hooks.storage_calls import StorageCalls
from pipeline.metrics import Metrics
from pipeline.queue.queue import JobQueue
from pipeline.tracing import OFF
from pipeline.usecases.retention import LEAST_AGE, OWNERS, Sweeper
from pipeline.plugins.storage_local import LocalStorage
from tests.factories import make_asset, make_image

LONG_AGO = utc_now() - 2 * LEAST_AGE
TURN_KEY = "pipeline:{ai-processing}:turn:sweep"


@dataclass
class Sweeping:
    """A store, a Redis and a storage whose images are swept.

    later: how far the clock of the sweep is ahead.
    """

    store: SqliteAssetStore
    storage: Any
    queue: JobQueue
    redis: Redis
    metrics: Metrics
    later: timedelta = timedelta()

    def sweeper(self) -> Sweeper:
        now = lambda: utc_now() + self.later  # noqa: E731
        return Sweeper(self.store, self.storage, self.queue, self.metrics, now=now)

    async def sweep(self) -> None:
        """Sweep as if the last sweep were long ago."""
        self.redis.delete(TURN_KEY)
        await self.sweeper().sweep()

    async def add(self, status: AssetStatus = AssetStatus.ACTIVE, fence: int = 0, processed: int = 0) -> Asset:
        """Insert an asset and save its images.

        processed: the run that made the processed image, 0 for none.
        """
        asset = make_asset(status=status, fence=fence)
        if processed:
            public_id = processed_public_id(asset.id, processed)
            asset = replace(asset, processed=ImageRef("memory", public_id, "https://images.example/p", "0" * 64))
        for name in asset.image_names:
            await self.save(name.public_id)
        assert await self.store.create(asset)
        return asset

    async def save(self, public_id: str) -> str:
        """Save an image with this name and return the name."""
        await self.storage.save(public_id, io.BytesIO(make_image()), "image/jpeg")
        return public_id

    async def names(self) -> set[str]:
        """Return the names of the stored images, without the marks of installations."""
        parts = self.storage.list_images(self.storage.backends[0], "", 100)
        stored = [image.public_id async for part in parts for image in part]
        return {name for name in stored if not name.startswith(OWNERS)}

    @property
    def swept_images(self) -> float:
        return self.metrics.registry.get_sample_value("pipeline_images_swept_total") or 0


def names_of(asset: Asset) -> list[str]:
    return [name.public_id for name in asset.image_names]


def no_other(name: str) -> StorageCalls:
    raise ConfigurationError(f"there is no storage {name}")


@pytest.fixture
def media(tmp_path: Path) -> Path:
    return tmp_path / "media"


@pytest.fixture
def sweeping(io_loop: IOLoop, tmp_path: Path, media: Path, redis_url: str, redis: Redis) -> Iterator[Sweeping]:
    """A storage in a folder with the mark of this installation; its images are old, as the clock is a day ahead."""
    local, metrics = LocalStorage(media, "http://127.0.0.1:8080"), Metrics()
    methods = {name: getattr(local, name) for name in ("save", "open", "delete", "check", "list")}
    storing = StorageCalls(BoundPlugin("storage", "memory", local, methods, threads=2, metrics=metrics), 5, OFF)
    store, queue = SqliteAssetStore(tmp_path / "assets.sqlite"), JobQueue(redis_url)
    io_loop.run_sync(store.open)
    sweeping = Sweeping(store, Storages(storing, no_other), queue, redis, metrics)
    io_loop.run_sync(sweeping.sweep)
    sweeping.later = timedelta(days=1)
    yield sweeping
    io_loop.run_sync(queue.close)
    io_loop.run_sync(store.close)
    io_loop.run_sync(storing.close)
