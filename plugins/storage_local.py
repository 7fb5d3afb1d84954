"""The storage `local`: images as files under DATA_DIR/media, which the service itself serves under /media.

Plain `def` methods, run in threads, but for `url`, which only computes.

A file appears under its name only when it is complete and on the disk.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from pipeline.errors import DependencyUnavailable
from pipeline.hooks import StorageBackend, StoredImage, hookimpl, utc_now
from pipeline.hooks.media_links import MediaLinks

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
INCOMING = ".incoming"
# What an upload may keep in memory instead of a file, and so much is copied at a time.
MEMORY_BYTES = 128 * 1024
COPY_BYTES = 16 * 1024 * 1024
# No save takes this long: what is older was left behind by a process that died.
STALE_SECONDS = 3600


@hookimpl
def register_storage_backends(settings: Settings) -> Iterator[tuple[str, Callable[[], StorageBackend]]]:
    """Offer `local`."""
    yield "local", lambda: LocalStorage(settings.data_dir / "media", settings.served_at, settings.media_url_seconds)


class LocalStorage:
    """Keeps each image as <media_root>/<public_id>.<extension>."""

    def __init__(self, media_root: Path, base_url: str, url_seconds: int = 0) -> None:
        """base_url: where the service is reached. url_seconds: MEDIA_URL_SECONDS; with 0 URLs are for ever."""
        self.media_root = media_root.absolute()
        self.media_links = MediaLinks(self.media_root, base_url, url_seconds)
        self._base_url = base_url.rstrip("/") + "/media/"
        self._incoming = self.media_root / INCOMING
        self._is_prepared = False

    def save(self, public_id: str, file: BinaryIO, content_type: str) -> str:
        """Store the file and return its URL; it outlives a power cut from here on."""
        name = f"{_checked(public_id)}.{EXTENSIONS.get(content_type, 'bin')}"
        target = self.media_root / name
        with _unavailable():
            self._prepare()
            written = self._write(file)
            try:
                self._publish(written, target)
            except BaseException:
                written.unlink(missing_ok=True)
                self._remove_empty(target.parent)
                raise
            for older in self._find(public_id):
                if older != target:
                    older.unlink(missing_ok=True)
        return self._base_url + name

    async def url(self, public_id: str, seconds: int) -> str:
        """Return where the service serves the image now."""
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
        """Remove the image and the folders that are empty without it."""
        _checked(public_id)
        with _unavailable():
            for path in self._find(public_id):
                path.unlink(missing_ok=True)
        self._remove_empty((self.media_root / public_id).parent)

    def list(self, prefix: str) -> Iterator[StoredImage]:
        """Yield the images whose public_id begins with the prefix; read from the folders one entry at a time."""
        if not PREFIX.fullmatch(prefix):
            raise ValueError(f"not the beginning of a public_id: {prefix!r}")
        with _unavailable():
            if not prefix:
                self._remove_leftovers()
            yield from self._walk(prefix.rpartition("/")[0], prefix)

    def check(self) -> None:
        """Return when a file can be written; DependencyUnavailable otherwise."""
        with _unavailable():
            self._prepare()
            with tempfile.TemporaryFile(dir=self._incoming) as probe:
                probe.write(b"\0")

    def _prepare(self) -> None:
        """Make the folders, once: later on one that is missing means that the disk has gone.

        Not earlier: a service whose storage is another one also looks for old images here, and writes nothing.
        """
        if not self._is_prepared:
            self._incoming.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            self._is_prepared = True

    def _walk(self, folder: str, prefix: str) -> Iterator[StoredImage]:
        try:
            entries = os.scandir(self.media_root / folder)
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    if PUBLIC_ID.fullmatch(name) and f"{name}/".startswith(prefix):
                        yield from self._walk(name, prefix)
                elif (image := _image(name.partition(".")[0], entry)) and image.public_id.startswith(prefix):
                    yield image

    def _remove_leftovers(self) -> None:
        for leftover in self._incoming.glob("*"):  # none where nothing was ever saved, and there is no such folder
            with suppress(FileNotFoundError):
                if leftover.stat().st_mtime < time.time() - STALE_SECONDS:
                    leftover.unlink()

    def _remove_empty(self, folder: Path) -> None:
        with suppress(OSError):
            while folder != self.media_root:
                folder.rmdir()
                folder = folder.parent

    def _find(self, public_id: str) -> Sequence[Path]:
        path = self.media_root / public_id
        # A pattern would be compiled anew for each image, with the interpreter's lock held.
        try:
            names = os.listdir(path.parent)
        except FileNotFoundError:
            return []
        return [path.parent / name for name in names if name.startswith(f"{path.name}.")]

    def _write(self, file: BinaryIO) -> Path:
        """Return a file of the same filesystem with the content, on the disk."""
        file.seek(0)
        written = self._incoming / secrets.token_hex(8)
        try:
            if _give_name(file, written):
                os.fsync(file.fileno())
            else:
                with open(written, "xb") as copy:
                    _copy(file, copy)
                    copy.flush()
                    os.fsync(copy.fileno())
        except BaseException:
            written.unlink(missing_ok=True)
            raise
        return written

    def _publish(self, written: Path, target: Path) -> None:
        for attempt in (1, 2, 3):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                written.replace(target)
                break
            except FileNotFoundError:
                # A delete next door removed the folder, empty for the moment it was.
                if attempt == 3:
                    raise
        folder = target.parent
        try:
            _sync_folder(folder)
            while folder != self.media_root:
                folder = folder.parent
                _sync_folder(folder)
        except OSError:
            # The caller takes it for not saved, so nobody would ever remove it.
            target.unlink(missing_ok=True)
            raise


def _checked(public_id: str) -> str:
    if not PUBLIC_ID.fullmatch(public_id):
        raise ValueError(f"not a public_id: {public_id!r}")
    return public_id


def _image(public_id: str, entry: os.DirEntry[str]) -> StoredImage | None:
    """Return the image that the file is; None when it is no image of ours or has gone meanwhile."""
    if not PUBLIC_ID.fullmatch(public_id) or "." not in entry.name:
        return None
    with suppress(FileNotFoundError):
        # The file has its time from the machine's own clock, so only its age can be relied on.
        age = timedelta(seconds=time.time() - entry.stat(follow_symlinks=False).st_mtime)
        return StoredImage(public_id, utc_now() - age)
    return None


def _give_name(file: BinaryIO, path: Path) -> bool:
    """Name the file itself instead of copying it; False where that cannot be done.

    Only one that has no name, as a large upload has none: a file that somebody else knows could change.
    """
    try:
        descriptor = file.fileno()
        if os.fstat(descriptor).st_nlink:
            return False
        file.flush()
        # With src_dir_fd the call follows the link that stands for the open file.
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor)
    except OSError:
        return False
    return True


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    start = source.read(MEMORY_BYTES)
    if len(start) == MEMORY_BYTES and hasattr(os, "sendfile"):
        # In one go: between the pieces a thread would wait for the event loop to let it run on.
        try:
            at = 0
            while sent := os.sendfile(target.fileno(), source.fileno(), at, COPY_BYTES):
                at += sent
            return
        except OSError:
            source.seek(MEMORY_BYTES)
            target.seek(0)
    target.write(start)
    shutil.copyfileobj(source, target, COPY_BYTES)


def _sync_folder(folder: Path) -> None:
    with suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _unavailable() -> Iterator[None]:
    """A full, read-only or broken disk is the storage being away, not the request being wrong."""
    try:
        yield
    except OSError as error:
        raise DependencyUnavailable("Image storage unavailable") from error
