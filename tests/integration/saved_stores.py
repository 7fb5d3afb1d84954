"""Stores of which a test writes a backup, and an empty store to restore it into."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.assets.asset import Asset
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import Record
from pipeline.clock import utc_now
from pipeline.usecases.backup import back_up
from tests.factories import make_asset
from tests.memory_storage import MemoryStorage


def with_photo(storage: MemoryStorage, content: bytes = b"photo" * 50, **fields: Any) -> Asset:
    """Return an asset whose image is in the storage."""
    asset = make_asset(**fields)
    digest = hashlib.sha256(content).hexdigest()
    storage.put(asset.original.public_id)
    storage.images[asset.original.public_id] = content
    return dataclasses.replace(asset, original=dataclasses.replace(asset.original, sha256=digest))


@pytest.fixture
def other(io_loop: IOLoop, tmp_path: Path) -> Iterator[SqliteAssetStore]:
    """An empty store, for a restore."""
    other = SqliteAssetStore(tmp_path / "other.sqlite")
    io_loop.run_sync(other.open)
    yield other
    io_loop.run_sync(other.close)


async def save(store: SqliteAssetStore, path: Path, count: int = 3) -> list[Asset]:
    """Fill the store, write its backup and return its assets."""
    storage = MemoryStorage()
    assets = [with_photo(storage, b"photo %d" % number * 50) for number in range(count)]
    for asset in assets:
        assert await store.create(asset)
    await store.put_record(Record("pause", "ai-processing", utc_now(), {}))
    assert (await back_up(store, storage, path)).problems == []
    return assets
