"""The file of a backup: a damaged or forged file, and a file that cannot be written. Each fault is reported."""

from __future__ import annotations

import json
import os
import random
import tarfile
from pathlib import Path

import pytest

from pipeline.assets.store_move import Move, Phase
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.errors import Conflict, DependencyUnavailable, PipelineError, ValidationError
from pipeline.usecases import backup_file
from pipeline.usecases.backup_file import FIRST, FORMAT, LAST, members
from pipeline.usecases.restoring import check_backup, restore
from tests.factories import make_asset
from tests.integration.saved_stores import save
from tests.integration.saved_stores import other  # noqa: F811
from tests.memory_storage import MemoryStorage

__all__ = ["other"]
pytestmark = pytest.mark.fault("U17")
ID = "0" * 23 + "1"


@pytest.mark.gen_test(timeout=30)
async def test_backup_leaves_out_the_address_of_a_new_store(tmp_path: Path, store: SqliteAssetStore) -> None:
    """The record of a move has the password of the new store: a backup does not contain it."""
    await store.put_record(Move("t-1", Phase.COPYING, "mongodb://u:hunter2@host/", "o").record())
    await save(store, tmp_path / "file")
    assert b"hunter2" not in (tmp_path / "file").read_bytes()


@pytest.mark.gen_test(timeout=30)
async def test_cut_or_changed_backup_is_refused_before_anything_is_restored(
    tmp_path: Path, store: SqliteAssetStore, other: SqliteAssetStore
) -> None:
    """Each cut and each changed bit is reported, unless the bit changes no member of the file."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    await save(store, good)
    content, draw = good.read_bytes(), random.Random(1)
    expected = [member[:2] for member in members(good)]
    cuts = [*range(0, 600, 40), *draw.sample(range(len(content) - 10240), 60)]
    for length in cuts:
        bad.write_bytes(content[:length])
        with pytest.raises(ValidationError):
            check_backup(bad)
    reported = 0
    for at in draw.sample(range(len(content)), 400):
        changed = bytearray(content)
        changed[at] ^= 1 << draw.randrange(8)
        bad.write_bytes(changed)
        try:
            is_damaged = bool(check_backup(bad).damage)
        except ValidationError:
            is_damaged = True
        reported += is_damaged
        assert is_damaged or [member[:2] for member in members(bad)] == expected, at
        if is_damaged and reported % 20 == 1:
            storage = MemoryStorage()
            with pytest.raises(ValidationError):
                await restore(other, storage, bad)
            assert storage.images == {} and await other.all_ids(limit=1) == []
    assert reported > 50


@pytest.mark.gen_test
async def test_partial_restore_of_a_damaged_backup_restores_its_undamaged_members(
    tmp_path: Path, store: SqliteAssetStore, other: SqliteAssetStore
) -> None:
    """Images and documents are restored, except for damaged ones and those after the place where the file was cut."""
    file, storage = tmp_path / "file", MemoryStorage()
    first, second, third = await save(store, file)
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
    """Return forged members of a backup file, by what is wrong with them."""
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
@pytest.mark.parametrize("fault", hostile_members())
async def test_forged_backup_is_refused_and_stores_nothing(tmp_path: Path, other: SqliteAssetStore, fault: str) -> None:
    """A forged member with correct hashes raises a PipelineError, and no image and no asset is stored."""
    file, storage = tmp_path / "file", MemoryStorage()
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
        backup_file.add(tar, FIRST, json.dumps({"format": FORMAT}).encode())
        for member in hostile_members()[fault]:
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


def test_two_backups_do_not_write_one_file(tmp_path: Path) -> None:
    """The second of two concurrent backups is refused; the file of a killed backup is overwritten."""
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


def test_disk_fault_is_reported_with_its_reason(tmp_path: Path) -> None:
    """A full disk and a missing folder raise DependencyUnavailable with the reason and leave no partial file."""
    with pytest.raises(DependencyUnavailable, match="No such file"), backup_file.writing(tmp_path / "gone" / "file"):
        pass
    with pytest.raises(DependencyUnavailable, match="No space left"), backup_file.writing(tmp_path / "file"):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []
