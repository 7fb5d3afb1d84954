"""Backup and restore of a store and its images, in one process."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.assets.asset import AssetStatus
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import Record
from pipeline.clock import utc_now
from pipeline.errors import Conflict, ValidationError
from pipeline.usecases.backup import back_up
from pipeline.usecases.restoring import check_backup, restore
from tests.factories import make_asset, make_image
from tests.memory_storage import MemoryStorage

pytestmark = pytest.mark.fault("U17")


@pytest.mark.gen_test
async def test_restore_brings_back_all_that_a_backup_contains(tmp_path: Path, store: SqliteAssetStore) -> None:
    """The restored store has the records, the id and each field of an asset, with instants to the millisecond."""
    storage = MemoryStorage()
    asset = make_asset(status=AssetStatus.FAILED, finished_at=utc_now(), claims={"email": "a@b.c"})
    assert await store.create(asset)
    storage.images[asset.original.public_id] = b"photo"
    about = ("user-1", asset.id)
    await store.put_record(Record("job of ai-processing", "ai-processing:1", utc_now(), {"failed": {"é": 1}}, *about))
    identity = await store.identity()
    tally = await back_up(store, storage, tmp_path / "file")
    # The document has the hash of another content.
    assert tally.flaws == [f"{asset.original.public_id} of asset {asset.id} is damaged"]
    other = SqliteAssetStore(tmp_path / "other.sqlite")
    await other.open()
    await restore(other, MemoryStorage(), tmp_path / "file")
    assert await other.get(asset.id) == asset
    assert await other.identity() == identity
    record = await other.records("job of ai-processing", limit=10)
    assert record == await store.records("job of ai-processing", limit=10) and record[0].user_id == "user-1"
    with pytest.raises(Conflict):
        await restore(other, MemoryStorage(), tmp_path / "file")
    await other.close()


@pytest.mark.gen_test
async def test_file_that_is_no_complete_backup_is_refused(tmp_path: Path, store: SqliteAssetStore) -> None:
    """An empty file, an image, a tar archive of other files, and a backup that was cut off are refused."""
    storage, asset = MemoryStorage(), make_asset()
    assert await store.create(asset)
    good = tmp_path / "good"
    await back_up(store, storage, good)
    content = good.read_bytes()
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as other:
        other.addfile(tarfile.TarInfo("letter.txt"))
    cut_off = content[: content.index(b"end.json")]
    for number, bad in enumerate([b"", make_image(), tar.getvalue(), cut_off, content[:1024]]):
        file = tmp_path / f"bad-{number}"
        file.write_bytes(bad)
        with pytest.raises(ValidationError):
            check_backup(file)
    assert check_backup(good).assets == 1


@pytest.mark.gen_test
async def test_failed_backup_leaves_the_older_file(tmp_path: Path, store: SqliteAssetStore) -> None:
    """The file of a backup gets its name only when it is complete."""

    class UnreadableStorage(MemoryStorage):
        async def read(self, name: Any) -> bytes:
            raise RuntimeError("unreadable")

    file = tmp_path / "file"
    file.write_bytes(b"an older one")
    assert await store.create(make_asset())
    with pytest.raises(RuntimeError):
        await back_up(store, UnreadableStorage(), file)
    assert file.read_bytes() == b"an older one" and [each.name for each in tmp_path.glob("file*")] == ["file"]
