"""Fixtures and helpers for tests of AssetStore: each test runs on SQLite, on MongoDB and on a store that was moved."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pymongo
import pytest
from bson import ObjectId
from tornado.ioloop import IOLoop

from pipeline.assets.asset import AiMetadata, Asset, AssetStatus, ImageRef
from pipeline.assets.mongo import MongoAssetStore
from pipeline.assets.mongo_driver import DEFAULT_DRIVER
from pipeline.assets.movable import MovableStore
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import IDENTITY, AssetStore
from pipeline.assets.store_move import Move, Phase
from tests.factories import make_asset

NOON = datetime(2026, 1, 31, 12, 0, 0, 123_000, UTC)
MINUTE = timedelta(minutes=1)
FOUND = AiMetadata(
    brand={"value": "Nike", "confidence": 0.93},
    model={"value": "Air Max 90", "confidence": 0.5},
    colorway=None,
    processed_at=NOON,
)
PROCESSED = ImageRef("memory", "x/processed-1", "https://images.example/p.webp", "0" * 64)
FAILURE: dict[str, Any] = {"error": "no", "finished_at": NOON}
DAMAGED: dict[str, tuple[str, dict[str, Any]]] = {
    "no object": ("aiMetadata = 'damaged'", {"$set": {"aiMetadata": "damaged"}}),
    "no images": ("original = 'null'", {"$set": {"images.original": None}}),
}
MakeStore = Callable[[], AssetStore]


@pytest.fixture(params=["sqlite", "mongo", "motor", "moved"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path, io_loop: IOLoop) -> MakeStore:
    """Return a function that returns another store on the same database at each call."""
    path = tmp_path / "new" / "assets.sqlite"
    if request.param == "sqlite":
        return lambda: SqliteAssetStore(path)
    if request.param == "moved":
        io_loop.run_sync(lambda: begin_moved(tmp_path / "old.sqlite", path))
        return lambda: movable(tmp_path / "old.sqlite").as_asset_store()
    uri: str = request.getfixturevalue("mongo_uri")
    return lambda: MongoAssetStore(uri, driver="motor" if request.param == "motor" else DEFAULT_DRIVER)


def movable(path: Path) -> MovableStore:
    """Return a store in a file that follows a move to another store."""
    return MovableStore(SqliteAssetStore(path), str(path), lambda uri: SqliteAssetStore(Path(uri)))


async def begin_moved(old: Path, new: Path) -> None:
    """Mark the old store as moved to the new store."""
    stores = SqliteAssetStore(old), SqliteAssetStore(new)
    for store in stores:
        await store.open()
    await stores[0].identity()
    identity = await stores[0].find_record(IDENTITY, IDENTITY)
    assert identity is not None
    await stores[1].put_record(identity)
    await stores[0].put_record(Move("token", Phase.MOVED, str(new), "owner").record())
    for store in stores:
        await store.close()


@pytest.fixture
def store(io_loop: IOLoop, make_store: MakeStore) -> Iterator[AssetStore]:
    """An open store on an empty database."""
    store = make_store()
    io_loop.run_sync(store.open)
    yield store
    io_loop.run_sync(store.close)


async def create(store: AssetStore, *args: Any, **fields: Any) -> Asset:
    """Store an asset and return it."""
    asset = make_asset(*args, **fields)
    assert await store.create(asset)
    return asset


async def begin(store: AssetStore, asset: Asset) -> Asset:
    """Begin a run of the asset's job; return the asset with its new fence."""
    begun = await store.begin(asset.id, asset.user_id, asset.processing_job_id)
    assert begun is not None
    return begun


async def finish(store: AssetStore, asset: Asset, fence: int, **changes: Any) -> Asset | None:
    """Commit a result, with these fields changed; return the committed asset, or None if nothing matched."""
    result: dict[str, Any] = {"status": AssetStatus.ACTIVE, "ai_metadata": FOUND, "processed": PROCESSED}
    result |= {"finished_at": NOON} | changes
    return await store.finish(asset.id, asset.processing_job_id, fence, **result)


async def create_finished(
    store: AssetStore, status: AssetStatus, user_id: str = "user-1", at: datetime = NOON
) -> Asset:
    """Store an asset that has finished with this status, and return it."""
    asset = await create(store, user_id)
    begun = await begin(store, asset)
    if status is AssetStatus.FAILED:
        done = await store.fail(asset.id, asset.processing_job_id, begun.fence, error="no", finished_at=at)
    else:
        done = await finish(store, asset, begun.fence, status=status, finished_at=at)
    assert done is not None
    return done


def ids(assets: Any) -> list[str]:
    """Return the ids of the assets, in order."""
    return [asset.id for asset in assets]


def damage(store: AssetStore, asset: Asset, mongo_uri: str, how: str = "no object") -> None:
    """Change the asset's document so that the store cannot read it."""
    sql, change = DAMAGED[how]
    statement = f"UPDATE assets SET {sql} WHERE id = ?", (asset.id,)
    change_database(store, mongo_uri, statement, ("assets", {"_id": ObjectId(asset.id)}, change))


def damage_record(store: AssetStore, kind: str, id: str, mongo_uri: str, text: str) -> None:
    """Replace the data of the record with a text that is no JSON object."""
    statement = "UPDATE kept SET data = ? WHERE kind = ? AND id = ?", (text, kind, id)
    change_database(store, mongo_uri, statement, ("kept", {"_id": f"{kind} {id}"}, {"$set": {"data": text}}))


def change_database(
    store: AssetStore,
    mongo_uri: str,
    statement: tuple[str, tuple[str, ...]],
    update: tuple[str, dict[str, Any], dict[str, Any]],
) -> None:
    """Change the database of the store directly.

    statement: the SQL statement and its values, for a store in a file.
    update: the collection, the filter and the change, for a store in MongoDB.
    """
    store = getattr(store, "current", store)
    if isinstance(store, SqliteAssetStore):
        with closing(sqlite3.connect(store._path)) as connection, connection:
            connection.execute(*statement)
        return
    collection, match, change = update
    with pymongo.MongoClient[dict[str, Any]](mongo_uri) as client:
        client.get_default_database()[collection].update_one(match, change)


@pytest.fixture
def uri(request: pytest.FixtureRequest, store: AssetStore) -> str:
    """Return the address of the store's database, "" for a store in a file."""
    is_file = isinstance(getattr(store, "current", store), SqliteAssetStore)
    return "" if is_file else str(request.getfixturevalue("mongo_uri"))


def record_reads(store: SqliteAssetStore, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Return a list that gets each statement that the store reads with, and its values, from now on."""
    statements: list[tuple[str, Any]] = []
    read = store._read

    async def record(sql: str, values: Any) -> Any:
        statements.append((sql, values))
        return await read(sql, values)

    monkeypatch.setattr(store, "_read", record)
    return statements
