"""The progress of a photo before it is finished: frames for sockets that ask for them, and the same in GET.

The service is real: one process with all roles, or a web process and a worker process that share a Redis and a store.
"""

from __future__ import annotations

import asyncio
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest

from tests.contract.contracts import check_reply
from tests.integration.progress_clients import NOTHING, connected, frames_until, progress, seconds, upload
from tests.packages import install
from tests.redis_server import RedisServer
from tests.service import AiService, Service
from tests.slowdown import slowdown


@pytest.fixture(params=["one process", "web and worker"])
def service(request: pytest.FixtureRequest, tmp_path: Path, ai_service: AiService) -> Iterator[Service]:
    """The process that serves clients: the only one, or the web process beside a worker process."""
    with ExitStack() as stack:
        more = {"BACKOFF_MS": "1500", "CONCURRENCY": "1"}
        if request.param != "one process":
            more |= {"REDIS_URL": stack.enter_context(RedisServer()).url}
            stack.enter_context(Service(tmp_path, ai_service.url, ROLE="worker", **more))
            more |= {"ROLE": "web"}
        yield stack.enter_context(Service(tmp_path, ai_service.url, **more))


async def switch(service: Service, what: str) -> None:
    """Pause or resume the queue."""
    async with aiohttp.ClientSession(headers=service.headers("boss", role="admin")) as session:
        async with session.post(f"{service.url}/api/queue/{what}") as reply:
            assert reply.status == 200


@pytest.mark.gen_test(timeout=90)
@pytest.mark.parametrize("way", ["address", "frame", "stream"])
async def test_sockets_that_ask_get_a_frame_for_each_step(service: Service, ai_service: AiService, way: str) -> None:
    """A photo that waits behind another one is queued, started and processed, and each step is a frame.

    A socket that does not ask gets none of these frames, nor does a socket of another user that asks.
    """
    await asyncio.to_thread(ai_service.configure, paused=True)
    async with (
        connected(service, way=way) as socket,
        connected(service) as without_progress,
        connected(service, "user-2", way="address") as other_user,
    ):
        first = await upload(service)
        await socket.until("asset_started", assetId=first, attempt=1, provider="http")
        second, third = await upload(service), await upload(service)
        await socket.until("asset_queued", assetId=third, position=2)
        await asyncio.to_thread(ai_service.configure, paused=False)
        await socket.until("asset_processed", assetId=first)
        await socket.until("asset_processed", assetId=third)
        assert socket.events(second) == ["asset_queued", "asset_started", "asset_processed"]
        frames = await frames_until(without_progress, "asset_processed", 3)
        assert [frame["event"] for frame in frames] == ["asset_processed"] * 3
        assert await progress(service, third) is None
        last = await upload(service, "user-2")
        await other_user.until("asset_processed", assetId=last)
        assert {frame.get("assetId", last) for frame in other_user.frames} == {last}


@pytest.mark.gen_test(timeout=90)
async def test_retry_has_a_frame_with_its_reason_and_time(service: Service, ai_service: AiService) -> None:
    """After a 500 a frame names the failed attempt, the reason and the time of the next one; GET shows the same."""
    await asyncio.to_thread(ai_service.configure, replies=[{"status": 500}])
    async with connected(service, way="address") as socket:
        asset_id = await upload(service)
        frame = await socket.until("asset_retrying", assetId=asset_id)
        found = await progress(service, asset_id, lambda found: found is None or found["state"] == "retrying")
        assert frame["attempt"] == 1 and "after 1 attempt" in frame["reason"] and frame["nextAt"]
        shown = {"state": "retrying", "attempt": 1, "reason": frame["reason"], "nextAt": found["nextAt"]}
        assert found == NOTHING | shown
        assert abs(seconds(found["nextAt"]) - seconds(frame["nextAt"])) < 1
        await socket.until("asset_started", attempt=2)
        await socket.until("asset_processed")
        assert socket.events(asset_id) == ["asset_queued", "asset_started", "asset_retrying", "asset_processed"]


@pytest.mark.gen_test(timeout=90)
async def test_paused_queue_is_shown_with_the_position(service: Service) -> None:
    """Photos of a paused queue are held and have their position, in the list too; after `resume` they are processed."""
    await switch(service, "pause")
    async with connected(service, way="address") as socket:
        ids = [await upload(service) for _ in range(3)]
        held = NOTHING | {"state": "held", "reason": "The queue is paused"}
        for position, asset_id in enumerate(ids, 1):
            assert await progress(service, asset_id) == held | {"position": position}
            frame = await socket.until("asset_held", assetId=asset_id)
            assert frame == {"event": "asset_held", "assetId": asset_id, "reason": held["reason"], "nextAt": None}
        listed = (await asyncio.to_thread(service.get, "/api/assets")).json()
        check_reply("GET", "/api/assets", 200, listed)
        assert [each["progress"]["position"] for each in listed["data"]["items"]] == [3, 2, 1]
        await switch(service, "resume")
        for asset_id in ids:
            await socket.until("asset_processed", assetId=asset_id)
        assert await progress(service, ids[0]) is None


@pytest.mark.gen_test(timeout=90)
async def test_held_provider_is_shown_with_reason_and_time(service: Service, ai_service: AiService) -> None:
    """After a 429 with Retry-After all photos of that provider are held until then, also those that never started."""
    await asyncio.to_thread(ai_service.configure, replies=[{"status": 429, "headers": {"Retry-After": "4"}}])
    async with connected(service, way="address") as socket:
        first, second = await upload(service), await upload(service)
        for asset_id in (first, second):
            frame = await socket.until("asset_held", assetId=asset_id)
            assert frame["reason"] and 0 < seconds(frame["nextAt"]) - time.time() < 5
            found = await progress(service, asset_id)
            assert (found["state"], found["reason"], found["nextAt"]) == ("held", frame["reason"], frame["nextAt"])
            assert found["position"] is None
        await socket.until("asset_processed", assetId=second)


@pytest.mark.gen_test(timeout=90)
async def test_running_photo_is_shown_with_its_provider(service: Service, ai_service: AiService) -> None:
    """GET, without any socket, shows which provider is asked, also when another process calls it."""
    await asyncio.to_thread(ai_service.configure, paused=True)
    asset_id = await upload(service)
    found = await progress(service, asset_id, lambda found: found["provider"] is not None)
    assert found == NOTHING | {"state": "running", "attempt": 1, "provider": "http"}
    await asyncio.to_thread(ai_service.configure, paused=False)
    assert await progress(service, asset_id, lambda found: found is None) is None


@pytest.mark.gen_test(timeout=90)
async def test_deleted_photo_has_a_frame(service: Service) -> None:
    """A socket that asks for progress gets `asset_deleted`; a socket that does not ask gets no such frame."""
    await switch(service, "pause")
    async with connected(service, way="address") as socket, connected(service) as without_progress:
        asset_id = await upload(service)
        await socket.until("asset_held", assetId=asset_id)
        async with aiohttp.ClientSession(headers=service.headers()) as session:
            async with session.delete(f"{service.url}/api/assets/{asset_id}") as reply:
                assert reply.status == 204
        assert await socket.until("asset_deleted") == {"event": "asset_deleted", "assetId": asset_id}
        await switch(service, "resume")
        last = await upload(service)
        await without_progress.until("asset_processed", assetId=last)
        assert [frame["event"] for frame in without_progress.frames] == ["connected", "asset_processed"]


@pytest.mark.gen_test(timeout=90)
async def test_socket_that_connects_later_gets_the_state_of_each_photo(service: Service, ai_service: AiService) -> None:
    """A socket that asks while photos are queued and running gets a frame with the state of each."""
    await asyncio.to_thread(ai_service.configure, paused=True)
    first, second = await upload(service), await upload(service)
    async with connected(service, way="frame") as socket:
        await socket.until("asset_queued", assetId=second, position=1)
        assert "asset_started" in socket.events(first) or await socket.until("asset_started", assetId=first)
        await asyncio.to_thread(ai_service.configure, paused=False)
        await socket.until("asset_processed", assetId=second)


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
async def test_provider_reports_its_progress(tmp_path: Path, provider: str, is_apart: bool) -> None:
    """Reports of a provider, on the loop or in a thread, become frames, two a second at most, and GET shows them."""
    packages = install(tmp_path / "packages", reporting=textwrap.dedent(REPORTING))
    with ExitStack() as stack:
        more = packages | {"AI_PROVIDER": provider}
        if is_apart:
            more |= {"REDIS_URL": stack.enter_context(RedisServer()).url}
            stack.enter_context(Service(tmp_path / "data", ROLE="worker", **more))
            more |= {"ROLE": "web"}
        service = stack.enter_context(Service(tmp_path / "data", **more))
        async with connected(service, way="address") as socket:
            asset_id = await upload(service)
            found = await progress(service, asset_id, lambda found: found["share"] == 1)
            assert found == NOTHING | {"state": "running", "attempt": 1, "provider": provider, "share": 1}
            await socket.until("asset_processed")
    reports = [frame for frame in socket.frames if frame["event"] == "asset_progress"]
    nike = {"brand": {"value": "Nike", "confidence": 0.5}}
    assert [(frame["share"], frame.get("partial")) for frame in reports] == [(0.25, nike), (1, None)]


@pytest.mark.gen_test(timeout=120)
async def test_assets_are_shown_without_redis(tmp_path: Path, ai_service: AiService) -> None:
    """While Redis is down GET shows what the document says, without delay; later the position is back."""
    await asyncio.to_thread(ai_service.configure, paused=True)
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
    """With MongoDB as the asset store, frames and GET show the same as with SQLite."""
    await asyncio.to_thread(ai_service.configure, paused=True)
    with Service(tmp_path, ai_service.url, MONGODB_URI=mongo_uri, CONCURRENCY="1") as service:
        async with connected(service, way="address") as socket:
            first, second = await upload(service), await upload(service)
            await socket.until("asset_queued", assetId=second, position=1)
            assert await progress(service, first) == NOTHING | {"state": "running", "attempt": 1, "provider": "http"}
            await asyncio.to_thread(ai_service.configure, paused=False)
            await socket.until("asset_processed", assetId=second)
