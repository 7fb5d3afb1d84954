"""How a photo goes before it is finished: frames for sockets that ask, and the same in GET, on real processes: one that
does all, and two that share a Redis and a store, of which one serves clients and the other works.
"""

from __future__ import annotations

import asyncio
import json
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.contract.contracts import check_reply
from tests.factories import make_token
from tests.packages import install
from tests.slowdown import slowdown
from tests.redis_server import RedisServer
from tests.service import AiService, Service
from tests.sockets import Stream, check_frame

WAIT_SECONDS = 20.0
Frame = dict[str, Any]
NOTHING = dict.fromkeys(("position", "etaSeconds", "attempt", "provider", "reason", "nextAt", "share"))


@pytest.fixture(params=["one process", "web and worker"])
def service(request: pytest.FixtureRequest, tmp_path: Path, ai_service: AiService) -> Iterator[Service]:
    """What clients talk to."""
    with ExitStack() as stack:
        more = {"BACKOFF_MS": "1500", "CONCURRENCY": "1"}
        if request.param != "one process":
            more |= {"REDIS_URL": stack.enter_context(RedisServer()).url}
            stack.enter_context(Service(tmp_path, ai_service.url, ROLE="worker", **more))
            more |= {"ROLE": "web"}
        yield stack.enter_context(Service(tmp_path, ai_service.url, **more))


class Socket:
    """A user's socket or event stream, and what it was sent."""

    def __init__(self, receive: Callable[[], Awaitable[Frame]]) -> None:
        """receive: returns the next frame."""
        self._receive = receive
        self.frames: list[Frame] = []

    async def until(self, event: str, **members: Any) -> Frame:
        """Return the next frame of that event with these members."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                frame = await self._receive()
                check_frame(frame)
                self.frames.append(frame)
                if frame["event"] == event and members.items() <= frame.items():
                    return frame

    def events(self, asset_id: str) -> list[str]:
        """Return the events of an asset that it was sent, in order, each once."""
        events = [frame["event"] for frame in self.frames if frame.get("assetId") == asset_id]
        return list(dict.fromkeys(events))


@asynccontextmanager
async def connected(service: Service, sub: str = "user-1", *, way: str = "") -> AsyncIterator[Socket]:
    """Give a socket of the user. way: by which it asks for progress, "" for one that does not."""
    headers = {} if way == "frame" else service.headers(sub)
    query = "?events=progress" if way in ("address", "stream") else ""
    async with aiohttp.ClientSession(headers=headers) as session:
        if way == "stream":
            opened = session.get(f"{service.url}/api/events{query}")
        else:
            opened = session.ws_connect(f"{service.url}/ws{query}")
        async with opened as reply:
            if way == "frame":
                await reply.send_json({"auth": {"token": make_token(sub)}, "events": ["later", "progress"]})
            socket = Socket(partial(read_stream, Stream(reply)) if way == "stream" else reply.receive_json)
            await socket.until("connected")
            yield socket


async def read_stream(stream: Stream) -> Frame:
    """Return the next frame of a stream, whatever comments come before."""
    while "data" not in (fields := await stream.block()):
        pass
    frame: Frame = json.loads(fields["data"])
    assert fields["event"] == frame["event"]
    return frame


async def upload(service: Service, sub: str = "user-1") -> str:
    """Upload a photo and return its asset id."""
    response = await asyncio.to_thread(service.upload, sub)
    assert response.status_code == 202, response.text
    return str(response.json()["data"]["assetId"])


async def progress(service: Service, asset_id: str, is_there: Callable[[Any], bool] = lambda found: True) -> Any:
    """Return the asset's progress once it is as wanted."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        reply = await asyncio.to_thread(service.get, f"/api/assets/{asset_id}")
        check_reply("GET", "/api/assets/{id}", reply.status_code, reply.json())
        found = reply.json()["data"]["progress"]
        if is_there(found):
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


async def order(ai_service: AiService, **orders: Any) -> None:
    await asyncio.to_thread(lambda: ai_service.order(**orders))


async def switch(service: Service, what: str) -> None:
    """Pause or resume the queue."""
    async with aiohttp.ClientSession(headers=service.headers("boss", role="admin")) as session:
        async with session.post(f"{service.url}/api/queue/{what}") as reply:
            assert reply.status == 200


@pytest.mark.gen_test(timeout=90)
@pytest.mark.parametrize("way", ["address", "frame", "stream"])
async def test_sockets_that_ask_are_told_of_each_step(service: Service, ai_service: AiService, way: str) -> None:
    """A photo that waits behind another one is queued, moves on, is started, and then comes its event; the other
    user's socket, which asks too, and a socket that does not ask get none of it.
    """
    await order(ai_service, held=True)
    async with (
        connected(service, way=way) as asks,
        connected(service) as silent,
        connected(service, "user-2", way="address") as stranger,
    ):
        first = await upload(service)
        await asks.until("asset_started", assetId=first, attempt=1, provider="http")
        second, third = await upload(service), await upload(service)
        await asks.until("asset_queued", assetId=third, position=2)
        await order(ai_service, held=False)
        await asks.until("asset_processed", assetId=first)
        await asks.until("asset_processed", assetId=third)
        assert asks.events(second) == ["asset_queued", "asset_started", "asset_processed"]
        assert [frame["event"] for frame in await heard(silent, "asset_processed", 3)] == ["asset_processed"] * 3
        assert await progress(service, third) is None
        last = await upload(service, "user-2")
        await stranger.until("asset_processed", assetId=last)
        assert {frame.get("assetId", last) for frame in stranger.frames} == {last}


async def heard(socket: Socket, event: str, count: int) -> list[Frame]:
    """Return all frames about assets up to the count-th of that event."""
    for _ in range(count):
        await socket.until(event)
    return [frame for frame in socket.frames if "assetId" in frame]


@pytest.mark.gen_test(timeout=90)
async def test_retry_is_told_with_its_reason_and_time(service: Service, ai_service: AiService) -> None:
    """After a 500 the owner hears which attempt failed, why and when the next one begins; GET says the same."""
    await order(ai_service, replies=[{"status": 500}])
    async with connected(service, way="address") as asks:
        asset_id = await upload(service)
        frame = await asks.until("asset_retrying", assetId=asset_id)
        found = await progress(service, asset_id, lambda found: found is None or found["state"] == "retrying")
        assert frame["attempt"] == 1 and "after 1 attempt" in frame["reason"] and frame["nextAt"]
        told = {"state": "retrying", "attempt": 1, "reason": frame["reason"], "nextAt": found["nextAt"]}
        assert found == NOTHING | told
        assert abs(seconds(found["nextAt"]) - seconds(frame["nextAt"])) < 1
        await asks.until("asset_started", attempt=2)
        await asks.until("asset_processed")
        assert asks.events(asset_id) == ["asset_queued", "asset_started", "asset_retrying", "asset_processed"]


def seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


@pytest.mark.gen_test(timeout=90)
async def test_paused_queue_is_told_with_the_place_in_line(service: Service) -> None:
    """Photos of a paused queue are held and have their place; a list says the same; resumed they are queued no more."""
    await switch(service, "pause")
    async with connected(service, way="address") as asks:
        ids = [await upload(service) for _ in range(3)]
        held = NOTHING | {"state": "held", "reason": "The queue is paused"}
        for position, asset_id in enumerate(ids, 1):
            assert await progress(service, asset_id) == held | {"position": position}
            frame = await asks.until("asset_held", assetId=asset_id)
            assert frame == {"event": "asset_held", "assetId": asset_id, "reason": held["reason"], "nextAt": None}
        listed = (await asyncio.to_thread(service.get, "/api/assets")).json()
        check_reply("GET", "/api/assets", 200, listed)
        assert [each["progress"]["position"] for each in listed["data"]["items"]] == [3, 2, 1]
        await switch(service, "resume")
        for asset_id in ids:
            await asks.until("asset_processed", assetId=asset_id)
        assert await progress(service, ids[0]) is None


@pytest.mark.gen_test(timeout=90)
async def test_held_provider_is_told_with_reason_and_time(service: Service, ai_service: AiService) -> None:
    """While the AI service asks to be left alone all its photos are held until then, also those that never started."""
    await order(ai_service, replies=[{"status": 429, "headers": {"Retry-After": "4"}}])
    async with connected(service, way="address") as asks:
        first, second = await upload(service), await upload(service)
        for asset_id in (first, second):
            frame = await asks.until("asset_held", assetId=asset_id)
            assert frame["reason"] and 0 < seconds(frame["nextAt"]) - time.time() < 5
            found = await progress(service, asset_id)
            assert (found["state"], found["reason"], found["nextAt"]) == ("held", frame["reason"], frame["nextAt"])
            assert found["position"] is None
        await asks.until("asset_processed", assetId=second)


@pytest.mark.gen_test(timeout=90)
async def test_running_photo_is_shown_with_its_provider(service: Service, ai_service: AiService) -> None:
    """GET alone, without any socket, tells which provider is asked, whichever process asks it."""
    await order(ai_service, held=True)
    asset_id = await upload(service)
    found = await progress(service, asset_id, lambda found: found["provider"] is not None)
    assert found == NOTHING | {"state": "running", "attempt": 1, "provider": "http"}
    await order(ai_service, held=False)
    assert await progress(service, asset_id, lambda found: found is None) is None


@pytest.mark.gen_test(timeout=90)
async def test_deleted_photo_is_told(service: Service) -> None:
    """Every socket of the owner that asks hears that a photo is gone."""
    await switch(service, "pause")
    async with connected(service, way="address") as asks, connected(service) as silent:
        asset_id = await upload(service)
        await asks.until("asset_held", assetId=asset_id)
        async with aiohttp.ClientSession(headers=service.headers()) as session:
            async with session.delete(f"{service.url}/api/assets/{asset_id}") as reply:
                assert reply.status == 204
        assert await asks.until("asset_deleted") == {"event": "asset_deleted", "assetId": asset_id}
        await switch(service, "resume")
        last = await upload(service)
        await silent.until("asset_processed", assetId=last)
        assert [frame["event"] for frame in silent.frames] == ["connected", "asset_processed"]


@pytest.mark.gen_test(timeout=90)
async def test_socket_that_comes_later_is_told_how_things_are(service: Service, ai_service: AiService) -> None:
    """A socket that asks while photos are on their way hears the state of each."""
    await order(ai_service, held=True)
    first, second = await upload(service), await upload(service)
    async with connected(service, way="frame") as asks:
        await asks.until("asset_queued", assetId=second, position=1)
        assert "asset_started" in asks.events(first) or await asks.until("asset_started", assetId=first)
        await order(ai_service, held=False)
        await asks.until("asset_processed", assetId=second)


REPORTING = """
import time
from pipeline.hooks import Analysis, Attribute, Progress, hookimpl

class Awaits:
    async def analyze(self, request, progress: Progress):
        await progress(share=0.25, brand=Attribute("Nike", 0.5))
        await progress(share=0.3)
        await asyncio_sleep(0.6)
        await progress(share=2)
        await asyncio_sleep(2.5)
        return Analysis(brand=Attribute("Nike", 0.9), model=Attribute("Air", 0.9))

class Blocks:
    def analyze(self, request, progress: Progress):
        progress(share=0.25, brand=Attribute("Nike", 0.5))
        progress(share=0.3)
        time.sleep(0.6)
        progress(share=2)
        time.sleep(2.5)
        return Analysis(brand=Attribute("Nike", 0.9), model=Attribute("Air", 0.9))

@hookimpl
def register_ai_providers():
    yield "awaits", Awaits
    yield "blocks", Blocks

from asyncio import sleep as asyncio_sleep
"""


@pytest.mark.parametrize("provider", ["awaits", "blocks"])
@pytest.mark.parametrize("is_apart", [False, True], ids=["one process", "web and worker"])
@pytest.mark.gen_test(timeout=90)
async def test_provider_reports_how_far_it_is(tmp_path: Path, provider: str, is_apart: bool) -> None:
    """What a provider reports, on the loop or in a thread, comes as frames, two a second at most, and stands in GET."""
    packages = install(tmp_path / "packages", reporting=textwrap.dedent(REPORTING))
    with ExitStack() as stack:
        more = packages | {"AI_PROVIDER": provider}
        if is_apart:
            more |= {"REDIS_URL": stack.enter_context(RedisServer()).url}
            stack.enter_context(Service(tmp_path / "data", ROLE="worker", **more))
            more |= {"ROLE": "web"}
        service = stack.enter_context(Service(tmp_path / "data", **more))
        async with connected(service, way="address") as asks:
            asset_id = await upload(service)
            found = await progress(service, asset_id, lambda found: found["share"] == 1)
            assert found == NOTHING | {"state": "running", "attempt": 1, "provider": provider, "share": 1}
            await asks.until("asset_processed")
    told = [frame for frame in asks.frames if frame["event"] == "asset_progress"]
    nike = {"brand": {"value": "Nike", "confidence": 0.5}}
    assert [(frame["share"], frame.get("partial")) for frame in told] == [(0.25, nike), (1, None)]


@pytest.mark.gen_test(timeout=120)
async def test_without_redis_assets_are_shown_all_the_same(tmp_path: Path, ai_service: AiService) -> None:
    """GET answers with what the document tells, without delay, while Redis is away; afterwards all is there again."""
    await order(ai_service, held=True)
    with RedisServer() as redis, Service(tmp_path, ai_service.url, REDIS_URL=redis.url, ROLE="web") as service:
        first = await upload(service)
        assert (await progress(service, first))["position"] == 1
        redis.stop()
        await progress(service, first, lambda found: found["position"] is None)
        for _ in range(3):
            started = time.monotonic()
            assert await progress(service, first) == NOTHING | {"state": "queued"}
            assert time.monotonic() - started < 2 * slowdown()
        second = await upload(service)
        assert await progress(service, second) == NOTHING | {"state": "queued"}
        redis.start()
        assert await progress(service, second, lambda found: found["position"] is not None)


@pytest.mark.gen_test(timeout=120)
async def test_progress_with_mongodb(mongo_uri: str, tmp_path: Path, ai_service: AiService) -> None:
    """The other asset store shows the same."""
    await order(ai_service, held=True)
    with Service(tmp_path, ai_service.url, MONGODB_URI=mongo_uri, CONCURRENCY="1") as service:
        async with connected(service, way="address") as asks:
            first, second = await upload(service), await upload(service)
            await asks.until("asset_queued", assetId=second, position=1)
            assert await progress(service, first) == NOTHING | {"state": "running", "attempt": 1, "provider": "http"}
            await order(ai_service, held=False)
            await asks.until("asset_processed", assetId=second)
