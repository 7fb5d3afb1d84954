"""The promises of AssetStore for assets: they are created, found and deleted, also by two processes at once."""

from __future__ import annotations

import asyncio
import json

import pytest

from pipeline.assets.store import AssetStore
from tests.factories import make_asset
from tests.integration.asset_stores import FAILURE, NOON, MakeStore, begin, create, finish
from tests.integration.asset_stores import make_store, store  # noqa: F811

__all__ = ["make_store", "store"]


@pytest.mark.gen_test
async def test_created_asset_comes_back_equal(store: AssetStore) -> None:
    """The store returns all fields of an asset as they were created, instants in UTC to the millisecond."""
    asset = await create(store, created_at=NOON)
    assert await store.get(asset.id) == asset


@pytest.mark.gen_test
async def test_create_does_not_overwrite_an_asset(store: AssetStore) -> None:
    """Creating a second asset with the same id changes nothing and returns False."""
    asset = await create(store)
    assert not await store.create(make_asset("user-2", id=asset.id))
    assert await store.get(asset.id) == asset


@pytest.mark.gen_test
@pytest.mark.parametrize("asset_id", ["0" * 24, "nonsense", "", "É" * 24, "0" * 500])
async def test_unknown_id_matches_nothing_and_raises_no_error(store: AssetStore, asset_id: str) -> None:
    """Each method returns None for an id that does not exist or that is no asset id."""
    assert await store.get(asset_id) is None
    assert await store.begin(asset_id, "user-1", "job") is None
    assert await store.requeue(asset_id, "user-1", "job") is None
    assert await store.delete(asset_id, "user-1") is None
    assert await store.fail(asset_id, "job", 1, error="no", finished_at=NOON) is None


@pytest.mark.gen_test
async def test_delete_removes_only_an_asset_of_the_user(store: AssetStore) -> None:
    """Delete returns the deleted asset; another user cannot delete it; a late finish matches nothing."""
    asset = await create(store)
    fence = (await begin(store, asset)).fence
    assert await store.delete(asset.id, "user-2") is None
    deleted = await store.delete(asset.id, "user-1")
    assert deleted is not None and deleted.id == asset.id
    assert await store.get(asset.id) is None
    assert await finish(store, asset, fence) is None


@pytest.mark.fault("E30")
@pytest.mark.gen_test(timeout=60)
async def test_concurrent_delete_and_finish_leave_no_asset(store: AssetStore) -> None:
    """Each of 400 deletes removes its asset, although a finish runs at the same time."""
    for _ in range(400):
        asset = await create(store)
        begun = await begin(store, asset)
        deleted, _done = await asyncio.gather(store.delete(asset.id, asset.user_id), finish(store, asset, begun.fence))
        assert deleted is not None and await store.get(asset.id) is None


@pytest.mark.gen_test
async def test_stores_on_one_database_see_each_other(store: AssetStore, make_store: MakeStore) -> None:
    """A second store opens the same database, reads the first store's writes at once and fences its runs."""
    asset = await create(store)
    other = make_store()
    await other.open()
    await other.open()
    try:
        assert await other.get(asset.id) == asset
        assert (await begin(other, asset)).fence == 1
        assert (await begin(store, asset)).fence == 2
        assert await finish(other, asset, 1) is None
    finally:
        await other.close()


@pytest.mark.gen_test
async def test_cancelled_create_does_not_affect_other_creates(store: AssetStore) -> None:
    """When some of the tasks that create assets are cancelled, the other tasks' assets are stored."""
    assets = [make_asset() for _ in range(30)]
    tasks = [asyncio.ensure_future(store.create(asset)) for asset in assets]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    created = [asset for asset, result in zip(assets, results, strict=True) if result is True]
    assert len(created) >= 20
    for asset in created:
        assert await store.get(asset.id) == asset
    await create(store)


@pytest.mark.gen_test
async def test_check_accepts_an_open_store(store: AssetStore) -> None:
    """The check of an open store raises no error, also when the store is empty."""
    await store.check()


@pytest.mark.gen_test
async def test_claims_of_the_upload_are_stored_through_all_runs(store: AssetStore) -> None:
    """Claims of any JSON are stored; replies to clients leave them out; an asset without claims has None."""
    claims = {"https://x.example/roles": ["é", {"a.b": None}], "email": "a@b.c", "level": 2**62, "share": 0.5}
    asset = await create(store, claims=claims)
    failed = await store.fail(asset.id, asset.processing_job_id, (await begin(store, asset)).fence, **FAILURE)
    requeued = await store.requeue(asset.id, asset.user_id, "job-2")
    assert failed is not None and requeued is not None
    assert [each.claims for each in (failed, requeued, await store.get(asset.id))] == [claims] * 3
    assert "a@b.c" not in json.dumps(requeued.to_json({})) + repr(requeued)
    assert (await create(store)).to_document()["claims"] is None
