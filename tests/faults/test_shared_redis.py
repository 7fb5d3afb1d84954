"""Several installations and several processes on one Redis: none touches the jobs of another."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.client import Client
from tests.constants import RENEWALS_PER_LEASE
from tests.factories import make_token
from tests.faults.processes import wait_until
from tests.faults.uploads import accept, statuses
from tests.integration.webhook_service import admin
from tests.redis_server import RedisServer
from tests.service import ROOT, AiService, Service


@pytest.mark.fault("E22")
def test_queue_of_another_store_is_refused(tmp_path: Path, ai_service: AiService, own_redis: RedisServer) -> None:
    """The start ends with exit code 2 and one line that says what to do; `check` reports it too."""
    with Service(tmp_path / "one", ai_service.url, REDIS_URL=own_redis.url) as one:
        environment = one.environment | {"DATA_DIR": str(tmp_path / "two"), "LOG_FORMAT": "console"}
        for command in ("serve", "check"):
            ended = subprocess.run(
                [sys.executable, "run.py", command],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
            )
            output = ended.stdout + ended.stderr
            assert ended.returncode == (2 if command == "serve" else 1), output
            assert "another asset store" in output and "QUEUE_PREFIX" in output and "Traceback" not in output
        assert [line for line in ended.stdout.splitlines() if line.startswith("failed")] != []
        accept(one, 1)
        one.wait_status(completed=1)


@pytest.mark.fault("E22")
def test_installations_with_prefixes_share_a_redis(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer
) -> None:
    """Each has its own jobs, counts, pause and rooms, also for users with the same id."""
    with (
        Service(tmp_path / "one", ai_service.url, REDIS_URL=own_redis.url, QUEUE_PREFIX="one") as one,
        Service(tmp_path / "two", ai_service.url, REDIS_URL=own_redis.url, QUEUE_PREFIX="two") as two,
    ):
        admin(two, "POST", "/api/queue/pause")
        waiting = accept(two, 1)

        async def first_event() -> list[str]:
            async with Client(two.url, make_token("user-1")) as client:
                await client.listen()
                sent = accept(one, 3)
                one.wait_status(completed=3, paused=False)
                admin(two, "POST", "/api/queue/resume")
                received = []
                async for event in client.events():
                    received.append(event["assetId"])
                    break
                assert not set(sent) & set(received)
                return received

        assert asyncio.run(first_event()) == waiting
        two.wait_status(completed=1)
        assert {key.partition(":")[0] for key in own_redis.client().keys("*")} == {"one", "two"}


@pytest.mark.fault("E22")
def test_process_ends_when_another_store_takes_its_queue(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer
) -> None:
    """Both start while Redis is away; the one that comes second then ends, and its photos are not lost."""
    own_redis.stop()
    one = Service(tmp_path / "one", ai_service.url, REDIS_URL=own_redis.url)
    two = Service(tmp_path / "two", ai_service.url, REDIS_URL=own_redis.url)
    one.start()
    two.start()
    ids = {service.url: accept(service, 2) for service in (one, two)}
    own_redis.start()
    wait_until(lambda: not (one.is_running and two.is_running), 30)
    loser, winner = (two, one) if one.is_running else (one, two)
    assert loser.wait() == 1
    assert "another asset store" in loser.find("service_failing")[0]["reason"]
    wait_until(lambda: statuses(winner, ids[winner.url]) == {"active"}, 20)
    assert not winner.find("asset_missing")
    loser.environment["QUEUE_PREFIX"] = "other"
    url = loser.url
    loser.start()
    wait_until(lambda: statuses(loser, ids[url]) == {"active"}, 20)
    for service in (one, two):
        service.stop()


def test_embedded_redis_follows_its_folder(tmp_path: Path, ai_service: AiService) -> None:
    """An embedded Redis belongs to its folder: a new asset file takes its queue over."""
    with Service(tmp_path, ai_service.url) as service:
        accept(service, 1)
        service.wait_status(completed=1)
    for path in tmp_path.glob("assets.sqlite*"):
        path.unlink()
    with Service(tmp_path, ai_service.url) as service:
        asset_id = accept(service, 1)
        wait_until(lambda: statuses(service, asset_id) == {"active"}, 20)


@pytest.mark.fault("E11")
def test_processes_with_different_leases_share_a_queue(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer
) -> None:
    """While LEASE_SECONDS is changed process by process, no process takes the jobs of another for lost."""
    ai_service.configure(delay_ms=4000)
    shared = {"REDIS_URL": own_redis.url}
    with (
        Service(tmp_path, ai_service.url, LEASE_SECONDS="60", **shared) as long,
        Service(tmp_path, ai_service.url, LEASE_SECONDS="1", **shared | {RENEWALS_PER_LEASE: "5"}) as short,
    ):
        ids = accept(long, 10)
        long.wait_status(completed=10)
        assert statuses(short, ids) == {"active"}
        assert long.find("job_claimed") and short.find("job_claimed")
        for service in (long, short):
            assert not service.find("jobs_recovered") and not service.find("lease_lost")
