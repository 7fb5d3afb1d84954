"""What a test needs from the machine it runs on."""

import os
import shutil
import sys
from pathlib import Path

import pytest


def require(present: bool, reason: str) -> None:
    """Skip the test unless the requirement is present; in CI, where all must be present, fail it."""
    if not present:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def program(*names: str, hint: str = "") -> str:
    """Return the path of the first of these programs that is installed; without one the test skips, see `require`.

    hint: how to install it.
    """
    path = find_program(*names)
    require(path is not None, f"needs {' or '.join(names)} on PATH{hint and f': {hint}'}")
    return str(path)


def find_program(*names: str) -> str | None:
    """Return the path of the first of these programs on PATH or beside Python, None without one."""
    folders = os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))
    return next(filter(None, (shutil.which(name, path=folders) for name in names)), None)
