"""MongoAssetStore builds its indexes in the background: the builds may be slow, fail or be left unfinished."""

from __future__ import annotations

import asyncio
from typing import Any

import pymongo
import pytest
import structlog
from bson import ObjectId

from pipeline.assets.mongo import MongoAssetStore
from pipeline.clock import utc_now
from tests.factories import make_asset
from tests.replica_set import LaggingReplicaSet

INDEXES = {"_id_", "newest_of_user", "finished_of_user", "unfinished", "oldest_key", "finished", "key_of_asset"}
INDEXES |= {"job_of_retry"}


@pytest.fixture
def filled_uri(local_uri: str) -> str:
    """The URI of a database with an asset and a key, and without the indexes of the service."""
    with pymongo.MongoClient[dict[str, Any]](local_uri) as client:
        database = client.get_default_database()
        asset = make_asset()
        database.assets.insert_one(asset.to_document() | {"_id": ObjectId(asset.id)})
        database.idempotency_keys.insert_one({"_id": "old", "assetId": asset.id, "createdAt": utc_now()})
    return local_uri


def index_names(uri: str) -> set[str]:
    with pymongo.MongoClient[dict[str, Any]](uri) as client:
        database = client.get_default_database()
        return {name for each in ("assets", "idempotency_keys") for name in database[each].index_information()}


async def until_indexed(uri: str) -> None:
    while await asyncio.to_thread(index_names, uri) != INDEXES:  # the server sends no signal
        await asyncio.sleep(0.02)


@pytest.mark.fault("E31")
@pytest.mark.gen_test(timeout=30)
async def test_mongo_index_may_take_longer_than_any_call(filled_uri: str) -> None:
    """The store opens and works meanwhile; no time limit of the service or of the URI ends the build."""
    started, released = asyncio.Event(), asyncio.Event()

    async def hold_builds(name: str) -> None:
        if name == "createIndexes":
            started.set()
            await released.wait()

    async with LaggingReplicaSet(filled_uri) as replicas:
        replicas.before = hold_builds
        uri = replicas.uri("timeoutMS=400&socketTimeoutMS=400")
        store = MongoAssetStore(uri, timeout_seconds=1)
        with structlog.testing.capture_logs() as logs:
            await store.open()
            await store.open()
            assert await store.create(make_asset("user-2"))
            await started.wait()
            await asyncio.sleep(2)  # the length matters: twice what a call may take
            assert len(await store.page("user-2")) == 1
            released.set()
            await until_indexed(filled_uri)
            while len(logs) < 18:  # the log sends no signal
                await asyncio.sleep(0.01)
        await store.close()
    assert [line["event"] for line in logs] == ["index_build_started", "index_built"] * 9


@pytest.mark.fault("E31")
@pytest.mark.gen_test(timeout=30)
async def test_mongo_index_build_that_fails_is_repeated(filled_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each failure is logged without secrets; the other indexes are built afterwards."""
    monkeypatch.setattr("pipeline.assets.mongo_indexes.RETRY_SECONDS", (0.01, 0.01))
    answers = [{"ok": 0.0, "code": 11601, "errmsg": "interrupted, password=hidden"}] * 3

    async def refuse_builds(name: str) -> dict[str, Any] | None:
        return answers.pop() if name == "createIndexes" and answers else None

    async with LaggingReplicaSet(filled_uri) as replicas:
        replicas.before = refuse_builds
        store = MongoAssetStore(replicas.uri("retryWrites=false"))
        with structlog.testing.capture_logs() as logs:
            await store.open()
            await until_indexed(filled_uri)
        await store.close()
    failed = [line for line in logs if line["event"] == "index_build_failed"]
    assert [line["index"] for line in failed] == ["newest_of_user"] * 3
    assert "interrupted" in failed[0]["cause"] and "hidden" not in failed[0]["cause"]


@pytest.mark.fault("E31")
@pytest.mark.gen_test
async def test_mongo_close_ends_an_index_build(filled_uri: str) -> None:
    """`close` does not wait for the build, and leaves no task of it running."""
    started = asyncio.Event()

    async def hold_builds(name: str) -> None:
        if name == "createIndexes":
            started.set()
            await asyncio.Event().wait()

    async with LaggingReplicaSet(filled_uri) as replicas:
        replicas.before = hold_builds
        store = MongoAssetStore(replicas.uri())
        await store.open()
        await started.wait()
        async with asyncio.timeout(2):
            await store.close()
        assert "build_indexes" not in {task.get_name() for task in asyncio.all_tasks()}
