"""The commands that MongoAssetStore sends, the servers it sends them to, and its reactions to the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pymongo
import pytest
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener, CommandStartedEvent

from pipeline.assets.asset import AiMetadata, AssetStatus
from pipeline.assets.mongo import MongoAssetStore
from pipeline.assets.store import KeyRecord
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from tests.factories import make_asset, make_image
from tests.replica_set import LaggingReplicaSet
from tests.service import AiService, Service

WRITES = ("findAndModify", "update", "delete")


class Commands(CommandListener):
    """Records the commands that the driver sends."""

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
    """The server decides in the atomic write itself whether a run is current."""
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
    """Call every method that writes, each with a document that it finds."""
    asset, now = make_asset(), utc_now()
    job = asset.processing_job_id
    assert await store.create(asset)
    assert await store.begin(asset.id, asset.user_id, job)
    await store.refund_start(asset.id, job)
    assert await store.fail(asset.id, job, 1, error="no", finished_at=now)
    requeued = await store.requeue(asset.id, asset.user_id, "second job")
    assert requeued is not None and requeued.excused == 1
    assert await store.delete(asset.id, asset.user_id)
    await store.claim_key("other key", KeyRecord("first", "print"), now)
    second = KeyRecord("second", "print")
    assert await store.claim_key("other key", second, now, instead_of="first") == second
    assert await store.purge_keys(now + timedelta(minutes=1)) >= 1


@pytest.mark.fault("E24")
@pytest.mark.gen_test
async def test_mongo_every_write_names_the_shard_key(mongo_uri: str, commands: Commands) -> None:
    """Each write names `_id`, so it reaches only the shard that has the document."""
    store = MongoAssetStore(mongo_uri)
    await store.open()
    await use_all(store)
    await store.close()
    written = [each for command in commands.named(*WRITES) for each in filters(command)]
    assert len(written) == 7 and all("_id" in each for each in written)


@pytest.mark.fault("E24")
@pytest.mark.gen_test(timeout=30)
async def test_mongo_reads_from_the_primary_whatever_the_uri_says(local_uri: str) -> None:
    """The URI names a lagging secondary; still, written assets are read at once, and a key has one owner."""
    async with LaggingReplicaSet(local_uri) as replicas:
        # Not secondaryPreferred: it would mean the primary until the secondary is found.
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
        # A client with this URI alone reads from the secondary.
        async with pymongo.AsyncMongoClient[dict[str, Any]](replicas.uri(preference)) as client:
            assert await client.get_default_database().assets.find_one({}) is None
        assert replicas.reads_of_secondary == ["find"]


@pytest.mark.fault("E24")
@pytest.mark.gen_test(timeout=30)
async def test_upload_keeps_its_key_while_a_secondary_lags(
    tmp_path: Path, ai_service: AiService, local_uri: str
) -> None:
    """With the same key the same picture gets the same asset, and another picture is refused."""
    async with LaggingReplicaSet(local_uri) as replicas:
        uri = replicas.uri("readPreference=secondaryPreferred")
        service = Service(tmp_path, ai_service.url, MONGODB_URI=uri)
        await asyncio.to_thread(service.start)
        try:
            key = {"Idempotency-Key": "k-1"}
            first = await asyncio.to_thread(service.upload, headers=key)
            repeated = await asyncio.to_thread(service.upload, headers=key)
            other = await asyncio.to_thread(service.upload, image=make_image(seed=7), headers=key)
            assert [reply.status_code for reply in (first, repeated, other)] == [202, 202, 422]
            asset_id = first.json()["data"]["assetId"]
            assert repeated.json()["data"]["assetId"] == asset_id
            await asyncio.to_thread(service.wait_log, "job_completed", assetId=asset_id)
            assert (await asyncio.to_thread(service.asset, asset_id))["status"] == "active"
            assert (await asyncio.to_thread(ai_service.state))["calls"] == 1
        finally:
            await asyncio.to_thread(service.kill)
        assert replicas.reads_of_secondary == []


@pytest.mark.fault("E24")
@pytest.mark.gen_test
async def test_mongo_key_that_disappears_is_inserted_anew_or_an_outage(
    mongo_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key purged between insert and read is inserted anew; one that is never found is an outage."""
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
