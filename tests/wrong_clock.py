"""A wrong clock for a process of the service, by libfaketime. The time of day is wrong; durations are right."""

from __future__ import annotations

import os
from pathlib import Path

from tests.requirements import require

LIBRARY = "libfaketimeMT.so.1"
FOLDERS = ("/usr/lib", "/usr/local/lib", "/usr/lib64")
# time.sleep uses the monotonic clock. libfaketime cannot sleep by that clock when it does not change the clock.
SLEEP = """
import threading, time
time.sleep = lambda seconds: threading.Event().wait(seconds) and None
"""


class WrongClock:
    """The offset of the clock of a process.

    environment: starts a process with this clock.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        """Set the first offset.

        folder: gets the files of the clock.
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
        """Set the clock to that many seconds in the future; a negative number is in the past."""
        # Each read of the time reads the file, so the file must never be incomplete.
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+g}")
        os.replace(new, self._file)


def find_library() -> Path | None:
    """Return the path of libfaketime for programs with threads, None when it is not installed."""
    found = (path for folder in FOLDERS for way in ("*/faketime", "faketime") for path in Path(folder).glob(way))
    return next((path / LIBRARY for path in found if (path / LIBRARY).exists()), None)
