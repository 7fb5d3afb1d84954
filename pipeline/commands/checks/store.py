"""The check of the asset store."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

from pipeline.assets.asset import Asset, AssetStatus, ImageRef
from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from pipeline.commands.checks.findings import Finding, Mark, shown_address
from pipeline.errors import DependencyUnavailable
from pipeline.stores import build_store
from pipeline.settings import Settings


async def check_store(settings: Settings) -> AsyncIterator[Finding]:
    """Write a test asset, read it and delete it."""
    store, uri = build_store(settings), settings.mongodb_uri.get_secret_value()
    name = shown_address(uri) if uri else f"embedded: {settings.data_dir / 'assets.sqlite'}"
    configured = store.uri
    try:
        await store.open()
        await store.check()
        await _probe_store(store.as_asset_store())
    finally:
        await store.close()
    yield Finding(Mark.OK, "asset store", f"{name}: an asset can be written, read and removed")
    if store.uri != configured:
        yield Finding(Mark.WARNING, "asset store", "it was moved to another store", "set MONGODB_URI to that store")


async def _probe_store(store: AssetStore) -> None:
    """Write a draft, which workers and the reconciler ignore, read it and delete it."""
    now, asset_id = utc_now(), secrets.token_hex(12)
    original = ImageRef("check", "check", "https://check.invalid/", "", 1, 1, 1, "image/jpeg")
    asset = Asset(asset_id, f"check-{asset_id}", "other", AssetStatus.DRAFT, original, "check", now, now)
    await store.create(asset)
    try:
        if await store.get(asset_id) != asset:
            raise DependencyUnavailable("It returned another asset than was written")
    finally:
        await store.delete(asset_id, asset.user_id)
