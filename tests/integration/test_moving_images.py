"""Images that move from one storage to another, and what `verify` finds meanwhile, in one process."""

from __future__ import annotations

import dataclasses
import hashlib
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from pipeline.errors import Conflict, DependencyUnavailable, ValidationError
from pipeline.images import ImageName, SavedImage
from pipeline.usecases.image_move import choose_storage, move_images, probe
from pipeline.usecases.outage_retry import OutageRetry
from pipeline.usecases.storages_in_use import LEFT_KIND, storages_left_lately
from pipeline.usecases.verifying import Verification
from tests.factories import make_asset
from tests.integration.two_storages import AT_ONCE, PHOTO, PHOTO_HASH, Two, created, two

pytestmark = pytest.mark.fault("U17")


@pytest.mark.gen_test
async def test_move_that_was_interrupted_goes_on(store: SqliteAssetStore) -> None:
    """Wherever it ended before: every image is named where it is then, none was moved twice, damaged ones stay."""
    storage, assets = Two(), []
    for number in range(6):
        content = b"photo %d" % number
        digest = hashlib.sha256(content if number else b"another one").hexdigest()
        asset = make_asset()
        asset = dataclasses.replace(asset, original=dataclasses.replace(asset.original, sha256=digest))
        assert await store.create(asset)
        storage.inner["memory"].images[asset.original.public_id] = content
        assets.append(asset)
    moved = 0
    for _ in range(3):
        storage.saves_left = 2
        try:
            moved += (last := await move_images(store, storage, outage_retry=AT_ONCE)).images
        except DependencyUnavailable:
            moved += 2
    storage.saves_left = 2
    last = await move_images(store, storage, outage_retry=AT_ONCE)
    assert (moved + last.images, len(last.left)) == (5, 1) and assets[0].original.public_id in last.left[0]
    for asset in assets[1:]:
        current = await store.get(asset.id)
        assert current is not None and current.original.backend == "new"
        assert await storage.read(current.image_names[0]) == await storage.read(asset.image_names[0])
    assert [flaw.what async for flaw in Verification(store, storage, recheck_seconds=0).flaws()] == ["damaged"]


@pytest.mark.gen_test
async def test_image_that_changes_while_it_is_moved_is_not_named(store: SqliteAssetStore) -> None:
    """Its asset was deleted meanwhile: the copy goes, too."""
    storage, asset = Two(), make_asset()
    content = b"photo"
    digest = hashlib.sha256(content).hexdigest()
    asset = dataclasses.replace(asset, original=dataclasses.replace(asset.original, sha256=digest))
    assert await store.create(asset)
    storage.inner["memory"].images[asset.original.public_id] = content
    storage.saves_left = 1
    save = storage.save

    async def save_late(*arguments: Any) -> SavedImage:
        saved = await save(*arguments)
        await store.delete(asset.id, asset.user_id)
        return saved

    storage.save = save_late  # type: ignore[assignment,method-assign]
    assert (await move_images(store, storage)).images == 0
    assert storage.inner["new"].images == {}


@pytest.mark.gen_test
async def test_older_move_gives_way_to_a_newer_one(store: SqliteAssetStore) -> None:
    """Two that go to different storages would undo each other's work."""
    storage = two(await created(store))
    await choose_storage(store, "elsewhere", instead_of="memory")
    with pytest.raises(Conflict, match="elsewhere"):
        await move_images(store, storage, outage_retry=AT_ONCE)
    assert storage.inner["new"].images == {}
    await choose_storage(store, "new", instead_of="memory")
    assert (await move_images(store, storage, outage_retry=AT_ONCE)).images == 1
    record = await store.find_record("move", "storage")
    assert record is not None and record.data == {"to": "new", "insteadOf": ["elsewhere", "memory"]}


@pytest.mark.gen_test
@pytest.mark.parametrize("loses", ["all", "half"])
async def test_storage_that_loses_what_it_is_given_gets_nothing(store: SqliteAssetStore, loses: str) -> None:
    """The asset names its old image, and no half copy stays behind; a probe would have said it before."""
    asset = await created(store)
    storage = two(asset)
    save = storage.save

    async def save_badly(public_id: str, file: Any, content_type: str) -> SavedImage:
        saved = await save(public_id, file, content_type)
        new = storage.inner["new"].images
        if loses == "all":
            del new[public_id]
        else:
            new[public_id] = new[public_id][:-1]
        return saved

    storage.save = save_badly  # type: ignore[method-assign]
    with pytest.raises(DependencyUnavailable, match="does not give back"):
        await move_images(store, storage, outage_retry=AT_ONCE)
    assert storage.inner["new"].images == {} and await store.get(asset.id) == asset
    with pytest.raises(DependencyUnavailable, match="does not give back"):
        await probe(storage)
    assert storage.inner["new"].images == {}


@pytest.mark.gen_test
async def test_storage_that_is_away_for_a_moment_is_waited_for(store: SqliteAssetStore) -> None:
    """The one that images are read from, and the one they go to."""
    asset = await created(store)
    storage = two(asset)
    storage.saves_left, waits = 0, []

    def comes_back(cause: str) -> None:
        waits.append(cause)
        storage.saves_left = 1

    assert (await move_images(store, storage, outage_retry=OutageRetry(comes_back))).images == 1
    assert len(waits) == 1 and list(storage.inner["new"].images) == [asset.original.public_id]


@pytest.mark.gen_test
async def test_damaged_document_and_refused_image_are_told_and_stop_nothing(
    tmp_path: Path, store: SqliteAssetStore
) -> None:
    """`move` and `verify` name each, and all others are moved."""
    good, bad, refused = [await created(store) for _ in range(3)]
    storage = two(good, bad, refused)
    save = storage.save

    async def save_some(public_id: str, *arguments: Any) -> SavedImage:
        if public_id == refused.original.public_id:
            raise ValidationError.of("image", "The image storage refused this image")
        return await save(public_id, *arguments)

    storage.save = save_some  # type: ignore[method-assign]
    with sqlite3.connect(tmp_path / "assets.sqlite") as database:
        database.execute("UPDATE assets SET original = 'x' WHERE id = ?", [bad.id])
    moved = await move_images(store, storage, outage_retry=AT_ONCE)
    assert moved.images == 1 and sorted(moved.left) == sorted(
        [
            f"The document of asset {bad.id} is damaged",
            f"{refused.original.public_id} of asset {refused.id} in memory is refused by new: "
            "The image storage refused this image",
        ]
    )
    flaws = [flaw.text async for flaw in Verification(store, storage, recheck_seconds=0).flaws()]
    assert flaws == [f"The document of asset {bad.id} is damaged"]


@pytest.mark.gen_test
async def test_image_of_version_0_1_gets_its_hash_and_its_type(store: SqliteAssetStore) -> None:
    """Nothing is known of it but its name; afterwards it is known as every other."""
    asset = make_asset()
    old = dataclasses.replace(asset.original, sha256="", bytes=0, content_type="")
    assert await store.create(dataclasses.replace(asset, original=old))
    storage = two(asset)
    assert (await move_images(store, storage, outage_retry=AT_ONCE)).images == 1
    current = await store.get(asset.id)
    assert current is not None and current.original.backend == "new"
    assert (current.original.sha256, current.original.bytes) == (PHOTO_HASH, len(PHOTO))


@pytest.mark.gen_test
async def test_moved_image_stays_as_long_as_its_urls_work(store: SqliteAssetStore) -> None:
    """Noted for the sweeper; `verify` counts what has yet to go, and calls it no flaw."""
    asset = await created(store)
    storage = two(asset)
    storage.put(asset.original.public_id)
    await move_images(store, storage, outage_retry=AT_ONCE, url_seconds=2 * 86_400)
    assert list(storage.inner["memory"].images) == [asset.original.public_id]
    now = utc_now()
    assert await storages_left_lately(store, now + timedelta(days=1.9)) == {"memory"}
    assert await storages_left_lately(store, now + timedelta(days=2.1)) == set()
    storage.backends = ("memory",)
    found = [flaw.what async for flaw in Verification(store, storage, recheck_seconds=0).flaws()]
    assert found == ["leaving"]


@pytest.mark.gen_test
async def test_verify_says_nothing_of_what_is_under_way(store: SqliteAssetStore) -> None:
    """An erase removes images and then the document; a delete the other way round; a move names it elsewhere."""
    erased, moved = await created(store), await created(store)
    storage = two(moved)
    storage.put("f" * 24 + "/original-1", at=utc_now() - timedelta(days=1))
    read = storage.read

    async def read_and_go_on(name: ImageName) -> bytes:
        if name == erased.image_names[0]:
            # Only after the first reading has failed.
            IOLoop.current().add_callback(store.delete, erased.id, erased.user_id)
        if name == moved.image_names[0]:
            await move_images(store, two(moved), outage_retry=AT_ONCE)
            await store.delete_records(LEFT_KIND, "memory")
            storage.inner["new"].images[name.public_id] = storage.inner["memory"].images.pop(name.public_id)
        return await read(name)

    storage.read = read_and_go_on  # type: ignore[method-assign]
    storage.backends = ("memory",)
    assert [flaw async for flaw in Verification(store, storage, recheck_seconds=0.1).flaws()] == []
