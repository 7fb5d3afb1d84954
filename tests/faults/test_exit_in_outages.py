"""SIGTERM ends the process with exit code 0 and in time while Redis or the store is away, and during the start."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.embedded import find_server
from tests.faults.exits import PROMPT_SECONDS, REDIS_SECONDS, stop
from tests.faults.processes import children, is_alive, wait_until
from tests.faults.uploads import accept, statuses
from tests.slowdown import slowdown
from tests.redis_server import RedisServer
from tests.service import AiService, Service


@pytest.mark.fault("E16")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["away", "silent"])
def test_end_does_not_wait_for_redis(tmp_path: Path, ai_service: AiService, number: signal.Signals) -> None:
    """An idle process ends in time while Redis is killed or stopped."""
    with RedisServer() as redis, Service(tmp_path, ai_service.url, REDIS_URL=redis.url) as service:
        accept(service, 1)
        service.wait_log("job_completed")
        os.kill(redis.pid, number)
        if number == signal.SIGKILL:
            service.wait_log("queue_unreachable")
        assert stop(service) < REDIS_SECONDS * slowdown()
        os.kill(redis.pid, signal.SIGCONT)


@pytest.mark.fault("E16")
def test_running_jobs_are_committed_while_redis_is_away(tmp_path: Path, ai_service: AiService) -> None:
    """Redis is killed during five jobs; after SIGTERM their results are in the store, and the process ends soon."""
    ai_service.configure(paused=True)
    with RedisServer() as redis, Service(tmp_path, ai_service.url, REDIS_URL=redis.url) as service:
        ids = accept(service, 5)
        service.wait_log("job_claimed", count=5)
        redis.kill()
        service.signal(signal.SIGTERM)
        service.wait_log("service_stopping")
        ai_service.configure(paused=False)
        released_at = time.monotonic()
        assert service.wait() == 0
        assert time.monotonic() - released_at < (REDIS_SECONDS + 1) * slowdown()
        redis.start()
        service.start()
        assert statuses(service, ids) == {"active"}
    assert ai_service.state()["calls"] == 5


@pytest.mark.fault("E16")
def test_end_of_an_idle_process_does_not_wait_for_the_store(tmp_path: Path, ai_service: AiService) -> None:
    """MongoDB does not run, or another process has locked the SQLite file."""
    with Service(tmp_path / "mongo", ai_service.url, MONGODB_URI="mongodb://127.0.0.1:1/assets") as service:
        assert stop(service) < PROMPT_SECONDS * slowdown()
    with Service(tmp_path / "sqlite", ai_service.url) as service, locked(tmp_path / "sqlite"):
        assert stop(service) < PROMPT_SECONDS * slowdown()


@pytest.mark.fault("E16")
@pytest.mark.parametrize("comes_back", [True, False], ids=["comes back", "stays away"])
def test_job_that_waits_for_the_store_has_the_shutdown_time(
    tmp_path: Path, ai_service: AiService, comes_back: bool
) -> None:
    """A result waits for the store until SHUTDOWN_SECONDS; then the job is handed back."""
    ai_service.configure(paused=True)
    with Service(tmp_path, ai_service.url, SHUTDOWN_SECONDS="3") as service:
        (asset_id,) = accept(service, 1)
        service.wait_log("job_claimed")
        with locked(tmp_path) as other:
            ai_service.configure(paused=False)
            started_at = time.monotonic()
            service.signal(signal.SIGTERM)
            service.wait_log("service_stopping")
            if comes_back:
                other.execute("ROLLBACK")
            assert service.wait() == 0
            assert time.monotonic() - started_at < (PROMPT_SECONDS if comes_back else 5) * slowdown()
        assert len(service.find("job_completed" if comes_back else "job_released")) == 1
        service.start()
        wait_until(lambda: statuses(service, [asset_id]) == {"active"})


def locked(folder: Path) -> Any:
    """Return a connection that keeps all processes from writing to the store until it is closed."""
    connection = sqlite3.connect(folder / "assets.sqlite", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return closing(connection)


def slow_server(tmp_path: Path) -> dict[str, str]:
    """Return the settings of a service whose Redis loads its data for a minute."""
    data = tmp_path / "redis"
    data.mkdir()
    keys = "".join(f"*3\r\n$3\r\nSET\r\n$6\r\nkey{number:03}\r\n$1\r\n1\r\n" for number in range(600))
    (data / "appendonlydir").mkdir()
    (data / "appendonlydir" / "appendonly.aof.1.incr.aof").write_text(keys)
    (data / "appendonlydir" / "appendonly.aof.manifest").write_text("file appendonly.aof.1.incr.aof seq 1 type i\n")
    binaries = tmp_path / "bin"
    binaries.mkdir()
    server = binaries / "redis-server"
    config = "$config\nkey-load-delay 100000\nloading-process-events-interval-bytes 1024"
    server.write_text(f"#!/bin/sh\nconfig=$(cat)\nexec {find_server()} - <<EOF\n{config}\nEOF\n")
    server.chmod(0o700)
    return {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.fault("E16")
def test_start_is_ended_while_redis_loads(tmp_path: Path, ai_service: AiService) -> None:
    """The process and its Redis end at once: no work has begun."""
    service = Service(tmp_path, ai_service.url, **slow_server(tmp_path))
    service.launch()
    log_path = tmp_path / "redis" / "server.log"
    wait_until(lambda: log_path.exists() and "initialized" in log_path.read_text())
    (redis_pid,) = children(service.pid)
    assert stop(service) < (PROMPT_SECONDS + 1) * slowdown()  # Redis itself may take a second
    wait_until(lambda: not is_alive(redis_pid))
    assert not service.find("service_started") and service.errors() == []


@pytest.mark.fault("E16")
def test_start_is_ended_while_the_store_is_opened(tmp_path: Path, ai_service: AiService) -> None:
    """The process ends while the driver searches for a MongoDB that does not run."""
    service = Service(tmp_path, ai_service.url, MONGODB_URI="mongodb://127.0.0.1:1/assets")
    service.launch()
    wait_until(lambda: children(service.pid))
    (redis_pid,) = children(service.pid)
    time.sleep(1.5)  # Redis is ready and the search has begun; no signal announces it
    assert not service.find("service_started")
    assert stop(service) < PROMPT_SECONDS * slowdown()
    wait_until(lambda: not is_alive(redis_pid))
