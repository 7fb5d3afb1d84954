"""One embedded Redis server with damaged files: it sets them aside only when they are the reason of the failure."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pipeline import embedded
from pipeline.embedded import EmbeddedRedis
from pipeline.embedded_files import Fault, RedisFiles
from tests.faults.embedded_servers import ask, damage_manifest, fill, one, pid_of, until, watched

pytestmark = pytest.mark.usefixtures("server")


def damage_snapshot(folder: Path) -> None:
    path = one(folder, "*.base.rdb")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + b"\xff" * 40 + content[len(content) // 2 :])


def lose_snapshot(folder: Path) -> None:
    one(folder, "*.base.rdb").unlink()


def write_newer_snapshot(folder: Path) -> None:
    path = one(folder, "*.base.rdb")
    path.write_bytes(b"REDIS0999" + path.read_bytes()[9:])


def damage_commands(folder: Path) -> None:
    path = one(folder, "*.incr.aof")
    path.write_bytes(b"this is no command\r\n" + path.read_bytes())


def put_file_for_folder(folder: Path) -> None:
    (folder / "appendonlydir").rename(folder / "elsewhere")
    (folder / "appendonlydir").write_text("")


def put_folder_for_log(folder: Path) -> None:
    (folder / "server.log").unlink()
    (folder / "server.log").mkdir()


DAMAGES = [
    *(damage_manifest, damage_snapshot, lose_snapshot, write_newer_snapshot, damage_commands),
    *(put_file_for_folder, put_folder_for_log),
]


@pytest.mark.fault("E9")
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.gen_test(timeout=60)
async def test_server_starts_with_damaged_files(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """It starts empty, twice in a row, and the damaged files are in one folder."""
    folder = tmp_path / "redis"
    for _ in range(2):
        await fill(folder)
        damage(folder)
        with capture_logs() as logs:
            async with watched(folder) as redis:
                assert ask(redis, "DBSIZE") == 0
        (aside,) = [line for line in logs if line["event"] == "embedded_redis_set_aside"]
        assert aside["reason"]
        assert [str(path) for path in folder.glob("set-aside-*")] == [aside["folder"]]
        assert any(Path(aside["folder"]).rglob("*.manifest"))


@pytest.mark.fault("E9")
@pytest.mark.gen_test(timeout=60)
async def test_file_where_the_folder_should_be_is_set_aside(tmp_path: Path) -> None:
    """The server starts although a file has the name of its folder."""
    (tmp_path / "redis").write_text("")
    async with watched(tmp_path / "redis") as redis:
        assert ask(redis, "PING")


@pytest.mark.fault("E9")
@pytest.mark.gen_test(timeout=60)
async def test_last_command_that_was_cut_off_costs_nothing_else(tmp_path: Path) -> None:
    """A file that ends in the middle of a command, as after a power cut, is read up to that command."""
    await fill(tmp_path)
    path = one(tmp_path, "*.incr.aof")
    path.write_bytes(path.read_bytes()[:-3])
    async with watched(tmp_path) as redis:
        assert ask(redis, "EXISTS", "before") == 1 and ask(redis, "EXISTS", "after") == 0
    assert not list(tmp_path.glob("set-aside-*"))


@pytest.mark.fault("E9")
@pytest.mark.gen_test(timeout=60)
async def test_killed_start_is_repeated_with_the_same_files(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After kill -9 while the server loads, it starts with the same files: they were not the reason."""
    await fill(tmp_path)
    (tmp_path / "server.log").unlink()
    slow = tmp_path / "slow-server"
    # A key takes 200 ms to load.
    slow.write_text(f'#!/bin/sh\nconfig=$(cat)\nexec {server} - <<EOF\n$config\nkey-load-delay 200000\nEOF\n')
    slow.chmod(0o700)
    monkeypatch.setattr(embedded, "find_server", lambda: str(slow))
    redis = EmbeddedRedis(tmp_path)
    with capture_logs() as logs:
        start = asyncio.create_task(redis.start())
        await until(lambda: "Server initialized" in _read(tmp_path / "server.log"))
        os.kill(pid_of(redis), signal.SIGKILL)
        await start
    assert [line["event"] for line in logs] == ["embedded_redis_failed"]
    assert ask(redis, "EXISTS", "before", "after") == 2
    redis.stop()


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    ("said", "code", "fault"),
    [
        ("# Warning: Could not create server TCP listening socket *:1: bind: Address already in use", 1, Fault.PORT),
        ("# Can't open or create append-only dir appendonlydir: No space left on device", 1, Fault.MACHINE),
        ("# Out Of Memory allocating 123 bytes!", -signal.SIGABRT, Fault.MACHINE),
        ("# Bad file format reading the append only file", 1, Fault.FILES),
        ("# Redis 7 crashed by signal: 11", -signal.SIGSEGV, Fault.FILES),
        ("* Reading RDB base file on AOF loading...", -signal.SIGKILL, Fault.KILLED),
        ("", 127, Fault.UNKNOWN),
    ],
)
@pytest.mark.fault("E9")
def test_only_files_that_are_the_reason_are_set_aside(tmp_path: Path, said: str, code: int, fault: Fault) -> None:
    """A lack of memory, disk or port, or a kill, leaves the files in place."""
    files = RedisFiles(tmp_path)
    files.begin_log()
    files.log_path.write_text(said)
    assert files.fault(code) is fault
