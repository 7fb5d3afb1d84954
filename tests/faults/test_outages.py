"""What is away for a while, stops, or kills the process that asks it: a delay, never a lost or doubled asset."""

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

LONGEST_TRY_SECONDS = 5  # what a call of the store may take (MongoAssetStore)
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
    """SIGSTOP past the lease with a job running, another process finishes it, SIGCONT: the newer result stands,
    once.
    """
    ai_service.order(held=True, numbered=True)
    with RedisServer() as redis:
        shared = SHORT_LEASES | {"REDIS_URL": redis.url}
        with Service(tmp_path, ai_service.url, **shared) as stopped:
            (asset_id,) = accept(stopped, 1)
            stopped.wait_log("job_claimed", assetId=asset_id)
            wait_until(lambda: ai_service.state()["calls"] == 1)
            with Service(tmp_path, ai_service.url, **shared) as other:
                stopped.signal(signal.SIGSTOP)
                other.wait_log("job_claimed", assetId=asset_id, stalls=1)
                ai_service.order(held=False)
                finished = other.wait_log("asset_finished", assetId=asset_id)
                newer = other.asset(asset_id)
                stopped.signal(signal.SIGCONT)
                stopped.wait_log("lease_lost", assetId=asset_id)
                # Each process names itself in URLs.
                assert stopped.asset(asset_id) | {"images": ""} == newer | {"images": ""}
                # The first start, which runs where the photo was taken, takes no fence.
                assert (finished["fence"], newer["status"]) == (1, "active")
                assert not stopped.find("asset_finished")
                lost = stopped.get("/metrics").text
                assert 'pipeline_jobs_finished_total{outcome="lost",queue="ai-processing"} 1.0' in lost


def test_ai_service_down_costs_no_asset(tmp_path: Path, ai_service: AiService) -> None:
    """Down for longer than three attempts take: 25 of 25 are active soon after it is back, none has lost an
    attempt, and the log has said at once what is wrong.
    """
    with Service(tmp_path, ai_service.url) as service:
        ai_service.kill()
        ids = accept(service, 25)
        held = service.wait_log("plugin_held", plugin="http", method="analyze")
        assert held["reason"] == "AI service unavailable" and ai_service.url.removeprefix("http://") in held["cause"]
        time.sleep(8)  # the length is the point: attempts at 0, +2 and +4 s would all be over
        assert len(service.find("provider_failed")) <= 10, "single jobs try it, 1, 2 and 4 s apart"
        ai_service.start()
        service.wait_log("plugin_released", plugin="http")
        wait_until(lambda: statuses(service, ids) == {"active"})
        assert not service.find("job_failed") + service.find("job_retrying")
        assert {line["attempt"] for line in service.find("job_claimed")} == {1}


@pytest.mark.parametrize("status", [429, 503])
def test_ai_service_that_asks_to_wait_is_left_alone(tmp_path: Path, ai_service: AiService, status: int) -> None:
    """After a Retry-After of 2 s nothing is asked for 2 s, though four slots are free, and no attempt is spent."""
    ai_service.order(replies=[{"status": status, "headers": {"Retry-After": "2"}}])
    with Service(tmp_path, ai_service.url) as service:
        ids = accept(service, 1)
        parked = service.wait_log("job_parked", assetId=ids[0])
        assert parked["cause"].startswith(f"Answer: HTTP {status} from 127.0.0.1:")
        told_at = time.monotonic()
        ids += accept(service, 5)
        service.wait_log("job_completed")
        assert time.monotonic() - told_at > 1.5
        wait_until(lambda: statuses(service, ids) == {"active"})
        assert {line["attempt"] for line in service.find("job_claimed")} == {1}
        assert [line["assetId"] for line in service.find("job_claimed")][1:] == ids


def test_hanging_ai_service_blocks_no_slot_for_long(tmp_path: Path, ai_service: AiService) -> None:
    """Five jobs hang until the provider's time is over; then they and the others are done."""
    ai_service.order(held=True)
    settings = {"PROVIDER_TIMEOUT_SECONDS": "1", "BACKOFF_MS": "100"}
    with Service(tmp_path, ai_service.url, **settings) as service:
        ids = accept(service, 8)
        service.wait_log("job_retrying", count=5)
        ai_service.order(held=False)
        wait_until(lambda: statuses(service, ids) == {"active"})


def test_job_that_kills_the_process_ends_as_dead_letter(tmp_path: Path) -> None:
    """Three processes die of it; the fourth gives it up, tells why, lists it, and works on."""
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


def test_job_that_kills_the_process_ends_although_redis_forgets(tmp_path: Path, ai_service: AiService) -> None:
    """Each kill is followed by a wipe of Redis: the starts counted in the asset itself, all but the first, end it."""
    ai_service.order(held=True)
    settings = {"JOB_ATTEMPTS": "1", MAX_STALLS: "2"}
    with RedisServer() as redis:
        service = Service(tmp_path, ai_service.url, REDIS_URL=redis.url, **settings)
        service.start()
        (asset_id,) = accept(service, 1)
        for deaths in range(1, 5):
            if not service.is_running:
                service.start()
            service.wait_log("job_claimed", assetId=asset_id)
            wait_until(lambda deaths=deaths: ai_service.state()["calls"] == deaths)
            service.kill()
            redis.client().flushall()
        with service:
            service.wait_log("job_failed", assetId=asset_id)
            assert service.asset(asset_id)["aiMetadata"]["error"].startswith("Processing stalled")


def test_store_away_for_longer_than_a_job_may_take(tmp_path: Path, ai_service: AiService) -> None:
    """The result waits for the store beyond JOB_TIMEOUT_SECONDS, is committed once, and the provider was asked once."""
    ai_service.order(held=True)
    settings = {"JOB_TIMEOUT_SECONDS": "4", "PROVIDER_TIMEOUT_SECONDS": "3.9"}
    with (
        MongoServer() as mongo,
        Service(tmp_path, ai_service.url, MONGODB_URI=mongo.uri("away"), **settings) as service,
    ):
        (asset_id,) = accept(service, 1)
        wait_until(lambda: ai_service.state()["calls"] == 1)
        mongo.stop()
        ai_service.order(held=False)
        service.wait_log("commit_deferred", assetId=asset_id)
        time.sleep(LONGEST_TRY_SECONDS)  # the length is the point: longer than the job's time
        assert not service.find("job_retrying")
        # The try that succeeds may have begun while the store was still away: it waits for it as long as a try may.
        tried_at = to_timestamp(utc_now() - timedelta(seconds=LONGEST_TRY_SECONDS))
        mongo.start()
        service.wait_log("job_completed", assetId=asset_id)
        assert ai_service.state()["calls"] == 1
        # Or a user who heard a later event meanwhile and left would not ask for this one.
        assert service.asset(asset_id)["finishedAt"] >= tried_at


@pytest.mark.parametrize("loses_data", [False, True], ids=["with its data", "without its data"])
def test_killed_redis_costs_a_delay(tmp_path: Path, ai_service: AiService, loses_data: bool) -> None:
    """kill -9 of Redis with five running and fifteen waiting jobs; it comes back, with its file or with none."""
    ai_service.order(held=True)
    settings = SHORT_LEASES | {RECONCILE_AGE_SECONDS: "3600"}
    with RedisServer() as redis, Service(tmp_path, ai_service.url, REDIS_URL=redis.url, **settings) as service:
        ids = accept(service, 20)
        service.wait_log("job_claimed", count=5)
        redis.kill(loses_data=loses_data)
        service.wait_log("queue_unreachable")
        ids += accept(service, 5)
        redis.start()
        ai_service.order(held=False)
        wait_until(lambda: statuses(service, ids) == {"active"})
