"""The files of the embedded Redis: the lock of the folder, the server's log, and the quarantine.

The files are an index of the asset store: a server that cannot start with them starts without them.
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
QUARANTINE = "set-aside-"
PORT_TAKEN = "Address already in use"
# Messages of the server about the machine: the files are not the reason.
MACHINE_FAULTS = (
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
    """Another process uses the folder."""


class RedisFiles:
    """One folder, which belongs to one process and its server at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.log_path = self.folder / "server.log"
        self._log_start = 0
        self._lock: TextIO | None = None

    async def open(self) -> None:
        """Create and lock the folder; ConfigurationError when another process has locked it."""
        try:
            if self.folder.exists() and not self.folder.is_dir():
                self.folder.rename(self.folder.with_name(f"{self.folder.name}-{QUARANTINE}{_time_stamp()}"))
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
            await self._acquire_lock(self._lock)
        except OSError as error:
            raise ConfigurationError(f"DATA_DIR cannot be used: {cause_of(error)}") from None

    @property
    def lock_number(self) -> int:
        """The file descriptor of the lock."""
        assert self._lock is not None
        return self._lock.fileno()

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()

    async def _acquire_lock(self, lock: TextIO) -> None:
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
        """Remember where the log of the next server begins; remove a large log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists() and not self.log_path.is_file():
            self.quarantine(f"{self.log_path.name} is no file")
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        if self._log_start > LOG_BYTES:
            self.log_path.unlink()
            self._log_start = 0

    def reason(self) -> str:
        """Return the server's last warnings, or its last lines, without the warnings that each start logs."""
        lines = [clean(line) for line in self._log_text().split("BUG REPORT START")[0].splitlines() if line.strip()]
        warnings = [line.partition(" # ")[2] for line in lines if " # " in line and "WARNING" not in line]
        return " / ".join((warnings or lines)[-REASON_LINES:])

    def fault(self, code: int) -> Fault:
        """Return why the server ended with this exit code before it was ready."""
        text = self._log_text()
        if PORT_TAKEN in text:
            return Fault.PORT
        if any(words in text for words in MACHINE_FAULTS) or shutil.disk_usage(self.folder).free < LEAST_FREE_BYTES:
            return Fault.MACHINE
        if code in (0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
            return Fault.KILLED
        return Fault.FILES if text else Fault.UNKNOWN

    def quarantine(self, reason: str) -> bool:
        """Move the server's files into a quarantine folder and remove the previous one.

        Returns False when there is no file that could prevent a start, or when they cannot be moved.
        """
        entries = list(self.folder.iterdir())
        files = [each for each in entries if each.name != "lock" and not each.name.startswith(QUARANTINE)]
        if all(each == self.log_path and each.is_file() for each in files):
            return False
        folder = self.folder / f"{QUARANTINE}{_time_stamp()}"
        try:
            folder.mkdir()
            for each in files:
                each.rename(folder / each.name)
        except OSError as error:
            log.warning("embedded_redis_set_aside_failed", cause=cause_of(error))
            return False
        for each in set(entries) - set(files) - {self.folder / "lock"}:
            shutil.rmtree(each, ignore_errors=True)
        log.warning("embedded_redis_set_aside", folder=str(folder), reason=reason)
        return True

    def _log_text(self) -> str:
        """Return the server's log since its last start."""
        try:
            return self.log_path.read_bytes()[self._log_start :].decode(errors="replace")
        except OSError:
            return ""


def _time_stamp() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
