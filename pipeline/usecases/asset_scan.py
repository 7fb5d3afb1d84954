"""All assets of the store, one after the other, for the commands that back up, verify and move."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TypeVar

from pipeline.assets.asset import Asset
from pipeline.assets.store import AssetStore
from pipeline.usecases.outage_retry import OutageRetry
from pipeline.usecases.paging import Read, id_pages

T = TypeVar("T")


def damaged_document(asset_id: str) -> str:
    """Return one line that says that the asset's document cannot be read."""
    return f"The document of asset {asset_id} is damaged"


def retried(outage_retry: OutageRetry, read: Read[T]) -> Read[T]:
    """Return a function that reads pages as `read` does, and retries while the store is away."""
    return lambda **page: outage_retry.run(partial(read, **page))


async def every_asset(
    store: AssetStore, outage_retry: OutageRetry, on_damaged: Callable[[str], None]
) -> AsyncIterator[Asset]:
    """Yield all assets in the order of their ids, a page at a time.

    on_damaged: called with the id of each asset that cannot be read
    """
    async for page in id_pages(retried(outage_retry, store.all_ids)):
        assets = {asset.id: asset for asset in await outage_retry.run(partial(store.get_many, page))}
        unread = [asset_id for asset_id in page if asset_id not in assets]
        # The other assets were deleted between the two calls.
        for asset_id in sorted(await outage_retry.run(partial(store.existing_ids, unread))) if unread else ():
            on_damaged(asset_id)
        for asset_id in page:
            if asset_id in assets:
                yield assets[asset_id]
