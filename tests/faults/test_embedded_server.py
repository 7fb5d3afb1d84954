"""One embedded Redis server without a service: it is started after each kill, replaced when silent, and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pipeline import embedded
from pipeline.embedded import EmbeddedRedis
from pipeline.errors import ConfigurationError
from tests.faults.embedded_servers import ask, pid_of, until, watched
from tests.faults.processes import is_alive

pytestmark = pytest.mark.usefixtures("server")


@pytest.mark.fault("E9")
@pytest.mark.gen_test(timeout=60)
async def test_killed_server_keeps_address_and_data(tmp_path: Path) -> None:
    """After each of three kills the server has the same address and data."""
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
async def test_silent_server_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped server leaves five pings in a row without an answer, and is replaced."""
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
async def test_pause_of_the_machine_replaces_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings that take far longer than their limit do not count: this process was stopped too."""
    monkeypatch.setattr(embedded, "PING_SECONDS", 0.02)
    monkeypatch.setattr(embedded, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(embedded, "PING_EVERY_SECONDS", 0.02)
    async with watched(tmp_path) as redis:
        pid, pings = pid_of(redis), []

        async def late_ping() -> None:
            time.sleep(0.05)  # noqa: ASYNC251 - the process is stopped
            pings.append(None)

        monkeypatch.setattr(redis, "_ping", late_ping)
        await until(lambda: len(pings) > 2 * embedded.PINGS_MISSED)
        monkeypatch.undo()
        assert pid_of(redis) == pid


@pytest.mark.fault("E9")
@pytest.mark.gen_test(timeout=60)
async def test_server_waits_for_its_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another program uses the port, the server waits and keeps its data; after a time limit it gives up."""
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


@pytest.mark.fault("E16")
@pytest.mark.gen_test(timeout=60)
async def test_server_ends_only_when_its_service_stops_it(tmp_path: Path) -> None:
    """The server ignores SIGTERM; `stop` ends it and its data is saved, also after SIGSTOP."""
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
    async with watched(tmp_path) as next_server:
        assert ask(next_server, "GET", "key") == "value"
