"""How much longer a thing may take on a machine that others keep busy.

Tests of a time limit multiply theirs by it where the fault they look for would take more than twice the limit; others
hold theirs as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

PRESSURE = Path("/proc/pressure")


def slowdown() -> float:
    """Return 1 on a machine at rest, up to 2 on one where somebody waited for a CPU or a disk all the time.

    From the pressure of the last ten seconds (Linux, Documentation/accounting/psi.rst); 1 where nothing tells of it.
    """
    try:
        waits = [float(re.findall(r"some avg10=([\d.]+)", (PRESSURE / each).read_text())[0]) for each in ("cpu", "io")]
    except OSError:
        return 1.0
    return 1 + min(1.0, sum(waits) / 100)
