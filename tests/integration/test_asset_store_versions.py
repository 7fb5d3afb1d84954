"""The promises of AssetStore for databases of other versions: version 0.1 is upgraded, a newer version is refused."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pymongo
import pytest
from bson import ObjectId

from pipeline.assets.asset import SCHEMA, ImageRef
from pipeline.assets.asset_parts import guess_backend
from pipeline.assets.mongo import MongoAssetStore
from pipeline.assets.store import SCHEMA_KIND, AssetStore, Record
from pipeline.clock import utc_now
from pipeline.errors import ConfigurationError
from tests.factories import make_asset
from tests.integration.asset_stores import NOON, MakeStore
from tests.integration.asset_stores import make_store, store  # noqa: F811

__all__ = ["make_store", "store"]


def old_document(number: int, url: str, public_id: str, processed: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return an asset as version 0.1 stored it in MongoDB, except for the type of its id."""
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
    """Return a function that writes the documents of OLD as version 0.1 did."""

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
async def test_documents_of_version_0_1_are_read_and_upgraded(
    store: AssetStore, put_old: Callable[[], None], make_store: MakeStore
) -> None:
    """An old document gives the same asset before and after the upgrade. Only old documents change, in pages."""
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
async def test_upgrade_records_the_storage_of_the_caller(store: AssetStore, put_old: Callable[[], None]) -> None:
    """The caller knows which storage version 0.1 used; an image on another server gets no storage of ours."""
    put_old()
    assert await store.upgrade("", limit=9, backend_of=lambda public_id, url: "acme") == (4, None)
    assets = {asset.id: asset for asset in await store.page("user-1")}
    assert {asset.original.backend for asset in assets.values()} == {"acme"}
    elsewhere = assets[OLD[2]["_id"]].processed
    assert elsewhere == ImageRef("", "", "https://ai.example/p.webp")


@pytest.mark.gen_test
async def test_store_of_a_newer_version_is_refused(
    store: AssetStore, make_store: MakeStore, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Opening a store that a newer version wrote raises ConfigurationError, and the message names the reason."""
    if isinstance(store, MongoAssetStore):
        await store.put_record(Record(SCHEMA_KIND, "store", utc_now(), {"version": SCHEMA + 1}))
    else:
        with closing(sqlite3.connect(tmp_path / "new" / "assets.sqlite")) as connection:
            connection.execute("PRAGMA user_version = 99")
    newer = make_store()
    with pytest.raises(ConfigurationError, match="written by a newer version"):
        await newer.open()
    await newer.close()
