"""Which processes of the service run on a DATA_DIR: one file each, so that none overwrites another's. Blocks.

A process holds a lock on its file for as long as it lives. The kernel lets go of the lock at its end, also after kill
-9, so a file without a lock is a leftover, whoever has its process id by now. Readers remove leftovers.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

FOLDER = "services"
# As versions before this one wrote it: one of the processes, for programs that read it. A process of such a version
# has no other. To be dropped in the next one.
OLD_FILE = "service.json"
# On this machine a connection is made at once or not at all.
CONNECT_SECONDS = 0.5
DRAFT = ".new"
# A draft is written in much less; an older one was left by a process that was killed meanwhile.
DRAFT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Service:
    """One process of the service. address: where it listens. host: of the pid, as containers have pids of their own."""

    pid: int
    address: str
    role: str = "all"
    host: str = ""

    @property
    def is_here(self) -> bool:
        """Whether the pid is one of this host, so that a signal reaches it."""
        return self.host == socket.gethostname()


class ServiceFile:
    """The file of this process."""

    def __init__(self, data_dir: Path, address: str, role: str) -> None:
        """Write it; OSError when that is not possible."""
        folder = data_dir / FOLDER
        folder.mkdir(exist_ok=True)
        service = Service(os.getpid(), address, role, socket.gethostname())
        self._data_dir = data_dir
        # The name is used once: who finds a leftover of this name removes nothing else.
        self._path = folder / f"{service.pid}-{secrets.token_hex(4)}.json"
        draft = self._path.with_suffix(DRAFT)
        self._file = draft.open("w")
        try:
            # Locked before it has its name, or a reader would take it for a leftover.
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
        """Remove it at the end of the process."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._file.close()
            _write_old(self._data_dir)


def services(data_dir: Path) -> list[Service]:
    """Return the processes that run on the folder, the one that started last first; leftovers of others are removed."""
    found, has_removed = [], False
    for path in _entries(data_dir):
        try:
            with path.open() as file:
                if _is_left(file):
                    path.unlink()
                    has_removed = True
                elif path.suffix != DRAFT:
                    given = json.load(file)
                    found.append(Service(**{each.name: given[each.name] for each in fields(Service)}))
        except (OSError, ValueError, TypeError, KeyError):  # it has gone meanwhile, is not for us to read, or not ours
            continue
    if has_removed:
        with suppress(OSError):
            _write_old(data_dir)
    if (before := _of_before(data_dir)) and before.pid not in [each.pid for each in found if each.is_here]:
        found.append(before)
    return found


def _entries(data_dir: Path) -> Iterator[Path]:
    """Yield the files, the newest first."""
    ages = []
    with suppress(OSError):
        for entry in os.scandir(data_dir / FOLDER):
            with suppress(OSError):
                ages.append((entry.stat().st_mtime_ns, entry.path))
    return (Path(path) for _, path in sorted(ages, reverse=True))


def _is_left(file: IO[str]) -> bool:
    """Return whether no process holds the lock, or will soon."""
    if file.name.endswith(DRAFT):
        return time.time() - os.fstat(file.fileno()).st_mtime > DRAFT_SECONDS
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_old(data_dir: Path) -> None:
    """Let the old file name a process that runs, or remove it."""
    path, now = data_dir / OLD_FILE, services(data_dir)
    if now and now[-1] == _of_before(data_dir):
        return  # it has no other
    if not now:
        path.unlink(missing_ok=True)
        return
    draft = data_dir / FOLDER / f"{secrets.token_hex(8)}{DRAFT}"
    try:
        draft.write_text(json.dumps(asdict(now[0])))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _of_before(data_dir: Path) -> Service | None:
    """Return the process of a version before this one that has written the old file and still runs here, if any."""
    try:
        given = json.loads((data_dir / OLD_FILE).read_text())
        if given.keys() != {"pid", "address"}:
            return None  # written by this version
        os.kill(given["pid"], 0)
        address = urlsplit(given["address"])
        # Another process may have its id by now.
        socket.create_connection((address.hostname or "", address.port or 0), CONNECT_SECONDS).close()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    return Service(given["pid"], given["address"], host=socket.gethostname())
