"""Files of other processes, seen by a process with a wrong clock: their ages are right, and new ones stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.services import DRAFT
from tests.service import ROOT
from tests.wrong_clock import WrongClock

PUBLIC_ID = "0123456789abcdef01234567/original"
# What a process does with the files of others: check a storage, list its images, list the processes.
READER = """
import json, sys
from pathlib import Path

from pipeline.hooks import utc_now
from pipeline.services import services
from plugins.storage_local import LocalStorage

storage = LocalStorage(Path(sys.argv[1]) / "media", "http://127.0.0.1")
storage.check()
images = storage.list("")
services(Path(sys.argv[1]))
print(json.dumps({image.public_id: (utc_now() - image.stored_at).total_seconds() for image in images}))
"""


def ages(data_dir: Path, clock: WrongClock) -> dict[str, Any]:
    """Return the ages in seconds that a process with this clock finds, by public_id."""
    environment = os.environ | clock.environment
    environment["PYTHONPATH"] = f"{ROOT}:{clock.environment['PYTHONPATH']}"
    command = [sys.executable, "-c", READER, str(data_dir)]
    found: dict[str, Any] = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    return found


def written(data_dir: Path, age_seconds: float) -> list[Path]:
    """Write an image of that age, an incomplete one and the draft of a process; return the last two."""
    unfinished = [data_dir / "media/.incoming/upload", data_dir / f"services/process{DRAFT}"]
    for path in (data_dir / "media" / f"{PUBLIC_ID}.png", *unfinished):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        written_at = path.stat().st_mtime - age_seconds
        os.utime(path, (written_at, written_at))
    return unfinished


@pytest.mark.fault("R7")
@pytest.mark.parametrize("seconds", [-86_400.0, 7200.0, 86_400.0])
def test_process_with_a_wrong_clock_leaves_new_files_of_others(tmp_path: Path, seconds: float) -> None:
    """Neither an upload that is being saved nor a new process fails; the sweeper takes no new image for an old one."""
    unfinished = written(tmp_path, 0)
    assert 0 <= ages(tmp_path, WrongClock(tmp_path, seconds))[PUBLIC_ID] < 60
    assert all(path.exists() for path in unfinished)


@pytest.mark.fault("R7")
@pytest.mark.parametrize("seconds", [-86_400.0, 86_400.0])
def test_process_with_a_wrong_clock_knows_old_files(tmp_path: Path, seconds: float) -> None:
    """It removes what processes that died have left, and knows the age of an image."""
    unfinished = written(tmp_path, 7200)
    assert 7200 <= ages(tmp_path, WrongClock(tmp_path, seconds))[PUBLIC_ID] < 7260
    assert not any(path.exists() for path in unfinished)
