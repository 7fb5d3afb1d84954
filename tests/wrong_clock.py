"""A wrong clock for a process of the service, by libfaketime. Only the wall clock is wrong, durations are right."""

from __future__ import annotations

import os
from pathlib import Path

from tests.requirements import require

LIBRARY = "libfaketimeMT.so.1"
FOLDERS = ("/usr/lib", "/usr/local/lib", "/usr/lib64")
# libfaketime cannot sleep by a monotonic clock that it does not change, as time.sleep does.
SLEEP = """
import threading, time
time.sleep = lambda seconds: threading.Event().wait(seconds) and None
"""


class WrongClock:
    """The offset of a process's clock; `environment` starts a process with it."""

    def __init__(self, folder: Path, seconds: float) -> None:
        """Set the first offset.

        folder: for its own files.
        seconds: see `jump`.
        """
        library = find_library()
        require(library is not None, "libfaketime is not installed")
        self._file = folder / "clock"
        (folder / "sitecustomize.py").write_text(SLEEP)
        self.environment = {
            "LD_PRELOAD": str(library),
            "PYTHONPATH": str(folder),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
        }
        self.jump(seconds)

    def jump(self, seconds: float) -> None:
        """Set the clock that many seconds ahead, or behind for a negative number."""
        # Every read of the time reads the file, so it must never be incomplete.
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+g}")
        os.replace(new, self._file)


def find_library() -> Path | None:
    """Return libfaketime for programs with threads, None where it is not installed."""
    found = (path for folder in FOLDERS for way in ("*/faketime", "faketime") for path in Path(folder).glob(way))
    return next((path / LIBRARY for path in found if (path / LIBRARY).exists()), None)
