"""All assets, one after the other, and the bytes of their images, compared with what the assets say of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

from pipeline.assets.asset import Asset, ImageRef
from pipeline.assets.store import AssetStore
from pipeline.usecases.paging import Read, id_pages
from pipeline.usecases.storage import StoredImages

T = TypeVar("T")


def damaged_document(asset_id: str) -> str:
    """Return in one line that the document of that asset cannot be read."""
    return f"The document of asset {asset_id} is damaged"


class Patient(Protocol):
    """What repeats calls that fail because something is away; outage_retry.py has it."""

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what the work returns; DependencyUnavailable when it fails for too long."""


def bearing(outage_retry: Patient, read: Read[T]) -> Read[T]:
    """Return what reads pages likewise, and bears that the store is away for a while."""
    return lambda **page: outage_retry.run(partial(read, **page))


async def every_asset(
    store: AssetStore, outage_retry: Patient, on_damaged: Callable[[str], None]
) -> AsyncIterator[Asset]:
    """Yield all assets in the order of their ids, a page at a time. on_damaged: gets the id of each unreadable one."""
    async for page in id_pages(bearing(outage_retry, store.all_ids)):
        found = {asset.id: asset for asset in await outage_retry.run(partial(store.get_many, page))}
        unread = [asset_id for asset_id in page if asset_id not in found]
        # The others were deleted between the two calls.
        for asset_id in sorted(await outage_retry.run(partial(store.known, unread))) if unread else ():
            on_damaged(asset_id)
        for asset_id in page:
            if asset_id in found:
                yield found[asset_id]


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
