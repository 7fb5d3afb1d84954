"""A move of the asset store in one process: the store, the move, writes meanwhile, and a command that is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.assets import movable
from pipeline.assets.asset import AssetStatus
from pipeline.assets.mongo import MongoAssetStore
from pipeline.assets.movable import MovableStore
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import IDENTITY, AssetStore, KeyRecord, Record
from pipeline.clock import utc_now
from pipeline.usecases import moving_processes, store_moving
from pipeline.usecases.outage_retry import OutageRetry
from pipeline.usecases.store_copying import Copied
from pipeline.usecases.store_moving import StoreMove
from tests.factories import make_asset
from tests.integration.asset_stores import FOUND, NOON


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten all waits to what these tests need."""
    monkeypatch.setattr(movable, "LEASE_SECONDS", 0.2)
    monkeypatch.setattr(movable, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(movable, "MOVING_SECONDS", 0.02)
    monkeypatch.setattr(store_moving, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(moving_processes, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(store_moving, "REST_SECONDS", 0.05)


class Scene:
    """A service's store, and the two databases between which it moves."""

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new
        self.movable = MovableStore(self.opener(old), old, self.opener)
        self.store = self.movable.as_asset_store()

    @staticmethod
    def opener(uri: str) -> AssetStore:
        return MongoAssetStore(uri) if uri.startswith("mongodb") else SqliteAssetStore(Path(uri))

    async def move(
        self, old: str = "", new: str = "", on_phase: Callable[[str], None] = lambda words: None, **options: Any
    ) -> Copied:
        """Run the move in this process, as the command does."""
        stores = self.opener(old or self.old), self.opener(new or self.new)
        try:
            for store in stores:
                await store.open()
            slowdown = OutageRetry(longest_seconds=5)
            move = StoreMove(*stores, new or self.new, slowdown, on_phase=on_phase, lease_seconds=0.3, **options)
            copied = await move.run()
            await self.movable.look()
            return copied
        finally:
            for store in stores:
                await store.close()

    async def copy_identity(self) -> None:
        """Write the identity of the old database into the new one, as a move does."""
        identity = await self.store.find_record(IDENTITY, IDENTITY)
        assert identity is not None
        await self.raw(self.new, lambda store: store.put_record(identity))

    async def raw(self, uri: str, ask: Callable[[AssetStore], Awaitable[Any]]) -> Any:
        """Return the answer of one of the databases, without the movable store."""
        store = self.opener(uri)
        await store.open()
        try:
            return await ask(store)
        finally:
            await store.close()


@pytest.fixture(params=["sqlite", "mongo"])
def scene(request: pytest.FixtureRequest, tmp_path: Path, io_loop: IOLoop) -> Iterator[Scene]:
    """Yield a store in a file; the other database is a second file, or a MongoDB."""
    new = str(tmp_path / "new.sqlite") if request.param == "sqlite" else request.getfixturevalue("mongo_uri")
    scene = Scene(str(tmp_path / "old.sqlite"), new)
    io_loop.run_sync(scene.movable.open)
    io_loop.run_sync(scene.store.identity)
    following = asyncio.ensure_future(scene.movable.run(), loop=io_loop.asyncio_loop)  # type: ignore[attr-defined]
    yield scene
    following.cancel()
    io_loop.run_sync(scene.movable.close)


only_files = pytest.mark.parametrize("scene", ["sqlite"], indirect=True)


class Load:
    """Writes of all kinds, one after the other, until the context ends.

    expected: the document of each asset at that time.
    """

    def __init__(self, store: AssetStore) -> None:
        self._store = store
        self.expected: dict[str, Any] = {}
        self.deleted: list[str] = []
        self._is_over = False

    async def __aenter__(self) -> Load:
        self._task = asyncio.create_task(self._write())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._is_over = True
        await self._task

    async def _write(self) -> None:
        number = 0
        while not self._is_over:
            number += 1
            asset = make_asset()
            assert await self._store.create(asset)
            await self._store.claim_key(f"key-{asset.id}", KeyRecord(asset.id, "f"), utc_now())
            begun = await self._store.begin(asset.id, asset.user_id, asset.processing_job_id)
            assert begun is not None and begun.fence == 1
            found = await self._store.finish(
                asset.id,
                asset.processing_job_id,
                1,
                status=AssetStatus.ACTIVE,
                ai_metadata=FOUND,
                processed=None,
                finished_at=NOON,
            )
            assert found is not None
            await self._store.put_record(Record("letter", asset.id, NOON, {"n": number}))
            self.expected[asset.id] = found.to_document()
            if number % 4 == 0:
                await self._store.delete_records("letter", asset.id)
                await self._store.discard_keys(asset.id)
                assert await self._store.delete(asset.id, asset.user_id)
                self.deleted.append(asset.id)
                del self.expected[asset.id]
            # More than any service writes, and less than a busy machine can copy at the same time.
            await asyncio.sleep(0.02)

    async def check(self, store: AssetStore) -> None:
        """Fail unless the store has exactly the written assets, keys and records."""
        assert set(await store.all_ids(limit=100_000)) == set(self.expected)
        for asset_id, document in self.expected.items():
            asset = await store.get(asset_id)
            assert asset is not None and asset.to_document() == document
            assert await store.find_key(f"key-{asset_id}") == KeyRecord(asset_id, "f")
        letters = await store.records("letter", limit=100_000)
        assert {letter.id for letter in letters} == set(self.expected)
        for asset_id in self.deleted:
            assert await store.find_key(f"key-{asset_id}") is None


_still_open: list[AssetStore] = []


async def opened(uri: str) -> AssetStore:
    store = Scene.opener(uri)
    await store.open()
    _still_open.append(store)
    return store


@pytest.fixture(autouse=True)
def closed_at_the_end(io_loop: IOLoop) -> Iterator[None]:
    """Close the stores of `opened`."""
    yield
    while _still_open:
        io_loop.run_sync(_still_open.pop().close)


class Killed(Exception):
    """Stands for the end of a command that is killed."""


def die_at(phase: str) -> Callable[[str], None]:
    """Return a function `on_phase` that ends the command at this phase."""

    def die(words: str) -> None:
        if words.startswith(phase):
            raise Killed

    return die


class SlowStore:
    """A store whose creates begin and then wait for the test."""

    def __init__(self, store: AssetStore) -> None:
        self._store = store
        self.has_begun, self.may_end = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def create(self, asset: Any) -> bool:
        self.has_begun.set()
        await self.may_end.wait()
        return await self._store.create(asset)
