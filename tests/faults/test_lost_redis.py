"""Redis loses all its data, a part of it, or returns to an older state: jobs, pauses, dead letters and events are
restored from the asset store.
"""

from __future__ import annotations

import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.constants import BREAKER_FAILURES, NOTIFIER_BACKOFF_MS, RECONCILE_AGE_SECONDS
from tests.fake_receiver import FakeReceiver, Reply
from tests.faults.processes import wait_until
from tests.faults.uploads import accept, statuses
from tests.integration.webhook_service import admin, webhook
from tests.redis_server import RedisServer
from tests.service import AiService, Service

BASE = "pipeline:{ai-processing}:"


def failed(service: Service, queue: str = "ai-processing") -> list[dict[str, Any]]:
    """Return the dead letters, with the time of the failure up to the minute: store and Redis differ by a moment."""
    items: list[dict[str, Any]] = admin(service, "GET", "/api/queue/failed", queue=queue)["items"]
    return [item | {"failedAt": item["failedAt"][:16]} for item in items]


# the search at the start


@pytest.mark.fault("E19")
def test_uploads_that_redis_never_saw_are_done_at_once_after_a_restart(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer
) -> None:
    """Three photos are accepted while Redis is away and the process is killed; the next process finds them."""
    service = Service(tmp_path, ai_service.url, REDIS_URL=own_redis.url)
    service.start()
    own_redis.stop()
    ids = accept(service, 3)
    service.kill()
    own_redis.start()
    with service:
        started_at = time.monotonic()
        wait_until(lambda: statuses(service, ids) == {"active"}, 10)
        assert time.monotonic() - started_at < 10


# the pause


def forget_all(redis: Redis) -> None:
    redis.flushall()


def evict_pause(redis: Redis) -> None:
    redis.delete(BASE + "paused")


def evict_owner(redis: Redis) -> None:
    redis.delete(BASE + "owner")


def evict_by_memory(redis: Redis) -> None:
    """Let Redis evict keys, as with maxmemory-policy allkeys-random when others fill it; also keys of single jobs."""
    redis.config_set("maxmemory-policy", "allkeys-random")
    redis.config_set("maxmemory", int(redis.info("memory")["used_memory"]) + 100_000)  # type: ignore[index]
    number = 0
    while redis.exists(BASE + "owner", BASE + "paused"):
        redis.set(f"other:{number}", "x" * 1000)
        number += 1
    redis.config_set("maxmemory", 0)


@pytest.mark.fault("E20")
@pytest.mark.parametrize("lose", [forget_all, evict_pause, evict_owner, evict_by_memory])
def test_pause_outlives_redis(tmp_path: Path, ai_service: AiService, own_redis: RedisServer, lose: Any) -> None:
    """Sixty photos wait in a paused queue, and Redis loses the pause: none starts before the queue is resumed."""
    settings = {"REDIS_URL": own_redis.url, RECONCILE_AGE_SECONDS: "0"}
    with Service(tmp_path, ai_service.url, **settings) as service:
        admin(service, "POST", "/api/queue/pause")
        ids = accept(service, 60)
        lose(own_redis.client())
        # More photos, so that the workers are woken as usual.
        ids += accept(service, 5)
        # Records, not entries of the waiting list: an id whose record alone was evicted is in the list twice.
        wait_until(lambda: len(own_redis.client().keys(BASE + "record:*")) == 65, 45)
        status = service.wait_status(paused=True)
        assert status["waiting"] >= 65
        assert (status["active"], status["completed"]) == (0, 0)
        assert ai_service.state()["calls"] == 0
        wait_until(lambda: own_redis.client().get(BASE + "owner"), 20)
        admin(service, "POST", "/api/queue/resume")
        service.wait_status(completed=65, paused=False)
        assert statuses(service, ids) == {"active"}


@pytest.mark.fault("E20")
def test_pause_outlives_redis_and_every_process(tmp_path: Path, ai_service: AiService, own_redis: RedisServer) -> None:
    """Process and Redis data are lost; the next process starts with an empty Redis and a paused queue."""
    service = Service(tmp_path, ai_service.url, REDIS_URL=own_redis.url)
    service.start()
    admin(service, "POST", "/api/queue/pause")
    ids = accept(service, 3)
    service.kill()
    own_redis.client().flushall()
    with service:
        service.wait_status(waiting=3, paused=True)
        assert ai_service.state()["calls"] == 0
        admin(service, "POST", "/api/queue/resume")
        wait_until(lambda: statuses(service, ids) == {"active"})


@pytest.mark.fault("E20")
def test_pause_follows_the_store_after_an_older_snapshot(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer
) -> None:
    """After a snapshot from before the pause, and one from before its end, Redis soon has the state of the store."""
    redis = own_redis.client()
    with Service(tmp_path, ai_service.url, REDIS_URL=own_redis.url) as service:
        running = redis.get(BASE + "owner")
        admin(service, "POST", "/api/queue/pause")
        paused = redis.get(BASE + "owner")
        assert running != paused
        redis.set(BASE + "owner", running)
        redis.delete(BASE + "paused")
        wait_until(lambda: service.wait_status()["paused"], 20)
        admin(service, "POST", "/api/queue/resume")
        redis.set(BASE + "owner", paused)
        redis.set(BASE + "paused", 1)
        wait_until(lambda: not service.wait_status()["paused"], 20)
        accept(service, 1)
        service.wait_status(completed=1)


def test_pause_of_an_older_version_is_kept(tmp_path: Path, ai_service: AiService, own_redis: RedisServer) -> None:
    """The older version sets one key and no owner: the store takes the pause over, which then outlives Redis."""
    redis = own_redis.client()
    redis.set(BASE + "paused", 1)
    with Service(tmp_path, ai_service.url, REDIS_URL=own_redis.url) as service:
        accept(service, 2)
        service.wait_status(waiting=2, paused=True)
        redis.flushall()
        wait_until(lambda: service.wait_status()["waiting"] == 2, 20)
        service.wait_status(paused=True)
        assert ai_service.state()["calls"] == 0


# dead letters and undelivered events


@pytest.mark.fault("E21")
def test_dead_letters_outlive_redis(tmp_path: Path, ai_service: AiService, own_redis: RedisServer) -> None:
    """They are listed as before; one that was run again and one that was removed stay away after another wipe."""
    redis = own_redis.client()
    with Service(tmp_path, ai_service.url, REDIS_URL=own_redis.url) as service:
        for number in range(3):
            ai_service.configure(replies=[{"status": 400, "body": {"error": {"message": f"No {number}", "code": "X"}}}])
            accept(service, 1)
            service.wait_status(failed=number + 1)
        before = failed(service)
        assert len(before) == 3
        redis.flushall()
        wait_until(lambda: failed(service) == before, 20)
        # Eviction of single keys: the list and a record.
        redis.delete(BASE + "failed", f"{BASE}record:{before[0]['jobId']}")
        service.signal(signal.SIGTERM)
        service.wait()
        service.start()
        wait_until(lambda: failed(service) == before, 20)
        retried, removed, left = before
        admin(service, "POST", f"/api/queue/failed/{retried['jobId']}/retry")
        admin(service, "DELETE", f"/api/queue/failed/{removed['jobId']}")
        service.wait_status(completed=1)
        redis.flushall()
        wait_until(lambda: failed(service) == [left], 20)
        admin(service, "DELETE", "/api/queue/failed")
        redis.flushall()
        service.wait_log("jobs_reconciled", queue="ai-processing")
        accept(service, 1)
        service.wait_status(completed=1)
        assert failed(service) == []


@pytest.mark.fault("E21")
def test_undelivered_events_outlive_redis(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer, receiver: FakeReceiver
) -> None:
    """Three events wait for their next attempt, one is a dead letter, and Redis is wiped: all four are restored."""
    receiver.script(Reply(410), *[Reply(503)] * 3)
    settings = webhook(receiver.url, REDIS_URL=own_redis.url)
    settings |= {NOTIFIER_BACKOFF_MS: "3600000", BREAKER_FAILURES: "100"}
    with Service(tmp_path, ai_service.url, **settings) as service:
        accept(service, 1)
        before = wait_until(lambda: failed(service, "notifications"))
        ids = accept(service, 3)
        receiver.wait_for_requests(4)
        for asset_id in ids:
            service.wait_log("job_retrying", assetId=asset_id, notifier="webhook")
        own_redis.client().flushall()
        receiver.wait_for_requests(7)
        webhook_ids = [request.headers["Webhook-Id"] for request in receiver.requests]
        assert sorted(webhook_ids[4:]) == sorted(webhook_ids[1:4])
        assert wait_until(lambda: failed(service, "notifications"), 20) == before
        service.wait_log("job_completed", 3, notifier="webhook")
        # Delivered events are not delivered a second time.
        own_redis.client().flushall()
        assert wait_until(lambda: failed(service, "notifications"), 20) == before
        assert len(receiver.requests) == 7


def test_job_without_durable_notifiers_costs_the_store_no_further_write(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer
) -> None:
    """The store has no record of a job that succeeds, only its asset."""
    with Service(tmp_path, ai_service.url, REDIS_URL=own_redis.url) as service:
        accept(service, 3)
        service.wait_status(completed=3)
        with closing(sqlite3.connect(tmp_path / "assets.sqlite")) as file:
            kinds = {kind for (kind,) in file.execute("SELECT kind FROM kept")}
        assert kinds <= {"identity", "schema", "storage"}
