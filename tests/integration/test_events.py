"""The event stream on real sockets: who gets in, what it carries, the cursor, and how each stream ends."""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import datetime
from typing import Any

import pytest
import structlog

import pipeline.handlers.events
from pipeline.assets.asset import to_timestamp
from pipeline.auth import Principal
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.handlers.events import EventsHandler
from pipeline.rooms.tickets import Tickets
from pipeline.usecases.replay import Replay
from tests.contract import contracts
from tests.factories import make_token
from tests.integration.test_replay import NOON, SECOND, finish
from tests.raw_sockets import reset
from tests.redis_server import RedisServer
from tests.sockets import WAIT_SECONDS, Process, Stream, make_event

PATH = "/api/events"


async def publish(process: Process, number: int, sub: str = "user-1", **fields: Any) -> dict[str, Any]:
    event = make_event(number) | fields
    await process.fanout.publish(f"user:{sub}", event)
    return event


async def refusal(process: Process, status: int, method: str = "GET", path: str = "", **options: Any) -> dict[str, Any]:
    """Return the error of a request that is refused with that status, as the contract has it."""
    async with process.session.request(method, process.events_url + path, **options) as reply:
        assert reply.status == status, await reply.text()
        body = await reply.json()
        contracts.check_reply(method, PATH + path, status, body, reply.headers)
        error: dict[str, Any] = body["error"]
        return error


async def ticket(process: Process, **claims: Any) -> str:
    headers = {"Authorization": f"Bearer {make_token(**claims)}"}
    async with process.session.post(process.events_url + "/ticket", headers=headers) as reply:
        body = await reply.json()
        contracts.check_reply("POST", PATH + "/ticket", reply.status, body, reply.headers)
        return str(body["data"]["ticket"])


# who gets in


@pytest.mark.gen_test(timeout=30)
async def test_stream_carries_the_frames_of_the_socket(redis_url: str) -> None:
    """Same room, same frames, each with the cursor to come back with; other users' events stay theirs."""
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
async def test_goodbye_of_a_plugin_is_an_event_like_any_other(redis_url: str) -> None:
    """Of whatever shape: the stream goes on."""
    async with Process(redis_url) as process:
        stream = await process.stream()
        await process.fanout.publish("user:user-1", {"event": "goodbye", "of": "a plugin"})
        assert json.loads((await stream.block())["data"]) == {"event": "goodbye", "of": "a plugin"}
        event = await publish(process, 1)
        assert await stream.frame() == event


@pytest.mark.gen_test(timeout=30)
async def test_stream_without_a_good_token_is_refused(redis_url: str) -> None:
    """Before it begins, in the envelope: a token in the address is none, a cookie is none."""
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
async def test_token_that_is_not_valid_yet_says_when(redis_url: str) -> None:
    """401 with Retry-After."""
    async with Process(redis_url) as process:
        headers = {"Authorization": f"Bearer {make_token(nbf=time.time() + 60)}"}
        async with process.session.get(process.events_url, headers=headers) as reply:
            assert (reply.status, 50 < int(reply.headers["Retry-After"]) <= 60) == (401, True)


@pytest.mark.gen_test(timeout=30)
async def test_page_of_a_foreign_origin_is_refused(redis_url: str) -> None:
    """As on the socket; an allowed one gets the CORS headers."""
    async with Process(redis_url, allowed_origins=("https://app.example",)) as process:
        assert (await refusal(process, 403, headers={"Origin": "https://evil.example"}))["code"] == "FORBIDDEN"
        stream = await process.stream(headers={"Origin": "https://app.example"})
        assert stream.reply.headers["Access-Control-Allow-Origin"] == "https://app.example"


@pytest.mark.gen_test(timeout=30)
async def test_ticket_stands_for_its_user_once(redis_url: str) -> None:
    """On any process; a second time it is refused, as is what never was a ticket."""
    async with Process(redis_url) as process, Process(redis_url) as other:
        made = await ticket(process, sub="ann")
        stream = await other.open_stream(params={"ticket": made})
        assert (await stream.frame())["room"] == "user:ann"
        for used in (made, "x", "", "a" * 43, "*" * 43):
            assert await refusal(process, 401, params={"ticket": used})
        assert await refusal(process, 401, "POST", "/ticket")


@pytest.mark.gen_test(timeout=30)
async def test_ticket_is_good_for_one_of_many_at_once(redis_url: str) -> None:
    """Reading removes it."""
    async with Process(redis_url) as process:
        made = await ticket(process)
        asked = [process.session.get(process.events_url, params={"ticket": made}) for _ in range(20)]
        replies = await asyncio.gather(*asked)
        assert sorted(reply.status for reply in replies) == [200] + [401] * 19
        for reply in replies:
            reply.close()


@pytest.mark.gen_test(timeout=30)
async def test_ticket_lives_for_seconds_and_no_longer_than_its_token(redis_server: RedisServer, redis_url: str) -> None:
    """Redis forgets it; a stream it opened ends when the token does."""
    async with Process(redis_url) as process:
        made = await ticket(process)
        (key,) = redis_server.client().keys("*ticket*")
        assert 0 < redis_server.client().ttl(key) <= 30
        redis_server.client().expire(key, 0)
        assert await refusal(process, 401, params={"ticket": made})
        short = await ticket(process, expires_in=2)
        stream = await process.open_stream(params={"ticket": short})
        assert [frame["event"] for frame in await stream.frames(2)] == ["connected", "error"]
        assert await stream.code() == 4419


@pytest.mark.gen_test(timeout=30)
async def test_tickets_need_redis(own_redis: RedisServer) -> None:
    """503 with Retry-After while it is away; a token in the header needs none."""
    async with Process(own_redis.url) as process:
        made = await ticket(process)
        own_redis.stop()
        headers = {"Authorization": f"Bearer {make_token()}"}
        assert (await refusal(process, 503, "POST", "/ticket", headers=headers))["code"] == "UNAVAILABLE"
        assert (await refusal(process, 503, params={"ticket": made}))["code"] == "UNAVAILABLE"
        stream = await process.stream()
        await publish(process, 1)
        assert await stream.frame() == make_event(1)
        own_redis.start()


# the cursor


@pytest.mark.parametrize("way", ["since", "Last-Event-ID", "both"])
@pytest.mark.gen_test(timeout=30)
async def test_stream_replays_what_was_missed(redis_url: str, way: str) -> None:
    """`connected` does not move the cursor of a client that has yet to get what it missed."""
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
    """Neither for an event that was told late, nor for one that a plugin gave an odd timestamp or name."""
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
    """As on the socket, and the server's later events move no cursor that is ahead of them."""
    async with Process(redis_url) as process:
        stream = await process.stream(since=to_timestamp(utc_now() + 3600 * SECOND) or "")
        assert await stream.frame() == {"event": "resync"}


@pytest.mark.parametrize("text", ["yesterday", "2026-01-31T12:00:00", "%00", "9" * 3000, "é"])
@pytest.mark.gen_test(timeout=30)
async def test_malformed_cursor_is_refused(redis_url: str, text: str) -> None:
    """400 names where it stood; an empty Last-Event-ID is none."""
    async with Process(redis_url) as process:
        headers = {"Authorization": f"Bearer {make_token()}"}
        for options in ({"params": {"since": text}}, {"headers": {"Last-Event-ID": text.replace("é", "x")}}):
            error = await refusal(process, 400, **options | {"headers": options.get("headers", {}) | headers})
            assert error["details"][0]["field"] in ("since", "Last-Event-ID")
        await process.stream(headers={"Last-Event-ID": ""})


@pytest.mark.gen_test(timeout=30)
async def test_heartbeat_keeps_the_cursor_fresh(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the server's time, unless something may be on its way: not while other processes are not heard."""
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


# how it ends


@pytest.mark.gen_test(timeout=30)
async def test_drain_says_goodbye_to_streams(redis_url: str) -> None:
    """`goodbye` with `retry:`, then the close event with 1012 and the end; nobody begins meanwhile."""
    async with Process(redis_url) as process:
        streams = [await process.stream() for _ in range(3)]
        await process.admission.drain(WAIT_SECONDS)
        for stream in streams:
            goodbye = await stream.frame()
            assert goodbye == {"event": "goodbye", "retryInMs": stream.retry_ms}
            assert await stream.code() == 1012
        headers = {"Authorization": f"Bearer {make_token()}"}
        assert (await refusal(process, 503, headers=headers))["code"] == "UNAVAILABLE"


@pytest.mark.gen_test(timeout=30)
async def test_client_that_leaves_is_noticed(redis_url: str) -> None:
    """Orderly, by a reset, and one that talks where it should listen."""
    async with Process(redis_url) as process:
        stream = await process.stream()
        stream.reply.close()
        await process.wait_closed()
        raw = await begin_raw(process)
        reset(raw)
        await process.wait_closed()
        raw = await begin_raw(process)
        await asyncio.get_running_loop().sock_sendall(raw, b"GET / HTTP/1.1\r\n\r\n")
        await process.wait_closed()
        raw.close()
        assert process.rooms.names() == []
        assert process.count("sockets_closed_total", code="1006") == 3


@pytest.mark.gen_test(timeout=30)
async def test_client_that_vanishes_while_its_ticket_is_looked_up_is_forgotten(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves no connection behind, and an error is nobody's to log."""
    asked, gone = asyncio.Event(), asyncio.Event()
    take, vanish = Tickets.take, EventsHandler.on_connection_close

    async def take_late(self: Tickets, ticket: str) -> Principal | None:
        asked.set()
        await gone.wait()
        return await take(self, ticket)

    def on_connection_close(self: EventsHandler) -> None:
        vanish(self)
        gone.set()

    monkeypatch.setattr(Tickets, "take", take_late)
    monkeypatch.setattr(EventsHandler, "on_connection_close", on_connection_close)
    async with Process(redis_url) as process:
        raw, loop = process.tcp(), asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", process.port))
        made = await ticket(process)
        await loop.sock_sendall(raw, f"GET {PATH}?ticket={made} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await asked.wait()
        with structlog.testing.capture_logs() as logs:
            reset(raw)
            await gone.wait()
            while not any(line["event"] == "stream_closed" for line in logs):
                await asyncio.sleep(0.01)
        assert [line for line in logs if line["log_level"] == "error"] == []
        assert process.rooms.connections == set()
        assert process.rooms.names() == []
        assert process.count("sockets_closed_total", code="1006") == 1


@pytest.mark.gen_test(timeout=30)
async def test_client_that_vanishes_before_a_refusal_is_counted_once(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its store fails when it is gone already."""
    asked, over = asyncio.Event(), asyncio.Event()

    async def read(self: Replay, user_id: str, since: datetime) -> list[bytes]:
        asked.set()
        while process.rooms.connections:
            await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_soon(over.set)
        raise DependencyUnavailable("The store is away")

    monkeypatch.setattr(Replay, "read", read)
    async with Process(redis_url) as process:
        raw, loop = process.tcp(), asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", process.port))
        head = (f"GET {PATH}?since={to_timestamp(NOON)} HTTP/1.1", f"Authorization: Bearer {make_token()}", "Host: x")
        await loop.sock_sendall(raw, "\r\n".join((*head, "", "")).encode())
        await asked.wait()
        reset(raw)
        await over.wait()
        assert process.count("sockets_closed_total", code="1006") == 1


@pytest.mark.gen_test(timeout=60)
async def test_stream_that_is_not_read_is_ended(redis_url: str) -> None:
    """Its outbox is bounded, nobody waits for it; what it left unread does not keep its connection."""
    async with Process(redis_url) as process:
        raw, quick = await begin_raw(process), await process.stream()
        for number in range(2000):
            await process.fanout.publish("user:user-1", make_event(number, "x" * 4000))
            assert (await quick.frame())["assetId"] == f"{number:024x}"
            assert process.rooms.outbox_bytes < 3 * process.settings.outbox_bytes
        await process.wait_closed(1)
        assert process.count("sockets_closed_total", code="4503") == 1
        raw.close()


@pytest.mark.gen_test(timeout=30)
async def test_stream_stuck_on_one_frame_is_ended(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little it is sent: a whole heartbeat without taking a byte."""
    monkeypatch.setattr(pipeline.handlers.events, "HEARTBEAT_SECONDS", 0.2)
    async with Process(redis_url) as process:
        raw = await begin_raw(process)
        for number in range(100):
            await process.fanout.publish("user:user-1", make_event(number, "x" * 4000))
        await process.wait_closed()
        assert process.count("sockets_closed_total", code="4503") == 1
        raw.close()


@pytest.mark.fault("R6")
@pytest.mark.gen_test(timeout=30)
async def test_newest_stream_of_a_user_wins(redis_url: str) -> None:
    """Streams and sockets count together; a stream whose client's system acknowledges is alive, the oldest goes."""
    async with Process(redis_url, max_sockets_per_user=2) as process:
        oldest, other = await process.stream(), await process.stream()
        await process.stream("user-2")
        newest = await process.connect()
        reading = asyncio.ensure_future(newest.frame())  # also answers pings
        frames = []
        while not frames or frames[-1]["event"] != "error":
            fields = await oldest.block()  # heartbeats among them
            frames += [fields["event"]] and [{"event": fields["event"]}] if "event" in fields else []
        assert [frame["event"] for frame in frames] == ["goodbye", "error"]
        assert await oldest.code() == 1013
        await publish(process, 1)
        assert await reading == make_event(1)
        while "event" not in (fields := await other.block()):
            pass
        assert fields["event"] == "asset_processed"


@pytest.mark.fault("R6")
@pytest.mark.gen_test(timeout=30)
async def test_streams_that_nobody_reads_any_more_make_room_first(redis_url: str) -> None:
    """A stream has no ping: what its client's system does not acknowledge tells that it is a ghost."""
    async with Process(redis_url, max_sockets_per_user=2) as process:
        alive, ghost = await process.stream(), await begin_raw(process)
        for number in range(30):  # more than the two systems hold, and less than an outbox
            await publish(process, number, error="x" * 20_000)
        assert [frame["assetId"][-2:] for frame in await alive.frames(30)][-1] == "1d"
        newest = await process.stream()
        await process.wait_closed(2)
        assert process.count("sockets_closed_total", code="4504") == 1
        await publish(process, 99)
        for stream in (alive, newest):
            while "event" not in (fields := await stream.block()):
                pass
            assert fields["event"] == "asset_processed"
        ghost.close()


@pytest.mark.gen_test(timeout=30)
async def test_process_that_is_full_sends_streams_elsewhere(redis_url: str) -> None:
    """503 with Retry-After."""
    async with Process(redis_url, max_sockets=1) as process:
        await process.connect()
        headers = {"Authorization": f"Bearer {make_token('user-2')}"}
        assert (await refusal(process, 503, headers=headers))["message"] == "Too many connections"
        assert len(process.rooms.connections) == 1


@pytest.mark.gen_test(timeout=60)
async def test_a_thousand_streams_are_served(redis_url: str) -> None:
    """Each hears its own user's event; all are told when the process goes away."""
    async with Process(redis_url) as process:
        streams = await asyncio.gather(*(process.stream(f"u{number}") for number in range(1000)))
        for number in range(1000):
            await process.fanout.publish(f"user:u{number}", make_event(number))
        heard = await asyncio.gather(*(stream.frame() for stream in streams))
        assert [frame["assetId"] for frame in heard] == [f"{number:024x}" for number in range(1000)]
        await process.admission.drain(WAIT_SECONDS)
        assert await asyncio.gather(*(last_code(stream) for stream in streams)) == [1012] * 1000


# the protocol


@pytest.mark.gen_test(timeout=30)
async def test_old_protocol_gets_no_chunks(redis_url: str) -> None:
    """HTTP/1.0 ends with the connection."""
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
    """HEAD and POST are answered, not held; a preflight names what may be sent."""
    async with Process(redis_url, allowed_origins=("https://app.example",)) as process:
        async with process.session.head(process.events_url) as reply:
            assert (reply.status, reply.headers["Allow"]) == (405, "GET, OPTIONS")
        async with process.session.options(process.events_url, headers={"Origin": "https://app.example"}) as reply:
            assert reply.status == 204
            assert {"Authorization", "Last-Event-ID"} <= set(reply.headers["Access-Control-Allow-Headers"].split(", "))
        assert await refusal(process, 405, "POST")


async def begin_raw(process: Process, version: str = "1.1") -> Any:
    """Open a stream on a TCP connection that does only what the test does; return it after `connected`."""
    loop = asyncio.get_running_loop()
    raw = process.tcp()
    await loop.sock_connect(raw, ("127.0.0.1", process.port))
    head = f"GET {PATH} HTTP/{version}\r\nHost: x\r\nAuthorization: Bearer {make_token()}\r\n\r\n"
    await loop.sock_sendall(raw, head.encode())
    begun = asyncio.Event()
    while not begun.is_set():
        if any(connection.is_started for connection in process.rooms.members("user:user-1")):
            begun.set()
        await asyncio.sleep(0.01)
    return raw


async def read_all(raw: Any) -> bytes:
    received = b""
    while chunk := await asyncio.get_running_loop().sock_recv(raw, 1 << 20):
        received += chunk
    return received


async def last_code(stream: Stream) -> int:
    assert (await stream.frame())["event"] == "goodbye"
    return await stream.code()
