"""Checks that files can be written to DATA_DIR, for readiness: with a full or broken disk uploads fail.

Blocking calls run in a thread of the event loop's executor, one at a time, so that a disk that hangs blocks one thread.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import tempfile
from math import nan
from pathlib import Path

from pipeline.errors import DependencyUnavailable

PROBE_BYTES = 4096


def write_probe(folder: Path) -> None:
    """Write a small temporary file into the folder; OSError when that is not possible. Blocks."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(PROBE_BYTES))


class Disk:
    """The filesystem of one folder.

    needed_bytes: how much must be free.
    """

    def __init__(self, folder: Path, needed_bytes: int) -> None:
        self._folder = folder
        self._needed_bytes = needed_bytes
        self._checking: asyncio.Future[None] | None = None
        # From the last check; NaN before the first one.
        self.free_bytes = self.size_bytes = nan

    async def check(self) -> None:
        """Return when needed_bytes can be written; else raise DependencyUnavailable."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.get_running_loop().run_in_executor(None, self._try)
            self._checking.add_done_callback(_retrieve_error)
        try:
            # Shielded: each caller has its own time limit, and all of them wait for the same check.
            await asyncio.shield(self._checking)
        except OSError as error:
            raise DependencyUnavailable("DATA_DIR cannot be written") from error

    def _try(self) -> None:
        usage = shutil.disk_usage(self._folder)
        self.free_bytes, self.size_bytes = usage.free, usage.total
        # The number of free bytes does not show quotas and broken disks; writing a file does.
        write_probe(self._folder)
        if usage.free < self._needed_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _retrieve_error(checking: asyncio.Future[None]) -> None:
    """Retrieve the error, or the loop logs it as never retrieved when no caller waits any more."""
    if not checking.cancelled():
        checking.exception()
