"""Use case: images and assets are compared: every image that an asset names is read, and its hash is checked.

Uploads, deletes and moves may be under way: a flaw is checked again a little later before it is reported.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from datetime import timedelta
from functools import partial
from typing import NamedTuple

from pipeline.assets.asset import ImageRef
from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.images import ImageName
from pipeline.usecases.asset_scan import damaged_document, every_asset
from pipeline.usecases.orphaned_images import find_unnamed
from pipeline.usecases.outage_retry import OutageRetry, Unreadable
from pipeline.usecases.storage import StoredImages
from pipeline.usecases.storages_in_use import all_in_use, storages_left_lately

PAGE = 100
# A younger image may belong to an upload that is under way.
LEAST_AGE = timedelta(hours=1)
# A delete removes the document before its images, an erase after them: neither takes so long in between.
RECHECK_SECONDS = 2.0
# A flaw that will disappear: an image that was moved away, whose URLs still work.
LEAVING = "leaving"


class Flaw(NamedTuple):
    """A flaw of an image, of a document or of a storage.

    what: missing | damaged | unreadable | unnamed | leaving
    asset_id: "" for an image without an asset
    backend: "" when the document itself is damaged
    public_id: "" when the document is damaged, or the storage cannot list its images
    """

    what: str
    asset_id: str
    backend: str
    public_id: str

    @property
    def text(self) -> str:
        """The flaw in one line."""
        if not self.backend:
            return damaged_document(self.asset_id)
        if not self.public_id:
            return f"The list of images in {self.backend} is {self.what}"
        of = f" of asset {self.asset_id}" if self.asset_id else ""
        return f"{self.public_id}{of} in {self.backend} is {self.what}"


class Verification:
    """Compares the assets with the images in the storages."""

    def __init__(
        self,
        store: AssetStore,
        storage: StoredImages,
        outage_retry: OutageRetry | None = None,
        *,
        recheck_seconds: float = RECHECK_SECONDS,
    ) -> None:
        """again_seconds: after which time a flaw is checked again"""
        self._store = store
        self._storage = storage
        self._outage_retry = outage_retry or OutageRetry()
        self._recheck_seconds = recheck_seconds
        # How many images the assets name, by storage.
        self.images: Counter[str] = Counter()

    async def flaws(self, on_checked: Callable[[], None] = lambda: None) -> AsyncIterator[Flaw]:
        """Yield every flaw.

        on_checked: called after each asset
        """
        damaged: list[str] = []
        suspects: list[str] = []
        async for asset in every_asset(self._store, self._outage_retry, damaged.append):
            self.images.update(image.backend for image in asset.images if image.name)
            if [image for image in asset.images if await self._flaw(image)]:
                suspects.append(asset.id)
            if len(suspects) >= PAGE:
                async for flaw in self._confirmed(suspects):
                    yield flaw
                suspects.clear()
            on_checked()
        async for flaw in self._confirmed(suspects):
            yield flaw
        for asset_id in damaged:
            yield Flaw("damaged", asset_id, "", "")
        leaving = await storages_left_lately(self._store, utc_now())
        for backend in await all_in_use(self._store, self._storage):
            async for flaw in self._strays(backend, LEAVING if backend in leaving else "unnamed"):
                yield flaw

    async def _confirmed(self, asset_ids: Collection[str]) -> AsyncIterator[Flaw]:
        """Yield those flaws of the assets that are still there when they are checked again."""
        if asset_ids:
            await asyncio.sleep(self._recheck_seconds)
        for asset_id in asset_ids:
            asset = await self._outage_retry.run(partial(self._store.get, asset_id))
            for image in asset.images if asset else ():
                if (what := await self._flaw(image)) is None:
                    continue
                current = await self._outage_retry.run(partial(self._store.get, asset_id))
                if current is not None and image.name and image.name in current.image_names:
                    yield Flaw(what, asset_id, *image.name)

    async def _strays(self, backend: str, what: str) -> AsyncIterator[Flaw]:
        """Yield images of the storage that no asset names.

        what: the name of the flaw
        """
        if not await self._storage.can_list(backend):
            return
        before = utc_now() - (timedelta() if what == LEAVING else LEAST_AGE)
        suspects: list[ImageName] = []
        try:
            async for images in self._storage.list_images(backend, "", PAGE):
                old = [ImageName(backend, image.public_id) for image in images if image.stored_at < before]
                suspects += await find_unnamed(self._store, old)
                if what == LEAVING or len(suspects) >= PAGE:
                    for name in suspects if what == LEAVING else await self._still_there(suspects):
                        yield Flaw(what, "", *name)
                    suspects.clear()
        except DependencyUnavailable:
            yield Flaw("unreadable", "", backend, "")
        for name in await self._still_there(suspects):
            yield Flaw(what, "", *name)

    async def _still_there(self, names: Sequence[ImageName]) -> Sequence[ImageName]:
        """Return the images that still exist a little later, and that still no asset names."""
        if names:
            await asyncio.sleep(self._recheck_seconds)
        unnamed = await find_unnamed(self._store, names)
        return [name for name in unnamed if await self._flaw(ImageRef(*name)) != "missing"]

    async def _flaw(self, image: ImageRef) -> str | None:
        if image.name is None:
            return None
        try:
            await self._outage_retry.read(self._storage, image)
        except FileNotFoundError:
            return "missing"
        except ValueError:
            return "damaged"
        except (Unreadable, DependencyUnavailable):
            return "unreadable"
        return None
