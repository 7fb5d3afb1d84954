"""The event stream on real sockets: tokens, tickets, origins, the frames, and the protocol of HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import datetime

import pytest

from pipeline.assets.asset import to_timestamp
from pipeline.clock import utc_now
from tests.factories import make_token
from tests.integration.event_streams import PATH, begin_raw, make_ticket, publish, read_all, refusal
from tests.integration.missed_events import SECOND
from tests.redis_server import RedisServer
from tests.sockets import WAIT_SECONDS, Process, make_event


@pytest.mark.gen_test(timeout=30)
async def test_stream_carries_the_frames_of_the_socket(redis_url: str) -> None:
    """The stream carries the frames of the user's room, each with its cursor, and no event of another user."""
    async with Process(redis_url) as process:
        before = utc_now()
        stream, socket = await process.stream(), await process.connect()
        headers = stream.reply.headers
        assert headers["Content-Type"] == "text/event-stream"
        assert headers["Cache-Control"] == "no-store, no-transform"
        assert headers["X-Accel-Buffering"] == "no"
        assert before <= datetime.fromisoformat(stream.last_id) <= utc_now()
        assert process.count("sockets_open", transport="sse") == 1
        await publish(process, 1, "user-2")
        event = await publish(process, 2, timestamp=to_timestamp(utc_now() + SECOND))
        assert await stream.frame() == await socket.frame() == event
        assert stream.last_id == event["timestamp"]
        assert process.count("http_requests_total", route=PATH, method="GET", status="200") == 1


@pytest.mark.gen_test(timeout=30)
async def test_plugin_event_with_the_name_of_the_close_frame_ends_no_stream(redis_url: str) -> None:
    """The stream sends an event `goodbye` of a plugin as data, and then the next event."""
    async with Process(redis_url) as process:
        stream = await process.stream()
        await process.fanout.publish("user:user-1", {"event": "goodbye", "of": "a plugin"})
        assert json.loads((await stream.block())["data"]) == {"event": "goodbye", "of": "a plugin"}
        event = await publish(process, 1)
        assert await stream.frame() == event


@pytest.mark.gen_test(timeout=30)
async def test_stream_without_a_good_token_is_refused(redis_url: str) -> None:
    """The reply is 401 with an error; a token in the URL or in a cookie does not count."""
    async with Process(redis_url) as process:
        for options in (
            {},
            {"headers": {"Authorization": "Basic YTpi"}},
            {"params": {"token": make_token()}},
            {"cookies": {"token": make_token()}},
        ):
            assert (await refusal(process, 401, **options))["message"] == "Authentication required"
        for value in ("x", make_token(expires_in=-60)):
            headers = {"Authorization": f"Bearer {value}"}
            assert (await refusal(process, 401, headers=headers))["message"] == "Invalid token"
        assert process.rooms.connections == set()


@pytest.mark.fault("R9")
@pytest.mark.gen_test(timeout=30)
async def test_token_that_is_not_valid_yet_gets_retry_after(redis_url: str) -> None:
    """The reply is 401 with Retry-After."""
    async with Process(redis_url) as process:
        headers = {"Authorization": f"Bearer {make_token(nbf=time.time() + 60)}"}
        async with process.session.get(process.events_url, headers=headers) as reply:
            assert (reply.status, 50 < int(reply.headers["Retry-After"]) <= 60) == (401, True)


@pytest.mark.gen_test(timeout=30)
async def test_page_of_a_foreign_origin_is_refused(redis_url: str) -> None:
    """A foreign origin gets 403, as on the socket; an allowed origin gets the CORS headers."""
    async with Process(redis_url, allowed_origins=("https://app.example",)) as process:
        assert (await refusal(process, 403, headers={"Origin": "https://evil.example"}))["code"] == "FORBIDDEN"
        stream = await process.stream(headers={"Origin": "https://app.example"})
        assert stream.reply.headers["Access-Control-Allow-Origin"] == "https://app.example"


@pytest.mark.gen_test(timeout=30)
async def test_ticket_opens_one_stream_of_its_user(redis_url: str) -> None:
    """A ticket opens a stream on any process, once; a used ticket and an unknown one get 401."""
    async with Process(redis_url) as process, Process(redis_url) as other:
        made = await make_ticket(process, sub="ann")
        stream = await other.open_stream(params={"ticket": made})
        assert (await stream.frame())["room"] == "user:ann"
        for used in (made, "x", "", "a" * 43, "*" * 43):
            assert await refusal(process, 401, params={"ticket": used})
        assert await refusal(process, 401, "POST", "/ticket")


@pytest.mark.gen_test(timeout=30)
async def test_ticket_opens_one_of_many_concurrent_streams(redis_url: str) -> None:
    """Of twenty requests at the same time with one ticket, one opens a stream and the others get 401."""
    async with Process(redis_url) as process:
        made = await make_ticket(process)
        requests = [process.session.get(process.events_url, params={"ticket": made}) for _ in range(20)]
        replies = await asyncio.gather(*requests)
        assert sorted(reply.status for reply in replies) == [200] + [401] * 19
        for reply in replies:
            reply.close()


@pytest.mark.gen_test(timeout=30)
async def test_ticket_expires_with_its_token_at_the_latest(redis_server: RedisServer, redis_url: str) -> None:
    """A ticket expires in Redis after 30 s; a stream that it opened ends when the token expires."""
    async with Process(redis_url) as process:
        made = await make_ticket(process)
        (key,) = redis_server.client().keys("*ticket*")
        assert 0 < redis_server.client().ttl(key) <= 30
        redis_server.client().expire(key, 0)
        assert await refusal(process, 401, params={"ticket": made})
        short = await make_ticket(process, expires_in=2)
        stream = await process.open_stream(params={"ticket": short})
        assert [frame["event"] for frame in await stream.frames(2)] == ["connected", "error"]
        assert await stream.code() == 4419


@pytest.mark.gen_test(timeout=30)
async def test_tickets_need_redis(own_redis: RedisServer) -> None:
    """Without Redis a request with a ticket gets 503; a stream with a token in the header opens."""
    async with Process(own_redis.url) as process:
        made = await make_ticket(process)
        own_redis.stop()
        headers = {"Authorization": f"Bearer {make_token()}"}
        assert (await refusal(process, 503, "POST", "/ticket", headers=headers))["code"] == "UNAVAILABLE"
        assert (await refusal(process, 503, params={"ticket": made}))["code"] == "UNAVAILABLE"
        stream = await process.stream()
        await publish(process, 1)
        assert await stream.frame() == make_event(1)
        own_redis.start()


@pytest.mark.gen_test(timeout=30)
async def test_old_protocol_gets_no_chunks(redis_url: str) -> None:
    """A reply over HTTP/1.0 has no chunks and ends when the connection closes."""
    async with Process(redis_url) as process:
        raw = await begin_raw(process, version="1.0")
        await process.admission.drain(WAIT_SECONDS)
        received = await read_all(raw)
        raw.close()
        assert b"chunked" not in received.lower()
        body = received.partition(b"\r\n\r\n")[2].decode()
        assert re.fullmatch(r"(?:(?:[a-z]+: .*\n)+\n){3}", body), body


@pytest.mark.gen_test(timeout=30)
async def test_other_methods_of_the_stream(redis_url: str) -> None:
    """HEAD and POST get 405 at once; a preflight names the headers that may be sent."""
    async with Process(redis_url, allowed_origins=("https://app.example",)) as process:
        async with process.session.head(process.events_url) as reply:
            assert (reply.status, reply.headers["Allow"]) == (405, "GET, OPTIONS")
        async with process.session.options(process.events_url, headers={"Origin": "https://app.example"}) as reply:
            assert reply.status == 204
            assert {"Authorization", "Last-Event-ID"} <= set(reply.headers["Access-Control-Allow-Headers"].split(", "))
        assert await refusal(process, 405, "POST")
