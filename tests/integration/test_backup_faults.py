"""Backup and restore during changes and faults: moved and erased assets, unreadable images, storage outages."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.assets.asset import AssetStatus, ImageRef
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import Record, KeyRecord
from pipeline.clock import utc_now
from pipeline.errors import Conflict, DependencyUnavailable
from pipeline.images import ImageName
from pipeline.usecases.backup import back_up
from pipeline.usecases.image_move import choose_storage
from pipeline.usecases.outage_retry import OutageRetry
from pipeline.usecases.restoring import check_backup, restore
from pipeline.usecases.storages_in_use import names_in_use
from tests.integration.saved_stores import save, with_photo
from tests.integration.saved_stores import other  # noqa: F811
from tests.memory_storage import MemoryStorage

__all__ = ["other"]
pytestmark = pytest.mark.fault("U17")


@pytest.mark.gen_test
async def test_restore_leaves_out_what_is_true_only_in_the_old_store(
    tmp_path: Path, store: SqliteAssetStore, other: SqliteAssetStore
) -> None:
    """Keys, dead letters and the audit list are restored.

    The names of the storages, the id of the store and the records of deliveries and charts are not.
    """
    file, storage = tmp_path / "file", MemoryStorage()
    (asset,) = await save(store, file, 1)
    assert await store.claim_key("key", KeyRecord(asset.id, "print"), utc_now()) == KeyRecord(asset.id, "print")
    await store.put_record(Record("job of ai-processing", "job", utc_now(), {"failed": {}}, asset.user_id, asset.id))
    for kind in ("audit", "delivery", "tally 60"):
        await store.put_record(Record(kind, "1", utc_now(), {}))
    await choose_storage(store, "object", instead_of="memory")
    await store.identity()
    old = MemoryStorage()
    old.images[asset.original.public_id] = b"photo 0" * 50
    tally = await back_up(store, old, file)
    assert (tally.problems, tally.keys) == ([], 1)
    ours = await other.identity()
    assert (await restore(other, storage, file)).problems == []
    assert await other.find_key("key") == KeyRecord(asset.id, "print")
    assert [record.id for record in await other.records_of(asset.user_id, asset.id)] == ["job"]
    assert (await other.identity(), await names_in_use(other)) == (ours, ["memory"])
    assert await other.find_record("move", "storage") is None
    found = [await other.find_record(kind, "1") is not None for kind in ("audit", "delivery", "tally 60")]
    assert found == [True, False, False]
    await other.discard_keys(asset.id)
    assert await other.find_key("key") is None


@pytest.mark.gen_test
async def test_resumed_restore_does_not_overwrite(
    tmp_path: Path, store: SqliteAssetStore, other: SqliteAssetStore
) -> None:
    """An image that changed after the first run restored it is not overwritten by the second run."""
    file, storage = tmp_path / "file", MemoryStorage()
    first, second, _ = await save(store, file)
    save_image, saves = storage.save, iter(range(1))

    async def save_once(*arguments: Any) -> Any:
        if next(saves, None) is None:
            raise DependencyUnavailable("Image storage unavailable")
        return await save_image(*arguments)

    storage.save = save_once  # type: ignore[assignment,method-assign]
    with pytest.raises(DependencyUnavailable):
        await restore(other, storage, file, outage_retry=OutageRetry(longest_seconds=0))
    storage.save = save_image  # type: ignore[method-assign]
    storage.images[first.original.public_id] = b"another one by now"
    with pytest.raises(Conflict):
        await restore(other, storage, file)
    tally = await restore(other, storage, file, resumes=True)
    assert tally.problems == [] and len(await other.all_ids(limit=9)) == 3
    assert storage.images[first.original.public_id] == b"another one by now"
    assert storage.images[second.original.public_id] == b"photo 1" * 50


@pytest.mark.gen_test
async def test_damaged_document_is_reported_and_the_rest_is_saved(tmp_path: Path, store: SqliteAssetStore) -> None:
    """The backup reports the id of the damaged document; a check of the backup reports the same."""
    storage = MemoryStorage()
    good, bad = with_photo(storage), with_photo(storage)
    for asset in (good, bad):
        assert await store.create(asset)
    with sqlite3.connect(tmp_path / "assets.sqlite") as database:
        database.execute("UPDATE assets SET original = 'x' WHERE id = ?", [bad.id])
    tally = await back_up(store, storage, tmp_path / "file")
    assert tally.flaws == [f"The document of asset {bad.id} is damaged"] and tally.assets == 1
    assert check_backup(tmp_path / "file").problems == tally.flaws


@pytest.mark.gen_test
async def test_image_that_moves_at_each_read_is_reported_missing(
    tmp_path: Path, store: SqliteAssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image of an asset moves each time the backup reads it: the backup reports one missing image."""
    monkeypatch.setattr("pipeline.usecases.backup.RETRY_SECONDS", 0)
    storage = MemoryStorage()
    asset = with_photo(storage)
    assert await store.create(asset)
    moves = 0

    class Moving(MemoryStorage):
        async def read(self, name: ImageName) -> bytes:
            nonlocal moves
            moves += 1
            current = await store.get(asset.id)
            assert current is not None
            image = ImageRef("memory", f"{asset.id}/original-{moves}", sha256=asset.original.sha256)
            await store.replace_image(asset.id, current.image_names[0], image)
            raise FileNotFoundError(name.public_id)

    tally = await back_up(store, Moving(), tmp_path / "file")
    assert len(tally.flaws) == 1 and "missing" in tally.flaws[0]


@pytest.mark.gen_test
async def test_asset_that_is_erased_during_a_backup_is_left_out(
    tmp_path: Path, store: SqliteAssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An erase deletes the images first and the document a little later: the backup reports no flaw."""
    monkeypatch.setattr("pipeline.usecases.backup.RETRY_SECONDS", 0.05)
    asset = with_photo(MemoryStorage())
    assert await store.create(asset)

    class Erased(MemoryStorage):
        async def read(self, name: ImageName) -> bytes:
            IOLoop.current().call_later(0.01, store.delete, asset.id, asset.user_id)
            raise FileNotFoundError(name.public_id)

    tally = await back_up(store, Erased(), tmp_path / "file")
    assert (tally.problems, tally.assets) == ([], 0)


@pytest.mark.gen_test
async def test_unreadable_image_stops_no_backup_but_a_storage_outage_does(
    tmp_path: Path, store: SqliteAssetStore
) -> None:
    """One unreadable image is reported. When no image can be read, the backup fails and the earlier file stays."""
    storage = MemoryStorage()
    assets = [with_photo(storage, status=AssetStatus.ACTIVE, finished_at=utc_now()) for _ in range(9)]
    for asset in assets:
        assert await store.create(asset)

    class Bad(MemoryStorage):
        bad = {assets[3].original.public_id}

        async def read(self, name: ImageName) -> bytes:
            if name.public_id in self.bad:
                raise DependencyUnavailable("Image storage unavailable") from OSError(5, "Input/output error")
            return await storage.read(name)

    bad = Bad()
    tally = await back_up(store, bad, tmp_path / "file", outage_retry=OutageRetry(longest_seconds=0))
    assert tally.images == 8 and len(tally.flaws) == 1 and "Input/output" in tally.flaws[0]
    bad.bad = {asset.original.public_id for asset in assets}
    with pytest.raises(DependencyUnavailable):
        await back_up(store, bad, tmp_path / "file", outage_retry=OutageRetry(longest_seconds=0))
    assert check_backup(tmp_path / "file").images == 8


@pytest.mark.gen_test
async def test_backup_waits_for_a_storage_that_restarts(tmp_path: Path, store: SqliteAssetStore) -> None:
    """After one failed read the backup waits once and saves the image."""
    storage = MemoryStorage()
    assert await store.create(with_photo(storage))
    waits: list[str] = []
    failures = iter(range(1))
    read = storage.read

    async def read_later(name: ImageName) -> bytes:
        if next(failures, None) is not None:
            raise DependencyUnavailable("Image storage unavailable")
        return await read(name)

    storage.read = read_later  # type: ignore[method-assign]
    tally = await back_up(store, storage, tmp_path / "file", outage_retry=OutageRetry(waits.append))
    assert (tally.images, tally.problems, len(waits)) == (1, [], 1)
