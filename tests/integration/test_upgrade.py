"""The upgrade of documents of version 0.1: one process at a time, from the document where the last process ended."""

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
    """The current storage; `opened` has the names of the others that were requested."""

    backends = ("memory",)

    def __init__(self) -> None:
        self.opened: list[str] = []

    async def open_storages(self, names: Sequence[str]) -> None:
        self.opened += names


async def make_old(store: SqliteAssetStore, count: int) -> list[str]:
    """Create assets as version 0.1 wrote them, and return their ids."""
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
    """Return the storage of each asset's original, in the order of the ids."""
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
    """The progress is stored after each page; when the upgrade is done, that is stored and no document is read."""
    monkeypatch.setattr(upgrade, "PAGE", 2)
    ids = await make_old(store, 5)
    queue = make_queue()
    first = make_upgrade(store, queue)
    locks = 0

    async def acquire_lock(name: str, owner: str, seconds: float) -> bool:
        nonlocal locks
        locks += 1
        return locks <= 2

    monkeypatch.setattr(queue, "acquire_lock", acquire_lock)
    assert not await first.upgrade()
    (record,) = await store.records(SCHEMA_KIND, limit=10)
    assert record.data == {"version": SCHEMA, "after": ids[3], "count": 4, "isDone": False}
    assert await backends(store) == ["acme"] * 4 + [None]
    assert await names_in_use(store) == ["acme"]
    monkeypatch.undo()
    assert await make_upgrade(store, queue).upgrade()
    assert await backends(store) == ["acme"] * 5
    (record,) = await store.records(SCHEMA_KIND, limit=10)
    assert record.data == {"version": SCHEMA, "after": None, "count": 5, "isDone": True}
    # A finished upgrade needs no lock in Redis.
    assert await make_upgrade(store, JobQueue("redis://127.0.0.1:1/0")).upgrade()
    await queue.close()


@pytest.mark.gen_test
async def test_upgrade_is_one_process_at_a_time(
    store: SqliteAssetStore, make_queue: Callable[[], JobQueue]
) -> None:
    """Without the lock a process upgrades nothing."""
    await make_old(store, 1)
    queue = make_queue()
    assert await queue.acquire_lock(upgrade.LOCK, "another process", 60)
    assert not await make_upgrade(store, queue).upgrade()
    assert await backends(store) == [None]
    await queue.close()


@pytest.mark.fault("U12")
@pytest.mark.gen_test
async def test_storages_in_use_are_opened_at_the_start(store: SqliteAssetStore) -> None:
    """A sweep and a removal include earlier storages, also before an image in them is requested."""
    storages = Storages()
    in_use = StoragesInUse(store, storages)
    await in_use.note(["object", ""])
    await in_use.run()
    assert sorted(storages.opened) == ["memory", "object"]
