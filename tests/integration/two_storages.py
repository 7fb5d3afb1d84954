"""Two image storages in one object, as a move between storages uses them, and assets with their images."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from pipeline.assets.asset import Asset
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.errors import DependencyUnavailable
from pipeline.images import ImageName, SavedImage
from pipeline.usecases.outage_retry import OutageRetry
from tests.factories import make_asset
from tests.memory_storage import MemoryStorage

# Does not wait for a storage that is unavailable.
AT_ONCE = OutageRetry(longest_seconds=0)
PHOTO = b"\xff\xd8photo"
PHOTO_HASH = hashlib.sha256(PHOTO).hexdigest()


class TwoStorages(MemoryStorage):
    """Two storages in one. The first of `backends` is the current one. `save` fails after `saves_left` images."""

    def __init__(self) -> None:
        super().__init__()
        self.backends = ("new", "memory")
        self.inner = {"new": MemoryStorage(), "memory": MemoryStorage()}
        self.saves_left = 0

    async def save(self, public_id: str, *arguments: Any) -> SavedImage:
        if not self.saves_left:
            raise DependencyUnavailable("Image storage unavailable")
        self.saves_left -= 1
        await self.inner["new"].save(public_id, *arguments)
        return SavedImage("new", f"https://new.example/{public_id}")

    async def read(self, name: ImageName) -> bytes:
        return await self.inner[name.backend].read(name)

    async def delete(self, name: ImageName) -> None:
        await self.inner[name.backend].delete(name)


def make_storages(*assets: Asset, saves: int = 9) -> TwoStorages:
    """Return two storages; the old one has the images of the assets."""
    storage = TwoStorages()
    storage.saves_left = saves
    for asset in assets:
        storage.inner["memory"].images[asset.original.public_id] = PHOTO
    return storage


async def created(store: SqliteAssetStore, **fields: Any) -> Asset:
    """Insert an asset whose original is PHOTO."""
    asset = make_asset(**fields)
    asset = dataclasses.replace(asset, original=dataclasses.replace(asset.original, sha256=PHOTO_HASH))
    assert await store.create(asset)
    return asset
