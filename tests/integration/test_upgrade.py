"""Bringing documents of version 0.1 up to date: by one process at a time, from where the last one ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from pipeline.assets.asset import SCHEMA
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import SCHEMA_KIND
from pipeline.queue.queue import JobQueue
from pipeline.usecases import upgrade
from pipeline.usecases.storages_in_use import StoragesInUse, names_in_use
from pipeline.usecases.upgrade import Upgrade
from tests.factories import make_asset


class Storages:
    """The current storage; opened: which others were asked for."""

    backends = ("memory",)

    def __init__(self) -> None:
        self.opened: list[str] = []

    async def open_storages(self, names: Sequence[str]) -> None:
        self.opened += names


async def make_old(store: SqliteAssetStore, count: int) -> list[str]:
    """Return the ids of assets as version 0.1 wrote them."""
    ids = []
    for number in range(count):
        asset = make_asset(id=f"65f0{number:020x}")
        await store.create(asset)
        ids.append(asset.id)
    await store._write(
        "UPDATE assets SET schema = NULL, original = json_set(json_remove(original, '$.backend', '$.sha256'), "
        "'$.url', 'https://bucket.example/x', '$.publicId', id || '/original-1') WHERE 1 RETURNING id",
        {},
    )
    return ids


async def backends(store: SqliteAssetStore) -> list[str]:
    rows = await store._read("SELECT json_extract(original, '$.backend') AS backend FROM assets ORDER BY id", {})
    return [row["backend"] for row in rows]


def make_upgrade(store: SqliteAssetStore, queue: JobQueue) -> Upgrade:
    return Upgrade(store, queue, StoragesInUse(store, Storages()), "acme")


@pytest.fixture
def make_queue(redis_url: str, io_loop: object) -> Callable[[], JobQueue]:
    return lambda: JobQueue(redis_url)


@pytest.mark.gen_test
async def test_upgrade_goes_on_where_another_process_ended(
    store: SqliteAssetStore, make_queue: Callable[[], JobQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is kept with each page; when all is done that is noted, and nothing is read again."""
    monkeypatch.setattr(upgrade, "PAGE", 2)
    ids = await make_old(store, 5)
    queue = make_queue()
    first = make_upgrade(store, queue)
    turns = 0

    async def acquire_lock(name: str, owner: str, seconds: float) -> bool:
        nonlocal turns
        turns += 1
        return turns <= 2

    monkeypatch.setattr(queue, "acquire_lock", acquire_lock)
    assert not await first.upgrade()
    (kept,) = await store.records(SCHEMA_KIND, limit=10)
    assert kept.data == {"version": SCHEMA, "after": ids[3], "count": 4, "isDone": False}
    assert await backends(store) == ["acme"] * 4 + [None]
    assert await names_in_use(store) == ["acme"]
    monkeypatch.undo()
    assert await make_upgrade(store, queue).upgrade()
    assert await backends(store) == ["acme"] * 5
    (kept,) = await store.records(SCHEMA_KIND, limit=10)
    assert kept.data == {"version": SCHEMA, "after": None, "count": 5, "isDone": True}
    # Done is done, also without Redis.
    assert await make_upgrade(store, JobQueue("redis://127.0.0.1:1/0")).upgrade()
    await queue.close()


@pytest.mark.gen_test
async def test_upgrade_is_one_process_at_a_time(
    store: SqliteAssetStore, make_queue: Callable[[], JobQueue]
) -> None:
    """A second one leaves it to the first."""
    await make_old(store, 1)
    queue = make_queue()
    assert await queue.acquire_lock(upgrade.LOCK, "another process", 60)
    assert not await make_upgrade(store, queue).upgrade()
    assert await backends(store) == [None]
    await queue.close()


@pytest.mark.fault("U12")
@pytest.mark.gen_test
async def test_storages_of_before_are_opened_at_the_start(store: SqliteAssetStore) -> None:
    """What is swept and removed includes them, also before any image in them is asked for."""
    storages = Storages()
    in_use = StoragesInUse(store, storages)
    await in_use.note(["object", ""])
    await in_use.run()
    assert sorted(storages.opened) == ["memory", "object"]
