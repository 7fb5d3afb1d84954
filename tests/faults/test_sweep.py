"""Stored images that no asset names are removed within a day, and no other image ever is."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.assets.asset import AssetStatus
from pipeline.assets.asset_ids import processed_public_id
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import Record
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.images import ImageName
from pipeline.usecases.retention import LEAST_AGE, OWNERS
from pipeline.usecases.storages_in_use import storages_left, names_in_use, record_storage_left
from tests.factories import make_asset
from tests.faults.sweeping import LONG_AGO, TURN_KEY, Sweeping, names_of
from tests.memory_storage import MemoryStorage


@pytest.mark.fault("E14")
@pytest.mark.gen_test
async def test_sweep_removes_images_that_no_asset_names(sweeping: Sweeping, media: Path) -> None:
    """Images without an asset, or of superseded runs, are removed; named images and foreign files stay."""
    record = [
        *names_of(await sweeping.add()),
        *names_of(await sweeping.add(fence=3, processed=3)),
        *names_of(await sweeping.add(AssetStatus.FAILED, fence=5)),
    ]
    running = await sweeping.add(AssetStatus.PROCESSING, fence=4)
    record += [running.original.public_id, await sweeping.save(processed_public_id(running.id, 4))]
    for number in (1, 3, 5, 44):
        await sweeping.save(processed_public_id(running.id, number))
    for name in ("original-1a2b3c4d", "processed-1", "preview/320"):
        await sweeping.save(f"{make_asset().id}/{name}")
    foreign = ["beach", "holidays/beach", "65f0/original", f"backup/{make_asset().id}/original", f"{make_asset().id}"]
    record += [await sweeping.save(name) for name in foreign]
    (media / "notes.txt").write_text("foreign")
    await sweeping.sweep()
    assert await sweeping.names() == {*record, "notes"}
    assert sweeping.swept_images == 7


@pytest.mark.fault("E14")
@pytest.mark.gen_test
async def test_image_that_may_still_be_named_stays(sweeping: Sweeping, media: Path) -> None:
    """An image younger than the longest upload or job stays; its age is the time since the file was saved."""
    asset_id = make_asset().id
    younger, older = await sweeping.save(f"{asset_id}/original-1"), await sweeping.save(f"{asset_id}/original-2")
    limit = (utc_now() + sweeping.later - LEAST_AGE).timestamp()
    os.utime(media / f"{younger}.jpg", (limit + 60, limit + 60))
    os.utime(media / f"{older}.jpg", (limit - 60, limit - 60))
    await sweeping.sweep()
    assert await sweeping.names() == {younger}


@pytest.mark.gen_test
async def test_one_process_sweeps_and_then_none_for_hours(sweeping: Sweeping) -> None:
    """Of two processes one sweeps; then a key in Redis delays the next sweep for hours, unless Redis loses it."""
    first, second = sweeping.sweeper(), sweeping.sweeper()
    sweeping.redis.delete(TURN_KEY)
    await sweeping.save(f"{make_asset().id}/original-1")
    await asyncio.gather(first.sweep(), second.sweep())
    assert sweeping.swept_images == 1
    left = await sweeping.save(f"{make_asset().id}/original-1")
    for sweeper in (first, second):
        await sweeper.sweep()
    assert await sweeping.names() == {left}
    assert 5 * 3600 < int(str(sweeping.redis.ttl(TURN_KEY))) <= 6 * 3600
    await sweeping.sweep()
    assert await sweeping.names() == set()


@pytest.mark.gen_test
@pytest.mark.parametrize("away", ["store", "store's answer", "storage", "queue"])
async def test_nothing_is_removed_while_something_is_away(
    sweeping: Sweeping, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """Without a sure answer no image is removed; the sweep works when all parts are back."""
    orphan = await sweeping.save(f"{make_asset().id}/original-1")

    async def unavailable(*arguments: Any) -> Any:
        raise DependencyUnavailable("away")

    broken = {
        "store": (sweeping.store, "identity"),
        "store's answer": (sweeping.store, "get_many"),
        "storage": (sweeping.storage.current, "_call"),
        "queue": (sweeping.queue, "_call"),
    }
    with monkeypatch.context() as patched:
        patched.setattr(*broken[away], unavailable)
        with pytest.raises(DependencyUnavailable):
            await sweeping.sweep()
    assert await sweeping.names() == {orphan}
    await sweeping.sweep()
    assert await sweeping.names() == set()


@pytest.mark.gen_test
async def test_two_installations_in_one_storage_sweep_nothing(sweeping: Sweeping, tmp_path: Path) -> None:
    """Each would take the images of the other for orphans; so the marks of two installations stop the sweep."""
    theirs = replace(sweeping, store=SqliteAssetStore(tmp_path / "another.sqlite"))
    await theirs.store.open()
    orphan = await sweeping.save(f"{make_asset().id}/original-1")
    for each in (theirs, sweeping, theirs):
        await each.sweep()
    assert await sweeping.names() == {orphan}
    await theirs.store.close()


@pytest.mark.gen_test
async def test_nothing_is_removed_before_the_mark_is_old(sweeping: Sweeping, media: Path) -> None:
    """Another installation can leave its mark before its images are old enough to look like orphans."""
    orphan = await sweeping.save(f"{make_asset().id}/original-1")
    (mark,) = (media / OWNERS).iterdir()
    mark.unlink()
    for _ in range(2):
        sweeping.later = timedelta()
        os.utime(media / f"{orphan}.jpg", (0, 0))
        await sweeping.sweep()
    assert await sweeping.names() == {orphan}
    os.utime(mark, (0, 0))
    await sweeping.sweep()
    assert await sweeping.names() == set()


@pytest.mark.gen_test
@pytest.mark.fault("U16")
async def test_storage_that_was_left_is_swept_when_its_urls_have_expired(sweeping: Sweeping) -> None:
    """Pages that were loaded before the move still show its images until then."""
    orphan = await sweeping.save(f"{make_asset().id}/original-1")
    await record_storage_left(sweeping.store, "memory", int(sweeping.later.total_seconds()) + 3600)
    await sweeping.sweep()
    assert await sweeping.names() == {orphan}
    sweeping.later += timedelta(hours=2)
    await sweeping.sweep()
    assert await sweeping.names() == set()


@pytest.mark.gen_test
@pytest.mark.fault("U12")
async def test_storage_that_was_left_and_is_empty_is_no_longer_in_use(sweeping: Sweeping) -> None:
    """An empty storage is removed from the list in use; one with an image, and the current one, stay in it."""

    class Two(MemoryStorage):
        backends = ("new", "memory")  # type: ignore[assignment]

        async def list_images(self, backend: str, *arguments: Any) -> Any:
            async for images in super().list_images(backend, *arguments):
                if backend == "memory":
                    yield images

    asset = make_asset()
    assert await sweeping.store.create(asset)
    sweeping.storage = Two()
    mark = f"{OWNERS}{await sweeping.store.identity()}"
    sweeping.storage.put(mark, asset.original.public_id, at=LONG_AGO)
    for name in ("new", "memory"):
        await sweeping.store.put_record(Record("storage", name, utc_now(), {}))
        await record_storage_left(sweeping.store, name, 0)
    await sweeping.sweep()
    assert set(await names_in_use(sweeping.store)) == {"new", "memory"} and mark in sweeping.storage.images
    await sweeping.store.delete(asset.id, asset.user_id)
    for _ in range(2):
        await sweeping.sweep()
    assert await names_in_use(sweeping.store) == ["new"] and asset.original.public_id not in sweeping.storage.images
    assert await storages_left(sweeping.store) == {"new"}


@pytest.mark.gen_test
async def test_storage_that_refuses_to_delete_ends_the_sweep(
    sweeping: Sweeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image that cannot be removed is skipped; after five refusals the sweep ends."""
    orphans = [await sweeping.save(f"{make_asset().id}/original-1") for _ in range(20)]
    delete, refused = sweeping.storage.delete, {orphans[3]}
    asked = []

    async def delete_some(name: ImageName) -> None:
        asked.append(name)
        if name.public_id in refused:
            raise DependencyUnavailable("Image storage unavailable")
        await delete(name)

    monkeypatch.setattr(sweeping.storage, "delete", delete_some)
    await sweeping.sweep()
    assert await sweeping.names() == refused
    refused.update([await sweeping.save(f"{make_asset().id}/original-1") for _ in range(20)])
    asked.clear()
    with pytest.raises(DependencyUnavailable):
        await sweeping.sweep()
    assert len(asked) == 5
