"""A machine whose clock is wrong, for a process of the service: libfaketime gives it another time. Durations stay."""

from __future__ import annotations

import os
from pathlib import Path

from tests.requirements import require

LIBRARY = "libfaketimeMT.so.1"
FOLDERS = ("/usr/lib", "/usr/local/lib", "/usr/lib64")
# With a monotonic clock that is left alone libfaketime refuses to sleep by it, as time.sleep does.
SLEEP = """
import threading, time
time.sleep = lambda seconds: threading.Event().wait(seconds) and None
"""


class WrongClock:
    """How far a process's clock is off, in seconds; `environment` starts a process with it."""

    def __init__(self, folder: Path, seconds: float) -> None:
        """folder: for files of its own."""
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
        """Let the clock be so far ahead from now on; below 0: behind."""
        # Read at every question for the time, so it must never be found half written.
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+g}")
        os.replace(new, self._file)


def find_library() -> Path | None:
    """Return libfaketime for programs with threads, None where it is not installed."""
    found = (path for folder in FOLDERS for way in ("*/faketime", "faketime") for path in Path(folder).glob(way))
    return next((path / LIBRARY for path in found if (path / LIBRARY).exists()), None)
