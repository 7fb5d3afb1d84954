"""Sweeps at the same time as uploads, runs and deletes remove no image that an asset names."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any

import pytest

from pipeline.assets.asset import AssetStatus, ImageRef
from pipeline.assets.asset_ids import processed_public_id
from pipeline.clock import utc_now
from pipeline.images import ImageName, SavedImage
from pipeline.usecases.retention import OWNERS
from tests.factories import make_asset
from tests.faults.sweeping import LONG_AGO, Sweeping, names_of
from tests.memory_storage import MemoryStorage


class Shuffled(MemoryStorage):
    """A storage whose calls run in random order. The images of runs look old at once."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance

    async def pause(self) -> None:
        for _ in range(self.chance.randrange(4)):
            await asyncio.sleep(0)

    async def save(self, public_id: str, *arguments: Any) -> SavedImage:
        saved = await super().save(public_id, *arguments)
        if "processed" in public_id:
            self.put(public_id, at=LONG_AGO)
        await self.pause()
        return saved

    async def delete(self, name: ImageName) -> None:
        await self.pause()
        await super().delete(name)


async def run_asset(sweeping: Sweeping, chance: random.Random) -> None:
    """Upload an asset, run it a few times and delete it in some cases, as the service does."""
    asset = make_asset()
    await sweeping.save(asset.original.public_id)
    # The image may look old only now: a sweep spares images of the age of the longest upload.
    await sweeping.store.create(asset)
    sweeping.storage.put(asset.original.public_id, at=LONG_AGO)
    for _ in range(chance.randrange(1, 4)):
        begun = await sweeping.store.begin(asset.id, asset.user_id, asset.processing_job_id)
        assert begun is not None
        if chance.random() < 0.3:
            continue  # the process was killed before it saved an image
        public_id = await sweeping.save(processed_public_id(asset.id, begun.fence))
        if chance.random() < 0.3:
            continue  # the process was killed after it saved the image
        ref = ImageRef("memory", public_id, "https://images.example/p", "0" * 64)
        keep = dict(status=AssetStatus.PARTIAL, ai_metadata=asset.ai_metadata, finished_at=utc_now())
        finished = await sweeping.store.finish(
            asset.id, asset.processing_job_id, begun.fence, processed=ref, **keep  # type: ignore[arg-type]
        )
        assert finished is not None
        if chance.random() < 0.5:
            break
        await sweeping.store.requeue(asset.id, asset.user_id, asset.processing_job_id)
    if chance.random() < 0.3:
        await sweeping.store.delete(asset.id, asset.user_id)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.gen_test(timeout=60)
async def test_sweep_during_uploads_runs_and_deletes_removes_no_named_image(
    sweeping: Sweeping, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """In any order of three hundred assets and the sweeps, the images that assets name at the end are stored."""
    monkeypatch.setattr("pipeline.usecases.retention.REST_SECONDS", 0)
    chance = random.Random(seed)
    parts = sweeping.storage.list_images(sweeping.storage.backends[0], OWNERS, 2)
    (mark,) = [image.public_id async for part in parts for image in part]
    sweeping.storage, sweeping.later = Shuffled(chance), timedelta()
    sweeping.storage.put(mark, at=LONG_AGO)

    async def run_assets() -> None:
        for _ in range(15):
            await run_asset(sweeping, chance)

    running = [asyncio.create_task(run_assets()) for _ in range(20)]
    while not all(each.done() for each in running):
        await sweeping.sweep()
    await asyncio.gather(*running)
    removed_meanwhile = sweeping.swept_images
    await sweeping.sweep()
    ids = {name.split("/")[0] for name in sweeping.storage.saved_at} - {"owner"}
    assets = await sweeping.store.get_many(ids)
    named = {public_id for asset in assets for public_id in names_of(asset)}
    stored = await sweeping.names()
    assert named <= stored and len(named) > 200
    # The other stored images belong to runs that may still be committed.
    assert all(any(asset.refers_to(ImageName("memory", public_id)) for asset in assets) for public_id in stored)
    assert removed_meanwhile > 0
