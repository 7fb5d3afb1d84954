"""Pools of child processes for tests, and pipes that make a child wait."""

from __future__ import annotations

import asyncio
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from pipeline.sandbox.pool import Pool

MEMORY_MB = 200
IN_TIME = {"seconds": 30.0}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and waits for processes of other parents")
Open = Callable[..., Pool]


@contextmanager
def closed_pools(io_loop: IOLoop) -> Iterator[Open]:
    """Yield a function that makes a pool; all pools are closed at the end."""
    pools = []

    def open_pool(name: str = "tested", **options: Any) -> Pool:
        pools.append(Pool(name, **{"memory_mb": MEMORY_MB} | options))
        return pools[-1]

    yield open_pool
    for pool in pools:
        io_loop.run_sync(pool.close)


async def open_when_read(fifo: Path) -> int:
    """Return a writing end once a child reads the pipe; the child waits until all writing ends are closed."""
    while True:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # no child reads yet, and there is no signal to wait for
            await asyncio.sleep(0.005)


def wait_gone(pid: int, seconds: float = 20) -> None:
    """Return once the process has ended, also if it is not a child of this process."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], seconds)[0], "the child did not end"
    finally:
        os.close(descriptor)


@pytest.fixture
def open_pool(io_loop: IOLoop) -> Iterator[Open]:
    """A function that makes a pool; all pools are closed after the test."""
    with closed_pools(io_loop) as open_pool:
        yield open_pool


@pytest.fixture
def pool(open_pool: Open) -> Pool:
    """A pool of one child."""
    return open_pool()
