"""A service whose embedded Redis is killed, damaged or signalled: the server comes back and no job is lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.embedded_servers import damage_manifest
from tests.faults.processes import children, is_alive, wait_until
from tests.faults.uploads import accept, statuses
from tests.slowdown import slowdown
from tests.service import AiService, Service

pytestmark = pytest.mark.usefixtures("server")


def child_of(service: Service) -> int:
    (pid,) = children(service.pid)
    return pid


def seconds_since(started_at: float) -> float:
    return time.monotonic() - started_at


@pytest.mark.fault("E9")
def test_killed_server_comes_back_and_no_job_is_lost(
    tmp_path: Path, ai_service: AiService, environment: dict[str, str]
) -> None:
    """After kill -9 of the server with 5 running and 20 waiting jobs, it is back within 3 seconds.

    The AI service gets each photo once.
    """
    ai_service.configure(paused=True)
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
        ai_service.configure(paused=False)
        service.wait_log("job_completed", count=26)
        assert seconds_since(killed_at) < 15
        assert statuses(service, ids) == {"active"}
        assert not service.find("embedded_redis_set_aside")
        assert service.stop() == 0
    assert set(ai_service.calls().values()) == {1}


@pytest.mark.fault("E9")
@pytest.mark.parametrize("when", ["at the start", "while running"])
def test_damaged_files_are_set_aside_and_the_jobs_are_restored(
    tmp_path: Path, ai_service: AiService, environment: dict[str, str], when: str
) -> None:
    """A server that cannot read its files starts without them; the jobs are restored from the asset store."""
    ai_service.configure(paused=True)
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
        ai_service.configure(paused=False)
        wait_until(lambda: statuses(service, ids) == {"active"})


@pytest.mark.fault("E16")
def test_signal_for_the_whole_group_lets_running_jobs_finish(
    tmp_path: Path, ai_service: AiService, environment: dict[str, str]
) -> None:
    """After SIGTERM to the service and its Redis, as systemd sends it, five running jobs complete before both end."""
    ai_service.configure(paused=True)
    with Service(tmp_path, ai_service.url, **environment) as service:
        accept(service, 5)
        service.wait_log("job_claimed", count=5)
        redis_pid = child_of(service)
        for pid in (redis_pid, service.pid):
            os.kill(pid, signal.SIGTERM)
        service.wait_log("service_stopping")
        ai_service.configure(paused=False)
        released_at = time.monotonic()
        assert service.wait() == 0
        assert seconds_since(released_at) < 3 * slowdown()
        assert len(service.find("job_completed")) == 5
        assert not service.find("embedded_redis_ended") and not is_alive(redis_pid)
