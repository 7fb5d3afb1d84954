"""The machine of a benchmark: its description and steal time, the CPU and memory of processes. Linux only (/proc)."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the seconds of CPU that these processes and their threads have used since they started."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """Return the seconds that all cores together have been busy since the machine started."""
    user, nice, system, _idle, _wait, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def resident_mib(pids: Iterable[int]) -> float:
    """Return the resident memory of these processes, in MiB."""
    kib = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                kib += int(line.split()[1])
    return kib / 1024


def descendants(pid: int) -> list[int]:
    """Return the process and all its descendants; the process itself comes first."""
    pids = [pid]
    for parent in pids:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            pids += map(int, task.read_text().split())
    return pids


def describe() -> str:
    """Return one line about the machine and its load."""
    model = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores of {model}, {system}, load average {os.getloadavg()[1]:.1f} before"


class Steal:
    """The steal time of a block: after the block, `percent` is the share of all CPU time that other machines took."""

    percent = 0.0

    def __enter__(self) -> Steal:
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        stolen, total = (after - before for after, before in zip(self._read(), self._before, strict=True))
        self.percent = 100 * stolen / total if total else 0.0

    @staticmethod
    def _read() -> tuple[int, int]:
        ticks = [int(figure) for figure in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
        return ticks[7], sum(ticks)
