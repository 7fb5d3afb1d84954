"""What a test needs from the machine it runs on."""

import os
import shutil

import pytest


def require(present: bool, reason: str) -> None:
    """Go on when the part is present; else skip, or fail where everything must be there (CI)."""
    if not present:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def program(*names: str, hint: str = "") -> str:
    """Return the path of the first of these programs that is on PATH; without one the test skips as `require` does.

    hint: where to get it.
    """
    path = find_program(*names)
    require(path is not None, f"needs {' or '.join(names)} on PATH{hint and f': {hint}'}")
    return str(path)


def find_program(*names: str) -> str | None:
    """Return the path of the first of these programs that is on PATH, None when none is."""
    return next(filter(None, map(shutil.which, names)), None)
