"""What MongoAssetStore sends, to whom, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pymongo
import pytest
import structlog
from bson import ObjectId
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener, CommandStartedEvent

from pipeline.assets.asset import AiMetadata, AssetStatus
from pipeline.assets.mongo import MongoAssetStore
from pipeline.assets.store import KeyRecord
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from tests.factories import make_asset, make_image
from tests.mongo_server import MongoServer
from tests.replica_set import LaggingReplicaSet
from tests.service import AiService, Service

INDEXES = {"_id_", "newest_of_user", "finished_of_user", "unfinished", "oldest_key", "finished", "key_of_asset"}
INDEXES |= {"job_of_retry"}
WRITES = ("findAndModify", "update", "delete")


class Commands(CommandListener):
    """Remembers the commands that the driver sends."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.sent.append(event.command)

    def named(self, *names: str) -> list[Any]:
        return [command for command in self.sent if next(iter(command)) in names]

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    client = partial(AsyncMongoClient, event_listeners=[commands])
    monkeypatch.setattr("pipeline.assets.mongo_driver.AsyncMongoClient", client)
    return commands


@pytest.mark.gen_test
async def test_mongo_fence_is_checked_and_changed_in_one_command(mongo_uri: str, commands: Commands) -> None:
    """Whether a run is current is decided by the server in the write itself, which it makes atomic."""
    store = MongoAssetStore(mongo_uri)
    await store.open()
    asset = make_asset()
    job = asset.processing_job_id
    await store.create(asset)
    begun = await store.begin(asset.id, asset.user_id, job)
    assert begun is not None and begun.fence == 1
    await store.finish(
        asset.id,
        job,
        begun.fence,
        status=AssetStatus.ACTIVE,
        ai_metadata=AiMetadata(),
        processed=None,
        finished_at=utc_now(),
    )
    await store.close()
    begin, finish = commands.named("findAndModify")
    current = {"processingJobId": job, "status": "processing"}
    assert {key: begin["query"][key] for key in begin["query"] if key != "_id"} == current | {"userId": asset.user_id}
    assert begin["update"]["$inc"] == {"fence": 1}
    assert {key: finish["query"][key] for key in finish["query"] if key != "_id"} == current | {"fence": 1}
    for command in (begin, finish):
        assert str(command["query"]["_id"]) == asset.id
        assert command["writeConcern"]["w"] == "majority" and command["writeConcern"]["j"] is True


def filters(command: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    name = next(iter(command))
    return [command["query"]] if name == "findAndModify" else [each["q"] for each in command[f"{name}s"]]


async def use_all(store: MongoAssetStore) -> None:
    """Call every method that writes, each so that it finds something."""
    asset, now = make_asset(), utc_now()
    job = asset.processing_job_id
    assert await store.create(asset)
    assert await store.begin(asset.id, asset.user_id, job)
    await store.refund_start(asset.id, job)
    assert await store.fail(asset.id, job, 1, error="no", finished_at=now)
    again = await store.requeue(asset.id, asset.user_id, "again")
    assert again is not None and again.excused == 1
    assert await store.delete(asset.id, asset.user_id)
    await store.claim_key("other key", KeyRecord("first", "print"), now)
    second = KeyRecord("second", "print")
    assert await store.claim_key("other key", second, now, instead_of="first") == second
    assert await store.purge_keys(now + timedelta(minutes=1)) >= 1


@pytest.fixture
def local_uri(mongo_server: MongoServer) -> str:
    """A database on a server of our own, in front of which a replica set can be played."""
    return mongo_server.uri(f"test_{secrets.token_hex(6)}")


@pytest.fixture
def filled_uri(local_uri: str) -> str:
    """A database that holds an asset and a key, and no index of ours yet."""
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
    """The store opens and works meanwhile; no time limit of ours or of the URI ends the build."""
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
            await asyncio.sleep(2)  # the length is the point: twice what a call may take
            assert len(await store.page("user-2")) == 1
            released.set()
            await until_indexed(filled_uri)
            while len(logs) < 18:  # the log sends no signal either
                await asyncio.sleep(0.01)
        await store.close()
    assert [line["event"] for line in logs] == ["index_build_started", "index_built"] * 9


@pytest.mark.fault("E31")
@pytest.mark.gen_test(timeout=30)
async def test_mongo_index_build_that_fails_is_repeated(filled_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a line in the log each time, without secrets; the others follow."""
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
async def test_mongo_close_does_not_wait_for_an_index(filled_uri: str) -> None:
    """Nothing of it is left running."""
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


@pytest.mark.fault("E24")
@pytest.mark.gen_test
async def test_mongo_every_write_names_the_shard_key(mongo_uri: str, commands: Commands) -> None:
    """Each goes to the one shard that has the document."""
    store = MongoAssetStore(mongo_uri)
    await store.open()
    await use_all(store)
    await store.close()
    written = [each for command in commands.named(*WRITES) for each in filters(command)]
    assert len(written) == 7 and all("_id" in each for each in written)


@pytest.mark.fault("E24")
@pytest.mark.gen_test(timeout=30)
async def test_mongo_reads_from_the_primary_whatever_the_uri_says(local_uri: str) -> None:
    """A secondary that lags and that the URI names: what was written is read at once, and a key has one owner."""
    async with LaggingReplicaSet(local_uri) as replicas:
        # Not secondaryPreferred: until the secondary is found that means the primary.
        preference = "readPreference=secondary"
        store = MongoAssetStore(replicas.uri(preference))
        await store.open()
        asset, now = make_asset(), utc_now()
        assert await store.create(asset)
        assert await store.get(asset.id) == asset
        assert [each.id for each in await store.page(asset.user_id)] == [asset.id]
        assert await store.unfinished_before(now + timedelta(minutes=1), limit=5) == [asset]
        first = KeyRecord(asset.id, "print")
        assert await store.claim_key("key", first, now) == first
        assert await store.claim_key("key", KeyRecord("other", "print"), now) == first
        assert await store.find_key("key") == first
        await use_all(store)
        await store.close()
        assert replicas.reads_of_secondary == []
        # And this secondary would have been believed.
        async with pymongo.AsyncMongoClient[dict[str, Any]](replicas.uri(preference)) as client:
            assert await client.get_default_database().assets.find_one({}) is None
        assert replicas.reads_of_secondary == ["find"]


@pytest.mark.fault("E24")
@pytest.mark.gen_test(timeout=30)
async def test_upload_keeps_its_key_though_a_secondary_lags(
    tmp_path: Path, ai_service: AiService, local_uri: str
) -> None:
    """The same picture is the same asset, another one is refused, and the AI service is asked once."""
    async with LaggingReplicaSet(local_uri) as replicas:
        uri = replicas.uri("readPreference=secondaryPreferred")
        service = Service(tmp_path, ai_service.url, MONGODB_URI=uri)
        await asyncio.to_thread(service.start)
        try:
            key = {"Idempotency-Key": "k-1"}
            first = await asyncio.to_thread(service.upload, headers=key)
            again = await asyncio.to_thread(service.upload, headers=key)
            other = await asyncio.to_thread(service.upload, image=make_image(seed=7), headers=key)
            assert [reply.status_code for reply in (first, again, other)] == [202, 202, 422]
            asset_id = first.json()["data"]["assetId"]
            assert again.json()["data"]["assetId"] == asset_id
            await asyncio.to_thread(service.wait_log, "job_completed", assetId=asset_id)
            assert (await asyncio.to_thread(service.asset, asset_id))["status"] == "active"
            assert (await asyncio.to_thread(ai_service.state))["calls"] == 1
        finally:
            await asyncio.to_thread(service.kill)
        assert replicas.reads_of_secondary == []


@pytest.mark.fault("E24")
@pytest.mark.gen_test
async def test_mongo_key_that_cannot_be_found_is_not_ours(mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Purged between insert and read: inserted again. Never to be seen: an outage, which the client may repeat."""
    store = MongoAssetStore(mongo_uri)
    await store.open()
    find_key, now = store.find_key, utc_now()

    async def purge_and_find(key: str) -> KeyRecord | None:
        await store.purge_keys(now + timedelta(minutes=1))
        return await find_key(key)

    async def find_nothing(key: str) -> KeyRecord | None:
        return None

    first, second = KeyRecord("first", "print"), KeyRecord("second", "print")
    await store.claim_key("key", first, now)
    monkeypatch.setattr(store, "find_key", purge_and_find)
    assert await store.claim_key("key", second, now) == second
    assert await find_key("key") == second
    monkeypatch.setattr(store, "find_key", find_nothing)
    with pytest.raises(DependencyUnavailable):
        await store.claim_key("key", first, now)
    assert await find_key("key") == second
    await store.close()
