"""Events that Redis did not accept before their process ended: the next process sends them."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from pipeline.client import Client
from tests.constants import MAX_STALLS, RENEWALS_PER_LEASE
from tests.factories import make_token
from tests.slowdown import slowdown
from tests.redis_server import RedisServer
from tests.service import AiService, Service

pytestmark = pytest.mark.fault("R4")


def upload(service: Service) -> str:
    response = service.upload()
    assert response.status_code == 202, response.text
    return str(response.json()["data"]["assetId"])


def refuse_publishers(redis: RedisServer) -> None:
    """Refuse new connections, and cut the connections that publish: those of the queue stay."""
    redis.client().config_set("maxclients", 1)
    for connection in redis.client().client_list():
        if connection["cmd"].lower() in ("publish", "spublish", "persist"):
            redis.client().client_kill_filter(_id=connection["id"])


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.gen_test(timeout=90)
async def test_event_that_could_not_be_published_is_sent_by_the_next_process(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer, end: signal.Signals
) -> None:
    """The queue works, publishing fails (no more clients), the worker ends: the owner still gets the event."""
    shared = {"REDIS_URL": own_redis.url, "LEASE_SECONDS": "4", RENEWALS_PER_LEASE: "4"}
    with (
        Service(tmp_path, ai_service.url, ROLE="web", **shared) as web,
        Service(tmp_path, ai_service.url, ROLE="worker", **shared) as worker,
    ):
        async with Client(web.url, make_token()) as client:
            await client.listen()
            events = client.events()
            first = await asyncio.to_thread(upload, web)
            assert (await asyncio.wait_for(anext(events), 30))["assetId"] == first
            refuse_publishers(own_redis)
            asset_id = await asyncio.to_thread(upload, web)
            await asyncio.to_thread(worker.wait_log, "job_completed", assetId=asset_id)
            status = await asyncio.to_thread(web.wait_status, completed=1)
            assert (status["active"], status["failed"]) == (1, 0)
            assert web.asset(asset_id)["status"] == "active"
            begun = time.monotonic()
            worker.signal(end)
            code = await asyncio.to_thread(worker.wait)
            assert (code, time.monotonic() - begun < 5 * slowdown()) == (0 if end is signal.SIGTERM else -end, True)
            own_redis.client().config_set("maxclients", 1000)
            await asyncio.to_thread(worker.start)
            event = await asyncio.wait_for(anext(events), 30)
            assert (event["assetId"], event["status"]) == (asset_id, "active")
            await asyncio.to_thread(web.wait_status, completed=2, active=0, waiting=0, failed=0)
        assert ai_service.state()["calls"] == 2


@pytest.mark.gen_test(timeout=120)
async def test_redis_that_refuses_events_makes_no_dead_letters(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer
) -> None:
    """The Redis user has no channels: photos get their results, and keep them however often the process is killed."""
    acl = ("ACL", "SETUSER", "worker", "on", "nopass", "+@all", "~*")
    own_redis.client().execute_command(*acl, "resetchannels")
    url = own_redis.url.replace("//", "//worker:any@")
    shared = {"LEASE_SECONDS": "1", MAX_STALLS: "2"}
    with (
        Service(tmp_path, ai_service.url, ROLE="web", REDIS_URL=own_redis.url, **shared) as web,
        Service(tmp_path, ai_service.url, ROLE="worker", REDIS_URL=url, **shared) as worker,
    ):
        asset_id = await asyncio.to_thread(upload, web)
        for _ in range(4):
            await asyncio.to_thread(worker.wait_log, "job_completed", assetId=asset_id)
            worker.kill()
            await asyncio.to_thread(worker.start)
        await asyncio.to_thread(worker.wait_log, "job_completed", assetId=asset_id)
        status = await asyncio.to_thread(web.wait_status, active=1, waiting=0)
        assert (status["failed"], web.asset(asset_id)["status"]) == (0, "active")
        begun = time.monotonic()
        assert worker.stop() == 0 and time.monotonic() - begun < 5 * slowdown()
        own_redis.client().execute_command(*acl, "allchannels")
        worker.start()
        await asyncio.to_thread(web.wait_status, completed=1, active=0, waiting=0, failed=0)
        assert ai_service.state()["calls"] == 1
