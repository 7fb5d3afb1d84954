"""Redis loses what it has, wholly, in part, or back to an older state; or it is shared with another installation. What
people put there comes back from the asset store, and no installation touches what is another one's.
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from pipeline.client import Client
from tests.constants import BREAKER_FAILURES, NOTIFIER_BACKOFF_MS, RECONCILE_AGE_SECONDS, RENEWALS_PER_LEASE
from tests.factories import make_token
from tests.fake_receiver import FakeReceiver, Reply
from tests.faults.processes import wait_until
from tests.faults.uploads import accept, statuses
from tests.integration.test_notifying import admin, told, webhook
from tests.redis_server import RedisServer
from tests.service import ROOT, AiService, Service

BASE = "pipeline:{ai-processing}:"


def failed(service: Service, queue: str = "ai-processing") -> list[dict[str, Any]]:
    """Return the dead letters, without when they failed: the store knows that a moment before Redis."""
    items: list[dict[str, Any]] = admin(service, "GET", "/api/queue/failed", queue=queue)["items"]
    return [item | {"failedAt": item["failedAt"][:16]} for item in items]


# the search at the start


@pytest.mark.fault("E19")
def test_uploads_that_redis_never_saw_are_done_at_once_after_a_restart(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer
) -> None:
    """Three photos are taken while Redis is away, and the process that took them dies; the next one finds them."""
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
    """What a Redis with maxmemory-policy allkeys-random does when others fill it; single jobs go too."""
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
    """Sixty photos wait in a paused queue, and Redis loses the pause: not one of them starts until it is lifted."""
    settings = {"REDIS_URL": own_redis.url, RECONCILE_AGE_SECONDS: "0"}
    with Service(tmp_path, ai_service.url, **settings) as service:
        admin(service, "POST", "/api/queue/pause")
        ids = accept(service, 60)
        lose(own_redis.client())
        # More of them, so that what wakes the workers comes as often as ever.
        ids += accept(service, 5)
        # Jobs, not places in line: an id whose record alone was evicted stands there twice, and is passed over once.
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
    """Both are gone; the next process starts with an empty Redis and a paused queue."""
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
def test_pause_is_what_the_store_says_after_an_older_snapshot(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer
) -> None:
    """A snapshot of before the pause, and one of before its end: within seconds Redis says what the store says."""
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
    """It knows no owner and sets one key: the store takes it over, and from then on it outlives Redis."""
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
    """They are listed as before, one can be run again and one removed, and neither comes back after another wipe."""
    redis = own_redis.client()
    with Service(tmp_path, ai_service.url, REDIS_URL=own_redis.url) as service:
        for number in range(3):
            ai_service.order(replies=[{"status": 400, "body": {"error": {"message": f"No {number}", "code": "X"}}}])
            accept(service, 1)
            service.wait_status(failed=number + 1)
        before = failed(service)
        assert len(before) == 3
        redis.flushall()
        wait_until(lambda: failed(service) == before, 20)
        # Eviction of single keys: the list, a record.
        redis.delete(BASE + "failed", f"{BASE}record:{before[0]['jobId']}")
        service.signal(signal.SIGTERM)
        service.wait()
        service.start()
        wait_until(lambda: failed(service) == before, 20)
        again, removed, left = before
        admin(service, "POST", f"/api/queue/failed/{again['jobId']}/retry")
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
    """Three wait for their next try, one is a dead letter, and Redis is wiped: three are delivered, one is listed."""
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
        assert sorted(told(receiver)[4:]) == sorted(told(receiver)[1:4])
        assert wait_until(lambda: failed(service, "notifications"), 20) == before
        service.wait_log("job_completed", 3, notifier="webhook")
        # What is delivered is not delivered again.
        own_redis.client().flushall()
        assert wait_until(lambda: failed(service, "notifications"), 20) == before
        assert len(receiver.requests) == 7


def test_job_without_durable_notifiers_costs_the_store_no_further_write(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer
) -> None:
    """Nothing is kept of a job that goes well beside its asset."""
    with Service(tmp_path, ai_service.url, REDIS_URL=own_redis.url) as service:
        accept(service, 3)
        service.wait_status(completed=3)
        with closing(sqlite3.connect(tmp_path / "assets.sqlite")) as file:
            kinds = {kind for (kind,) in file.execute("SELECT kind FROM kept")}
        assert kinds <= {"identity", "schema", "storage"}


# several installations on one Redis


@pytest.mark.fault("E22")
def test_queue_of_another_store_is_refused(tmp_path: Path, ai_service: AiService, own_redis: RedisServer) -> None:
    """At the start, in one line that says what to do, with exit code 2; `check` says it too."""
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
    """Each has its own jobs, counts, pause and rooms, also for users of the same id."""
    with (
        Service(tmp_path / "one", ai_service.url, REDIS_URL=own_redis.url, QUEUE_PREFIX="one") as one,
        Service(tmp_path / "two", ai_service.url, REDIS_URL=own_redis.url, QUEUE_PREFIX="two") as two,
    ):
        admin(two, "POST", "/api/queue/pause")
        kept = accept(two, 1)

        async def hear() -> list[str]:
            async with Client(two.url, make_token("user-1")) as client:
                await client.listen()
                sent = accept(one, 3)
                one.wait_status(completed=3, paused=False)
                admin(two, "POST", "/api/queue/resume")
                heard = []
                async for event in client.events():
                    heard.append(event["assetId"])
                    break
                assert not set(sent) & set(heard)
                return heard

        assert asyncio.run(hear()) == kept
        two.wait_status(completed=1)
        assert {key.partition(":")[0] for key in own_redis.client().keys("*")} == {"one", "two"}


@pytest.mark.fault("E22")
def test_process_ends_when_another_store_takes_its_queue(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer
) -> None:
    """While both wait for their Redis nobody can tell; the one that comes second then ends, with its photos kept."""
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
    """It is nobody else's: when the file of the assets is gone, the queue is taken over."""
    with Service(tmp_path, ai_service.url) as service:
        accept(service, 1)
        service.wait_status(completed=1)
    for path in tmp_path.glob("assets.sqlite*"):
        path.unlink()
    with Service(tmp_path, ai_service.url) as service:
        asset_id = accept(service, 1)
        wait_until(lambda: statuses(service, asset_id) == {"active"}, 20)


# leases of different lengths


@pytest.mark.fault("E11")
def test_processes_with_different_leases_share_a_queue(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer
) -> None:
    """While the length is changed process by process, nobody takes another one's jobs for lost."""
    ai_service.order(delay_ms=4000)
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
