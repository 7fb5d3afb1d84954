"""Images that no asset names: which they are, and their removal, now or a little later. Runs on the event loop.

What stays all the same, because the process died or the storage was away for long, is removed by the sweeper of
retention.py.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable

import structlog

from pipeline.assets.store import AssetStore
from pipeline.errors import DependencyUnavailable, PipelineError
from pipeline.images import ImageName
from pipeline.texts import cause_of
from pipeline.usecases.storage import StoredImages
from pipeline.usecases.storages_in_use import all_in_use

log = structlog.get_logger(__name__)

# The pauses before an image is tried again. After the last one it is left to the sweeper.
AGAIN_SECONDS = (1.0, 10.0, 60.0, 600.0)
# How many removals may wait for that at once.
WAITING_AT_MOST = 1000
LISTED_AT_ONCE = 100
# Only what is named like this is ours: an asset's id, and what its image is.
OUR_IMAGE = re.compile(r"([0-9a-f]{24})(?:/[a-z0-9-]+){1,2}")


async def find_unnamed(store: AssetStore, names: Iterable[ImageName]) -> list[ImageName]:
    """Return those of the images that no asset names. What is not named like an image of ours is never among them."""
    ours = {name: found[1] for name in names if (found := OUR_IMAGE.fullmatch(name.public_id))}
    assets = {asset.id: asset for asset in await store.get_many(set(ours.values()))} if ours else {}
    missing = set(ours.values()) - assets.keys()
    # Nobody knows which images a damaged document names.
    damaged = await store.known(missing) if missing else ()
    return [
        name
        for name, asset_id in ours.items()
        if asset_id not in damaged and (asset_id not in assets or not assets[asset_id].names(name))
    ]


class OrphanedImages:
    """Removes images of assets that are gone, never came to be, or have another image now."""

    def __init__(self, store: AssetStore, storage: StoredImages) -> None:
        self._store = store
        self._storage = storage
        # Those that try again later; to be cancelled at the end.
        self.tasks: set[asyncio.Task[None]] = set()

    async def images_of(
        self, asset_id: str, named: Collection[ImageName] = (), *, insists: bool = False
    ) -> set[ImageName]:
        """Return the names of what is stored of the asset in the storages in use, and of what it names itself.

        insists: raise DependencyUnavailable when a storage that lists its images cannot be asked.
        """
        found = set(named)
        prefix = f"{asset_id}/"
        in_use = await all_in_use(self._store, self._storage) if insists else self._storage.backends
        for backend in {*in_use, *(name.backend for name in found)}:
            try:
                if not await self._storage.can_list(backend):
                    continue
                async for images in self._storage.list_images(backend, prefix, LISTED_AT_ONCE):
                    ours = (image.public_id for image in images if image.public_id.startswith(prefix))
                    found |= {ImageName(backend, public_id) for public_id in ours}
            except DependencyUnavailable as error:
                if insists:
                    raise
                log.warning("images_not_listed", assetId=asset_id, backend=backend, cause=cause_of(error))
        return found

    async def remove(self, names: Collection[ImageName]) -> None:
        """Remove the images; DependencyUnavailable when one could not be."""
        for name in names:
            await self._storage.delete(name)

    async def discard(self, names: Collection[ImageName]) -> None:
        """Remove the images, which no asset names; what cannot be removed now is tried again later."""
        if left := await self._remove(names):
            self.discard_later(left)

    def discard_later(self, names: Collection[ImageName]) -> None:
        """Remove the images a little later, in the background: those that no asset names by then."""
        if not names:
            return
        if len(self.tasks) >= WAITING_AT_MOST:
            log.warning("images_left_behind", count=len(names), cause="too many removals wait")
            return
        task = asyncio.create_task(self._discard_later(names), name="discard images")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _discard_later(self, names: Collection[ImageName]) -> None:
        left = set(names)
        for seconds in AGAIN_SECONDS:
            await asyncio.sleep(seconds)
            try:
                unnamed = await find_unnamed(self._store, left)
            except DependencyUnavailable:
                continue
            # What an asset names now may be the image of a run that is superseded soon.
            left -= set(unnamed) - await self._remove(unnamed)
            if not left:
                return

    async def _remove(self, names: Collection[ImageName]) -> set[ImageName]:
        """Remove the images and return those that could not be."""
        left = set()
        for name in names:
            try:
                await self._storage.delete(name)
            except PipelineError as error:
                left.add(name)
                log.warning("image_left_behind", publicId=name.public_id, backend=name.backend, cause=cause_of(error))
        return left
