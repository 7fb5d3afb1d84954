"""The end of event streams: drains, disconnected clients, streams that are not read, and limits of connections."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest
import structlog

import pipeline.handlers.events
from pipeline.assets.asset import to_timestamp
from pipeline.auth import Principal
from pipeline.errors import DependencyUnavailable
from pipeline.handlers.events import EventsHandler
from pipeline.rooms.tickets import Tickets
from pipeline.usecases.replay import Replay
from tests.factories import make_token
from tests.integration.event_streams import PATH, begin_raw, last_code, make_ticket, publish, refusal
from tests.integration.missed_events import NOON
from tests.raw_sockets import reset
from tests.sockets import WAIT_SECONDS, Process, make_event


@pytest.mark.gen_test(timeout=30)
async def test_drain_closes_streams_with_a_retry_time(redis_url: str) -> None:
    """Each stream gets `goodbye` with `retry:`, then the close event 1012; a new stream gets 503."""
    async with Process(redis_url) as process:
        streams = [await process.stream() for _ in range(3)]
        await process.admission.drain(WAIT_SECONDS)
        for stream in streams:
            assert await stream.frame() == {"event": "goodbye", "retryInMs": stream.retry_ms}
            assert await stream.code() == 1012
        headers = {"Authorization": f"Bearer {make_token()}"}
        assert (await refusal(process, 503, headers=headers))["code"] == "UNAVAILABLE"


@pytest.mark.gen_test(timeout=30)
async def test_stream_of_a_disconnected_client_is_closed(redis_url: str) -> None:
    """A client closes the stream, resets the connection, or sends a second request: each stream ends with 1006."""
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
async def test_client_that_disconnects_during_the_lookup_of_its_ticket_is_removed(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection of the client is removed, and no error is logged."""
    requested, disconnected = asyncio.Event(), asyncio.Event()
    take, close = Tickets.take, EventsHandler.on_connection_close

    async def take_late(self: Tickets, ticket: str) -> Principal | None:
        requested.set()
        await disconnected.wait()
        return await take(self, ticket)

    def on_connection_close(self: EventsHandler) -> None:
        close(self)
        disconnected.set()

    monkeypatch.setattr(Tickets, "take", take_late)
    monkeypatch.setattr(EventsHandler, "on_connection_close", on_connection_close)
    async with Process(redis_url) as process:
        raw, loop = process.tcp(), asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", process.port))
        made = await make_ticket(process)
        await loop.sock_sendall(raw, f"GET {PATH}?ticket={made} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await requested.wait()
        with structlog.testing.capture_logs() as logs:
            reset(raw)
            await disconnected.wait()
            while not any(line["event"] == "stream_closed" for line in logs):
                await asyncio.sleep(0.01)
        assert [line for line in logs if line["log_level"] == "error"] == []
        assert process.rooms.connections == set()
        assert process.rooms.names() == []
        assert process.count("sockets_closed_total", code="1006") == 1


@pytest.mark.gen_test(timeout=30)
async def test_client_that_disconnects_before_a_refusal_is_counted_once(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store fails after the client has disconnected: the stream counts as closed once."""
    requested, over = asyncio.Event(), asyncio.Event()

    async def read(self: Replay, user_id: str, since: datetime) -> list[bytes]:
        requested.set()
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
        await requested.wait()
        reset(raw)
        await over.wait()
        assert process.count("sockets_closed_total", code="1006") == 1


@pytest.mark.gen_test(timeout=60)
async def test_stream_that_is_not_read_is_ended(redis_url: str) -> None:
    """The outbox of the stream is limited and delays no other stream; unread events keep no connection open."""
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
    """A stream that accepts no byte during one heartbeat interval is closed with 4503."""
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
async def test_new_connection_of_a_user_closes_the_oldest(redis_url: str) -> None:
    """Streams and sockets of a user have one limit; over it, the oldest of the streams that are read is closed."""
    async with Process(redis_url, max_sockets_per_user=2) as process:
        oldest, other = await process.stream(), await process.stream()
        await process.stream("user-2")
        newest = await process.connect()
        reading = asyncio.ensure_future(newest.frame())  # Reading also answers pings.
        frames = []
        while not frames or frames[-1]["event"] != "error":
            fields = await oldest.block()  # Some blocks are heartbeats.
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
async def test_unread_streams_are_closed_first(redis_url: str) -> None:
    """A stream has no ping: bytes that the client's system does not acknowledge show that no client reads it."""
    async with Process(redis_url, max_sockets_per_user=2) as process:
        alive, unread = await process.stream(), await begin_raw(process)
        for number in range(30):  # More than the buffers of the two systems, and less than an outbox.
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
        unread.close()


@pytest.mark.gen_test(timeout=30)
async def test_full_process_refuses_streams(redis_url: str) -> None:
    """A stream over the limit of connections gets 503."""
    async with Process(redis_url, max_sockets=1) as process:
        await process.connect()
        headers = {"Authorization": f"Bearer {make_token('user-2')}"}
        assert (await refusal(process, 503, headers=headers))["message"] == "Too many connections"
        assert len(process.rooms.connections) == 1


@pytest.mark.gen_test(timeout=60)
async def test_a_thousand_streams_are_served(redis_url: str) -> None:
    """Each stream gets the event of its own user, and all streams get the close event when the process drains."""
    async with Process(redis_url) as process:
        streams = await asyncio.gather(*(process.stream(f"u{number}") for number in range(1000)))
        for number in range(1000):
            await process.fanout.publish(f"user:u{number}", make_event(number))
        frames = await asyncio.gather(*(stream.frame() for stream in streams))
        assert [frame["assetId"] for frame in frames] == [f"{number:024x}" for number in range(1000)]
        await process.admission.drain(WAIT_SECONDS)
        assert await asyncio.gather(*(last_code(stream) for stream in streams)) == [1012] * 1000
