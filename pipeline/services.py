"""The list of service processes that run on one DATA_DIR: one file per process. Blocks.

Each process locks its file. The kernel releases the lock when the process ends, also after kill -9. A file without a
lock is therefore stale, even if its process id is in use again. Readers remove stale files.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

FOLDER = "services"
# Earlier versions have this one file only. It names one of the processes, for programs that still read it.
# To be removed in the next version.
OLD_FILE = "service.json"
# A connection on the same machine is made at once or not at all.
CONNECT_SECONDS = 0.5
DRAFT = ".new"
# Writing a draft takes far less; an older one is of a process that was killed.
DRAFT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Service:
    """One process of the service.

    address: the URL that it listens on.
    host: the host name that belongs to the pid: containers have process ids of their own.
    """

    pid: int
    address: str
    role: str = "all"
    host: str = ""

    @property
    def is_here(self) -> bool:
        """True when a signal to the pid reaches the process: it runs on this host."""
        return self.host == socket.gethostname()


class ServiceFile:
    """The file of this process."""

    def __init__(self, data_dir: Path, address: str, role: str) -> None:
        """Write and lock the file; OSError when that is not possible."""
        folder = data_dir / FOLDER
        folder.mkdir(exist_ok=True)
        service = Service(os.getpid(), address, role, socket.gethostname())
        self._data_dir = data_dir
        # A name is used once only, so removing a stale file never removes that of a new process.
        self._path = folder / f"{service.pid}-{secrets.token_hex(4)}.json"
        draft = self._path.with_suffix(DRAFT)
        self._file = draft.open("w")
        try:
            # Locked before it gets its name: a reader would take an unlocked file for a stale one.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            json.dump(asdict(service), self._file)
            self._file.flush()
            draft.rename(self._path)
        except OSError:
            self._file.close()
            draft.unlink(missing_ok=True)
            raise
        with suppress(OSError):
            _write_old(data_dir)

    def remove(self) -> None:
        """Remove the file at the end of the process."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._file.close()
            _write_old(self._data_dir)


def services(data_dir: Path) -> list[Service]:
    """Return the running processes, the newest first, and remove stale files."""
    running, has_removed = [], False
    for path in _entries(data_dir):
        try:
            with path.open() as file:
                if _is_stale(file):
                    path.unlink()
                    has_removed = True
                elif path.suffix != DRAFT:
                    given = json.load(file)
                    running.append(Service(**{each.name: given[each.name] for each in fields(Service)}))
        except (OSError, ValueError, TypeError, KeyError):  # removed meanwhile, unreadable, or of another program
            continue
    if has_removed:
        with suppress(OSError):
            _write_old(data_dir)
    if (old := _old_service(data_dir)) and old.pid not in [each.pid for each in running if each.is_here]:
        running.append(old)
    return running


def _entries(data_dir: Path) -> Iterator[Path]:
    """Yield the files, the newest first."""
    ages = []
    with suppress(OSError):
        for entry in os.scandir(data_dir / FOLDER):
            with suppress(OSError):
                ages.append((entry.stat().st_mtime_ns, entry.path))
    return (Path(path) for _, path in sorted(ages, reverse=True))


def _is_stale(file: IO[str]) -> bool:
    """Return True when no process has locked the file; False for a draft that may be locked in a moment."""
    if file.name.endswith(DRAFT):
        # The folder was changed when the draft was made or later. This process's own clock may be wrong.
        return Path(file.name).parent.stat().st_mtime - os.fstat(file.fileno()).st_mtime > DRAFT_SECONDS
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_old(data_dir: Path) -> None:
    """Write a running process into the old file, or remove the file when none runs."""
    path, now = data_dir / OLD_FILE, services(data_dir)
    if now and now[-1] == _old_service(data_dir):
        return  # a process of an earlier version has only this file
    if not now:
        path.unlink(missing_ok=True)
        return
    draft = data_dir / FOLDER / f"{secrets.token_hex(8)}{DRAFT}"
    try:
        draft.write_text(json.dumps(asdict(now[0])))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _old_service(data_dir: Path) -> Service | None:
    """Return the process of an earlier version that wrote the old file and still runs, or None."""
    try:
        given = json.loads((data_dir / OLD_FILE).read_text())
        if given.keys() != {"pid", "address"}:
            return None  # written by this version
        os.kill(given["pid"], 0)
        address = urlsplit(given["address"])
        # Its process id may be in use by another program: check that something listens there.
        socket.create_connection((address.hostname or "", address.port or 0), CONNECT_SECONDS).close()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    return Service(given["pid"], given["address"], host=socket.gethostname())
