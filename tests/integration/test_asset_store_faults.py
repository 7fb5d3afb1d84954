"""The promises of AssetStore for faults: values that cannot be stored, damaged documents, a database that is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.assets.asset import AiMetadata, AssetStatus
from pipeline.assets.mongo import MongoAssetStore
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import AssetStore, Record, KeyRecord
from pipeline.errors import ConfigurationError, DependencyUnavailable, NotStorable
from tests.factories import make_asset
from tests.integration.asset_stores import (
    MINUTE,
    NOON,
    begin,
    create,
    create_finished,
    damage,
    damage_record,
    finish,
    ids,
)
from tests.integration.asset_stores import make_store, store, uri  # noqa: F811
from tests.mongo_server import MongoServer
from tests.slowdown import slowdown

__all__ = ["make_store", "store", "uri"]
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
async def test_create_refuses_a_value_that_cannot_be_stored(store: AssetStore, kind: str) -> None:
    """NotStorable names the reason; that asset is not inserted; the other assets of the batch are inserted."""
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
async def test_finish_refuses_a_value_that_cannot_be_stored(store: AssetStore, kind: str) -> None:
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
    """Two values of 9 MiB fit alone but not in one document: the server finds that out, not the driver."""
    asset = make_asset()
    assert await store.create(replace(asset, original=replace(asset.original, url="x" * 9 * MIB)))
    begun = await begin(store, asset)
    with pytest.raises(NotStorable, match="too large"):
        await finish(store, asset, begun.fence, ai_metadata=AiMetadata(error="x" * 9 * MIB))
    assert await store.get(asset.id) == begun


@pytest.mark.fault("E32")
@pytest.mark.gen_test
async def test_query_with_invalid_unicode_is_refused(store: AssetStore) -> None:
    """The user id of a damaged job raises NotStorable, not the error of an outage."""
    asset = await create(store)
    with pytest.raises(NotStorable):
        await store.begin(asset.id, "\ud800", asset.processing_job_id)
    with pytest.raises(NotStorable):
        await store.page("\ud800")


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
async def test_mongo_outage_raises_one_error_in_time() -> None:
    """While the server is stopped each call raises DependencyUnavailable within its timeout; later calls succeed."""
    with MongoServer() as server:
        # A longer timeout, for the slow first replies of a server that just started.
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
async def test_sqlite_store_that_is_not_open_raises_one_error(tmp_path: Path, name: str) -> None:
    """After an open that failed because the file is no database, each call raises DependencyUnavailable."""
    (tmp_path / "assets.sqlite").write_bytes(b"this is no database" * 100)
    store = SqliteAssetStore(tmp_path / "assets.sqlite")
    with pytest.raises(ConfigurationError):
        await store.open()
    with pytest.raises(DependencyUnavailable):
        await ALL_CALLS[name](store)
    await store.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("how", ["no object", "no images"])
async def test_damaged_document_takes_no_place_in_a_list(
    store: AssetStore, uri: str, logs: list[Any], how: str
) -> None:
    """Lists, replay, unfinished assets and expired assets pass over the damaged document and return full pages.

    The document is logged once. Its id is still listed until the asset is deleted.
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
    all_ids = sorted(ids([*open_ones, *done]))
    first = await store.all_ids(limit=3)
    assert [*first, *await store.all_ids(limit=20, after=first[-1])] == all_ids
    assert await store.get(done[0].id) is None
    assert set(ids(await store.get_many([done[0].id, done[1].id]))) == {done[1].id}
    assert set(await store.existing_ids([done[0].id, done[1].id, "0" * 24])) == {done[0].id, done[1].id}
    assert set(await store.damaged_of("user-1")) == damaged
    logged = [line["assetId"] for line in logs if line["event"] == "asset_damaged"]
    assert sorted(logged) == sorted(damaged)
    assert await store.delete(done[0].id, "user-1") is None
    assert set(await store.damaged_of("user-1")) == damaged - {done[0].id}


@pytest.mark.gen_test
@pytest.mark.parametrize("text", ["damaged", "[1]", ""])
async def test_damaged_record_takes_no_place_in_a_list(
    store: AssetStore, uri: str, logs: list[Any], text: str
) -> None:
    """Lists pass over the damaged record and return full pages; it is logged once and found by its user."""
    stored = [Record("kind", str(number), NOON + number * MINUTE, {"n": number}, "user-1") for number in range(5)]
    for each in stored:
        await store.put_record(each)
    for number in "02":
        damage_record(store, "kind", number, uri, text)
    left = [stored[1], stored[3], stored[4]]
    assert await store.records("kind", limit=2) == left[:2]
    assert await store.records("kind", limit=9) == left
    assert await store.records("kind", limit=2, after=(stored[1].at, "1")) == left[1:]
    assert await store.newest_records("kind", limit=3) == left[::-1]
    assert [each for each in await store.all_records(limit=9) if each.kind == "kind"] == left
    assert await store.find_record("kind", "0") is None
    assert sorted(each.id for each in await store.records_of("user-1")) == [*"01234"]
    assert len([line for line in logs if line["event"] == "record_damaged"]) == 2
    await store.delete_records("kind", *"02")
    assert len(await store.records_of("user-1")) == 3


@pytest.mark.gen_test(timeout=30)
async def test_driver_without_free_connections_is_replaced(mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After RENEW_AFTER_SECONDS without one reply a new client is made, and the store works with it."""
    monkeypatch.setattr("pipeline.assets.mongo_calls.RENEW_AFTER_SECONDS", 0.2)
    store = MongoAssetStore(mongo_uri, timeout_seconds=0.5)
    await store.open()
    asset = await create(store)
    pools = [server.pool for server in store._client._topology._servers.values()]
    for pool in pools:
        pool.requests = pool.max_pool_size
    for _ in range(2):
        with pytest.raises(DependencyUnavailable):
            await store.get(asset.id)
    assert await store.get(asset.id) == asset
    assert await create(store) and await begin(store, asset)
    # The old client can close its connections only when it has a free one.
    for pool in pools:
        pool.requests = 0
        async with pool.size_cond:
            pool.size_cond.notify_all()
    await asyncio.gather(*store._closing)
    await store.close()


@pytest.mark.gen_test(timeout=30)
async def test_client_that_cannot_be_made_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a certificate of the URI is missing, calls fail as before and the client stays."""
    monkeypatch.setattr("pipeline.assets.mongo_calls.RENEW_AFTER_SECONDS", 0)
    store = MongoAssetStore("mongodb://127.0.0.1:1/photos", timeout_seconds=0.2)
    client = store._client
    monkeypatch.setattr(store, "_uri", f"mongodb://127.0.0.1:1/photos?tls=true&tlsCAFile={tmp_path}/missing.pem")
    for _ in range(2):
        with pytest.raises(DependencyUnavailable):
            await store.get("0" * 24)
    assert store._client is client
    await store.close()
