"""The files of the embedded Redis: whose they are, what the server said, and how they are set aside.

They are an index of the asset store: where they keep a server from starting, it starts without them.
"""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import signal
import time
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TextIO

import structlog

from pipeline.errors import ConfigurationError
from pipeline.texts import cause_of, clean

log = structlog.get_logger(__name__)

LOCK_SECONDS = 5.0
LOG_BYTES = 1_000_000
REASON_LINES = 3
SET_ASIDE = "set-aside-"
PORT_TAKEN = "Address already in use"
# What a machine lacks is no fault of the files.
MACHINE_LACKS = (
    *("No space left", "Disk quota exceeded", "Read-only file system"),
    *("Too many open files", "Cannot allocate memory", "Out Of Memory"),
)
LEAST_FREE_BYTES = 1_000_000


class Fault(Enum):
    """Why a server did not start."""

    FILES = "its files"
    PORT = "its port is taken"
    MACHINE = "disk, memory or files of the machine"
    KILLED = "it was ended, or did not answer"
    UNKNOWN = "it did not say"


class FolderInUse(ConfigurationError):
    """Another process has the folder."""


class RedisFiles:
    """One folder, which belongs to one process and its server at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.log_path = self.folder / "server.log"
        self._log_start = 0
        self._lock: TextIO | None = None

    async def open(self) -> None:
        """Make the folder and take it for this process; ConfigurationError when another one has it."""
        try:
            if self.folder.exists() and not self.folder.is_dir():
                self.folder.rename(self.folder.with_name(f"{self.folder.name}-{SET_ASIDE}{_time_stamp()}"))
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
            await self._take_lock(self._lock)
        except OSError as error:
            raise ConfigurationError(f"DATA_DIR cannot be used: {cause_of(error)}") from None

    @property
    def lock_number(self) -> int:
        """The file descriptor of the lock."""
        assert self._lock is not None
        return self._lock.fileno()

    def close(self) -> None:
        """Leave the folder to others."""
        if self._lock is not None:
            self._lock.close()

    async def _take_lock(self, lock: TextIO) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise FolderInUse(
                        f"DATA_DIR {self.folder.parent} is in use by another process; "
                        "stop that (one of the demo: run.py demo --exit), give this one its own DATA_DIR, "
                        "or give both the same REDIS_URL"
                    ) from None
                await asyncio.sleep(0.05)

    def begin_log(self) -> None:
        """Note where the server's log will go on; one that is large begins anew."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists() and not self.log_path.is_file():
            self.quarantine(f"{self.log_path.name} is no file")
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        if self._log_start > LOG_BYTES:
            self.log_path.unlink()
            self._log_start = 0

    def reason(self) -> str:
        """Return the last lines of that in which the server warned of something, without what it says of each start."""
        lines = [clean(line) for line in self._said().split("BUG REPORT START")[0].splitlines() if line.strip()]
        warnings = [line.partition(" # ")[2] for line in lines if " # " in line and "WARNING" not in line]
        return " / ".join((warnings or lines)[-REASON_LINES:])

    def fault(self, code: int) -> Fault:
        """Return why the server ended with this exit code before it was ready."""
        said = self._said()
        if PORT_TAKEN in said:
            return Fault.PORT
        if any(words in said for words in MACHINE_LACKS) or shutil.disk_usage(self.folder).free < LEAST_FREE_BYTES:
            return Fault.MACHINE
        if code in (0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
            return Fault.KILLED
        return Fault.FILES if said else Fault.UNKNOWN

    def quarantine(self, reason: str) -> bool:
        """Move all that the server has written into a folder of its own, the only one that is kept; False when there is
        nothing that could keep a server from starting.
        """
        found = list(self.folder.iterdir())
        files = [each for each in found if each.name != "lock" and not each.name.startswith(SET_ASIDE)]
        if all(each == self.log_path and each.is_file() for each in files):
            return False
        folder = self.folder / f"{SET_ASIDE}{_time_stamp()}"
        try:
            folder.mkdir()
            for each in files:
                each.rename(folder / each.name)
        except OSError as error:
            log.warning("embedded_redis_set_aside_failed", cause=cause_of(error))
            return False
        for each in set(found) - set(files) - {self.folder / "lock"}:
            shutil.rmtree(each, ignore_errors=True)
        log.warning("embedded_redis_set_aside", folder=str(folder), reason=reason)
        return True

    def _said(self) -> str:
        """Return what the server has logged since it was started last."""
        try:
            return self.log_path.read_bytes()[self._log_start :].decode(errors="replace")
        except OSError:
            return ""


def _time_stamp() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
