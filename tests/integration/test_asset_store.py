"""The promises of AssetStore, held against both implementations: SQLite, and MongoDB on a real server."""

from __future__ import annotations

import dataclasses
import asyncio
import json
import re
import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pymongo
import pytest
from bson import ObjectId
from tornado.ioloop import IOLoop

from pipeline.assets.asset import ATTEMPTS_AT_MOST, SCHEMA, AiMetadata, Asset, AssetStatus, ImageRef
from pipeline.assets.asset_parts import guess_backend
from pipeline.assets.mongo import MongoAssetStore
from pipeline.assets.mongo_driver import DEFAULT_DRIVER
from pipeline.assets.movable import MovableStore
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import IDENTITY, SCHEMA_KIND, AssetStore, Record, KeyRecord
from pipeline.assets.store_move import Move, Phase
from pipeline.clock import utc_now
from pipeline.errors import ConfigurationError, DependencyUnavailable, NotStorable
from tests.factories import make_asset
from tests.mongo_server import MongoServer
from tests.slowdown import slowdown
from tests.service import ROOT

NOON = datetime(2026, 1, 31, 12, 0, 0, 123_000, UTC)
MINUTE = timedelta(minutes=1)
FOUND = AiMetadata(
    brand={"value": "Nike", "confidence": 0.93},
    model={"value": "Air Max 90", "confidence": 0.5},
    colorway=None,
    processed_at=NOON,
)
PROCESSED = ImageRef("memory", "x/processed-1", "https://images.example/p.webp", "0" * 64)
MakeStore = Callable[[], AssetStore]


@pytest.fixture(params=["sqlite", "mongo", "motor", "moved"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path, io_loop: IOLoop) -> MakeStore:
    """A function that returns further stores on one and the same database."""
    path = tmp_path / "new" / "assets.sqlite"
    if request.param == "sqlite":
        return lambda: SqliteAssetStore(path)
    if request.param == "moved":
        io_loop.run_sync(lambda: begin_moved(tmp_path / "old.sqlite", path))
        return lambda: movable(tmp_path / "old.sqlite").as_asset_store()
    uri: str = request.getfixturevalue("mongo_uri")
    return lambda: MongoAssetStore(uri, driver="motor" if request.param == "motor" else DEFAULT_DRIVER)


def movable(path: Path) -> MovableStore:
    """Return a store that follows moves, in a file."""
    return MovableStore(SqliteAssetStore(path), str(path), lambda uri: SqliteAssetStore(Path(uri)))


async def begin_moved(old: Path, new: Path) -> None:
    """Let the old store be one that was moved to the new one."""
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
    store = make_store()
    io_loop.run_sync(store.open)
    yield store
    io_loop.run_sync(store.close)


FAILURE: dict[str, Any] = {"error": "no", "finished_at": NOON}


async def create(store: AssetStore, *args: Any, **fields: Any) -> Asset:
    asset = make_asset(*args, **fields)
    assert await store.create(asset)
    return asset


async def begin(store: AssetStore, asset: Asset) -> Asset:
    begun = await store.begin(asset.id, asset.user_id, asset.processing_job_id)
    assert begun is not None
    return begun


async def finish(store: AssetStore, asset: Asset, fence: int, **changes: Any) -> Asset | None:
    result: dict[str, Any] = {"status": AssetStatus.ACTIVE, "ai_metadata": FOUND, "processed": PROCESSED}
    result |= {"finished_at": NOON} | changes
    return await store.finish(asset.id, asset.processing_job_id, fence, **result)


async def create_finished(
    store: AssetStore, status: AssetStatus, user_id: str = "user-1", at: datetime = NOON
) -> Asset:
    asset = await create(store, user_id)
    begun = await begin(store, asset)
    if status is AssetStatus.FAILED:
        done = await store.fail(asset.id, asset.processing_job_id, begun.fence, error="no", finished_at=at)
    else:
        done = await finish(store, asset, begun.fence, status=status, finished_at=at)
    assert done is not None
    return done


def ids(assets: Any) -> list[str]:
    return [asset.id for asset in assets]


@pytest.mark.gen_test
async def test_created_asset_comes_back_equal(store: AssetStore) -> None:
    """All fields, instants in UTC to the millisecond."""
    asset = await create(store, created_at=NOON)
    assert await store.get(asset.id) == asset


@pytest.mark.gen_test
async def test_create_keeps_what_is_there(store: AssetStore) -> None:
    """A second asset of the same id changes nothing and is told so."""
    asset = await create(store)
    assert not await store.create(make_asset("user-2", id=asset.id))
    assert await store.get(asset.id) == asset


@pytest.mark.gen_test
@pytest.mark.parametrize("asset_id", ["0" * 24, "nonsense", "", "É" * 24, "0" * 500])
async def test_unknown_id_is_nothing_not_an_error(store: AssetStore, asset_id: str) -> None:
    """Ids that do not exist, or cannot, are simply not found."""
    assert await store.get(asset_id) is None
    assert await store.begin(asset_id, "user-1", "job") is None
    assert await store.requeue(asset_id, "user-1", "job") is None
    assert await store.delete(asset_id, "user-1") is None
    assert await store.fail(asset_id, "job", 1, error="no", finished_at=NOON) is None


@pytest.mark.gen_test
async def test_begin_takes_a_new_fence_each_time(store: AssetStore) -> None:
    """Twenty starts get twenty different fences, 1 to 20."""
    asset = await create(store)
    begun = await asyncio.gather(*(begin(store, asset) for _ in range(20)))
    assert sorted(each.fence for each in begun) == list(range(1, 21))


@pytest.mark.gen_test
async def test_begin_is_for_the_owners_current_job_only(store: AssetStore) -> None:
    """Another user, another job or a finished asset: nothing is started and no fence is taken."""
    asset = await create(store)
    assert await store.begin(asset.id, "user-2", asset.processing_job_id) is None
    assert await store.begin(asset.id, "user-1", "ai-processing:other") is None
    assert (await begin(store, asset)).fence == 1
    assert await finish(store, asset, 1)
    assert await store.begin(asset.id, "user-1", asset.processing_job_id) is None
    current = await store.get(asset.id)
    assert current is not None and current.fence == 1


@pytest.mark.gen_test
@pytest.mark.parametrize("status", [AssetStatus.ACTIVE, AssetStatus.PARTIAL])
async def test_finish_commits_the_result(store: AssetStore, status: AssetStatus) -> None:
    """The asset as committed is returned, and is what everybody reads."""
    asset = await create(store)
    begun = await begin(store, asset)
    done = await finish(store, asset, begun.fence, status=status)
    assert done is not None
    assert (done.status, done.ai_metadata, done.processed, done.finished_at) == (status, FOUND, PROCESSED, NOON)
    assert done.updated_at >= asset.updated_at
    assert await store.get(asset.id) == done


@pytest.mark.gen_test
async def test_fail_commits_the_error(store: AssetStore) -> None:
    """A failed asset has the reason and no result."""
    asset = await create(store)
    begun = await begin(store, asset)
    failed = await store.fail(asset.id, asset.processing_job_id, begun.fence, error="too bad", finished_at=NOON)
    assert failed is not None
    assert (failed.status, failed.ai_metadata, failed.processed) == (
        AssetStatus.FAILED,
        AiMetadata(error="too bad"),
        None,
    )


@pytest.mark.gen_test
async def test_cancel_ends_a_job_whatever_run_is_under_way(store: AssetStore) -> None:
    """The asset is failed with the error "Cancelled", once; a run that began before can commit nothing any more."""
    asset = await create(store)
    begun = await begin(store, asset)
    cancelled = await store.cancel(asset.id, asset.processing_job_id, finished_at=NOON)
    assert cancelled is not None and cancelled.is_cancelled and cancelled.fence == begun.fence + 1
    assert (cancelled.ai_metadata, cancelled.processed) == (AiMetadata(error="Cancelled"), None)
    assert cancelled.finished_at == NOON and cancelled.updated_at >= begun.updated_at
    assert await finish(store, asset, begun.fence) is None
    assert await store.fail(asset.id, asset.processing_job_id, begun.fence, error="x", finished_at=NOON) is None
    assert await store.begin(asset.id, asset.user_id, asset.processing_job_id) is None
    assert await store.cancel(asset.id, asset.processing_job_id, finished_at=NOON + MINUTE) is None
    assert await store.get(asset.id) == cancelled
    again = await store.requeue(asset.id, asset.user_id, "ai-processing:again")
    assert again is not None and again.status is AssetStatus.PROCESSING and again.starts == 0


@pytest.mark.gen_test
async def test_cancel_is_for_the_job_that_is_processing_only(store: AssetStore) -> None:
    """Another job's cancel, an unknown asset's and that of a finished one change nothing."""
    asset = await create(store)
    assert await store.cancel(asset.id, "ai-processing:other", finished_at=NOON) is None
    assert await store.cancel("f" * 24, asset.processing_job_id, finished_at=NOON) is None
    assert await store.get(asset.id) == asset
    done = await create_finished(store, AssetStatus.PARTIAL)
    assert await store.cancel(done.id, done.processing_job_id, finished_at=NOON) is None
    assert await store.get(done.id) == done


@pytest.mark.gen_test(timeout=60)
async def test_cancel_beside_finish_lets_one_of_them_stand(store: AssetStore) -> None:
    """Forty times both at once: one matches, the other does not, and the asset is as the first has said."""

    async def both() -> None:
        asset = await create(store)
        fence = (await begin(store, asset)).fence
        cancelled, finished = await asyncio.gather(
            store.cancel(asset.id, asset.processing_job_id, finished_at=NOON), finish(store, asset, fence)
        )
        assert (cancelled is None) != (finished is None)
        assert await store.get(asset.id) == (cancelled or finished)

    await asyncio.gather(*(both() for _ in range(40)))


@pytest.mark.gen_test
async def test_old_fence_matches_nothing(store: AssetStore) -> None:
    """A run that was overtaken can neither finish nor fail the asset, before or after the newer one."""
    asset = await create(store)
    old, new = await begin(store, asset), await begin(store, asset)
    for _ in range(2):
        assert await finish(store, asset, old.fence) is None
        assert await store.fail(asset.id, asset.processing_job_id, old.fence, error="x", finished_at=NOON) is None
        await finish(store, asset, new.fence)
    current = await store.get(asset.id)
    assert current is not None and current.status is AssetStatus.ACTIVE


@pytest.mark.gen_test(timeout=30)
async def test_run_that_knows_its_asset_is_told_what_is_stored(store: AssetStore) -> None:
    """Also when somebody has changed one of those that are committed at the same moment; a stale or a second commit
    matches nothing all the same.
    """
    seen = [await begin(store, await create(store)) for _ in range(8)]
    seen += [await create(store) for _ in range(2)]
    overtaken = seen.pop(0)
    await begin(store, overtaken)
    said = {"brand": {"value": "A", "by": "u", "at": "t"}}
    assert await store.correct(seen[3], replace(seen[3], corrections=said)) is not None
    rest: dict[str, Any] = {"attempt": {"attempt": 1, "reason": "é"}, "provenance": {"provider": "x"}}
    rest["previews"] = {"256": replace(PROCESSED, public_id="x/preview-256")}
    for _ in range(2):
        assert await finish(store, overtaken, overtaken.fence, seen=overtaken, **rest) is None
    done = await asyncio.gather(*(finish(store, each, each.fence, seen=each, **rest) for each in seen))
    assert list(done) == [await store.get(each.id) for each in seen]
    assert [each.corrections for each in done if each] == [said if each is seen[3] else {} for each in seen]
    assert await asyncio.gather(*(finish(store, each, each.fence, seen=each, **rest) for each in seen)) == [None] * 9


@pytest.mark.gen_test
async def test_result_is_committed_once(store: AssetStore) -> None:
    """Ten commits of one fence: one gets through."""
    asset = await create(store)
    fence = (await begin(store, asset)).fence
    done = await asyncio.gather(*(finish(store, asset, fence) for _ in range(10)))
    assert sum(each is not None for each in done) == 1


@pytest.mark.gen_test(timeout=30)
@pytest.mark.parametrize("status", [AssetStatus.ACTIVE, AssetStatus.PARTIAL, AssetStatus.FAILED])
async def test_finished_asset_is_analyzed_again_under_a_fence(store: AssetStore, status: AssetStatus) -> None:
    """It keeps its status and result until the newest run commits; no start counts, and another job ends that."""
    done = await create_finished(store, status)
    asset_id, user_id, job_id = done.id, done.user_id, done.processing_job_id
    assert await store.begin(asset_id, user_id, job_id) is None
    assert await store.begin(asset_id, "user-2", job_id, is_reanalysis=True) is None
    old, new = [await store.begin(asset_id, user_id, job_id, is_reanalysis=True) for _ in range(2)]
    assert old is not None and new is not None
    assert new.starts == done.starts and new.fence == done.fence + 2
    assert (new.status, new.ai_metadata, new.finished_at) == (status, done.ai_metadata, NOON)
    attempt = {"attempt": 1, "outcome": "failed"}
    await store.add_attempt(asset_id, job_id, old.fence, attempt)
    await store.add_attempt(asset_id, job_id, new.fence, attempt)
    assert await finish(store, new, new.fence) is None
    assert await finish(store, new, old.fence, is_reanalysis=True) is None
    finished = await finish(store, new, new.fence, finished_at=NOON + timedelta(seconds=1), is_reanalysis=True)
    assert finished is not None and finished.status is AssetStatus.ACTIVE
    assert finished.finished_at == NOON + timedelta(seconds=1) and list(finished.attempts) == [attempt]
    begun = await begin(store, await create(store))
    assert await store.begin(begun.id, begun.user_id, begun.processing_job_id, is_reanalysis=True) is None
    assert await finish(store, begun, begun.fence, is_reanalysis=True) is None
    if status is not AssetStatus.ACTIVE:
        other = await create_finished(store, status)
        run = await store.begin(other.id, other.user_id, other.processing_job_id, is_reanalysis=True)
        assert run is not None and await store.requeue(other.id, other.user_id, "ai-processing:again") is not None
        assert await finish(store, run, run.fence, is_reanalysis=True) is None


@pytest.mark.gen_test(timeout=30)
async def test_excused_starts_do_not_count(store: AssetStore) -> None:
    """Only for the current job while it is processing; a new job starts from nothing."""
    asset = await create(store)
    for _ in range(3):
        await store.begin(asset.id, asset.user_id, asset.processing_job_id)
    await store.refund_start(asset.id, asset.processing_job_id)
    await store.refund_start(asset.id, "ai-processing:another")
    begun = await store.begin(asset.id, asset.user_id, asset.processing_job_id)
    assert begun is not None and (begun.fence, begun.excused, begun.starts) == (4, 1, 3)
    await store.fail(asset.id, asset.processing_job_id, 4, error="no", finished_at=utc_now())
    await store.refund_start(asset.id, asset.processing_job_id)
    again = await store.requeue(asset.id, asset.user_id, "ai-processing:again")
    assert again is not None and (again.fence, again.starts) == (4, 0)


@pytest.mark.gen_test
@pytest.mark.parametrize("status", [AssetStatus.FAILED, AssetStatus.PARTIAL])
async def test_requeue_starts_over_and_keeps_the_fence(store: AssetStore, status: AssetStatus) -> None:
    """The asset is processing under the new job, its result is gone, and older runs stay locked out."""
    done = await create_finished(store, status)
    again = await store.requeue(done.id, "user-1", "ai-processing:new")
    assert again is not None
    assert (again.status, again.processing_job_id, again.fence) == (AssetStatus.PROCESSING, "ai-processing:new", 1)
    assert (again.ai_metadata, again.processed, again.finished_at) == (AiMetadata(), None, None)
    assert await finish(store, done, done.fence) is None
    assert (await begin(store, again)).fence == 2


@pytest.mark.gen_test
async def test_requeue_refuses_what_is_not_the_users_or_not_over(store: AssetStore) -> None:
    """Active and processing assets, and other people's, stay as they are."""
    active = await create_finished(store, AssetStatus.ACTIVE)
    processing = await create(store)
    failed = await create_finished(store, AssetStatus.FAILED)
    assert await store.requeue(active.id, "user-1", "new") is None
    assert await store.requeue(processing.id, "user-1", "new") is None
    assert await store.requeue(failed.id, "user-2", "new") is None
    assert await store.get(failed.id) == failed


@pytest.mark.gen_test
async def test_page_walks_newest_first(store: AssetStore) -> None:
    """Page by page all of a user's assets come once, newest first, also those of the same millisecond."""
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
    """Filters combine, also with a cursor."""
    failed = await create_finished(store, AssetStatus.FAILED)
    lego = [await create(store, category="lego", created_at=NOON + MINUTE * number) for number in range(3)]
    assert ids(await store.page("user-1", status=AssetStatus.FAILED)) == [failed.id]
    assert ids(await store.page("user-1", category="lego")) == ids(reversed(lego))
    both = await store.page("user-1", status=AssetStatus.PROCESSING, category="lego", after=(NOON + MINUTE, lego[1].id))
    assert ids(both) == [lego[0].id]
    assert await store.page("user-1", status=AssetStatus.FAILED, category="lego") == []


@pytest.mark.gen_test
async def test_finished_since_walks_oldest_first(store: AssetStore) -> None:
    """Everything the user had finished at or after the instant, once, also with equal instants; nothing unfinished."""
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
async def test_unfinished_before_walks_all_users_oldest_first(store: AssetStore) -> None:
    """Assets in processing created before the instant, of everybody, in order of submission."""
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
    """Neither those of others nor those that are finished; one that runs again counts again."""
    assets = [await create(store) for _ in range(3)]
    await create(store, "user-2")
    assert [await store.count_unfinished(user) for user in ("user-1", "user-2", "user-3")] == [3, 1, 0]
    await store.fail(assets[0].id, assets[0].processing_job_id, (await begin(store, assets[0])).fence, **FAILURE)
    assert await store.count_unfinished("user-1") == 2
    await store.requeue(assets[0].id, "user-1", "ai-processing:" + "1" * 24)
    assert await store.count_unfinished("user-1") == 3


@pytest.mark.gen_test
async def test_stored_bytes_are_those_of_images_in_our_storages(store: AssetStore) -> None:
    """Original, processed image and previews count; not what others keep, nor an original that is gone."""
    assert await store.stored_bytes("user-1") == 0
    asset = await create(store)
    record = asset.original.bytes
    assert record > 0 and await store.stored_bytes("user-1") == record
    fence = (await begin(store, asset)).fence
    previews = {side: replace(PROCESSED, public_id=f"x/preview-{side}", bytes=200) for side in ("320", "1280")}
    elsewhere = ImageRef("", "", "https://elsewhere.example/p.webp", "")
    await finish(store, asset, fence, processed=replace(PROCESSED, bytes=1000), previews=previews)
    other = await create(store)
    await finish(store, other, (await begin(store, other)).fence, processed=elsewhere)
    await create(store, "user-2")
    assert await store.stored_bytes("user-1") == 2 * record + 1000 + 400
    await store.drop_original(asset.id, asset.processing_job_id)
    assert await store.stored_bytes("user-1") == record + 1000 + 400
    await store.delete(other.id, "user-1")
    assert await store.stored_bytes("user-1") == 1400


@pytest.mark.gen_test
async def test_get_many_returns_those_that_are_there(store: AssetStore) -> None:
    """Assets of any user; ids that name none, or are none, are left out; no ids, no assets."""
    assets = [await create(store, f"user-{number}") for number in range(3)]
    missing = make_asset().id
    found = await store.get_many([assets[2].id, missing, "no id", assets[0].id])
    assert sorted(found, key=lambda asset: asset.id) == [assets[0], assets[2]]
    assert await store.get_many([]) == [] == await store.get_many([missing])
    everything = await store.get_many([*ids(assets), *(make_asset().id for _ in range(2000))])
    assert sorted(ids(everything)) == sorted(ids(assets))


@pytest.mark.gen_test
async def test_delete_removes_the_users_own(store: AssetStore) -> None:
    """The asset as it was is returned; somebody else's stays; a late result finds nothing."""
    asset = await create(store)
    fence = (await begin(store, asset)).fence
    assert await store.delete(asset.id, "user-2") is None
    deleted = await store.delete(asset.id, "user-1")
    assert deleted is not None and deleted.id == asset.id
    assert await store.get(asset.id) is None
    assert await finish(store, asset, fence) is None


MIB = 1024 * 1024
UNSTORABLE = {
    "text": ("half a \ud800 pair", "a text is not valid Unicode"),
    "number": (2**70, "a number is too large"),
    "size": ("x" * 17 * MIB, "it is too large"),
    "type": (object(), "a value is of no type it knows"),
}


@pytest.mark.fault("E32")
@pytest.mark.gen_test(timeout=30)
@pytest.mark.parametrize("kind", UNSTORABLE)
async def test_create_refuses_for_good_what_no_document_can_hold(store: AssetStore, kind: str) -> None:
    """The error says why in our words; nothing is inserted, and those created at the same moment are."""
    value, why = UNSTORABLE[kind]
    assets = [make_asset() for _ in range(4)]
    refused = make_asset()
    refused = replace(refused, original=replace(refused.original, url=value))
    results = await asyncio.gather(
        *(store.create(each) for each in [*assets[:2], refused, *assets[2:]]), return_exceptions=True
    )
    error = results.pop(2)
    assert isinstance(error, NotStorable) and error.message == f"The asset store cannot hold this document: {why}"
    assert results == [True] * 4
    assert await store.get(refused.id) is None


@pytest.mark.fault("E32")
@pytest.mark.gen_test(timeout=30)
@pytest.mark.parametrize("kind", UNSTORABLE)
async def test_finish_refuses_for_good_what_no_document_can_hold(store: AssetStore, kind: str) -> None:
    """The asset stays as it was, so that its job can fail it under the same fence."""
    value, why = UNSTORABLE[kind]
    asset = await create(store)
    begun = await begin(store, asset)
    with pytest.raises(NotStorable, match=why):
        await finish(store, asset, begun.fence, ai_metadata=AiMetadata(brand={"value": value, "confidence": 1}))
    assert await store.get(asset.id) == begun
    assert await store.fail(asset.id, asset.processing_job_id, begun.fence, error="no", finished_at=NOON)


@pytest.mark.fault("E32")
@pytest.mark.gen_test(timeout=30)
async def test_document_that_grows_too_large_is_refused(store: AssetStore) -> None:
    """Two halves that fit by themselves make a document that does not: the server finds that out, not the driver."""
    asset = make_asset()
    assert await store.create(replace(asset, original=replace(asset.original, url="x" * 9 * MIB)))
    begun = await begin(store, asset)
    with pytest.raises(NotStorable, match="too large"):
        await finish(store, asset, begun.fence, ai_metadata=AiMetadata(error="x" * 9 * MIB))
    assert await store.get(asset.id) == begun


@pytest.mark.fault("E32")
@pytest.mark.gen_test
async def test_question_that_no_document_can_answer_is_refused(store: AssetStore) -> None:
    """A damaged job's user id is no outage."""
    asset = await create(store)
    with pytest.raises(NotStorable):
        await store.begin(asset.id, "\ud800", asset.processing_job_id)
    with pytest.raises(NotStorable):
        await store.page("\ud800")


@pytest.mark.gen_test
async def test_excused_starts_never_exceed_the_starts(store: AssetStore) -> None:
    """Ten at the same moment, after three starts: three count."""
    asset = await create(store)
    await store.refund_start(asset.id, asset.processing_job_id)
    for _ in range(3):
        await begin(store, asset)
    await asyncio.gather(*(store.refund_start(asset.id, asset.processing_job_id) for _ in range(10)))
    current = await store.get(asset.id)
    assert current is not None and (current.fence, current.excused) == (3, 3)


@pytest.mark.fault("E30")
@pytest.mark.gen_test(timeout=60)
async def test_delete_beside_finish_leaves_nothing(store: AssetStore) -> None:
    """Of 400 deletes, each beside the asset's finish, every one removes it, whichever comes first."""
    for _ in range(400):
        asset = await create(store)
        begun = await begin(store, asset)
        deleted, _done = await asyncio.gather(store.delete(asset.id, asset.user_id), finish(store, asset, begun.fence))
        assert deleted is not None and await store.get(asset.id) is None


@pytest.mark.gen_test
async def test_key_belongs_to_whoever_came_first(store: AssetStore) -> None:
    """Of twenty claims at once one wins, and all are told the same winner."""
    claims = [store.claim_key("key", KeyRecord(f"asset-{number}", "print"), NOON) for number in range(20)]
    records = await asyncio.gather(*claims)
    assert len({record.asset_id for record in records}) == 1
    assert await store.claim_key("key", KeyRecord("late", "other"), utc_now()) == records[0]
    assert (await store.claim_key("key 2", KeyRecord("new", "print"), NOON)).asset_id == "new"


@pytest.mark.gen_test
async def test_key_is_found_as_it_was_claimed(store: AssetStore) -> None:
    """Looking claims nothing: a key that nobody has claimed is still free, and purged ones are gone."""
    record = KeyRecord("asset", "print")
    assert await store.find_key("key") is None
    assert await store.find_key("key") is None
    assert await store.claim_key("key", record, NOON) == record
    assert await store.find_key("key") == record
    assert await store.find_key("key 2") is None
    await store.claim_key("key", KeyRecord("newer", "other"), NOON, instead_of="asset")
    assert await store.find_key("key") == KeyRecord("newer", "other")
    await store.purge_keys(NOON + MINUTE)
    assert await store.find_key("key") is None


@pytest.mark.gen_test(timeout=30)
async def test_key_is_replaced_only_instead_of_the_record_named(store: AssetStore) -> None:
    """Who names the record that stands replaces it; whoever comes after with the same name finds the new one."""
    key, now = secrets.token_hex(32), utc_now()
    first, second, third = (KeyRecord(secrets.token_hex(12), name) for name in ("one", "two", "three"))
    assert await store.claim_key(key, first, now, instead_of="0" * 24) == first
    assert await store.claim_key(key, second, now, instead_of="0" * 24) == first
    assert await store.claim_key(key, second, now, instead_of=first.asset_id) == second
    assert await store.claim_key(key, third, now, instead_of=first.asset_id) == second
    assert await store.claim_key(key, third, now) == second


@pytest.mark.gen_test
async def test_purge_removes_old_keys(store: AssetStore) -> None:
    """Keys from before the instant can be claimed anew; later ones stand."""
    await store.claim_key("old", KeyRecord("a", "p"), NOON - MINUTE)
    await store.claim_key("new", KeyRecord("b", "p"), NOON)
    assert await store.purge_keys(NOON) == 1
    assert (await store.claim_key("old", KeyRecord("c", "p"), NOON)).asset_id == "c"
    assert (await store.claim_key("new", KeyRecord("d", "p"), NOON)).asset_id == "b"


@pytest.mark.gen_test
async def test_stores_on_one_database_see_each_other(store: AssetStore, make_store: MakeStore) -> None:
    """A second store opens what is there, reads the first's writes at once and fences its runs."""
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
async def test_cancelled_caller_harms_no_other(store: AssetStore) -> None:
    """Callers that give up half-way leave the others' writes and the store as they should be."""
    assets = [make_asset() for _ in range(30)]
    tasks = [asyncio.ensure_future(store.create(asset)) for asset in assets]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    record = [asset for asset, result in zip(assets, results, strict=True) if result is True]
    assert len(record) >= 20
    for asset in record:
        assert await store.get(asset.id) == asset
    await create(store)


@pytest.mark.gen_test
async def test_identity_is_one_for_all_and_for_ever(store: AssetStore, make_store: MakeStore) -> None:
    """Two processes that open a new database at once get the same id."""
    other = make_store()
    await other.open()
    try:
        ids = await asyncio.gather(store.identity(), other.identity(), store.identity())
        assert len(set(ids)) == 1 and len(ids[0]) == 16
        assert await other.identity() == ids[0]
        rivals = [Record("first", "i", NOON + n * MINUTE, {"n": n}) for n in range(6)]
        record = await asyncio.gather(*((store, other)[n % 2].insert_record(each) for n, each in enumerate(rivals)))
        assert len({each.data["n"] for each in record}) == 1
        assert await other.find_record("first", "i") == record[0] in rivals
    finally:
        await other.close()


@pytest.mark.gen_test
async def test_what_is_kept_comes_back_in_order(store: AssetStore) -> None:
    """Of one kind, oldest or newest first, page by page, until it is replaced, discarded or purged."""
    record = [Record("job of q", f"q:{n}", NOON + n // 2 * MINUTE, {"a.b": n, "$c": ["\ud800"]}) for n in range(5)]
    for each in (*reversed(record), Record("pause", "q:0", NOON, {})):
        await store.put_record(each)
    first = await store.records("job of q", limit=3)
    assert first == record[:3]
    assert await store.records("job of q", limit=3, after=(first[-1].at, first[-1].id)) == record[3:]
    last = await store.newest_records("job of q", limit=3)
    assert last == record[:1:-1]
    assert await store.newest_records("job of q", limit=3, after=(last[-1].at, last[-1].id)) == record[1::-1]
    assert await store.newest_records("job of q", limit=3, after=(NOON - MINUTE, "q:9")) == []
    await store.put_record(replace(record[1], at=NOON + 9 * MINUTE, data={"n": 1}))
    await store.delete_records("job of q", record[0].id, record[2].id, "not there")
    assert [each.id for each in await store.records("job of q", limit=9)] == ["q:3", "q:4", "q:1"]
    assert await store.purge_records("job of q", NOON + 2 * MINUTE) == 1
    assert [each.id for each in await store.records("job of q", limit=9)] == ["q:4", "q:1"]
    assert [each.id for each in await store.records("pause", limit=9)] == ["q:0"]


@pytest.mark.gen_test
async def test_check_tells_an_open_store(store: AssetStore) -> None:
    """An open store is fine, also when empty."""
    await store.check()


ALL_CALLS: dict[str, Callable[[AssetStore], Awaitable[Any]]] = {
    "check": lambda store: store.check(),
    "create": lambda store: store.create(make_asset()),
    "begin": lambda store: store.begin("0" * 24, "u", "j"),
    "finish": lambda store: finish(store, make_asset(), 1),
    "requeue": lambda store: store.requeue("0" * 24, "u", "j"),
    "get": lambda store: store.get("0" * 24),
    "get_many": lambda store: store.get_many(["0" * 24]),
    "page": lambda store: store.page("u"),
    "delete": lambda store: store.delete("0" * 24, "u"),
    "find_key": lambda store: store.find_key("k"),
    "claim_key": lambda store: store.claim_key("k", KeyRecord("a", "p"), NOON),
    "purge_keys": lambda store: store.purge_keys(NOON),
    "identity": lambda store: store.identity(),
    "put_record": lambda store: store.put_record(Record("k", "i", NOON, {})),
    "insert_record": lambda store: store.insert_record(Record("k", "i", NOON, {})),
    "delete_records": lambda store: store.delete_records("k", "i"),
    "records": lambda store: store.records("k", limit=1),
    "newest_records": lambda store: store.newest_records("k", limit=1),
    "unfinished_jobs": lambda store: store.unfinished_jobs(limit=1),
    "purge_records": lambda store: store.purge_records("k", NOON),
}


@pytest.mark.gen_test(timeout=60)
async def test_mongo_away_is_one_error_in_time_and_comes_back() -> None:
    """With the server stopped every call raises DependencyUnavailable within its timeout; afterwards all is well."""
    with MongoServer() as server:
        # The patient one waits for the server's slow first answers.
        patient = MongoAssetStore(server.uri("outage"))
        store = MongoAssetStore(server.uri("outage"), timeout_seconds=0.5)
        try:
            await patient.open()
            asset = await create(store)
            server.stop()
            for name, call in ALL_CALLS.items():
                started_at = time.monotonic()
                with pytest.raises(DependencyUnavailable) as raised:
                    await call(store)
                assert raised.value.__cause__ is not None and time.monotonic() - started_at < 2 * slowdown(), name
            server.start()
            await patient.check()
            assert await store.get(asset.id) == asset
        finally:
            await store.close()
            await patient.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("name", ALL_CALLS)
async def test_sqlite_that_is_not_open_is_one_error(tmp_path: Path, name: str) -> None:
    """Before open, and after the file turned out unusable, every call raises DependencyUnavailable."""
    (tmp_path / "assets.sqlite").write_bytes(b"this is no database" * 100)
    store = SqliteAssetStore(tmp_path / "assets.sqlite")
    with pytest.raises(ConfigurationError):
        await store.open()
    with pytest.raises(DependencyUnavailable):
        await ALL_CALLS[name](store)
    await store.close()


@pytest.mark.gen_test(timeout=60)
async def test_sqlite_takes_writes_of_two_processes(tmp_path: Path) -> None:
    """Two processes that write at the same time wait for each other instead of failing."""
    code = f"""
import asyncio
import json
from pathlib import Path
from pipeline.assets.movable import MovableStore
from pipeline.assets.sqlite import SqliteAssetStore
from tests.factories import make_asset
async def main():
    store = SqliteAssetStore(Path({str(tmp_path / "assets.sqlite")!r}))
    await store.open()
    for _ in range(20):
        assert all(await asyncio.gather(*(store.create(make_asset("both")) for _ in range(10))))
    await store.close()
asyncio.run(main())
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    assert [await asyncio.to_thread(process.wait) for process in processes] == [0, 0]
    store = SqliteAssetStore(tmp_path / "assets.sqlite")
    await store.open()
    assert len(await store.page("both", limit=1000)) == 400
    await store.close()


@pytest.mark.gen_test
async def test_sqlite_reads_are_served_by_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No read of the store scans or sorts a table, however many assets there are."""
    asked: list[tuple[str, Any]] = []
    store = SqliteAssetStore(tmp_path / "assets.sqlite")
    read = store._read

    async def remember(sql: str, values: Any) -> Any:
        asked.append((sql, values))
        return await read(sql, values)

    monkeypatch.setattr(store, "_read", remember)
    await store.open()
    after = (NOON, "0" * 24)
    await store.get("0" * 24)
    await store.page("u")
    await store.page("u", after=after)
    await store.finished_since("u", NOON, limit=5, after=after)
    await store.unfinished_before(NOON, limit=5, after=after)
    with closing(sqlite3.connect(tmp_path / "assets.sqlite")) as connection:
        for sql, values in asked:
            plan = "; ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values))
            assert re.fullmatch(r"SEARCH assets USING (PRIMARY KEY|INDEX \w+) \(.*\)", plan), f"{sql}: {plan}"
    await store.close()


@pytest.mark.gen_test
async def test_attempts_and_provenance_are_kept(store: AssetStore) -> None:
    """Those of the run that finishes and of those before it; a stale run adds none; requeue keeps the attempts."""
    asset = await create(store)
    begun = await begin(store, asset)
    for number in range(ATTEMPTS_AT_MOST + 1):
        await store.add_attempt(asset.id, asset.processing_job_id, begun.fence, {"attempt": number, "reason": "é"})
    await store.add_attempt(asset.id, asset.processing_job_id, begun.fence + 1, {"attempt": 99})
    done = await finish(store, begun, begun.fence, attempt={"attempt": 20}, provenance={"provider": "x"}, previews={})
    assert done is not None and done.provenance == {"provider": "x"}
    assert [each["attempt"] for each in done.attempts] == [*range(2, ATTEMPTS_AT_MOST + 1), 20]
    assert await store.get(asset.id) == done


@pytest.mark.gen_test
async def test_correction_is_committed_only_over_what_was_seen(store: AssetStore) -> None:
    """Not over another correction, a newer run or another status; also on a document that never had one."""
    asset = await create_finished(store, AssetStatus.PARTIAL)
    first = dataclasses.replace(asset, corrections={"brand": {"value": "A", "by": "u", "at": "t"}})
    corrected = await store.correct(asset, first)
    assert corrected is not None and corrected.corrections == first.corrections
    assert await store.correct(asset, first) is None
    active = dataclasses.replace(corrected, status=AssetStatus.ACTIVE, history=({"field": "brand", "value": "A"},))
    stored = await store.correct(corrected, active)
    assert stored is not None and (stored.status, stored.history) == (AssetStatus.ACTIVE, active.history)
    assert await store.correct(corrected, first) is None
    assert await store.delete(asset.id, asset.user_id) is not None
    assert await store.correct(stored, active) is None


@pytest.mark.gen_test
async def test_claims_of_the_upload_stay_through_all_runs(store: AssetStore) -> None:
    """Whatever JSON they hold; clients are not shown them, and an asset without any has none."""
    claims = {"https://x.example/roles": ["é", {"a.b": None}], "email": "a@b.c", "level": 2**62, "share": 0.5}
    asset = await create(store, claims=claims)
    failed = await store.fail(asset.id, asset.processing_job_id, (await begin(store, asset)).fence, **FAILURE)
    again = await store.requeue(asset.id, asset.user_id, "job-2")
    assert failed is not None and again is not None
    assert [each.claims for each in (failed, again, await store.get(asset.id))] == [claims] * 3
    assert "a@b.c" not in json.dumps(again.to_json({})) + repr(again)
    assert (await create(store)).to_document()["claims"] is None


# documents of version 0.1


def old_document(number: int, url: str, public_id: str, processed: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return an asset as version 0.1 kept it in MongoDB, but for the type of its id."""
    return {
        "_id": f"65f0{number:020x}",
        "userId": "user-1",
        "category": "sneaker",
        "status": "active",
        "images": {
            "original": {
                "url": url,
                "publicId": public_id,
                "contentType": "image/jpeg",
                "bytes": 12,
                "width": 4,
                "height": 3,
            },
            "processed": processed,
        },
        "processingJobId": f"ai-processing:{number:024x}",
        "fence": 1,
        "aiMetadata": {"brand": None, "model": None, "colorway": None, "processedAt": NOON, "error": None},
        "finishedAt": NOON,
        "createdAt": NOON,
        "updatedAt": NOON,
    }


OLD = [
    old_document(1, "http://127.0.0.1:8080/media/a/original-1.jpg", "a/original-1"),
    old_document(2, "https://res.cloudinary.com/c/image/upload/v1/b/original-1.jpg", "b/original-1"),
    old_document(
        3,
        "https://bucket.s3.amazonaws.com/c/original-1?X-Amz-Expires=604800",
        "c/original-1",
        {"url": "https://ai.example/p.webp", "publicId": None},
    ),
    old_document(
        4,
        "http://old.example/media/d/original-1.heic",
        "d/original-1",
        {"url": "http://old.example/media/d/processed-1.webp", "publicId": "d/processed-1"},
    ),
]
BACKENDS = [("local", None), ("cloudinary", None), ("object", ""), ("local", "local")]


@pytest.fixture
def put_old(store: AssetStore, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], None]:
    """A function that writes the documents of OLD as version 0.1 did."""

    def put() -> None:
        if isinstance(store, MongoAssetStore):
            with pymongo.MongoClient[dict[str, Any]](request.getfixturevalue("mongo_uri")) as client:
                found = [document | {"_id": ObjectId(document["_id"])} for document in OLD]
                client.get_default_database().assets.insert_many(found)
            return
        with closing(sqlite3.connect(tmp_path / "new" / "assets.sqlite", isolation_level=None)) as connection:
            at = round(NOON.timestamp() * 1000)
            for document in OLD:
                connection.execute(
                    "INSERT INTO assets (id, userId, category, status, original, processed, processingJobId, fence, "
                    "aiMetadata, finishedAt, createdAt, updatedAt) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        document["_id"],
                        *(document[name] for name in ("userId", "category", "status")),
                        json.dumps(document["images"]["original"]),
                        json.dumps(processed) if (processed := document["images"]["processed"]) else None,
                        document["processingJobId"],
                        document["fence"],
                        json.dumps(document["aiMetadata"] | {"processedAt": at}),
                        *(at, at, at),
                    ),
                )

    return put


@pytest.mark.gen_test
async def test_documents_of_version_0_1_are_understood_and_upgraded(
    store: AssetStore, put_old: Callable[[], None], make_store: MakeStore
) -> None:
    """They mean the same before and after; a page at a time; what is up to date already is left alone."""
    put_old()
    ids = [document["_id"] for document in OLD]

    async def backends() -> list[tuple[str, str | None]]:
        assets = [asset for each in ids if (asset := await store.get(each))]
        return [(each.original.backend, each.processed.backend if each.processed else None) for each in assets]

    before = [await store.get(each) for each in ids]
    assert await backends() == BACKENDS
    new = make_asset(id=f"65f0{9:020x}")
    await store.create(new)
    changed, after = await store.upgrade("", limit=3, backend_of=guess_backend)
    assert (changed, after) == (3, ids[2])
    assert await store.upgrade(after, limit=3, backend_of=guess_backend) == (1, None)
    assert await store.upgrade("", limit=9, backend_of=lambda *_: "elsewhere") == (0, None)
    assert await backends() == BACKENDS
    assert [await store.get(each) for each in ids] == before
    assert await store.get(new.id) == new


@pytest.mark.gen_test
async def test_upgrade_puts_images_where_it_is_told(store: AssetStore, put_old: Callable[[], None]) -> None:
    """Only whoever upgrades knows which storage version 0.1 had; an image that others keep stays theirs."""
    put_old()
    assert await store.upgrade("", limit=9, backend_of=lambda public_id, url: "acme") == (4, None)
    assets = {asset.id: asset for asset in await store.page("user-1")}
    assert {asset.original.backend for asset in assets.values()} == {"acme"}
    kept_elsewhere = assets[OLD[2]["_id"]].processed
    assert kept_elsewhere == ImageRef("", "", "https://ai.example/p.webp")


@pytest.mark.gen_test
async def test_store_of_a_newer_version_is_refused(
    store: AssetStore, make_store: MakeStore, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """What it means is not known here; the message says so."""
    if isinstance(store, MongoAssetStore):
        await store.put_record(Record(SCHEMA_KIND, "store", utc_now(), {"version": SCHEMA + 1}))
    else:
        with closing(sqlite3.connect(tmp_path / "new" / "assets.sqlite")) as connection:
            connection.execute("PRAGMA user_version = 99")
    newer = make_store()
    with pytest.raises(ConfigurationError, match="written by a newer version"):
        await newer.open()
    await newer.close()


DAMAGED: dict[str, tuple[str, dict[str, Any]]] = {
    "no object": ("aiMetadata = 'damaged'", {"$set": {"aiMetadata": "damaged"}}),
    "no images": ("original = 'null'", {"$set": {"images.original": None}}),
}


def damage(store: AssetStore, asset: Asset, mongo_uri: str, how: str = "no object") -> None:
    """Make the asset's document one that cannot be read."""
    sql, change = DAMAGED[how]
    store = getattr(store, "current", store)
    if isinstance(store, SqliteAssetStore):
        with closing(sqlite3.connect(store._path)) as connection, connection:
            connection.execute(f"UPDATE assets SET {sql} WHERE id = ?", (asset.id,))
        return
    with pymongo.MongoClient[dict[str, Any]](mongo_uri) as client:
        client.get_default_database()["assets"].update_one({"_id": ObjectId(asset.id)}, change)


def damage_kept(store: AssetStore, kind: str, id: str, mongo_uri: str, text: str) -> None:
    """Make something else of the data of what is kept under that name."""
    store = getattr(store, "current", store)
    if isinstance(store, SqliteAssetStore):
        with closing(sqlite3.connect(store._path)) as connection, connection:
            connection.execute("UPDATE kept SET data = ? WHERE kind = ? AND id = ?", (text, kind, id))
        return
    with pymongo.MongoClient[dict[str, Any]](mongo_uri) as client:
        client.get_default_database()["kept"].update_one({"_id": f"{kind} {id}"}, {"$set": {"data": text}})


@pytest.fixture
def uri(request: pytest.FixtureRequest, store: AssetStore) -> str:
    """The address of the store's database, "" for one in a file."""
    is_file = isinstance(getattr(store, "current", store), SqliteAssetStore)
    return "" if is_file else str(request.getfixturevalue("mongo_uri"))


@pytest.mark.gen_test
@pytest.mark.parametrize("how", ["no object", "no images"])
async def test_damaged_document_takes_no_other_ones_place(
    store: AssetStore, uri: str, logs: list[Any], how: str
) -> None:
    """Lists, replay, the search for unfinished assets and what is due go on behind it, in full pages; it is logged once
    and counted, and is still known to be there.
    """
    open_ones = [await create(store, created_at=NOON + number * MINUTE) for number in range(5)]
    done = [await create_finished(store, AssetStatus.ACTIVE, at=NOON + number * MINUTE) for number in range(5)]
    for each in (open_ones[0], open_ones[2], done[0], done[2]):
        damage(store, each, uri, how)
    later = NOON + 10 * MINUTE
    left_open, left_done = ids([open_ones[1], open_ones[3], open_ones[4]]), ids([done[1], done[3], done[4]])
    assert ids(await store.unfinished_before(later, limit=2)) == left_open[:2]
    assert ids(await store.unfinished_before(later, limit=9)) == left_open
    after = open_ones[1].created_at, open_ones[1].id
    assert ids(await store.unfinished_before(later, limit=2, after=after)) == left_open[1:]
    assert ids(await store.finished_since("user-1", NOON, limit=2)) == left_done[:2]
    assert ids(await store.expired(later, limit=2)) == left_done[:2]
    assert ids(await store.page("user-1", status=AssetStatus.PROCESSING, limit=3)) == left_open[::-1]
    damaged = {open_ones[0].id, open_ones[2].id, done[0].id, done[2].id}
    everything = sorted(ids([*open_ones, *done]))
    first = await store.all_ids(limit=3)
    assert [*first, *await store.all_ids(limit=20, after=first[-1])] == everything
    assert await store.get(done[0].id) is None
    assert set(ids(await store.get_many([done[0].id, done[1].id]))) == {done[1].id}
    assert set(await store.existing_ids([done[0].id, done[1].id, "0" * 24])) == {done[0].id, done[1].id}
    assert set(await store.damaged_of("user-1")) == damaged
    noted = [line["assetId"] for line in logs if line["event"] == "asset_damaged"]
    assert sorted(noted) == sorted(damaged)
    assert await store.delete(done[0].id, "user-1") is None
    assert set(await store.damaged_of("user-1")) == damaged - {done[0].id}


@pytest.mark.gen_test
@pytest.mark.parametrize("text", ["damaged", "[1]", ""])
async def test_damaged_record_beside_the_assets_stops_no_search(
    store: AssetStore, uri: str, logs: list[Any], text: str
) -> None:
    """Those behind it are found, in full pages; it is logged once, and goes with the user whom it is about."""
    record = [Record("kind", str(number), NOON + number * MINUTE, {"n": number}, "user-1") for number in range(5)]
    for each in record:
        await store.put_record(each)
    for number in "02":
        damage_kept(store, "kind", number, uri, text)
    left = [record[1], record[3], record[4]]
    assert await store.records("kind", limit=2) == left[:2]
    assert await store.records("kind", limit=9) == left
    assert await store.records("kind", limit=2, after=(record[1].at, "1")) == left[1:]
    assert await store.newest_records("kind", limit=3) == left[::-1]
    assert [each for each in await store.all_records(limit=9) if each.kind == "kind"] == left
    assert await store.find_record("kind", "0") is None
    assert sorted(each.id for each in await store.records_of("user-1")) == [*"01234"]
    assert len([line for line in logs if line["event"] == "record_damaged"]) == 2
    await store.delete_records("kind", *"02")
    assert len(await store.records_of("user-1")) == 3


@pytest.mark.gen_test
async def test_expired_are_the_finished_ones_of_all_users_oldest_first(store: AssetStore) -> None:
    """Before that instant, page by page, with and without their original; none that is processing or archived."""
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
async def test_asset_that_runs_again_is_not_expired(store: AssetStore) -> None:
    """A retry between the look and the removal wins."""
    asset = await create_finished(store, AssetStatus.FAILED)
    assert await store.requeue(asset.id, asset.user_id, "ai-processing:again") is not None
    assert await store.expired(NOON + MINUTE, limit=10) == []
    assert await store.delete(asset.id, asset.user_id, finished_before=NOON + MINUTE) is None
    assert await store.drop_original(asset.id, asset.processing_job_id) is None
    assert await store.get(asset.id) is not None
    other = await create_finished(store, AssetStatus.ACTIVE)
    assert await store.delete(other.id, other.user_id, finished_before=NOON) is None
    assert await store.delete(other.id, other.user_id, finished_before=NOON + MINUTE) is not None


@pytest.mark.gen_test
async def test_dropped_original_leaves_what_it_was(store: AssetStore) -> None:
    """Its name and address go, once; size and kind stay. The asset cannot be run again, also in a copy of it."""
    asset = await create_finished(store, AssetStatus.PARTIAL)
    dropped = await store.drop_original(asset.id, asset.processing_job_id)
    assert dropped is not None and not dropped.has_original
    assert (dropped.original.bytes, dropped.original.content_type) == (1234, "image/jpeg")
    assert dropped.to_json({})["images"]["original"]["url"] is None
    assert dropped.processed == asset.processed
    assert await store.drop_original(asset.id, asset.processing_job_id) is None
    assert await store.requeue(asset.id, asset.user_id, "ai-processing:again") is None
    copy = replace(dropped, id=make_asset().id)
    assert await store.create(copy)
    assert await store.requeue(copy.id, copy.user_id, "ai-processing:again") is None
    assert await store.originals_before(NOON + MINUTE, limit=10) == []


@pytest.mark.gen_test
async def test_keys_of_an_asset_go(store: AssetStore) -> None:
    """All that stand for it; those of others stay."""
    for key, asset_id in (("a", "1" * 24), ("b", "1" * 24), ("c", "2" * 24)):
        await store.claim_key(key, KeyRecord(asset_id, "print"), NOON)
    await store.discard_keys("1" * 24)
    assert [await store.find_key(key) for key in "ab"] == [None, None]
    assert await store.find_key("c") == KeyRecord("2" * 24, "print")


@pytest.mark.gen_test
async def test_kept_is_found_by_whom_it_is_about(store: AssetStore) -> None:
    """By user, and by user and asset, of all kinds; what is about nobody is found by nobody."""
    mine = Record("job of q", "1", NOON, {"n": 1}, "user-1", "a" * 24)
    other = Record("job of r", "2", NOON, {"n": 2}, "user-1", "b" * 24)
    for each in (mine, other, Record("job of q", "3", NOON, {}, "user-2", "a" * 24), Record("pause", "q", NOON, {})):
        await store.put_record(each)
    assert sorted(await store.records_of("user-1"), key=lambda record: record.id) == [mine, other]
    assert await store.records_of("user-1", "a" * 24) == [mine]
    assert await store.records_of("user-1", kinds=["job of r", "no such kind"]) == [other]
    assert await store.records_of("user-1", "a" * 24, kinds=["job of r"]) == []
    assert [*await store.records_of(""), *await store.records_of("user-3")] == []
    await store.put_record(replace(mine, user_id="user-4"))
    assert await store.records_of("user-1", "a" * 24) == []


@pytest.mark.gen_test
async def test_what_is_due_is_found_by_an_index(io_loop: IOLoop, tmp_path: Path) -> None:
    """No read of retention, erase or keys walks over a table, whatever it holds."""
    store = SqliteAssetStore(tmp_path / "assets.sqlite")
    await store.open()
    seen: list[tuple[str, Any]] = []
    read, write = store._read, store._write

    async def reading(sql: str, values: Any) -> Any:
        seen.append((sql, values))
        return await read(sql, values)

    async def writing(sql: str, values: Any) -> Any:
        seen.append((sql, values))
        return await write(sql, values)

    store._read, store._write = reading, writing  # type: ignore[method-assign]
    for after in (None, (NOON, "a" * 24)):
        await store.expired(NOON, limit=10, after=after)
        await store.originals_before(NOON, limit=10, after=after)
        await store.newest_records("audit", limit=10, after=after)
    await store.records_of("user-1")
    await store.records_of("user-1", kinds=["delivery"])
    await store.records_of("user-1", "a" * 24)
    await store.discard_keys("a" * 24)
    await store.damaged_of("user-1")
    await store.existing_ids(["a" * 24])
    plans = [await read(f"EXPLAIN QUERY PLAN {sql}", values) for sql, values in seen]
    steps = [row["detail"] for plan in plans for row in plan]
    assert len(plans) == 14
    assert [step for step in steps if "json_each" not in step and not step.startswith(("SEARCH", "LIST"))] == []
    await store.close()


@pytest.mark.gen_test
async def test_deleted_bytes_leave_the_file(io_loop: IOLoop, tmp_path: Path) -> None:
    """Half of a thousand assets are nowhere in the files after they were deleted and the store was scrubbed."""
    store = SqliteAssetStore(tmp_path / "assets.sqlite")
    await store.open()
    assets = [make_asset(f"secret-person-{number % 2}") for number in range(1000)]
    await asyncio.gather(*map(store.create, assets))
    await asyncio.gather(*(begin(store, asset) for asset in assets))
    await asyncio.gather(*(finish(store, asset, 1) for asset in assets))
    await asyncio.gather(*(store.delete(asset.id, asset.user_id) for asset in assets[::2]))
    await store.scrub()
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert held.count(b"secret-person-0") == 0
    assert held.count(b"secret-person-1") >= 500
    await store.close()


@pytest.mark.gen_test
async def test_image_is_replaced_without_losing_what_changes_beside_it(store: AssetStore) -> None:
    """Attempts, corrections, excuses and a result that come between reading and replacing, or after it, all stand; and
    an image that another has taken the place of is not named again.
    """
    asset = await create(store)
    begun = await begin(store, asset)
    old = asset.image_names[0]

    def moved(image: ImageRef, number: int) -> ImageRef:
        return replace(image, backend=f"new-{number}")

    attempt = {"attempt": 1, "outcome": "retry"}
    changed = await asyncio.gather(
        store.add_attempt(asset.id, asset.processing_job_id, begun.fence, attempt),
        store.refund_start(asset.id, asset.processing_job_id),
        *(store.replace_image(asset.id, old, moved(asset.original, number)) for number in range(4)),
    )
    assert len([each for each in changed if each]) == 1
    preview = ImageRef("memory", f"{asset.id}/preview-320", sha256="1" * 64)
    processed = ImageRef("memory", f"{asset.id}/processed-1", sha256="2" * 64)
    done = await finish(store, asset, begun.fence, previews={"320": preview}, processed=processed)
    assert done is not None
    corrected = replace(done, corrections={"brand": {"value": "Adidas"}})
    replaced, *_ = await asyncio.gather(
        store.replace_image(asset.id, preview.name or old, moved(preview, 5)),
        store.replace_image(asset.id, processed.name or old, moved(processed, 6)),
        store.correct(done, corrected),
    )
    current = await store.get(asset.id)
    assert replaced is not None and current is not None
    assert current.original.backend.startswith("new-") and (current.fence, current.excused) == (1, 1)
    assert current.processed == moved(processed, 6) and current.previews == {"320": moved(preview, 5)}
    assert current.corrections == corrected.corrections and attempt in current.attempts
    dropped = await store.drop_original(asset.id, asset.processing_job_id)
    assert dropped is not None and await store.replace_image(asset.id, old, moved(asset.original, 7)) is None
