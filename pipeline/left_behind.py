"""Finds tasks, threads and child processes that still run at the end of this process. Safe from any thread."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import thread
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from types import FrameType

from pipeline.texts import clean

PROC = Path("/proc")
END_SECONDS = 0.2
MAX_COMMAND_LENGTH = 200
# Set before the child processes are ended: a process pool would replace each one with a new one.
is_ending = threading.Event()


def left_behind(loop: asyncio.AbstractEventLoop, *, wait_seconds: float = 0.0) -> dict[str, list[str]]:
    """Return tasks, busy threads that are no daemons, and child processes, each by its kind; no empty lists.

    wait_seconds: how long threads that are about to end may take.
    """
    deadline = monotonic() + wait_seconds
    while (threads := _busy_threads()) and monotonic() < deadline:
        sleep(0.01)
    leftovers = {
        "tasks": sorted(task.get_name() for task in asyncio.all_tasks(loop)),
        "threads": sorted(threads),
        "children": [f"{pid} {command}" for pid, command in children().items()],
    }
    return {kind: names for kind, names in leftovers.items() if names}


def _busy_threads() -> list[str]:
    frames, main = sys._current_frames(), threading.main_thread()
    others = [each for each in threading.enumerate() if each is not main and not each.daemon]
    return [each.name for each in others if not _is_idle(frames.get(each.ident or 0))]


def _is_idle(frame: FrameType | None) -> bool:
    """True for a thread of a ThreadPoolExecutor that waits for work."""
    return frame is not None and frame.f_code is thread._worker.__code__


def children() -> dict[int, str]:
    """Return the commands of the child processes, and of their children, by process id."""
    if not PROC.exists():
        return {each.pid: each.name for each in multiprocessing.active_children() if each.pid}
    parents = {}
    for pid in (int(folder.name) for folder in PROC.iterdir() if folder.name.isdigit()):
        with suppress(OSError):  # it has ended meanwhile
            state, parent = _stat(pid)
            if state != "Z":
                parents[pid] = int(parent)
    ours, found = {os.getpid()}, {os.getpid()}
    while found:
        found = {pid for pid, parent in parents.items() if parent in found} - ours
        ours |= found
    return {pid: _command(pid) for pid in sorted(ours - {os.getpid()})}


def end_children() -> None:
    """End all child processes, with SIGKILL if needed. From now on no thread of this process can fork."""
    is_ending.set()
    pids = set(children())
    for pid in pids:
        _send(pid, signal.SIGTERM)
        _send(pid, signal.SIGINT)  # the embedded Redis blocks SIGTERM
    deadline = monotonic() + END_SECONDS
    while any(map(_is_alive, pids)) and monotonic() < deadline:
        sleep(0.02)
    # Twice, because a fork that was under way may have added a child.
    for _ in range(2):
        for pid in filter(_is_alive, pids | set(children())):
            _send(pid, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    with suppress(OSError):
        return not PROC.exists() or _stat(pid)[0] != "Z"
    return False


def _stat(pid: int) -> list[str]:
    """Return the state of a process and the id of its parent; OSError when there is no such process."""
    # They follow the program's name, which stands in parentheses and may contain any character.
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[:2]


def _command(pid: int) -> str:
    try:
        words = (PROC / str(pid) / "cmdline").read_text(errors="replace").split("\0")
        return clean(" ".join(words).strip())[:MAX_COMMAND_LENGTH]
    except OSError:
        return ""


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
