"""Finds what a plugin leaves behind after `close`: tasks on the event loop, and open resources of the process."""

from __future__ import annotations

import asyncio
import gc
from time import monotonic
from typing import Any

from pipeline.testing.process_state import OpenResources

# How long a plugin may take to release its resources in `close`.
GRACE_SECONDS = 0.5


def end_tasks(loop: asyncio.AbstractEventLoop, suite: str) -> list[str]:
    """Return the names of the tasks that still run, and cancel these tasks.

    suite: the name of the suite's class: of a call that it makes, the name of the plugin's method is returned.
    """
    tasks = _running_tasks(loop, until=monotonic() + GRACE_SECONDS)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=GRACE_SECONDS))
    return sorted({_name_of(task, suite) for task in tasks})


def leaks(loop: asyncio.AbstractEventLoop, before: OpenResources, at_once: int) -> dict[str, str]:
    """Return the resources that are still open: kind of resource -> a line about it, with the cure.

    before: the open resources before the test.
    at_once: how many calls ran at once.
    """
    until = monotonic() + GRACE_SECONDS
    while (lines := OpenResources.now().leaks_since(before, at_once)) and monotonic() < until:
        gc.collect()
        loop.run_until_complete(asyncio.sleep(0.05))
    return lines


def _running_tasks(loop: asyncio.AbstractEventLoop, until: float) -> set[asyncio.Task[Any]]:
    while (tasks := asyncio.all_tasks(loop)) and monotonic() < until:
        loop.run_until_complete(asyncio.wait(tasks, timeout=0.05))
    return tasks


def _name_of(task: asyncio.Task[Any], suite: str) -> str:
    name = str(getattr(task.get_coro(), "__qualname__", task.get_name()))
    return task.get_name() if name.startswith(f"{suite}.") else name
