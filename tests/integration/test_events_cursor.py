"""The cursor of the event stream: replay, heartbeats, and cursors that are malformed or in the future."""

from __future__ import annotations

import asyncio

import pytest

import pipeline.handlers.events
from pipeline.assets.asset import to_timestamp
from pipeline.clock import utc_now
from tests.factories import make_token
from tests.integration.event_streams import publish, refusal
from tests.integration.missed_events import NOON, SECOND, finish
from tests.redis_server import RedisServer
from tests.sockets import WAIT_SECONDS, Process


@pytest.mark.parametrize("way", ["since", "Last-Event-ID", "both"])
@pytest.mark.gen_test(timeout=30)
async def test_stream_replays_what_was_missed(redis_url: str, way: str) -> None:
    """The stream sends the missed events first; `connected` has no cursor while events are still to be sent."""
    async with Process(redis_url) as process:
        missed = [await finish(process, seconds) for seconds in (0, 10, 20)]
        since = to_timestamp(NOON + 5 * SECOND) or ""
        stream = await process.stream(
            since={"since": since, "both": to_timestamp(NOON + 3600 * SECOND) or ""}.get(way, ""),
            headers={} if way == "since" else {"Last-Event-ID": since},
        )
        assert stream.last_id == ""
        assert await stream.frames(3) == missed
        assert stream.last_id == missed[-1]["timestamp"]


@pytest.mark.gen_test(timeout=30)
async def test_cursor_never_goes_back(redis_url: str) -> None:
    """A late event, and an event of a plugin with an invalid timestamp or name, do not change the cursor."""
    async with Process(redis_url) as process:
        stream = await process.stream()
        late = to_timestamp(utc_now() - 10 * SECOND)
        connected_id = stream.last_id
        assert await publish(process, 1, timestamp=late) == await stream.frame()
        assert stream.last_id == connected_id
        await process.fanout.publish("user:user-1", {"event": "a\nid: x", "timestamp": "9\n\nid: y", "text": "\ud800"})
        fields = await stream.block()
        assert fields.keys() == {"data"}
        await process.fanout.publish("user:user-1", {"text": "no event"})
        assert await stream.block() == {"data": '{"text":"no event"}'}


@pytest.mark.fault("R7")
@pytest.mark.gen_test(timeout=30)
async def test_cursor_in_the_future_is_a_resync(redis_url: str) -> None:
    """A cursor that is ahead of the server's time gets the frame `resync`, as on the socket."""
    async with Process(redis_url) as process:
        stream = await process.stream(since=to_timestamp(utc_now() + 3600 * SECOND) or "")
        assert await stream.frame() == {"event": "resync"}


@pytest.mark.parametrize("text", ["yesterday", "2026-01-31T12:00:00", "%00", "9" * 3000, "é"])
@pytest.mark.gen_test(timeout=30)
async def test_malformed_cursor_is_refused(redis_url: str, text: str) -> None:
    """The reply is 400 and names the field; an empty Last-Event-ID counts as no cursor."""
    async with Process(redis_url) as process:
        headers = {"Authorization": f"Bearer {make_token()}"}
        for options in ({"params": {"since": text}}, {"headers": {"Last-Event-ID": text.replace("é", "x")}}):
            error = await refusal(process, 400, **options | {"headers": options.get("headers", {}) | headers})
            assert error["details"][0]["field"] in ("since", "Last-Event-ID")
        await process.stream(headers={"Last-Event-ID": ""})


@pytest.mark.gen_test(timeout=30)
async def test_heartbeat_keeps_the_cursor_fresh(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat has the server's time as cursor, except while the process gets no events of other processes."""
    monkeypatch.setattr(pipeline.handlers.events, "HEARTBEAT_SECONDS", 0.1)
    async with Process(own_redis.url) as process:
        stream = await process.stream()
        first = await stream.block()
        assert first.keys() == {"", "id"} and first["id"] >= stream.last_id
        own_redis.stop()
        async with asyncio.timeout(WAIT_SECONDS):
            while "id" in await stream.block():
                pass
        own_redis.start()
        async with asyncio.timeout(WAIT_SECONDS):
            while "id" not in await stream.block():
                pass
