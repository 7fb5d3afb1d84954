"""Dependencies that are away for a while, stop, or kill the process: a delay, never a lost or doubled asset."""

from __future__ import annotations

import signal
import time
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from pipeline.assets.asset import to_timestamp
from pipeline.clock import utc_now
from tests.constants import MAX_STALLS, RECONCILE_AGE_SECONDS
from tests.faults.processes import wait_until
from tests.faults.uploads import accept, statuses
from tests.mongo_server import MongoServer
from tests.packages import install
from tests.redis_server import RedisServer
from tests.service import AiService, Service

LONGEST_TRY_SECONDS = 5  # the longest call of the store (MongoAssetStore)
SHORT_LEASES = {"LEASE_SECONDS": "1"}
KILLER = """
import os
from pipeline.hooks import hookimpl

class Killer:
    async def analyze(self, request):
        os.kill(os.getpid(), 9)

@hookimpl
def register_ai_providers(settings):
    yield "killer", Killer
"""


def test_stopped_process_cannot_overwrite_a_newer_result(tmp_path: Path, ai_service: AiService) -> None:
    """A process is stopped past its lease and another one finishes the job: the newer result stays after SIGCONT."""
    ai_service.configure(paused=True, numbered=True)
    with RedisServer() as redis:
        shared = SHORT_LEASES | {"REDIS_URL": redis.url}
        with Service(tmp_path, ai_service.url, **shared) as stopped:
            (asset_id,) = accept(stopped, 1)
            stopped.wait_log("job_claimed", assetId=asset_id)
            wait_until(lambda: ai_service.state()["calls"] == 1)
            with Service(tmp_path, ai_service.url, **shared) as other:
                stopped.signal(signal.SIGSTOP)
                other.wait_log("job_claimed", assetId=asset_id, stalls=1)
                ai_service.configure(paused=False)
                finished = other.wait_log("asset_finished", assetId=asset_id)
                newer = other.asset(asset_id)
                stopped.signal(signal.SIGCONT)
                stopped.wait_log("lease_lost", assetId=asset_id)
                # Each process names itself in URLs.
                assert stopped.asset(asset_id) | {"images": ""} == newer | {"images": ""}
                # The first start, in the process that accepted the photo, takes no fence.
                assert (finished["fence"], newer["status"]) == (1, "active")
                assert not stopped.find("asset_finished")
                lost = stopped.get("/metrics").text
                assert 'pipeline_jobs_finished_total{outcome="lost",queue="ai-processing"} 1.0' in lost


def test_ai_service_down_costs_no_asset(tmp_path: Path, ai_service: AiService) -> None:
    """After an outage longer than three attempts all 25 assets become active, and none has lost an attempt.

    The log names the cause at once.
    """
    with Service(tmp_path, ai_service.url) as service:
        ai_service.kill()
        ids = accept(service, 25)
        held = service.wait_log("plugin_held", plugin="http", method="analyze")
        assert held["reason"] == "AI service unavailable" and ai_service.url.removeprefix("http://") in held["cause"]
        time.sleep(8)  # the length matters: attempts at 0, +2 and +4 s would all be over
        assert len(service.find("provider_failed")) <= 10, "single jobs try it, 1, 2 and 4 s apart"
        ai_service.start()
        service.wait_log("plugin_released", plugin="http")
        wait_until(lambda: statuses(service, ids) == {"active"})
        assert not service.find("job_failed") + service.find("job_retrying")
        assert {line["attempt"] for line in service.find("job_claimed")} == {1}


@pytest.mark.parametrize("status", [429, 503])
def test_ai_service_that_asks_to_wait_is_not_asked(tmp_path: Path, ai_service: AiService, status: int) -> None:
    """After a Retry-After of 2 s it is not asked for 2 s, although four slots are free, and no attempt is spent."""
    ai_service.configure(replies=[{"status": status, "headers": {"Retry-After": "2"}}])
    with Service(tmp_path, ai_service.url) as service:
        ids = accept(service, 1)
        parked = service.wait_log("job_parked", assetId=ids[0])
        assert parked["cause"].startswith(f"Answer: HTTP {status} from 127.0.0.1:")
        asked_to_wait_at = time.monotonic()
        ids += accept(service, 5)
        service.wait_log("job_completed")
        assert time.monotonic() - asked_to_wait_at > 1.5
        wait_until(lambda: statuses(service, ids) == {"active"})
        assert {line["attempt"] for line in service.find("job_claimed")} == {1}
        assert [line["assetId"] for line in service.find("job_claimed")][1:] == ids


def test_hanging_ai_service_blocks_no_slot_for_long(tmp_path: Path, ai_service: AiService) -> None:
    """Five jobs hang until the provider's timeout; then they and the others are done."""
    ai_service.configure(paused=True)
    settings = {"PROVIDER_TIMEOUT_SECONDS": "1", "BACKOFF_MS": "100"}
    with Service(tmp_path, ai_service.url, **settings) as service:
        ids = accept(service, 8)
        service.wait_log("job_retrying", count=5)
        ai_service.configure(paused=False)
        wait_until(lambda: statuses(service, ids) == {"active"})


def test_job_that_kills_the_process_ends_as_dead_letter(tmp_path: Path) -> None:
    """The job kills three processes; the fourth gives it up, reports the reason, lists it, and continues."""
    packages = install(tmp_path / "packages", killer=KILLER)
    service = Service(tmp_path / "data", AI_PROVIDER="killer", **packages)
    service.start()
    asset_id = service.upload().json()["data"]["assetId"]
    for _ in range(2):
        assert service.wait() == -signal.SIGKILL
        service.start()
    assert service.wait() == -signal.SIGKILL
    with service:
        service.wait_log("job_failed", assetId=asset_id)
        assert service.asset(asset_id)["aiMetadata"]["error"] == "Processing stalled 3 times"
        admin = service.headers("operator", role="admin")
        (dead,) = httpx.get(f"{service.url}/api/queue/failed", headers=admin).json()["data"]["items"]
        assert (dead["assetId"], dead["reason"], dead["stalls"]) == (asset_id, "Processing stalled 3 times", 3)


def test_job_that_kills_the_process_ends_although_redis_is_wiped(tmp_path: Path, ai_service: AiService) -> None:
    """After each kill Redis is wiped: the count of starts in the asset, without the first, ends the job."""
    ai_service.configure(paused=True)
    settings = {"JOB_ATTEMPTS": "1", MAX_STALLS: "2"}
    with RedisServer() as redis:
        service = Service(tmp_path, ai_service.url, REDIS_URL=redis.url, **settings)
        service.start()
        (asset_id,) = accept(service, 1)
        for kills in range(1, 5):
            if not service.is_running:
                service.start()
            service.wait_log("job_claimed", assetId=asset_id)
            wait_until(lambda kills=kills: ai_service.state()["calls"] == kills)
            service.kill()
            redis.client().flushall()
        with service:
            service.wait_log("job_failed", assetId=asset_id)
            assert service.asset(asset_id)["aiMetadata"]["error"].startswith("Processing stalled")


def test_store_away_for_longer_than_a_job_may_take(tmp_path: Path, ai_service: AiService) -> None:
    """A result waits for the store longer than JOB_TIMEOUT_SECONDS and is committed; the provider is asked once."""
    ai_service.configure(paused=True)
    settings = {"JOB_TIMEOUT_SECONDS": "4", "PROVIDER_TIMEOUT_SECONDS": "3.9"}
    with (
        MongoServer() as mongo,
        Service(tmp_path, ai_service.url, MONGODB_URI=mongo.uri("away"), **settings) as service,
    ):
        (asset_id,) = accept(service, 1)
        wait_until(lambda: ai_service.state()["calls"] == 1)
        mongo.stop()
        ai_service.configure(paused=False)
        service.wait_log("commit_deferred", assetId=asset_id)
        time.sleep(LONGEST_TRY_SECONDS)  # the length matters: longer than the job's time
        assert not service.find("job_retrying")
        # The call that succeeds may have begun while the store was away, and waited for it.
        tried_at = to_timestamp(utc_now() - timedelta(seconds=LONGEST_TRY_SECONDS))
        mongo.start()
        service.wait_log("job_completed", assetId=asset_id)
        assert ai_service.state()["calls"] == 1
        # Otherwise a client that received a later event and left would not ask for this one.
        assert service.asset(asset_id)["finishedAt"] >= tried_at


@pytest.mark.parametrize("loses_data", [False, True], ids=["with its data", "without its data"])
def test_killed_redis_costs_a_delay(tmp_path: Path, ai_service: AiService, loses_data: bool) -> None:
    """After kill -9 of Redis with five running and fifteen waiting jobs all finish, with or without its data."""
    ai_service.configure(paused=True)
    settings = SHORT_LEASES | {RECONCILE_AGE_SECONDS: "3600"}
    with RedisServer() as redis, Service(tmp_path, ai_service.url, REDIS_URL=redis.url, **settings) as service:
        ids = accept(service, 20)
        service.wait_log("job_claimed", count=5)
        redis.kill(loses_data=loses_data)
        service.wait_log("queue_unreachable")
        ids += accept(service, 5)
        redis.start()
        ai_service.configure(paused=False)
        wait_until(lambda: statuses(service, ids) == {"active"})
