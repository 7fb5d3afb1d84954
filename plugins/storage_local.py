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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from pipeline.errors import DependencyUnavailable
from pipeline.hooks import NewImage, StorageBackend, StoredImage, hookimpl, utc_now
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
UNAVAILABLE = "Image storage unavailable"
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
        name = _name_of(public_id, content_type)
        target = self.media_root / name
        with _unavailable():
            self._prepare()
            self._publish(self._write(file), target)
            self._remove_older(target)
        return self._base_url + name

    def save_many(self, images: Sequence[NewImage]) -> Sequence[str | Exception]:
        """Store the files as `save` does, step by step all of them.

        In one thread: each call of the system gives the interpreter's lock away, and threads that wait for it cost more
        than the calls.
        """
        with _unavailable():
            self._prepare()
        saves = [_Save(image, f"{self._incoming}/{secrets.token_hex(8)}") for image in images]
        for step in (_Save.write, _Save.sync, self._name):
            for save in saves:
                save.do(step)
        named = [save for save in saves if save.fault is None]
        try:
            self._sync_folders(save.path for save in named)
            for save in named:
                if not save.is_alone:
                    self._remove_older(Path(save.path))
        except OSError as error:
            for save in named:
                save.fault = error
        return [self._given_up(save, save.fault) if save.fault else self._base_url + save.name for save in saves]

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

    def _remove_older(self, target: Path) -> None:
        """Remove what was saved under that public_id as another type."""
        for older in self._find(str(target.with_suffix("").relative_to(self.media_root))):
            if older != target:
                older.unlink(missing_ok=True)

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

    def _name(self, save: _Save) -> None:
        target = f"{self.media_root}/{save.name}"
        save.is_alone = self._move(save.path, target)
        save.path = target

    def _given_up(self, save: _Save, fault: Exception) -> Exception:
        """Remove what there is of an image that was not saved; return what `save` would raise."""
        _drop(save.path)
        self._remove_empty((self.media_root / save.name).parent)
        if not isinstance(fault, OSError):
            return fault
        unavailable = DependencyUnavailable(UNAVAILABLE)
        unavailable.__cause__ = fault
        return unavailable

    def _publish(self, written: Path, target: Path) -> None:
        path = str(written)
        try:
            self._move(path, str(target))
            path = str(target)
            self._sync_folders([path])
        except BaseException:
            _drop(path)
            self._remove_empty(target.parent)
            raise

    def _move(self, written: str, target: str) -> bool:
        """Give the file its name; return whether its folder is new."""
        folder = os.path.dirname(target)
        for attempt in (1, 2, 3):
            try:
                os.mkdir(folder)
                is_new = True
            except OSError:
                # It is there, or its own folder is not.
                os.makedirs(folder, exist_ok=True)
                is_new = False
            try:
                os.replace(written, target)
                break
            except FileNotFoundError:
                # A delete next door removed the folder, empty for the moment it was.
                if attempt == 3:
                    raise
        return is_new

    def _sync_folders(self, targets: Iterable[str]) -> None:
        """Let the names of the files outlive a power cut: each folder they are in, up to media_root."""
        root, synced = str(self.media_root), set[str]()
        for target in targets:
            folder = os.path.dirname(target)
            while folder != root and folder not in synced:
                _sync_folder(folder)
                synced.add(folder)
                folder = os.path.dirname(folder)
        _sync_folder(root)


class _Save:
    """One of several images on its way. name: of its file below media_root. path: of its file as it is called now.
    fault: why it goes no further. is_alone: its folder is new.
    """

    __slots__ = ("name", "path", "fault", "is_alone", "_file", "_descriptor")

    def __init__(self, image: NewImage, path: str) -> None:
        self.path = path
        self.name = _name_of(image.public_id, image.content_type)
        self.fault: Exception | None = None
        self.is_alone = False
        self._file = image.file
        self._descriptor = -1

    def do(self, step: Callable[[_Save], None]) -> None:
        """Take the next step, unless one before has failed."""
        if self.fault is None:
            try:
                step(self)
            except Exception as error:  # the border of one image
                self.fault = error

    def write(self) -> None:
        """Write what there is to store."""
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            content = memoryview(self._file.read())
            while content:
                content = content[os.write(self._descriptor, content) :]
        except BaseException:
            os.close(self._descriptor)
            raise

    def sync(self) -> None:
        """Have it on the disk."""
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)


def _name_of(public_id: str, content_type: str) -> str:
    return f"{_checked(public_id)}.{EXTENSIONS.get(content_type, 'bin')}"


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


def _drop(path: str) -> None:
    """Remove a file that does not count as saved: nobody else ever would."""
    with suppress(OSError):
        os.unlink(path)


def _sync_folder(folder: str) -> None:
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
        raise DependencyUnavailable(UNAVAILABLE) from error
