"""The promises of AssetStore for its lists and sums: pages, unfinished and expired assets, stored bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.assets.asset import AssetStatus, ImageRef
from pipeline.assets.store import AssetStore
from tests.factories import make_asset
from tests.integration.asset_stores import FAILURE, MINUTE, NOON, PROCESSED, begin, create, create_finished, finish, ids
from tests.integration.asset_stores import make_store, store  # noqa: F811

__all__ = ["make_store", "store"]


@pytest.mark.gen_test
async def test_page_lists_newest_first(store: AssetStore) -> None:
    """The pages list each asset of a user once, newest first, also assets of the same millisecond."""
    mine = [await create(store, created_at=NOON + MINUTE * (number // 4)) for number in range(11)]
    await create(store, "user-2", created_at=NOON)
    expected = ids(sorted(mine, key=lambda asset: (asset.created_at, asset.id), reverse=True))
    seen: list[str] = []
    after = None
    while page := await store.page("user-1", limit=3, after=after):
        seen += ids(page)
        after = (page[-1].created_at, page[-1].id)
    assert seen == expected


@pytest.mark.gen_test
async def test_page_filters_by_status_and_category(store: AssetStore) -> None:
    """Status and category combine, also with a cursor."""
    failed = await create_finished(store, AssetStatus.FAILED)
    lego = [await create(store, category="lego", created_at=NOON + MINUTE * number) for number in range(3)]
    assert ids(await store.page("user-1", status=AssetStatus.FAILED)) == [failed.id]
    assert ids(await store.page("user-1", category="lego")) == ids(reversed(lego))
    both = await store.page("user-1", status=AssetStatus.PROCESSING, category="lego", after=(NOON + MINUTE, lego[1].id))
    assert ids(both) == [lego[0].id]
    assert await store.page("user-1", status=AssetStatus.FAILED, category="lego") == []


@pytest.mark.gen_test
async def test_finished_since_lists_oldest_first(store: AssetStore) -> None:
    """Each asset of the user that finished at or after the instant is listed once, also with equal instants.

    Assets that are still processing are not listed.
    """
    times = [NOON - MINUTE, NOON, NOON, NOON, NOON + MINUTE]
    done = [await create_finished(store, AssetStatus.ACTIVE, at=at) for at in times]
    await create_finished(store, AssetStatus.FAILED, "user-2")
    await create(store)
    expected = ids(sorted(done[1:], key=lambda asset: (asset.finished_at, asset.id)))
    seen: list[str] = []
    after = None
    while page := await store.finished_since("user-1", NOON, limit=2, after=after):
        seen += ids(page)
        assert page[-1].finished_at is not None
        after = (page[-1].finished_at, page[-1].id)
    assert seen == expected


@pytest.mark.gen_test
async def test_unfinished_before_lists_all_users_oldest_first(store: AssetStore) -> None:
    """The assets of all users that are processing and were created before the instant are listed, oldest first."""
    old = [await create(store, f"user-{number % 3}", created_at=NOON + MINUTE * (number // 2)) for number in range(7)]
    await create(store, created_at=NOON + MINUTE * 4)
    await create_finished(store, AssetStatus.ACTIVE)
    expected = ids(sorted(old, key=lambda asset: (asset.created_at, asset.id)))
    seen: list[str] = []
    after = None
    while page := await store.unfinished_before(NOON + MINUTE * 4, limit=2, after=after):
        seen += ids(page)
        after = (page[-1].created_at, page[-1].id)
    assert seen == expected
    by_id = {asset.id: (asset.user_id, asset.processing_job_id) for asset in old}
    jobs = await store.unfinished_jobs(limit=7)
    assert jobs == [by_id[each] for each in expected]
    assert await store.unfinished_jobs(limit=2) == jobs[:2]


@pytest.mark.gen_test
async def test_unfinished_assets_of_a_user_are_counted(store: AssetStore) -> None:
    """Assets of other users and finished assets do not count; a requeued asset counts."""
    assets = [await create(store) for _ in range(3)]
    await create(store, "user-2")
    assert [await store.count_unfinished(user) for user in ("user-1", "user-2", "user-3")] == [3, 1, 0]
    await store.fail(assets[0].id, assets[0].processing_job_id, (await begin(store, assets[0])).fence, **FAILURE)
    assert await store.count_unfinished("user-1") == 2
    await store.requeue(assets[0].id, "user-1", "ai-processing:" + "1" * 24)
    assert await store.count_unfinished("user-1") == 3


@pytest.mark.gen_test
async def test_stored_bytes_count_images_in_our_storages(store: AssetStore) -> None:
    """Original, processed image and previews count; images on other servers and dropped originals do not."""
    assert await store.stored_bytes("user-1") == 0
    asset = await create(store)
    original = asset.original.bytes
    assert original > 0 and await store.stored_bytes("user-1") == original
    fence = (await begin(store, asset)).fence
    previews = {side: replace(PROCESSED, public_id=f"x/preview-{side}", bytes=200) for side in ("320", "1280")}
    elsewhere = ImageRef("", "", "https://elsewhere.example/p.webp", "")
    await finish(store, asset, fence, processed=replace(PROCESSED, bytes=1000), previews=previews)
    other = await create(store)
    await finish(store, other, (await begin(store, other)).fence, processed=elsewhere)
    await create(store, "user-2")
    assert await store.stored_bytes("user-1") == 2 * original + 1000 + 400
    await store.drop_original(asset.id, asset.processing_job_id)
    assert await store.stored_bytes("user-1") == original + 1000 + 400
    await store.delete(other.id, "user-1")
    assert await store.stored_bytes("user-1") == 1400


@pytest.mark.gen_test
async def test_get_many_returns_the_assets_that_exist(store: AssetStore) -> None:
    """Assets of all users are returned; unknown and malformed ids are left out; no ids give no assets."""
    assets = [await create(store, f"user-{number}") for number in range(3)]
    missing = make_asset().id
    found = await store.get_many([assets[2].id, missing, "no id", assets[0].id])
    assert sorted(found, key=lambda asset: asset.id) == [assets[0], assets[2]]
    assert await store.get_many([]) == [] == await store.get_many([missing])
    everything = await store.get_many([*ids(assets), *(make_asset().id for _ in range(2000))])
    assert sorted(ids(everything)) == sorted(ids(assets))


@pytest.mark.gen_test
async def test_expired_lists_finished_assets_of_all_users_oldest_first(store: AssetStore) -> None:
    """Finished assets from before the instant are listed in pages, with or without their original.

    Assets that are processing or archived are not listed.
    """
    done = []
    for number, status in enumerate([AssetStatus.ACTIVE, AssetStatus.PARTIAL, AssetStatus.FAILED, AssetStatus.ACTIVE]):
        done.append(await create_finished(store, status, f"user-{number}", at=NOON + number * MINUTE))
    await create(store, created_at=NOON)
    await create(store, status=AssetStatus.ARCHIVED, finished_at=NOON)
    assert await store.drop_original(done[1].id, done[1].processing_job_id) is not None
    limit = done[3].finished_at
    assert limit is not None
    assert ids(await store.expired(limit, limit=10)) == ids(done[:3])
    first = await store.expired(limit, limit=2)
    assert ids(first) == ids(done[:2])
    assert first[-1].finished_at is not None
    after = first[-1].finished_at, first[-1].id
    assert ids(await store.expired(limit, limit=2, after=after)) == ids(done[2:3])
    assert ids(await store.originals_before(limit, limit=10)) == [done[0].id, done[2].id]


@pytest.mark.gen_test
async def test_requeued_asset_is_not_expired(store: AssetStore) -> None:
    """An asset that was requeued after it was listed is not deleted, and its original is not dropped."""
    asset = await create_finished(store, AssetStatus.FAILED)
    assert await store.requeue(asset.id, asset.user_id, "ai-processing:new") is not None
    assert await store.expired(NOON + MINUTE, limit=10) == []
    assert await store.delete(asset.id, asset.user_id, finished_before=NOON + MINUTE) is None
    assert await store.drop_original(asset.id, asset.processing_job_id) is None
    assert await store.get(asset.id) is not None
    other = await create_finished(store, AssetStatus.ACTIVE)
    assert await store.delete(other.id, other.user_id, finished_before=NOON) is None
    assert await store.delete(other.id, other.user_id, finished_before=NOON + MINUTE) is not None
