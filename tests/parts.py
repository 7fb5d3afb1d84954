"""What a test needs from the machine it runs on."""

import os

import pytest


def require(present: bool, reason: str) -> None:
    """Go on when the part is present; else skip, or fail where everything must be there (CI)."""
    if not present:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
