"""A backup that is damaged, made up or put where something is already: all is told, and nothing is taken on trust."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.assets.asset import Asset, AssetStatus, ImageRef
from pipeline.assets.store_move import Move, Phase
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import Record, KeyRecord
from pipeline.clock import utc_now
from pipeline.errors import Conflict, DependencyUnavailable, PipelineError, ValidationError
from pipeline.images import ImageName
from pipeline.usecases import backup_file
from pipeline.usecases.backup import back_up
from pipeline.usecases.backup_file import FIRST, FORMAT, LAST, members
from pipeline.usecases.image_move import choose_storage
from pipeline.usecases.outage_retry import OutageRetry
from pipeline.usecases.restoring import check_backup, restore
from pipeline.usecases.storages_in_use import names_in_use
from tests.factories import make_asset
from tests.memory_storage import MemoryStorage

pytestmark = pytest.mark.fault("U17")
ID = "0" * 23 + "1"


def with_photo(storage: MemoryStorage, content: bytes = b"photo" * 50, **fields: Any) -> Asset:
    """Return an asset whose image is stored."""
    asset = make_asset(**fields)
    digest = hashlib.sha256(content).hexdigest()
    storage.put(asset.original.public_id)
    storage.images[asset.original.public_id] = content
    return dataclasses.replace(asset, original=dataclasses.replace(asset.original, sha256=digest))


@pytest.fixture
def other(io_loop: IOLoop, tmp_path: Path) -> Iterator[SqliteAssetStore]:
    """An empty store."""
    other = SqliteAssetStore(tmp_path / "other.sqlite")
    io_loop.run_sync(other.open)
    yield other
    io_loop.run_sync(other.close)


async def saved(store: SqliteAssetStore, path: Path, count: int = 3) -> list[Asset]:
    """Fill the store, write its backup and return its assets."""
    storage = MemoryStorage()
    assets = [with_photo(storage, b"photo %d" % number * 50) for number in range(count)]
    for asset in assets:
        assert await store.create(asset)
    await store.put_record(Record("pause", "ai-processing", utc_now(), {}))
    assert (await back_up(store, storage, path)).problems == []
    return assets


@pytest.mark.gen_test(timeout=30)
async def test_address_of_a_store_that_is_moved_to_is_not_saved(tmp_path: Path, store: SqliteAssetStore) -> None:
    """It holds a password; what else a move notes is of use in no other store either."""
    await store.put_record(Move("t-1", Phase.COPYING, "mongodb://u:hunter2@host/", "o").record())
    await saved(store, tmp_path / "file")
    assert b"hunter2" not in (tmp_path / "file").read_bytes()


@pytest.mark.gen_test(timeout=30)
async def test_cut_or_changed_anywhere_it_is_refused_before_anything_is_restored(
    tmp_path: Path, store: SqliteAssetStore, other: SqliteAssetStore
) -> None:
    """A bit may be another one only where it means nothing."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    await saved(store, good)
    content, draw = good.read_bytes(), random.Random(1)
    whole = [member[:2] for member in members(good)]
    cuts = [*range(0, 600, 40), *draw.sample(range(len(content) - 10240), 60)]
    for length in cuts:
        bad.write_bytes(content[:length])
        with pytest.raises(ValidationError):
            check_backup(bad)
    told = 0
    for at in draw.sample(range(len(content)), 400):
        changed = bytearray(content)
        changed[at] ^= 1 << draw.randrange(8)
        bad.write_bytes(changed)
        try:
            is_damaged = bool(check_backup(bad).damage)
        except ValidationError:
            is_damaged = True
        told += is_damaged
        assert is_damaged or [member[:2] for member in members(bad)] == whole, at
        if is_damaged and told % 20 == 1:
            storage = MemoryStorage()
            with pytest.raises(ValidationError):
                await restore(other, storage, bad)
            assert storage.images == {} and await other.all_ids(limit=1) == []
    assert told > 50


@pytest.mark.gen_test
async def test_what_is_whole_of_a_damaged_one_can_be_had(
    tmp_path: Path, store: SqliteAssetStore, other: SqliteAssetStore
) -> None:
    """Its images, documents and records, but for the damaged ones and those behind the place where it was cut off."""
    file, storage = tmp_path / "file", MemoryStorage()
    first, second, third = await saved(store, file)
    content = file.read_bytes()
    content = content.replace(b"photo 1photo 1", b"photo 2photo 1", 1)
    content = content.replace(b'"status": "processing"', b'"status": "processimg"', 1)
    file.write_bytes(content[: content.index(b"kept/0.json")])
    tally = await restore(other, storage, file, is_partial=True)
    assert await other.all_ids(limit=9) == [second.id, third.id]
    assert set(storage.images) == {first.original.public_id, third.original.public_id}
    assert [each.partition(" ")[0] for each in tally.damage[:2]] == [
        f"assets/{first.id}.json", f"images/{second.original.public_id}"
    ]
    assert len(tally.damage) == 3 and "backup" in tally.damage[2]


def hostile_members() -> dict[str, list[tarfile.TarInfo | tuple[str, bytes]]]:
    """Return members that no backup has, by what they are."""
    link, hard, device, huge = (tarfile.TarInfo(f"images/{ID}/original-1") for _ in range(4))
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "backup.json"
    device.type = tarfile.CHRTYPE
    huge.size = 1 << 40
    asset = json.dumps({"asset": make_asset().to_document(), "images": {}}, default=lambda at: at.isoformat()).encode()
    deep = b"[" * 200_000 + b"]" * 200_000
    return {
        "name that leads elsewhere": [("images/../../escaped", b"x")],
        "absolute name": [("images//etc/passwd", b"x")],
        "link": [link],
        "hard link": [hard],
        "device": [device],
        "huge": [huge],
        "no JSON": [(f"assets/{ID}.json", b"\xff\xfe")],
        "deep JSON": [(f"assets/{ID}.json", deep)],
        "list": [(f"assets/{ID}.json", b"[]")],
        "no asset": [(f"assets/{ID}.json", b'{"asset": {"_id": 1}, "images": {}}')],
        "another id": [(f"assets/{ID}.json", asset)],
        "no record": [("kept/0.json", b'{"kind": 1}')],
        "record of another kind": [("kept/0.json", b'"pause"')],
        "no key": [("keys/0.json", b'{"key": []}')],
        "no totals": [(LAST, b"{}")],
    }


@pytest.mark.gen_test
@pytest.mark.parametrize("what", hostile_members())
async def test_made_up_one_is_refused_and_harms_nothing(tmp_path: Path, other: SqliteAssetStore, what: str) -> None:
    """Whatever it holds, with right hashes: it is told in our own words, and no such image or asset is made."""
    file, storage = tmp_path / "file", MemoryStorage()
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
        backup_file.add(tar, FIRST, json.dumps({"format": FORMAT}).encode())
        for member in hostile_members()[what]:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member, None)
            else:
                backup_file.add(tar, *member)
        backup_file.add(tar, LAST, b'{"assets": 0, "images": 0, "kept": 0, "keys": 0, "flaws": []}')
    with pytest.raises(PipelineError):
        await restore(other, storage, file)
    try:
        assert (await restore(other, storage, file, is_partial=True)).damage
    except PipelineError:
        pass
    assert storage.images == {} and await other.all_ids(limit=1) == [] and not (tmp_path / "escaped").exists()


@pytest.mark.gen_test
async def test_only_what_is_true_elsewhere_comes_back(
    tmp_path: Path, store: SqliteAssetStore, other: SqliteAssetStore
) -> None:
    """Keys and dead letters, each found by an erase, and the audit list; not where images were or went, the id of a
    store in use, nor records of deliveries and charts.
    """
    file, storage = tmp_path / "file", MemoryStorage()
    (asset,) = await saved(store, file, 1)
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
async def test_interrupted_restore_goes_on_and_leaves_what_is_there(
    tmp_path: Path, store: SqliteAssetStore, other: SqliteAssetStore
) -> None:
    """What changed after its restore, a result or a record that is done with, is not undone by the second run."""
    file, storage = tmp_path / "file", MemoryStorage()
    first, second, _ = await saved(store, file)
    save, saves = storage.save, iter(range(1))

    async def save_once(*arguments: Any) -> Any:
        if next(saves, None) is None:
            raise DependencyUnavailable("Image storage unavailable")
        return await save(*arguments)

    storage.save = save_once  # type: ignore[assignment,method-assign]
    with pytest.raises(DependencyUnavailable):
        await restore(other, storage, file, outage_retry=OutageRetry(longest_seconds=0))
    storage.save = save  # type: ignore[method-assign]
    storage.images[first.original.public_id] = b"another one by now"
    with pytest.raises(Conflict):
        await restore(other, storage, file)
    tally = await restore(other, storage, file, resumes=True)
    assert tally.problems == [] and len(await other.all_ids(limit=9)) == 3
    assert storage.images[first.original.public_id] == b"another one by now"
    assert storage.images[second.original.public_id] == b"photo 1" * 50


@pytest.mark.gen_test
async def test_damaged_document_is_told_and_the_rest_is_saved(tmp_path: Path, store: SqliteAssetStore) -> None:
    """By its id; and the backup says it again when it is checked."""
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
async def test_images_that_change_while_they_are_saved_are_those_of_the_document(
    tmp_path: Path, store: SqliteAssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an asset whose image moves each time it is read, the file has the image or says that it has not."""
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
async def test_asset_that_is_erased_while_it_is_saved_is_left_out(
    tmp_path: Path, store: SqliteAssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images go first, its document a little later: that is no flaw."""
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
async def test_one_bad_image_stops_no_backup_and_a_storage_that_is_away_does(
    tmp_path: Path, store: SqliteAssetStore
) -> None:
    """The first is told; the second ends it, because a backup without images is none."""
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
async def test_storage_that_comes_back_is_waited_for(tmp_path: Path, store: SqliteAssetStore) -> None:
    """For as long as a restart takes."""
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


def test_two_at_once_do_not_write_one_file(tmp_path: Path) -> None:
    """The second is refused; one that was killed is in nobody's way."""
    file = tmp_path / "file"
    (tmp_path / "file.part").write_bytes(b"of one that was killed")
    with backup_file.writing(file) as tar:
        backup_file.add(tar, FIRST, b"{}")
        with pytest.raises(Conflict), backup_file.writing(file):
            pass
        backup_file.add(tar, LAST, b"{}")
    with tarfile.open(file) as written:
        assert written.getnames() == [FIRST, LAST]
    assert os.listdir(tmp_path) == ["file"]


def test_disk_that_takes_nothing_is_told_in_a_line(tmp_path: Path) -> None:
    """A full one, a folder that is not there or may not be written: the reason, and no half file."""
    with pytest.raises(DependencyUnavailable, match="No such file"), backup_file.writing(tmp_path / "gone" / "file"):
        pass
    with pytest.raises(DependencyUnavailable, match="No space left"), backup_file.writing(tmp_path / "file"):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []
