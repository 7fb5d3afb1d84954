"""The Python client and real processes of the service: kills, drains, long replays, expiring tokens."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import jwt
import pytest

from pipeline.client import Client
from pipeline.client.cursor import shift
from tests.constants import MAX_REPLAY_EVENTS
from tests.factories import SECRET, make_token
from tests.integration.scripted_service import at, next_events
from tests.integration.scripted_service import photo  # noqa: F811
from tests.integration.switched_proxy import Switch
from tests.redis_server import RedisServer
from tests.service import AiService, Service
from tests.toxiproxy import free_port

__all__ = ["photo"]


async def upload(service: Service) -> str:
    reply = await asyncio.to_thread(service.upload)
    assert reply.status_code == 202
    return str(reply.json()["data"]["assetId"])


@pytest.mark.gen_test(timeout=120)
async def test_client_reconnects_to_a_killed_service(tmp_path: Path, ai_service: AiService) -> None:
    """The service is killed with a running job and started at the same address: each event arrives once."""
    ai_service.configure(paused=True)
    notices: list[str] = []
    with Service(tmp_path, ai_service.url, PORT=str(free_port())) as service:
        async with Client(service.url, make_token(), on_notice=notices.append) as client:
            assert await client.listen() == "user:user-1"
            ids = [await upload(service)]
            await asyncio.to_thread(service.wait_log, "job_claimed")
            await asyncio.to_thread(service.kill)
            ai_service.configure(paused=False)
            await asyncio.to_thread(service.start)
            await asyncio.to_thread(service.wait_log, "job_completed")
            ids.append(await upload(service))
            events = await next_events(client, 2)
            assert [event["assetId"] for event in events] == ids
            # The client's cursor is late by the time that the frame `connected` took.
            latest = events[-1]["timestamp"]
            assert shift(latest, -1) <= (client.since or "") <= latest
    assert notices[0].endswith("trying again") and notices[1] == "Connected again" and len(notices) == 2


@pytest.mark.gen_test(timeout=120)
async def test_client_connects_to_another_process(tmp_path: Path, ai_service: AiService) -> None:
    """One of two processes drains: the client connects to the other and gets the events of the time between."""
    with (
        RedisServer() as redis,
        Service(tmp_path, ai_service.url, REDIS_URL=redis.url) as leaving,
        Service(tmp_path, ai_service.url, REDIS_URL=redis.url) as staying,
    ):
        async with Switch(int(leaving.url.rpartition(":")[2])) as switch, Client(switch.url, make_token()) as client:
            await client.listen()
            ids = [await upload(leaving)]
            assert [event["assetId"] for event in await next_events(client, 1)] == ids
            switch.port = 0
            leaving.signal(signal.SIGTERM)
            assert await asyncio.to_thread(leaving.wait) == 0
            ids.append(await upload(staying))
            await asyncio.to_thread(staying.wait_log, "job_completed", assetId=ids[-1])
            switch.port = int(staying.url.rpartition(":")[2])
            await asyncio.to_thread(staying.wait_log, "socket_opened")
            ids.append(await upload(staying))
            assert [event["assetId"] for event in await next_events(client, 2)] == ids[1:]


@pytest.mark.gen_test(timeout=120)
async def test_client_gets_more_than_the_service_replays(tmp_path: Path, ai_service: AiService) -> None:
    """More missed events than the socket replays arrive oldest first, and then the new event."""
    with Service(tmp_path, ai_service.url, **{"CONCURRENCY": "1", MAX_REPLAY_EVENTS: "3"}) as service:
        ids = [await upload(service) for _ in range(5)]
        await asyncio.to_thread(service.wait_log, "job_completed", count=5)
        async with Client(service.url, make_token(), since=at(0)) as client:
            await client.listen()
            events = await next_events(client, 5)
            ids.append(await upload(service))
            events += await next_events(client, 1)
        assert [event["assetId"] for event in events] == ids
        assert {event["processedImageUrl"] for event in events} == {
            service.asset(asset_id)["images"]["processed"]["url"] for asset_id in ids
        }


@pytest.mark.gen_test(timeout=120)
async def test_client_renews_its_token_on_the_open_connection(tmp_path: Path, ai_service: AiService) -> None:
    """A connection stays open after its first token has expired, and requests use the new token."""
    notices: list[str] = []
    with Service(tmp_path, ai_service.url) as service:
        expires_at = time.time() + 2
        tokens = [jwt.encode({"sub": "user-1", "exp": expires_at}, SECRET), make_token()]
        async with Client(service.url, lambda: tokens.pop(0), on_notice=notices.append) as client:
            await client.listen()
            await asyncio.sleep(expires_at + 0.5 - time.time())  # No signal exists for a connection that stays open.
            asset_id = await upload(service)
            assert [event["assetId"] for event in await next_events(client, 1)] == [asset_id]
            assert (await client.asset(asset_id))["id"] == asset_id
    assert (tokens, notices) == ([], [])


@pytest.mark.fault("R9")
@pytest.mark.gen_test(timeout=60)
async def test_upload_waits_for_its_token_to_become_valid(tmp_path: Path, photo: Path) -> None:
    """A token becomes valid in eight seconds: the client repeats the upload until the real service accepts it."""
    with Service(tmp_path / "data") as service:
        async with Client(service.url, make_token(nbf=time.time() + 8)) as client:
            assert (await client.upload(photo, "lego"))["status"] == "processing"
