"""The findings of the suites: one plain line with the cure, instead of a traceback."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import NoReturn

import pytest

FRAMEWORKS = ("/asyncio/", "/concurrent/", "/threading.py", "/pipeline/testing/", "/pipeline/hooks/threads.py")


IN_VARIABLES = "keep what belongs to one call in variables, not in self"


def fail_test(*lines: str) -> NoReturn:
    """Fail the test with these lines, without repetitions."""
    pytest.fail("\n".join(dict.fromkeys(" ".join(line.split()) for line in lines)), pytrace=False)


def expect(is_right: object, text: str) -> None:
    """Fail the test with this line unless it is right."""
    if not is_right:
        fail_test(text)


def describe(error: BaseException) -> str:
    """Return an exception in words: its type, its text, and the line of the plugin that raised it."""
    where = next((f" ({line})" for line in reversed(_plugin_lines(error))), "")
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"[:500]


def not_ready(error: BaseException) -> str:
    """Return the line for a NotReady, which is no fault of the plugin."""
    return f"it is not ready: {error}; try again once it can be"


def _plugin_lines(error: BaseException) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if not any(part in each.filename.replace("\\", "/") for part in FRAMEWORKS)]
    return [f"{Path(each.filename).name}:{each.lineno}" for each in own]
