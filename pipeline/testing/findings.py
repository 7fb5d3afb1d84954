"""How the suites say what they find: one plain line, with the cure, in place of a trace."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import NoReturn

import pytest

FRAMEWORKS = ("/asyncio/", "/concurrent/", "/threading.py", "/pipeline/testing/", "/pipeline/hooks/threads.py")


def fail_test(*lines: str) -> NoReturn:
    """Fail the test with these lines, each once."""
    pytest.fail("\n".join(dict.fromkeys(" ".join(each.split()) for each in lines)), pytrace=False)


def expect(is_right: object, text: str) -> None:
    """Fail the test with this line unless it is right."""
    if not is_right:
        fail_test(text)


def describe(error: BaseException) -> str:
    """Return an exception in words: its type, its text, and where in the plugin it comes from."""
    where = next((f" ({place})" for place in reversed(_places(error))), "")
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"[:500]


def not_ready(error: BaseException) -> str:
    """Return what a NotReady says: that it is no mistake of the plugin."""
    return f"it is not ready: {error}; try again once it can be"


def _places(error: BaseException) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if not any(part in each.filename.replace("\\", "/") for part in FRAMEWORKS)]
    return [f"{Path(each.filename).name}:{each.lineno}" for each in own]
