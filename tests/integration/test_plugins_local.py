"""The storage `local`: which files it writes, replaces and removes."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

import pytest

from pipeline.plugins.storage_local.durable_files import INCOMING
from pipeline.errors import DependencyUnavailable
from pipeline.handlers.multipart import MultipartReader
from pipeline.hooks import NewImage
from pipeline.plugins.storage_local import LocalStorage
from tests.factories import make_image, make_upload
from tests.integration.built_in_storages import local_storage
from tests.requirements import require

__all__ = ["local_storage"]  # fixtures


def test_local_save_links_a_file_without_a_name(local_storage: LocalStorage, tmp_path: Path) -> None:
    """A large upload on the same disk is not copied. A file with a name is copied, and so is an already saved file."""
    require(sys.platform == "linux", "only Linux can give an open file a name")
    body, content_type = make_upload(bytes(500_000))
    reader = MultipartReader(content_type, wanted=(), max_image_bytes=10**6, folder=tmp_path)
    reader.feed(body)
    image = reader.finish().image
    assert image is not None
    for public_id, is_same in (("a/1", True), ("a/2", False)):
        local_storage.save(public_id, image, "image/png")
        stored = local_storage.media_root / f"{public_id}.png"
        assert stored.read_bytes() == bytes(500_000)
        assert (stored.stat().st_ino == os.fstat(image.fileno()).st_ino) is is_same
    with (local_storage.media_root / "a/1.png").open("rb") as named:
        local_storage.save("a/3", named, "image/png")
    assert (local_storage.media_root / "a/3.png").stat().st_nlink == 1
    reader.close()


def test_local_save_names_the_file_by_its_content_type(local_storage: LocalStorage) -> None:
    """The URL ends with the extension from which /media gets the Content-Type."""
    url = local_storage.save("assets/65f0/original", io.BytesIO(make_image()), "image/jpeg")
    assert url == "http://127.0.0.1:8080/media/assets/65f0/original.jpg"
    assert (local_storage.media_root / "assets/65f0/original.jpg").read_bytes() == make_image()


def test_local_save_of_another_type_leaves_one_file(local_storage: LocalStorage) -> None:
    """A JPEG that replaces a PNG removes the PNG, so `open` finds one file."""
    local_storage.save("assets/65f0/original", io.BytesIO(b"png"), "image/png")
    local_storage.save("assets/65f0/original", io.BytesIO(b"jpeg"), "image/jpeg")
    assert [path.name for path in (local_storage.media_root / "assets/65f0").iterdir()] == ["original.jpg"]


@pytest.mark.parametrize(
    "public_id", ["../escape", "a/../../b", "/etc/passwd", "a//b", "", ".incoming/x", "A", "a\0b", "a*", "a\n"]
)
def test_local_refuses_a_path_that_is_no_public_id(local_storage: LocalStorage, public_id: str) -> None:
    """No id leads out of the folder or to a hidden file, and no pattern matches other images."""
    local_storage.save("a/original", io.BytesIO(b"original"), "image/png")
    for attempt in (
        lambda: local_storage.save(public_id, io.BytesIO(b"x"), "image/png"),
        lambda: local_storage.open(public_id),
        lambda: local_storage.delete(public_id),
    ):
        with pytest.raises(ValueError, match="not a public_id"):
            attempt()
    files = [path for path in local_storage.media_root.parent.rglob("*") if path.is_file()]
    assert files == [local_storage.media_root / "a/original.png"]


def test_local_delete_removes_empty_folders_except_the_root(local_storage: LocalStorage) -> None:
    """The folder of a deleted asset is removed."""
    local_storage.save("assets/65f0/original", io.BytesIO(b"x"), "image/png")
    local_storage.delete("assets/65f0/original")
    assert [path.name for path in local_storage.media_root.iterdir()] == [".incoming"]


class FullDisk(io.BytesIO):
    """A file whose copy fails after some bytes, as on a full disk."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().read(10)


def test_local_save_on_a_full_disk_is_unavailable_and_changes_nothing(local_storage: LocalStorage) -> None:
    """The error asks the client to retry. No incomplete file is left, and an older image is unchanged."""
    local_storage.save("assets/65f0/original", io.BytesIO(b"older"), "image/png")
    with pytest.raises(DependencyUnavailable) as caught:
        local_storage.save("assets/65f0/original", FullDisk(b"x" * 100), "image/png")
    assert isinstance(caught.value.__cause__, OSError)
    files = [path for path in local_storage.media_root.rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in files] == [b"older"]


def new_images(*names: str, content_type: str = "image/png") -> list[NewImage]:
    """Return new images with these names as contents."""
    return [NewImage(f"{name}/original", io.BytesIO(name.encode()), content_type) for name in names]


def stored_in(storage: LocalStorage) -> dict[str, bytes]:
    """Return the files of the storage by their paths."""
    files = [path for path in storage.media_root.rglob("*") if path.is_file()]
    return {str(path.relative_to(storage.media_root)): path.read_bytes() for path in files}


def test_local_save_many_has_the_results_of_single_saves(local_storage: LocalStorage) -> None:
    """It saves new images and replaces older ones, also those of another type. No other file is left."""
    local_storage.save("b/original", io.BytesIO(b"older"), "image/jpeg")
    local_storage.save("c/original", io.BytesIO(b"older"), "image/png")
    urls = local_storage.save_many(new_images("a", "b", "c"))
    assert urls == [local_storage.save(f"{name}/original", io.BytesIO(name.encode()), "image/png") for name in "abc"]
    assert stored_in(local_storage) == {f"{name}/original.png": name.encode() for name in "abc"}


def test_local_save_many_reports_each_failed_image_and_saves_the_others(local_storage: LocalStorage) -> None:
    """Two files break off, and a folder has the name of a third. Older images stay, and no incomplete file is left."""
    local_storage.save("b/original", io.BytesIO(b"older"), "image/png")
    (local_storage.media_root / "d" / "original.png").mkdir(parents=True)
    images = new_images("a", "b", "c", "d", "e")
    images[1] = NewImage("b/original", FullDisk(b"x" * 100), "image/png")
    images[2] = NewImage("c/original", FullDisk(b"x" * 100), "image/png")
    for each in images[1:3]:
        each.file.seek(1)
    ends = local_storage.save_many(images)
    assert [type(end) for end in ends] == [str, *[DependencyUnavailable] * 3, str]
    faults = [end.__cause__ for end in ends if isinstance(end, DependencyUnavailable)]
    assert [type(fault) for fault in faults] == [OSError, OSError, IsADirectoryError]
    assert stored_in(local_storage) == {"a/original.png": b"a", "b/original.png": b"older", "e/original.png": b"e"}
    assert not (local_storage.media_root / "c").exists()


def test_local_removes_old_incomplete_files_only(tmp_path: Path) -> None:
    """At the start files that no running process can still be writing are removed."""
    incoming = tmp_path / ".incoming"
    incoming.mkdir()
    (incoming / "old").write_bytes(b"x")
    os.utime(incoming / "old", (0, 0))
    (incoming / "new").write_bytes(b"x")
    LocalStorage(tmp_path, "http://127.0.0.1").check()
    assert [path.name for path in incoming.iterdir()] == ["new"]


def test_local_creates_no_folder_before_the_first_save(tmp_path: Path) -> None:
    """A service with another storage reads old images here and checks signatures, without writing to the disk."""
    storage = LocalStorage(tmp_path / "media", "http://127.0.0.1", 60)
    with pytest.raises(FileNotFoundError):
        storage.open("a/original")
    assert list(storage.list("")) == []
    storage.delete("a/original")
    assert storage.media_links.seconds_left("a/original", {"expires": "9" * 10, "signature": "x"}) == 0
    assert list(tmp_path.iterdir()) == []


def test_local_check_fails_when_nothing_can_be_written(local_storage: LocalStorage) -> None:
    """`check` fails when the folder was removed, so the service is not ready."""
    local_storage.check()
    (local_storage.media_root / INCOMING).rmdir()
    with pytest.raises(DependencyUnavailable):
        local_storage.check()
