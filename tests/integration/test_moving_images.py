"""Images that move from one storage to another, and what `verify` finds during the move, in one process."""

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
from tests.integration.two_storages import AT_ONCE, PHOTO, PHOTO_HASH, TwoStorages, created, make_storages

pytestmark = pytest.mark.fault("U17")


@pytest.mark.gen_test
async def test_interrupted_move_can_be_repeated_until_it_is_complete(store: SqliteAssetStore) -> None:
    """Each asset names the storage that has its image. No image is moved twice. A damaged image is not moved."""
    storage, assets = TwoStorages(), []
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
async def test_copy_of_an_image_whose_asset_was_deleted_is_removed(store: SqliteAssetStore) -> None:
    """The asset is deleted while its image is copied: the move removes the copy and counts no image."""
    asset = await created(store)
    storage = make_storages(asset, saves=1)
    save = storage.save

    async def save_late(*arguments: Any) -> SavedImage:
        saved = await save(*arguments)
        await store.delete(asset.id, asset.user_id)
        return saved

    storage.save = save_late  # type: ignore[assignment,method-assign]
    assert (await move_images(store, storage)).images == 0
    assert storage.inner["new"].images == {}


@pytest.mark.gen_test
async def test_older_move_ends_when_a_newer_move_has_begun(store: SqliteAssetStore) -> None:
    """Two moves to different storages would undo each other's work."""
    storage = make_storages(await created(store))
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
async def test_storage_that_loses_saved_images_is_not_used(store: SqliteAssetStore, loses: str) -> None:
    """The asset still names its old image, and the incomplete copy is removed. `probe` finds the same fault."""
    asset = await created(store)
    storage = make_storages(asset)
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
async def test_move_waits_for_a_storage_that_is_briefly_unavailable(store: SqliteAssetStore) -> None:
    """The move is complete as soon as the storage accepts the image."""
    asset = await created(store)
    storage = make_storages(asset)
    storage.saves_left, waits = 0, []

    def become_available(cause: str) -> None:
        waits.append(cause)
        storage.saves_left = 1

    assert (await move_images(store, storage, outage_retry=OutageRetry(become_available))).images == 1
    assert len(waits) == 1 and list(storage.inner["new"].images) == [asset.original.public_id]


@pytest.mark.gen_test
async def test_damaged_document_and_refused_image_are_reported(
    tmp_path: Path, store: SqliteAssetStore
) -> None:
    """The move names both and moves all other images. `verify` names the damaged document."""
    good, bad, refused = [await created(store) for _ in range(3)]
    storage = make_storages(good, bad, refused)
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
    """The document of version 0.1 has only the name of the image. The move adds hash, size and content type."""
    asset = make_asset()
    old = dataclasses.replace(asset.original, sha256="", bytes=0, content_type="")
    assert await store.create(dataclasses.replace(asset, original=old))
    storage = make_storages(asset)
    assert (await move_images(store, storage, outage_retry=AT_ONCE)).images == 1
    current = await store.get(asset.id)
    assert current is not None and current.original.backend == "new"
    assert (current.original.sha256, current.original.bytes) == (PHOTO_HASH, len(PHOTO))


@pytest.mark.gen_test
async def test_old_copy_of_a_moved_image_stays_until_its_urls_expire(store: SqliteAssetStore) -> None:
    """The move records the copy for later removal. `verify` reports it as leaving, which is no flaw."""
    asset = await created(store)
    storage = make_storages(asset)
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
async def test_verify_reports_no_flaw_for_a_change_that_is_still_running(store: SqliteAssetStore) -> None:
    """The change is an erase, a delete or a move, which removes the image or its document while `verify` reads."""
    erased, moved = await created(store), await created(store)
    storage = make_storages(moved)
    storage.put("f" * 24 + "/original-1", at=utc_now() - timedelta(days=1))
    read = storage.read

    async def read_during_changes(name: ImageName) -> bytes:
        if name == erased.image_names[0]:
            # The document is deleted only after the first read has failed.
            IOLoop.current().add_callback(store.delete, erased.id, erased.user_id)
        if name == moved.image_names[0]:
            await move_images(store, make_storages(moved), outage_retry=AT_ONCE)
            await store.delete_records(LEFT_KIND, "memory")
            storage.inner["new"].images[name.public_id] = storage.inner["memory"].images.pop(name.public_id)
        return await read(name)

    storage.read = read_during_changes  # type: ignore[method-assign]
    storage.backends = ("memory",)
    assert [flaw async for flaw in Verification(store, storage, recheck_seconds=0.1).flaws()] == []
