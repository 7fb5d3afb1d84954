"""Images that no asset names: how they are found and removed, now or a little later. Runs on the event loop.

An image that stays, because the process died or the storage was away for long, is removed by the sweeper of
retention.py.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress

import structlog

from pipeline.assets.asset import Asset, ImageRef
from pipeline.assets.store import AssetStore
from pipeline.delays import retry_delays
from pipeline.errors import DependencyUnavailable, PipelineError
from pipeline.images import ImageName
from pipeline.texts import cause_of
from pipeline.usecases.storage import StoredImages
from pipeline.usecases.storages_in_use import all_in_use

log = structlog.get_logger(__name__)

# The delays before an image is removed. After the last try it is left to the sweeper.
RETRY_SECONDS = (1.0, 10.0, 60.0, 600.0)
# How many removals may wait for their next try.
WAITING_AT_MOST = 1000
LISTED_AT_ONCE = 100
# How many uploads of unknown outcome are checked at a time, and the delays between two checks of one.
UNSETTLED_AT_MOST = 1000
SETTLE_SECONDS = (1.0, 30.0)
# The name of an image of this service: the asset's id, and which of its images it is.
OUR_IMAGE = re.compile(r"([0-9a-f]{24})(?:/[a-z0-9-]+){1,2}")


async def find_unnamed(store: AssetStore, names: Iterable[ImageName]) -> list[ImageName]:
    """Return the images that no asset names. An image whose name is not of this service's form is never returned."""
    ours = {name: match[1] for name in names if (match := OUR_IMAGE.fullmatch(name.public_id))}
    assets = {asset.id: asset for asset in await store.get_many(set(ours.values()))} if ours else {}
    missing = set(ours.values()) - assets.keys()
    # A damaged document may name any of its images.
    damaged = await store.existing_ids(missing) if missing else ()
    return [
        name
        for name, asset_id in ours.items()
        if asset_id not in damaged and (asset_id not in assets or not assets[asset_id].refers_to(name))
    ]


def names_of(*images: ImageRef | None) -> list[ImageName]:
    """Return the names of those images that are in a storage of this service."""
    return [image.name for image in images if image is not None and image.name]


class OrphanedImages:
    """Removes images of assets that are deleted, were never inserted, or have another image now."""

    def __init__(self, store: AssetStore, storage: StoredImages) -> None:
        self._store = store
        self._storage = storage
        # Removals that wait for their next try; to be cancelled when the process ends.
        self.tasks: set[asyncio.Task[None]] = set()

    async def images_of(
        self, asset_id: str, named: Collection[ImageName] = (), *, insists: bool = False
    ) -> set[ImageName]:
        """Return the names of the asset's images in the storages in use.

        named: the images that the asset names; they are returned too
        insists: raise DependencyUnavailable when a storage cannot list its images now
        """
        names = set(named)
        prefix = f"{asset_id}/"
        in_use = await all_in_use(self._store, self._storage) if insists else self._storage.backends
        for backend in {*in_use, *(name.backend for name in names)}:
            try:
                if not await self._storage.can_list(backend):
                    continue
                async for images in self._storage.list_images(backend, prefix, LISTED_AT_ONCE):
                    ours = (image.public_id for image in images if image.public_id.startswith(prefix))
                    names |= {ImageName(backend, public_id) for public_id in ours}
            except DependencyUnavailable as error:
                if insists:
                    raise
                log.warning("images_not_listed", assetId=asset_id, backend=backend, cause=cause_of(error))
        return names

    async def remove(self, names: Collection[ImageName]) -> None:
        """Remove the images; DependencyUnavailable when one cannot be removed."""
        for name in names:
            await self._storage.delete(name)

    async def remove_unless(
        self,
        commit: Awaitable[Asset | None],
        processed: ImageRef | None,
        previews: Mapping[str, ImageRef] | None,
    ) -> Asset | None:
        """Return the asset that `commit` returns.

        If `commit` raises, or returns None because its run was overtaken, the new images of the result are removed.
        """
        saved = names_of(processed, *(previews or {}).values())
        try:
            finished = await commit
        except BaseException:
            # The store may have committed all the same: only images that no asset names by then are removed.
            self.discard_later(saved)
            raise
        if finished is None:
            await self.discard(names_of(processed))
            # Previews have the same names in every run: the newer run may have named them.
            self.discard_later(saved)
        return finished

    async def discard(self, names: Collection[ImageName]) -> None:
        """Remove images that no asset names; those that cannot be removed now are removed later."""
        if remaining := await self._remove(names):
            self.discard_later(remaining)

    def discard_later(self, names: Collection[ImageName]) -> None:
        """Remove the images a little later, in the background, unless an asset names them by then."""
        if not names:
            return
        if len(self.tasks) >= WAITING_AT_MOST:
            log.warning("images_left_behind", count=len(names), cause="too many removals wait")
            return
        task = asyncio.create_task(self._discard_later(names), name="discard images")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _discard_later(self, names: Collection[ImageName]) -> None:
        remaining = set(names)
        for seconds in RETRY_SECONDS:
            await asyncio.sleep(seconds)
            try:
                unnamed = await find_unnamed(self._store, remaining)
            except DependencyUnavailable:
                continue
            # An image that an asset names now may be that of a run that is overtaken soon.
            remaining -= set(unnamed) - await self._remove(unnamed)
            if not remaining:
                return

    async def _remove(self, names: Collection[ImageName]) -> set[ImageName]:
        """Remove the images and return those that cannot be removed now."""
        remaining = set()
        for name in names:
            try:
                await self._storage.delete(name)
            except PipelineError as error:
                remaining.add(name)
                log.warning("image_left_behind", publicId=name.public_id, backend=name.backend, cause=cause_of(error))
        return remaining


class UnsettledUploads:
    """Uploads whose insert had an unknown outcome: their image is an orphan, or their asset needs a job."""

    def __init__(self, store: AssetStore, orphaned_images: OrphanedImages, on_inserted: Callable[[], None]) -> None:
        """on_inserted: called when an asset turns out to be inserted"""
        self._store = store
        self._orphaned_images = orphaned_images
        self._on_inserted = on_inserted
        # To be cancelled when the process ends.
        self.tasks: set[asyncio.Task[None]] = set()

    def settle_later(self, asset: Asset) -> None:
        """Find out in the background whether the asset was inserted."""
        if len(self.tasks) >= UNSETTLED_AT_MOST:
            log.warning("image_left_behind", publicId=asset.original.public_id)
            return
        task = asyncio.create_task(self._settle(asset), name=f"settle {asset.id}")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _settle(self, asset: Asset) -> None:
        """Ask the store until it answers: have the asset processed if it is there, else remove its image.

        An asset that is there stays: its client may have repeated the upload with its Idempotency-Key, and got its id.
        """
        current = None
        for delay in retry_delays(*SETTLE_SECONDS):
            await asyncio.sleep(delay)
            with suppress(DependencyUnavailable):
                current = await self._store.get(asset.id)
                break
        if current is None or current.original.name != asset.original.name:
            await self._orphaned_images.discard(asset.image_names)
        else:
            self._on_inserted()
