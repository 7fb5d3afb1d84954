"""The requirements of tests to the machine: programs and packages."""

import os
import shutil
import sys
from pathlib import Path

import pytest


def require(present: bool, reason: str) -> None:
    """Skip the test if the requirement is not present; fail it in CI, where every requirement must be present.

    reason: names the requirement.
    """
    if not present:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def program(*names: str, hint: str = "") -> str:
    """Return the path of the first of these programs that is installed; without one, skip or fail as `require` does.

    hint: how to install it.
    """
    path = find_program(*names)
    require(path is not None, f"needs {' or '.join(names)} on PATH{hint and f': {hint}'}")
    return str(path)


def find_program(*names: str) -> str | None:
    """Return the path of the first of these programs on PATH or in the folder of Python, None without one."""
    folders = os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))
    return next(filter(None, (shutil.which(name, path=folders) for name in names)), None)
