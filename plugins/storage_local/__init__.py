"""The storage `local`: images as files under DATA_DIR/media, which the service itself serves under /media.

Plain `def` methods, which run in threads; `url` is `async def`, because it only computes. durable_files.py writes the
files.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.errors import DependencyUnavailable
from pipeline.hooks import NewImage, StorageBackend, StoredImage, hookimpl, utc_now
from pipeline.hooks.media_links import MediaLinks

from .durable_files import DurableFiles, NewFile, drop

if TYPE_CHECKING:
    from pipeline.settings import Settings

PUBLIC_ID = re.compile(r"[a-z0-9-]+(/[a-z0-9-]+)*")
PREFIX = re.compile(r"([a-z0-9-]+/)*[a-z0-9-]*")
EXTENSIONS = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/avif": "avif",
    "image/heic": "heic",
    "image/heif": "heif",
}
UNAVAILABLE = "Image storage unavailable"


@hookimpl
def register_storage_backends(settings: Settings) -> Iterator[tuple[str, Callable[[], StorageBackend]]]:
    """Offer `local`."""
    yield "local", lambda: LocalStorage(settings.data_dir / "media", settings.served_at, settings.media_url_seconds)


class LocalStorage:
    """Stores each image as <media_root>/<public_id>.<extension>."""

    def __init__(self, media_root: Path, base_url: str, url_seconds: int = 0) -> None:
        """base_url: the public URL of the service.
        url_seconds: MEDIA_URL_SECONDS; with 0 URLs never expire.
        """
        self.media_root = media_root.absolute()
        self.media_links = MediaLinks(self.media_root, base_url, url_seconds)
        self._base_url = base_url.rstrip("/") + "/media/"
        self._files = DurableFiles(self.media_root)

    def save(self, public_id: str, file: BinaryIO, content_type: str) -> str:
        """Store the file and return its URL. From then on the image survives a power cut."""
        name = _name_of(public_id, content_type)
        target = self.media_root / name
        with _unavailable():
            self._files.prepare()
            self._files.publish(self._files.write(file), str(target))
            self._remove_older(target)
        return self._base_url + name

    def save_many(self, images: Sequence[NewImage]) -> Sequence[str | Exception]:
        """Store each file as `save` does; each step is done for all files before the next one.

        In one thread: each system call releases the interpreter's lock, and threads that wait for it cost more than the
        system calls.
        """
        with _unavailable():
            self._files.prepare()
        new_files = [
            NewFile(_name_of(image.public_id, image.content_type), self._files.new_path(), image.file)
            for image in images
        ]
        for step in (NewFile.write, NewFile.sync, self._give_final_name):
            for new_file in new_files:
                new_file.do(step)
        named = [new_file for new_file in new_files if new_file.fault is None]
        try:
            self._files.sync_folders(new_file.path for new_file in named)
            for new_file in named:
                if not new_file.is_alone:
                    self._remove_older(Path(new_file.path))
        except OSError as error:
            for new_file in named:
                new_file.fault = error
        return [
            self._undo(new_file, new_file.fault) if new_file.fault else self._base_url + new_file.name
            for new_file in new_files
        ]

    async def url(self, public_id: str, seconds: int) -> str:
        """Return the URL under which the service serves the image now."""
        with _unavailable():
            return self.media_links.url(_checked(public_id), seconds)

    def open(self, public_id: str) -> BinaryIO:
        """Return the stored image; FileNotFoundError when there is none."""
        _checked(public_id)
        with _unavailable():
            for path in self._find(public_id):
                return path.open("rb")
        raise FileNotFoundError(public_id)

    def delete(self, public_id: str) -> None:
        """Remove the image, and its folders if they are empty then."""
        _checked(public_id)
        with _unavailable():
            for path in self._find(public_id):
                path.unlink(missing_ok=True)
        self._files.remove_empty((self.media_root / public_id).parent)

    def list(self, prefix: str) -> Iterator[StoredImage]:
        """Yield the images whose public_id begins with the prefix; reads the folders one entry at a time."""
        if not PREFIX.fullmatch(prefix):
            raise ValueError(f"not the beginning of a public_id: {prefix!r}")
        with _unavailable():
            if not prefix:
                self._files.remove_stale()
            offset = utc_now() - datetime.fromtimestamp(self._files.now(), UTC)
            yield from self._walk(prefix.rpartition("/")[0], prefix, offset)

    def check(self) -> None:
        """Return when a file can be written; DependencyUnavailable otherwise."""
        with _unavailable():
            self._files.prepare()
            with tempfile.TemporaryFile(dir=self._files.incoming) as probe:
                probe.write(b"\0")

    def _walk(self, folder: str, prefix: str, offset: timedelta) -> Iterator[StoredImage]:
        """offset: the service's time minus the time by the clock of the files"""
        try:
            entries = os.scandir(self.media_root / folder)
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    if PUBLIC_ID.fullmatch(name) and f"{name}/".startswith(prefix):
                        yield from self._walk(name, prefix, offset)
                elif (image := _image(name.partition(".")[0], entry, offset)) and image.public_id.startswith(prefix):
                    yield image

    def _find(self, public_id: str) -> Sequence[Path]:
        path = self.media_root / public_id
        # Not glob: it would compile a pattern for each image while it keeps the interpreter's lock.
        try:
            names = os.listdir(path.parent)
        except FileNotFoundError:
            return []
        return [path.parent / name for name in names if name.startswith(f"{path.name}.")]

    def _remove_older(self, target: Path) -> None:
        """Remove the earlier files of the same public_id that have another type."""
        for older in self._find(str(target.with_suffix("").relative_to(self.media_root))):
            if older != target:
                older.unlink(missing_ok=True)

    def _give_final_name(self, new_file: NewFile) -> None:
        target = f"{self.media_root}/{new_file.name}"
        new_file.is_alone = self._files.move(new_file.path, target)
        new_file.path = target

    def _undo(self, new_file: NewFile, fault: Exception) -> Exception:
        """Remove the file of an image that was not saved; return the exception that `save` would raise."""
        drop(new_file.path)
        self._files.remove_empty((self.media_root / new_file.name).parent)
        if not isinstance(fault, OSError):
            return fault
        unavailable = DependencyUnavailable(UNAVAILABLE)
        unavailable.__cause__ = fault
        return unavailable


def _name_of(public_id: str, content_type: str) -> str:
    return f"{_checked(public_id)}.{EXTENSIONS.get(content_type, 'bin')}"


def _checked(public_id: str) -> str:
    if not PUBLIC_ID.fullmatch(public_id):
        raise ValueError(f"not a public_id: {public_id!r}")
    return public_id


def _image(public_id: str, entry: os.DirEntry[str], offset: timedelta) -> StoredImage | None:
    """Return the image in the file; None when it is not an image of ours or was removed meanwhile."""
    if not PUBLIC_ID.fullmatch(public_id) or "." not in entry.name:
        return None
    with suppress(FileNotFoundError):
        return StoredImage(public_id, datetime.fromtimestamp(entry.stat(follow_symlinks=False).st_mtime, UTC) + offset)
    return None


@contextmanager
def _unavailable() -> Iterator[None]:
    """Raise DependencyUnavailable for an OSError: the disk is full, read-only or broken, the request is not wrong."""
    try:
        yield
    except OSError as error:
        raise DependencyUnavailable(UNAVAILABLE) from error
