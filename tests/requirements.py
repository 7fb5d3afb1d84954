"""What a test needs from the machine it runs on."""

import os
import shutil
import sys
from pathlib import Path

import pytest


def require(present: bool, reason: str) -> None:
    """Go on when the part is present; else skip, or fail where everything must be there (CI)."""
    if not present:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def program(*names: str, hint: str = "") -> str:
    """Return the path of the first of these programs that is installed; without one the test skips as `require` does.

    hint: where to get it.
    """
    path = find_program(*names)
    require(path is not None, f"needs {' or '.join(names)} on PATH{hint and f': {hint}'}")
    return str(path)


def find_program(*names: str) -> str | None:
    """Return the path of the first of these programs that is on PATH, or came with a package; None when none is."""
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))
    return next(filter(None, (shutil.which(name, path=places) for name in names)), None)
