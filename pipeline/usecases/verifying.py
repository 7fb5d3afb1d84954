"""Use case: do images and assets match? Every image that an asset names is read, and its hash compared."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import NamedTuple

from pipeline.assets.asset import Asset, ImageRef
from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.images import ImageName
from pipeline.usecases.leftovers import find_unnamed
from pipeline.usecases.storage import StoredImages

PAGE = 100
# A younger one may belong to an upload that is under way.
LEAST_AGE = timedelta(hours=1)


class Flaw(NamedTuple):
    """What is wrong with an image. what: missing | damaged | unreadable | unnamed. asset_id: "" of one without."""

    what: str
    asset_id: str
    backend: str
    public_id: str


async def every_asset(store: AssetStore) -> AsyncIterator[Asset]:
    """Yield all assets in the order of their ids, a page at a time."""
    after = ""
    while page := await store.all_assets(limit=PAGE, after=after):
        for asset in page:
            yield asset
        after = page[-1].id


async def sha256_of(content: bytes) -> str:
    """Return the hash, hex. In a thread: of ten megabytes it takes longer than a loop may wait."""
    return await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())


async def read_checked(storage: StoredImages, image: ImageRef) -> bytes:
    """Return the image's bytes; FileNotFoundError when it is not there, ValueError when they are not what they were."""
    assert image.name is not None
    content = await storage.read(image.name)
    # Of an image that version 0.1 stored, the hash is not known.
    if image.sha256 and await sha256_of(content) != image.sha256:
        raise ValueError(f"{image.public_id} is damaged")
    return content


async def verify(
    store: AssetStore, storage: StoredImages, on_checked: Callable[[], None] = lambda: None
) -> AsyncIterator[Flaw]:
    """Yield every flaw. on_checked: called after each asset. What changes meanwhile is looked at once more."""
    async for asset in every_asset(store):
        for image in asset.images:
            if image.name is None or (what := await _flaw(storage, image)) is None:
                continue
            current = await store.get(asset.id)
            if current is not None and image.name in current.image_names:
                yield Flaw(what, asset.id, *image.name)
        on_checked()
    before = utc_now() - LEAST_AGE
    for backend in storage.backends:
        if not await storage.can_list(backend):
            continue
        async for images in storage.list_images(backend, "", PAGE):
            old = [ImageName(backend, image.public_id) for image in images if image.stored_at < before]
            for name in await find_unnamed(store, old):
                yield Flaw("unnamed", "", *name)


async def _flaw(storage: StoredImages, image: ImageRef) -> str | None:
    try:
        await read_checked(storage, image)
    except FileNotFoundError:
        return "missing"
    except ValueError:
        return "damaged"
    except DependencyUnavailable:
        return "unreadable"
    return None
