"""Whether DATA_DIR takes files, for readiness: a full or broken disk makes uploads fail before anything else notices.

Blocking calls run in a thread of the event loop's executor, one at a time: a disk that hangs must not collect threads.
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
    """Write a small file into the folder, which is gone at once; OSError when the folder takes none. Blocks."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(PROBE_BYTES))


class Disk:
    """The filesystem of one folder.

    needed_bytes: what must be free there.
    """

    def __init__(self, folder: Path, needed_bytes: int) -> None:
        self._folder = folder
        self._needed_bytes = needed_bytes
        self._checking: asyncio.Future[None] | None = None
        # As the last check found them; not numbers before the first one.
        self.free_bytes = self.size_bytes = nan

    async def check(self) -> None:
        """Return when files can be written there, so many bytes of them; DependencyUnavailable says why not."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.get_running_loop().run_in_executor(None, self._try)
            self._checking.add_done_callback(_forget)
        try:
            # Shielded: every caller has a time limit of its own, and the answer is for all of them.
            await asyncio.shield(self._checking)
        except OSError as error:
            raise DependencyUnavailable("DATA_DIR takes no uploads") from error

    def _try(self) -> None:
        usage = shutil.disk_usage(self._folder)
        self.free_bytes, self.size_bytes = usage.free, usage.total
        # The number of free bytes knows nothing of quotas and of broken disks; a written file does.
        write_probe(self._folder)
        if usage.free < self._needed_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _forget(checking: asyncio.Future[None]) -> None:
    """Fetch the error that nobody may wait for any more, so that the loop does not complain of it."""
    if not checking.cancelled():
        checking.exception()
