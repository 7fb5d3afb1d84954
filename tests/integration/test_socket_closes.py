"""The WebSocket border on real sockets: how long a socket stays open, and what closes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import aiohttp
import pytest

import pipeline.handlers.socket
from tests.constants import PING_SECONDS, PONG_SECONDS
from tests.factories import make_token
from tests.integration.socket_border import LogLines, lines_without_errors, publish
from tests.slowdown import slowdown
from tests.raw_sockets import read_raw, reset
from tests.sockets import WAIT_SECONDS, Process, make_event


@pytest.fixture(autouse=True)
def log_lines(caplog: pytest.LogCaptureFixture) -> Iterator[LogLines]:
    """The log lines of the service; no test of this file may cause a line at error level."""
    with lines_without_errors(caplog) as lines:
        yield lines


@pytest.mark.gen_test(timeout=30)
async def test_expired_token_ends_the_connection(redis_url: str) -> None:
    """When its token expires a socket gets `Token expired` and 4419."""
    async with Process(redis_url) as process:
        expires_at = int(time.time()) + 2
        client = await process.open(headers={"Authorization": f"Bearer {make_token(exp=expires_at)}"})
        assert (await client.frame())["event"] == "connected"
        assert await client.frame() == {"event": "error", "message": "Token expired"}
        assert 0 <= time.time() - expires_at < 1
        assert await client.code() == 4419


@pytest.mark.gen_test(timeout=30)
async def test_renewed_token_changes_the_expiry(redis_url: str) -> None:
    """Another token of the same user replaces the expiry, later or earlier, and no frame is sent."""
    async with Process(redis_url) as process:
        expires_at = int(time.time()) + 2
        renewed = await process.open(headers={"Authorization": f"Bearer {make_token(exp=expires_at)}"})
        shortened = await process.connect()
        await renewed.send({"auth": {"token": make_token(expires_in=300)}})
        await shortened.send({"auth": {"token": make_token(exp=expires_at)}})
        assert await shortened.frame() == {"event": "error", "message": "Token expired"}
        await publish(process, 1)
        assert [frame["event"] for frame in await renewed.frames(2)] == ["connected", "asset_processed"]


@pytest.mark.gen_test(timeout=30)
@pytest.mark.parametrize("token", [make_token("user-2"), make_token(expires_in=-60)], ids=["another user's", "expired"])
async def test_renewal_with_a_bad_token_ends_the_connection(redis_url: str, token: str) -> None:
    """A token of another user, or an expired one, closes the socket with 4403 and joins no other room."""
    async with Process(redis_url) as process:
        client = await process.connect("user-1")
        await client.send({"auth": {"token": token}})
        assert await client.frame() == {"event": "error", "message": "Invalid token"}
        assert await client.code() == 4403
        assert process.rooms.names() == []


@pytest.mark.gen_test(timeout=30)
async def test_unanswered_ping_ends_the_connection(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    """A client that does not answer a ping is closed with 4504; a client that answers stays for many pings."""
    monkeypatch.setattr(PING_SECONDS, 0.1)
    monkeypatch.setattr(PONG_SECONDS, 0.3)
    async with Process(redis_url) as process:
        quick = await process.connect()
        listening = asyncio.ensure_future(quick.frame())
        silent = await process.connect(autoping=False)
        assert (await silent.socket.receive(WAIT_SECONDS)).type is aiohttp.WSMsgType.PING
        assert await silent.code() == 4504
        await process.wait_closed(1)
        assert process.count("sockets_closed_total", code="4504") == 1
        await publish(process, 1)
        assert await listening == make_event(1)


@pytest.mark.gen_test(timeout=30)
async def test_pong_without_a_ping_does_not_put_off_the_next_ping(
    monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    """A pong without a ping does not prove that the client answers pings."""
    monkeypatch.setattr(PING_SECONDS, 0.3)
    monkeypatch.setattr(PONG_SECONDS, 0.1)
    async with Process(redis_url) as process:
        client = await process.connect(autoping=False)
        started_at = time.monotonic()
        receiving = asyncio.ensure_future(client.socket.receive(WAIT_SECONDS))
        while not receiving.done():
            await client.socket.pong()
            await asyncio.wait([receiving], timeout=0.12)
        assert receiving.result().type is aiohttp.WSMsgType.PING
        assert time.monotonic() - started_at < 0.6 * slowdown()


@pytest.mark.gen_test(timeout=60)
async def test_client_that_stops_reading_is_closed_and_delays_no_other(redis_url: str) -> None:
    """When its outbox is full it gets 4503 and leaves the room at once; other sockets get every event, in order."""
    async with Process(redis_url, max_frames=20, outbox_bytes=1024 * 1024 * 1024) as process:
        slow = await process.connect_raw()
        quick = await process.connect()
        sent = 0
        while process.count("sockets_open", transport="socket") == 2:
            event = make_event(sent, error="x" * 100_000)
            await process.fanout.publish("user:user-1", event)
            assert await quick.frame() == event
            sent += 1
            assert sent < 1000
        assert sent > 20
        frames = await read_raw(slow)
        slow.close()
        assert frames[-1] == (0x8, (4503).to_bytes(2, "big"))
        assert {opcode for opcode, _ in frames[:-1]} == {0x1}
        assert len(frames) - 2 < sent - 20, "waiting frames are dropped"
        await process.wait_closed(1)
        assert process.count("sockets_closed_total", code="4503") == 1


@pytest.mark.gen_test(timeout=30)
async def test_clients_that_reset_leave_nothing_behind(redis_url: str, log_lines: LogLines) -> None:
    """A reset before, in or after the handshake, or in a frame, leaves no error, no socket and no room."""
    async with Process(redis_url) as process:
        loop = asyncio.get_running_loop()
        handshake = process.handshake()
        with_body = handshake.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\nhalf")
        frames = (b"", b"\x81\x85ab", b"\x88\x80")
        for sent in (with_body, handshake[:40], handshake[:-1], *(handshake + frame for frame in frames)):
            for _ in range(20):
                raw = process.tcp()
                await loop.sock_connect(raw, ("127.0.0.1", process.port))
                await loop.sock_sendall(raw, sent)
                reset(raw)
        for _ in range(20):
            raw = await process.connect_raw()
            await loop.sock_sendall(raw, b"\x81\x85ab")
            reset(raw)
        client = await process.connect("last")
        for number in range(3):
            await publish(process, number)
            await publish(process, number, "last")
        assert await client.frames(3) == [make_event(number) for number in range(3)]
        await process.wait_closed(1)
        assert process.rooms.names() == ["user:last"]
        assert process.count("sockets_open", transport="socket") == 1
    assert not [line for line in log_lines if line["log_level"] == "warning"]


@pytest.mark.parametrize(("sent", "label"), [(1001, "1001"), (4400, "4400"), (3999, "other"), (1000, "1000")])
@pytest.mark.gen_test(timeout=30)
async def test_close_code_of_a_client_is_counted_in_a_fixed_set(redis_url: str, sent: int, label: str) -> None:
    """An unknown close code is counted as `other`, so that clients cannot fill the metrics with codes."""
    async with Process(redis_url) as process:
        client = await process.connect()
        await client.socket.close(code=sent)
        await process.wait_closed()
        assert process.count("sockets_closed_total", code=label) == 1


@pytest.mark.gen_test(timeout=30)
async def test_error_of_the_service_closes_with_1011(
    redis_url: str, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gets 1011; the trace is in the log and is not sent."""
    async with Process(redis_url) as process:
        client = await process.connect()
        monkeypatch.setattr(pipeline.handlers.socket, "parse_frame", lambda message: 1 / 0)
        await client.send({})
        assert await client.code() == 1011
        (line,) = [line for line in log_lines if line["log_level"] == "error"]
        assert line["event"] == "request_failed" and line["exc_info"][0] is ZeroDivisionError
        log_lines.remove(line)
