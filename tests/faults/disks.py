"""Small filesystems that a test can fill."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.requirements import program, require


class Disk:
    """A small filesystem that is mounted at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, left_bytes: int = 0) -> None:
        """Use all free space but these bytes."""
        with self._ballast.open("ab", buffering=0) as ballast:
            for size in (1024 * 1024, 4096):
                try:
                    while ballast.write(bytes(size)):
                        pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC
            ballast.truncate(ballast.tell() - left_bytes)

    def clear(self) -> None:
        """Free the space that `fill` used."""
        self._ballast.unlink()


@contextmanager
def mounted(folder: Path, size_mb: int) -> Iterator[Disk]:
    """Make the folder, and mount a filesystem of that size on it until the end of the block."""
    folder.mkdir()
    command = [program("mount"), "-t", "tmpfs", "-o", f"size={size_mb}m", "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    require(done.returncode == 0, f"needs a filesystem of its own: {done.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run([program("umount"), "--lazy", str(folder)], check=True)
