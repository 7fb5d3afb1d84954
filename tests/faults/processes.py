"""What fault tests ask about processes: their children, whether they are alive, and when a condition comes true."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

from tests.requirements import program


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Return the condition's value once it is true; for conditions that no signal announces."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)
    return value


def children(pid: int) -> list[int]:
    """Return the process ids of the children of a process."""
    output = subprocess.run([program("pgrep"), "-P", str(pid)], capture_output=True, text=True).stdout
    return [int(line) for line in output.split()]


def is_alive(pid: int) -> bool:
    """Return whether a process with this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
