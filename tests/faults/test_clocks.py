"""Machines with wrong clocks: timestamps stay right, no event is lost, and the process reports that it is not ready.

Each process with a wrong clock is a real one, under libfaketime, next to one with the right clock.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from tests.forwarder import Forwarder
from tests.redis_server import RedisServer
from tests.service import AiService, Service
from tests.wrong_clock import WrongClock

WAIT_SECONDS = 30
HOUR = 3600.0
TIME_REPLY = re.compile(rb"(\*2\r\n\$10\r\n)(\d{10})(?=\r\n\$\d\r\n\d+\r\n)")
CLOCKS = [
    pytest.param(HOUR, None, id="an hour ahead"),
    pytest.param(-60.0, None, id="a minute behind"),
    pytest.param(0.0, HOUR, id="jumps ahead"),
    pytest.param(HOUR, -HOUR, id="jumps back"),
]


@contextmanager
def pair(
    folder: Path, ai_service: AiService, redis_url: str, clock: WrongClock, wrong: str
) -> Iterator[tuple[Service, Service]]:
    """Yield a process with ROLE=web and one with ROLE=worker.

    wrong: the role that gets this clock; another value for none.
    """
    data_dir, processes = folder / "data", {}
    for role in ("web", "worker"):
        given = clock.environment if role == wrong else {}
        processes[role] = Service(data_dir, ai_service.url, ROLE=role, REDIS_URL=redis_url, **given)
    with processes["web"] as web, processes["worker"] as worker:
        yield web, worker


@pytest.fixture
def clock(tmp_path: Path) -> WrongClock:
    """A clock that is right until a test changes it."""
    folder = tmp_path / "clock"
    folder.mkdir()
    return WrongClock(folder, 0)


class Socket:
    """A user's socket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def frame(self) -> dict[str, Any]:
        """Return the next frame."""
        message = await self._socket.receive(WAIT_SECONDS)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        frame: dict[str, Any] = json.loads(message.data)
        return frame

    async def event_of(self, asset_id: str) -> dict[str, Any]:
        """Return the event of the asset; others may come before it."""
        while (frame := await self.frame()).get("assetId") != asset_id:
            assert frame["event"] == "asset_processed", frame
        return frame


@asynccontextmanager
async def listening(service: Service, since: str | None = None, **claims: Any) -> AsyncIterator[tuple[Socket, str]]:
    """Yield an accepted socket and the serverTime of its first frame."""
    params = {} if since is None else {"since": since}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{service.url}/ws", headers=service.headers(**claims), params=params) as opened,
    ):
        socket = Socket(opened)
        connected = await socket.frame()
        assert connected["event"] == "connected", connected
        yield socket, connected["serverTime"]


async def upload(service: Service) -> tuple[str, str]:
    """Upload a photo; return the asset's id and the Date of the reply."""
    reply = await asyncio.to_thread(service.upload)
    assert reply.status_code == 202
    return reply.json()["data"]["assetId"], reply.headers["Date"]


async def finished(service: Service, asset_id: str) -> dict[str, Any]:
    """Return the asset once it is finished."""
    async with asyncio.timeout(WAIT_SECONDS):
        while (asset := await asyncio.to_thread(service.asset, asset_id))["finishedAt"] is None:
            await asyncio.sleep(0.05)
    return asset


async def ready(service: Service, status: int) -> dict[str, Any]:
    """Return the reply of /readyz once it has this status."""
    async with asyncio.timeout(WAIT_SECONDS):
        while (reply := await asyncio.to_thread(httpx.get, f"{service.url}/readyz")).status_code != status:
            await asyncio.sleep(0.1)
    body: dict[str, Any] = reply.json()
    return body


def is_now(timestamp: str | datetime, within: float = 20) -> bool:
    """Whether a timestamp is within some seconds of the right clock of this test."""
    instant = timestamp if isinstance(timestamp, datetime) else datetime.fromisoformat(timestamp)
    return abs(datetime.now(UTC) - instant) < timedelta(seconds=within)


async def assert_replayed(web: Service, server_time: str, timestamp: str, date: str) -> None:
    """An asset finished while no socket is open is replayed from each timestamp that a client may have saved."""
    missed, _ = await upload(web)
    await finished(web, missed)
    for since in (server_time, timestamp, parsedate_to_datetime(date).isoformat()):
        async with listening(web, since) as (socket, _):
            await socket.event_of(missed)


async def assert_not_ready(service: Service, side: str) -> None:
    """Check that the process is not ready because of its clock alone, and that it logs this."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            broken = (await ready(service, 503))["error"]["details"]
            # A clock that has just jumped is measured within seconds.
            if [each["field"] for each in broken] == ["clock"] and f"{side} Redis TIME" in broken[0]["message"]:
                break
            await asyncio.sleep(0.1)
    assert "NTP" in broken[0]["message"]
    await asyncio.to_thread(service.wait_log, "clock_skewed")


@pytest.mark.fault("R7")
@pytest.mark.parametrize(("seconds", "jump"), CLOCKS)
@pytest.mark.gen_test(timeout=90)
async def test_worker_with_a_wrong_clock_loses_no_event(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer, clock: WrongClock, seconds: float, jump: float | None
) -> None:
    """Its results have right timestamps, so open sockets and sockets with any `since` get the events."""
    clock.jump(seconds)
    with pair(tmp_path, ai_service, own_redis.url, clock, "worker") as (web, worker):
        if jump is not None:
            async with listening(web) as (socket, _):
                await socket.event_of((await upload(web))[0])
            clock.jump(jump)
        async with listening(web) as (socket, server_time):
            first, date = await upload(web)
            event = await socket.event_of(first)
            assert is_now(event["timestamp"])
        asset = await asyncio.to_thread(web.asset, first)
        assert event["timestamp"] == asset["finishedAt"] and asset["createdAt"] > server_time
        # Two processes set them; each knows the time only as exactly as Redis answers.
        created_at, finished_at = (datetime.fromisoformat(asset[name]) for name in ("createdAt", "finishedAt"))
        assert finished_at > created_at - timedelta(seconds=1)
        assert is_now(asset["updatedAt"]) and is_now(asset["aiMetadata"]["processedAt"])
        await assert_replayed(web, server_time, event["timestamp"], date)
        await assert_not_ready(worker, "ahead of" if (seconds if jump is None else jump) > 0 else "behind")
        await ready(web, 200)
        clock.jump(0)
        await ready(worker, 200)
        await asyncio.to_thread(worker.wait_log, "clock_right")
        assert len(worker.find("clock_skewed")) == 1


@pytest.mark.fault("R7")
@pytest.mark.parametrize(("seconds", "jump"), CLOCKS)
@pytest.mark.gen_test(timeout=90)
async def test_web_process_with_a_wrong_clock_sends_the_right_time(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer, clock: WrongClock, seconds: float, jump: float | None
) -> None:
    """serverTime, the Date of replies and the timestamps of assets are right, and so is the check of tokens."""
    clock.jump(seconds)
    with pair(tmp_path, ai_service, own_redis.url, clock, "web") as (web, worker):
        if jump is not None:
            await upload(web)
            clock.jump(jump)
        now = datetime.now(UTC).timestamp()
        async with listening(web, expires_in=30, nbf=int(now), iat=int(now)) as (socket, server_time):
            assert is_now(server_time)
            asset_id, date = await upload(web)
            # The header has full seconds only.
            assert is_now(parsedate_to_datetime(date))
            event = await socket.event_of(asset_id)
        asset = await asyncio.to_thread(web.asset, asset_id)
        assert is_now(asset["createdAt"]) and asset["createdAt"] < event["timestamp"]
        for claims in ({"expires_in": -30}, {"nbf": int(now) + 30}):
            refused = httpx.get(f"{web.url}/api/assets", headers=web.headers(**claims))
            assert refused.status_code == 401
        await assert_replayed(web, server_time, event["timestamp"], date)
        await assert_not_ready(web, "ahead of" if (seconds if jump is None else jump) > 0 else "behind")
        await ready(worker, 200)


@pytest.mark.fault("R7")
@pytest.mark.gen_test(timeout=60)
async def test_socket_ends_with_its_token_whatever_the_clock_says(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer, clock: WrongClock
) -> None:
    """A process an hour behind closes a socket when its token expires, not an hour later."""
    clock.jump(-HOUR)
    with pair(tmp_path, ai_service, own_redis.url, clock, "web") as (web, _):
        async with listening(web, expires_in=2) as (socket, _):
            assert await socket.frame() == {"event": "error", "message": "Token expired"}


@pytest.mark.fault("R7")
@pytest.mark.gen_test(timeout=60)
async def test_worker_claims_nothing_before_it_knows_the_time(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer, clock: WrongClock
) -> None:
    """Started while Redis is away, a worker with a wrong clock asks Redis for the time before its first job."""
    with pair(tmp_path, ai_service, own_redis.url, clock, "worker") as (web, worker):
        worker.stop()
        asset_id, _ = await upload(web)
        clock.jump(HOUR)
        own_redis.stop()
        worker.start()
        own_redis.start()
        assert is_now((await finished(web, asset_id))["finishedAt"])


class OtherServer(Forwarder):
    """A Redis with another clock: its TIME is `ahead` seconds ahead.

    libfaketime does not work with a Redis that uses jemalloc.
    """

    ahead = 0

    def changed_data(self, data: bytes) -> bytes:
        return TIME_REPLY.sub(lambda reply: b"%s%d" % (reply[1], int(reply[2]) + self.ahead), data)


@pytest.mark.fault("R7")
@pytest.mark.parametrize(("seconds", "status"), [(-4, 200), (4, 200), (-3600, 503), (3600, 503)])
@pytest.mark.gen_test(timeout=90)
async def test_failover_to_a_redis_with_another_clock_loses_no_event(
    tmp_path: Path, ai_service: AiService, own_redis: RedisServer, clock: WrongClock, seconds: int, status: int
) -> None:
    """All processes follow the clock of the new server; with 4 s of difference no timestamp comes twice."""
    async with OtherServer(own_redis.port) as redis, both(tmp_path, ai_service, redis, clock) as (web, worker):
        async with listening(web) as (socket, before):
            first = await socket.event_of((await upload(web))[0])
            redis.ahead = seconds
            for service in (web, worker):
                await skewed(service, -seconds)
                await ready(service, status)
            second = await socket.event_of((await upload(web))[0])
        assert is_now(datetime.fromisoformat(second["timestamp"]) - timedelta(seconds=seconds))
        assert status == 503 or before < first["timestamp"] < second["timestamp"]
        async with listening(web) as (_, server_time):
            pass
        missed, _ = await upload(web)
        await finished(web, missed)
        for since in (second["timestamp"], server_time):
            async with listening(web, since) as (socket, _):
                await socket.event_of(missed)


@asynccontextmanager
async def both(
    folder: Path, ai_service: AiService, redis: OtherServer, clock: WrongClock
) -> AsyncIterator[tuple[Service, Service]]:
    """Yield two processes with right clocks.

    Their connection to Redis passes through this event loop, which therefore must not be blocked.
    """
    stack = ExitStack()
    try:
        yield await asyncio.to_thread(stack.enter_context, pair(folder, ai_service, redis.url, clock, "neither"))
    finally:
        await asyncio.to_thread(stack.close)


async def skewed(service: Service, seconds: float) -> None:
    """Return when the process has measured that skew."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            page = (await asyncio.to_thread(httpx.get, f"{service.url}/metrics")).text
            (shown,) = re.findall(r"^pipeline_clock_skew_seconds (\S+)$", page, re.MULTILINE)
            if abs(float(shown) - seconds) < 1:
                return
            await asyncio.sleep(0.1)
