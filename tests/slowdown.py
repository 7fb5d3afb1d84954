"""The factor by which a time limit is longer on a busy machine.

A test may multiply its limit by this factor only if the fault that it looks for takes more than twice the limit.
"""

from __future__ import annotations

import re
from pathlib import Path

PRESSURE = Path("/proc/pressure")


def slowdown() -> float:
    """Return 1 on an idle machine, and up to 2 on a machine where processes waited for a CPU or a disk all the time.

    It depends on the pressure of the last ten seconds (Linux, Documentation/accounting/psi.rst); 1 without that file.
    """
    try:
        waits = [float(re.findall(r"some avg10=([\d.]+)", (PRESSURE / each).read_text())[0]) for each in ("cpu", "io")]
    except OSError:
        return 1.0
    return 1 + min(1.0, sum(waits) / 100)
