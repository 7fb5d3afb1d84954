"""How operators' lists of jobs are searched in both asset stores: SQLite, and MongoDB on a real server."""

from __future__ import annotations

import asyncio
import itertools
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pymongo
import pytest

from pipeline.assets.asset import CANCELLED, AiMetadata, Asset, AssetStatus
from pipeline.assets.failures import fingerprint
from pipeline.assets.job_search import Count, JobFilter
from pipeline.assets.mongo import MongoAssetStore
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.sqlite_schema import MIGRATIONS
from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from tests.factories import make_asset
from tests.integration.asset_stores import FOUND, NOON, begin, create, create_finished, finish, ids
from tests.integration.asset_stores import make_store, store  # noqa: F811

__all__ = ["make_store", "store"]
SECOND = timedelta(seconds=1)


async def create_jobs(
    store: AssetStore, count: int, status: AssetStatus = AssetStatus.ACTIVE, **fields: Any
) -> list[Asset]:
    """Create `count` assets, a second apart, and return them, the newest first."""
    made = [
        make_asset(f"user-{number % 3}", status=status, created_at=NOON - number * SECOND, **fields)
        for number in range(count)
    ]
    await asyncio.gather(*map(store.create, made))
    return made


async def every_job(store: AssetStore, wanted: JobFilter, limit: int) -> list[Asset]:
    """Return the assets of all pages of a list; no page is larger than the limit."""
    found: list[Asset] = []
    after = None
    for _ in range(100):
        page = await store.jobs(wanted, limit=limit, after=after)
        assert len(page.assets) <= limit
        found += page.assets
        if (after := page.next_after) is None:
            return found
    raise AssertionError("the list has no end")


@pytest.mark.gen_test
async def test_jobs_are_listed_newest_first(store: AssetStore) -> None:
    """Jobs of all users and of every status come in pages by createdAt and then id, each asset once."""
    made = await create_jobs(store, 20)
    made += await create_jobs(store, 7, AssetStatus.PROCESSING)
    made += [replace(make_asset(created_at=NOON), id=f"{number:024x}", status=AssetStatus.FAILED) for number in (1, 2)]
    await asyncio.gather(*(store.create(asset) for asset in made[-2:]))
    expected = sorted(made, key=lambda asset: (asset.created_at, asset.id), reverse=True)
    for limit in (1, 4, 100):
        assert ids(await every_job(store, JobFilter(), limit)) == ids(expected)
    processing = JobFilter(statuses=(AssetStatus.PROCESSING, AssetStatus.FAILED))
    assert ids(await every_job(store, processing, 4)) == [a.id for a in expected if a.status in processing.statuses]


@pytest.mark.gen_test
async def test_jobs_are_found_by_each_filter(store: AssetStore) -> None:
    """A job must match every given filter; the count is the length of the list."""
    sneakers = await create_jobs(store, 3)
    legos = await create_jobs(store, 3, category="lego", provenance={"provider": "openai"})
    error = AiMetadata(error="Host a1.example.com: timed out after 90 s")
    tried = ({"attempt": 1, "provider": "http"},)
    failed = await create_jobs(store, 3, AssetStatus.FAILED, ai_metadata=error, attempts=tried)
    skoda = {"model": {"value": "ŠKODA", "by": "u", "at": ""}}
    named = await create_jobs(store, 1, ai_metadata=FOUND, corrections=skoda)
    kind = fingerprint("Host b2.example.org: timed out after 5 s")
    cases: list[tuple[JobFilter, list[Asset]]] = [
        (JobFilter(category="lego"), legos),
        (JobFilter(provider="openai"), legos),
        (JobFilter(provider="http"), failed),
        (JobFilter(provider="none"), []),
        (JobFilter(failure=kind), failed),
        (JobFilter(failure=kind, user_id="user-1"), failed[1:2]),
        (JobFilter(failure=kind, statuses=(AssetStatus.ACTIVE,)), []),
        (JobFilter(failure=fingerprint("Unknown")), []),
        (JobFilter(words=("nike",)), named),
        (JobFilter(words=("nike", "škoda", "air")), named),
        (JobFilter(words=("timed", "user-2")), failed[2:]),
        (JobFilter(words=("nike", "lego")), []),
        (JobFilter(user_id="user-1"), [sneakers[1], legos[1], failed[1]]),
        (JobFilter(user_id="user-1", statuses=(AssetStatus.ACTIVE,)), [sneakers[1], legos[1]]),
        (JobFilter(user_id="user-1", category="lego", provider="openai", words=("user",)), legos[1:2]),
        (JobFilter(since=NOON - SECOND, until=NOON - SECOND), [sneakers[1], legos[1], failed[1]]),
        (JobFilter(since=NOON + SECOND), []),
        (JobFilter(until=NOON - 2 * SECOND, category="lego"), legos[2:]),
        (JobFilter(statuses=(AssetStatus.PROCESSING,)), []),
    ]
    for wanted, expected in cases:
        for limit in (1, 10):
            found = await every_job(store, wanted, limit)
            assert sorted(ids(found)) == sorted(ids(expected)), wanted
        assert await store.count_jobs(wanted) == Count(len(expected), True), wanted
        assert {asset.id for asset in sneakers + legos + failed + named if wanted.holds(asset)} == {*ids(expected)}


@pytest.mark.gen_test
async def test_search_examines_a_bounded_number_of_jobs_per_page(
    store: AssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rare match needs several pages, some of them empty; a count says that it is not exact."""
    for module in ("sqlite_jobs", "mongo_jobs"):
        for name in ("EXAMINED_AT_MOST", "COUNTED_AT_MOST", "READ_AT_MOST"):
            monkeypatch.setattr(f"pipeline.assets.{module}.{name}", 10)
    await create_jobs(store, 35)
    rare = await create(store, category="camera", created_at=NOON - 33 * SECOND, ai_metadata=FOUND)
    odd = NOON - 60 * SECOND + timedelta(microseconds=7)
    assert ids(await every_job(store, JobFilter(category="camera", since=odd), 5)) == [rare.id]
    for wanted in (JobFilter(category="camera"), JobFilter(words=("nike",))):
        first = await store.jobs(wanted, limit=5)
        assert first.assets == [] and first.next_after is not None
        assert NOON - 12 * SECOND <= first.next_after[0] < NOON
        assert ids(await every_job(store, wanted, 5)) == [rare.id]
        count = await store.count_jobs(wanted)
        assert (count.count, count.is_exact) == (0, False)
    count = await store.count_jobs(JobFilter())
    assert (count.count, count.is_exact) == (10, False)
    assert len(await every_job(store, JobFilter(), 5)) == 36


@pytest.mark.gen_test
async def test_failures_are_grouped_by_kind(store: AssetStore) -> None:
    """The most frequent kind is first, with its newest reason; only failed jobs of the period are counted."""
    for number, error in enumerate(["timed out after 1 s", "timed out after 2 s", "refused", "timed out after 3 s"]):
        meta = AiMetadata(error=error)
        await create(store, status=AssetStatus.FAILED, ai_metadata=meta, created_at=NOON - number * SECOND)
    await create(store, status=AssetStatus.FAILED, created_at=NOON - 4 * SECOND)
    await create(store, status=AssetStatus.PARTIAL, ai_metadata=AiMetadata(error="refused"), created_at=NOON)
    found = await store.failures()
    assert [(each.reason, each.count, each.first_at, each.last_at) for each in found[:1]] == [
        ("timed out after 1 s", Count(3, True), NOON - 3 * SECOND, NOON)
    ]
    assert {each.reason for each in found[1:]} == {"refused", "Unknown"}
    (recent,) = await store.failures(since=NOON - SECOND)
    assert (recent.count, recent.failure) == (Count(2, True), fingerprint("timed out after 1 s"))
    assert [each.reason for each in await store.failures(until=NOON - 4 * SECOND)] == ["Unknown"]


@pytest.mark.gen_test
async def test_failure_follows_the_status(store: AssetStore) -> None:
    """Fail and cancel set the kind; requeue, a result and a correction remove it; undoing the correction sets it."""
    failed = await create_finished(store, AssetStatus.FAILED)
    no, cancelled = fingerprint("no"), fingerprint(CANCELLED)

    async def kinds() -> set[str]:
        return {each.failure for each in await store.failures()}

    assert await kinds() == {no} == {failed.failure}
    corrected = replace(failed, corrections={"brand": {"value": "Nike"}}, status=AssetStatus.PARTIAL)
    stored = await store.correct(failed, corrected)
    assert stored is not None and await kinds() == set()
    assert await store.correct(stored, replace(stored, corrections={}, status=AssetStatus.FAILED)) is not None
    assert await kinds() == {no}
    requeued = await store.requeue(failed.id, failed.user_id, JOB_OF_RETRY)
    assert requeued is not None and await kinds() == set()
    assert await store.cancel(requeued.id, requeued.processing_job_id, finished_at=NOON) is not None
    assert await kinds() == {cancelled}
    requeued = await store.requeue(failed.id, failed.user_id, "ai-processing:" + "d" * 24)
    assert requeued is not None
    begun = await begin(store, requeued)
    assert await finish(store, begun, begun.fence) is not None
    assert await kinds() == set()


JOB_OF_RETRY = "ai-processing:" + "e" * 24


@pytest.mark.gen_test
async def test_asset_is_found_by_its_last_job(store: AssetStore) -> None:
    """The first job finds the asset until a retry gives it another job, also after a copy; no other text finds it."""
    asset = await create_finished(store, AssetStatus.FAILED)
    assert await store.find_by_job(asset.processing_job_id) == asset
    requeued = await store.requeue(asset.id, asset.user_id, JOB_OF_RETRY)
    assert await store.find_by_job(asset.processing_job_id) is None
    assert await store.find_by_job(JOB_OF_RETRY) == requeued
    copied = await create(store, processing_job_id="ai-processing:" + "f" * 24)
    assert await store.find_by_job(copied.processing_job_id) == copied
    for unknown in ("", "x", "ai-processing:" + "0" * 24, asset.id, "é" * 24):
        assert await store.find_by_job(unknown) is None


@pytest.mark.gen_test
async def test_searches_of_jobs_use_an_index(tmp_path: Path) -> None:
    """No statement of a list, a count or the failures scans or sorts the table, for any filter."""
    store = SqliteAssetStore(tmp_path / "assets.sqlite")
    await store.open()
    statements: list[str] = []
    await store._on_reader(lambda connection: connection.set_trace_callback(statements.append))
    await create(store, status=AssetStatus.FAILED)
    period: dict[str, Any] = {"since": NOON, "until": utc_now()}
    result = (AssetStatus.ACTIVE, AssetStatus.PARTIAL)
    statuses: tuple[tuple[AssetStatus, ...], ...] = ((), (AssetStatus.FAILED,), result)
    others: tuple[dict[str, Any], ...] = ({}, {"words": ("x",)}, {"category": "x"})
    for user, failure, more in itertools.product((None, "u"), (None, "0" * 12), others):
        for status, instants in itertools.product(statuses, ({}, period)):
            wanted = JobFilter(statuses=status, user_id=user, failure=failure, **more, **instants)
            await store.jobs(wanted, limit=5)
            await store.jobs(wanted, limit=5, after=(utc_now(), "f" * 24))
            await store.count_jobs(wanted)
    await store.failures()
    await store.failures(NOON, utc_now())
    await store.find_by_job(JOB_OF_RETRY)
    await store.page("u", status=AssetStatus.ACTIVE)
    await store.unfinished_before(NOON, limit=5)
    await store._on_reader(lambda connection: connection.set_trace_callback(None))
    asked = {each for each in statements if each.startswith("SELECT")}
    plans = {sql: await store._read(f"EXPLAIN QUERY PLAN {sql}", {}) for sql in asked}
    steps = {row["detail"] for plan in plans.values() for row in plan}
    searched = re.compile(r"SEARCH assets USING (PRIMARY KEY|(COVERING )?INDEX \w+) \(.*\)")
    # These scans read the result of a search to count it, or a list of ids or statuses of the request.
    results = re.compile(
        r"CO-ROUTINE \(subquery-\d+\)|SCAN (\(subquery-\d+\)|json_each VIRTUAL TABLE .*)|LIST SUBQUERY \d+"
    )
    unions = {"COMPOUND QUERY", "LEFT-MOST SUBQUERY", "UNION ALL"}
    other_steps = {step for step in steps if not searched.fullmatch(step) and not results.fullmatch(step)}
    assert len(asked) > 50 and other_steps <= unions
    await store.close()


@pytest.mark.gen_test
async def test_failed_assets_of_an_older_file_get_their_kind(tmp_path: Path) -> None:
    """Opening a file of an older version upgrades it: failures are grouped, and a damaged row does not stop it."""
    path = tmp_path / "assets.sqlite"
    store = SqliteAssetStore(path)
    await store.open()
    asset = await create_finished(store, AssetStatus.FAILED)
    damaged = await create_finished(store, AssetStatus.FAILED)
    await create_finished(store, AssetStatus.ACTIVE)
    await store.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        for name in ("by_status", "newest_of_user", "failures", "job_of_retry"):
            connection.execute(f"DROP INDEX {name}")
        connection.execute("ALTER TABLE assets DROP COLUMN failure")
        connection.execute("ALTER TABLE assets DROP COLUMN claims")
        connection.execute("CREATE INDEX unfinished ON assets (createdAt, id) WHERE status = 'processing'")
        connection.execute("CREATE INDEX newest_of_user ON assets (userId, createdAt, id)")
        connection.execute("UPDATE assets SET aiMetadata = '{' WHERE id = ?", [damaged.id])
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) - 2}")
    await store.open()
    kinds = {(each.failure, each.reason, each.count.count) for each in await store.failures()}
    assert kinds == {(fingerprint("no"), "no", 1), (fingerprint(None), "Unknown", 1)}
    assert ids((await store.jobs(JobFilter(failure=asset.failure), limit=5)).assets) == [asset.id]
    assert ids((await store.jobs(JobFilter(statuses=(AssetStatus.FAILED,)), limit=5)).assets) == [asset.id]
    await store.close()


@pytest.mark.gen_test
async def test_failed_documents_of_an_older_version_get_their_kind(mongo_uri: str) -> None:
    """A MongoDB document that an older version wrote without a kind is grouped and found by its error."""
    store = MongoAssetStore(mongo_uri)
    await store.open()
    asset = await create_finished(store, AssetStatus.FAILED)
    with pymongo.MongoClient[dict[str, Any]](mongo_uri) as client:
        client.get_default_database()["assets"].update_one({}, {"$unset": {"failure": 1}})
    assert [(each.failure, each.count.count) for each in await store.failures()] == [(fingerprint("no"), 1)]
    wanted = JobFilter(failure=asset.failure)
    assert ids((await store.jobs(wanted, limit=5)).assets) == [asset.id]
    assert (await store.count_jobs(wanted)).count == 1
    await store.close()
