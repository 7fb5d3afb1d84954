"""Files that survive a power cut: a file appears under its name only when it is complete and on the disk.

New files are written into the folder INCOMING of the same filesystem first.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO

INCOMING = ".incoming"
# An upload up to this size stays in memory and is copied with one read; a larger one is copied in pieces.
MEMORY_BYTES = 128 * 1024
COPY_BYTES = 16 * 1024 * 1024
# No save takes this long: a process that died left the older files behind.
STALE_SECONDS = 3600


class DurableFiles:
    """The files below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / INCOMING
        self._is_prepared = False

    def prepare(self) -> None:
        """Create the folders, once. A folder that is missing later means that the disk has gone.

        Not in the constructor: a service with another storage also looks for old images here, and writes nothing.
        """
        if not self._is_prepared:
            self.incoming.mkdir(parents=True, exist_ok=True)
            self.remove_stale()
            self._is_prepared = True

    def remove_stale(self) -> None:
        """Remove incomplete files of processes that died."""
        if paths := list(self.incoming.glob("*")):  # empty when nothing was ever saved and the folder does not exist
            stale_before = self.now() - STALE_SECONDS
            for path in paths:
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < stale_before:
                        path.unlink()

    def now(self) -> float:
        """Return the time by the clock that sets the times of these files, in seconds since 1970.

        It is that of another machine when the disk is shared. With its own clock a machine whose clock is wrong would
        take the files of others for old ones.
        """
        try:
            with tempfile.TemporaryFile(dir=self.root) as probe:
                return os.fstat(probe.fileno()).st_mtime
        except OSError:
            # Where nothing can be written, no file is new.
            return time.time()

    def new_path(self) -> str:
        """Return an unused path in the folder of incoming files."""
        return f"{self.incoming}/{secrets.token_hex(8)}"

    def write(self, file: BinaryIO) -> str:
        """Return the path of a new incoming file with the content, which is on the disk."""
        file.seek(0)
        path = self.new_path()
        try:
            if _give_name(file, path):
                os.fsync(file.fileno())
            else:
                with open(path, "xb") as copy:
                    _copy(file, copy)
                    copy.flush()
                    os.fsync(copy.fileno())
        except BaseException:
            Path(path).unlink(missing_ok=True)
            raise
        return path

    def publish(self, path: str, target: str) -> None:
        """Move an incoming file to its name and make that survive a power cut."""
        try:
            self.move(path, target)
            path = target
            self.sync_folders([path])
        except BaseException:
            drop(path)
            self.remove_empty(Path(target).parent)
            raise

    def move(self, path: str, target: str) -> bool:
        """Move an incoming file to its name; return whether its folder is new."""
        folder = os.path.dirname(target)
        for attempt in (1, 2, 3):
            try:
                os.mkdir(folder)
                is_new = True
            except OSError:
                # It exists, or its parent folder is missing.
                os.makedirs(folder, exist_ok=True)
                is_new = False
            try:
                os.replace(path, target)
                break
            except FileNotFoundError:
                # A concurrent delete removed the folder while it was empty.
                if attempt == 3:
                    raise
        return is_new

    def sync_folders(self, targets: Iterable[str]) -> None:
        """Make the names of the files survive a power cut: sync each of their folders, up to the root."""
        root, synced = str(self.root), set[str]()
        for target in targets:
            folder = os.path.dirname(target)
            while folder != root and folder not in synced:
                _sync_folder(folder)
                synced.add(folder)
                folder = os.path.dirname(folder)
        _sync_folder(root)

    def remove_empty(self, folder: Path) -> None:
        """Remove the folder and its parents below the root, as far as they are empty."""
        with suppress(OSError):
            while folder != self.root:
                folder.rmdir()
                folder = folder.parent


class NewFile:
    """One file of a group that is saved step by step.

    name: its final name below the root.
    path: its present path.
    fault: why it goes no further.
    is_alone: its folder is new.
    """

    __slots__ = ("name", "path", "fault", "is_alone", "_source", "_descriptor")

    def __init__(self, name: str, path: str, source: BinaryIO) -> None:
        self.name = name
        self.path = path
        self.fault: Exception | None = None
        self.is_alone = False
        self._source = source
        self._descriptor = -1

    def do(self, step: Callable[[NewFile], None]) -> None:
        """Do the next step, unless an earlier one has failed."""
        if self.fault is None:
            try:
                step(self)
            except Exception as error:  # one file must not affect the others
                self.fault = error

    def write(self) -> None:
        """Write the content to the incoming path."""
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            content = memoryview(self._source.read())
            while content:
                content = content[os.write(self._descriptor, content) :]
        except BaseException:
            os.close(self._descriptor)
            raise

    def sync(self) -> None:
        """Wait until the content is on the disk."""
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)


def drop(path: str) -> None:
    """Remove a file that is not saved completely: no other code will remove it."""
    with suppress(OSError):
        os.unlink(path)


def _give_name(file: BinaryIO, path: str) -> bool:
    """Link the open file to the path instead of copying it; False when that is not possible.

    Only a file without a name, as a large upload is: one that another program can open could change later.
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
        # One system call: between several, the thread would wait each time for the interpreter's lock.
        try:
            offset = 0
            while sent := os.sendfile(target.fileno(), source.fileno(), offset, COPY_BYTES):
                offset += sent
            return
        except OSError:
            source.seek(MEMORY_BYTES)
            target.seek(0)
    target.write(start)
    shutil.copyfileobj(source, target, COPY_BYTES)


def _sync_folder(folder: str) -> None:
    with suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
