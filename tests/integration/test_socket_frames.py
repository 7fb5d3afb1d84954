"""The WebSocket border on real sockets: which frames a client may send, and how many."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from types import SimpleNamespace

import aiohttp
import pytest

import pipeline.handlers.client_frames
from tests.factories import make_token
from tests.integration.socket_border import LogLines, lines_without_errors, publish
from tests.raw_sockets import read_raw
from tests.sockets import WAIT_SECONDS, Process, make_event


@pytest.fixture(autouse=True)
def log_lines(caplog: pytest.LogCaptureFixture) -> Iterator[LogLines]:
    """The log lines of the service; no test of this file may cause a line at error level."""
    with lines_without_errors(caplog) as lines:
        yield lines


@pytest.mark.parametrize(
    "since",
    ["2026-01-31T12:00:00.123Z", "2026-01-31T13:00:00+01:00", "Sat, 31 Jan 2026 12:00:00 GMT"],
)
@pytest.mark.gen_test(timeout=30)
async def test_first_frame_may_have_since(redis_url: str, since: str) -> None:
    """`since` may be an event's timestamp, a serverTime or the Date of an HTTP reply; unknown members are ignored."""
    async with Process(redis_url) as process:
        client = await process.open()
        await client.send({"auth": {"token": make_token(), "kind": "jwt"}, "since": since, "lang": "de"})
        assert (await client.frame())["event"] == "connected"


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        "null",
        "[]",
        '"auth"',
        "{}",
        '{"auth": null}',
        '{"auth": "token"}',
        '{"auth": {"token": 1}}',
        '{"join": "user:ann"}',
        '{"auth": {"token": "T"}, "since": "yesterday"}',
        '{"auth": {"token": "T"}, "since": null}',
        '{"auth": {"token": "T"}, "since": 5}',
        '{"auth": {"token": "T"}, "events": "progress"}',
        '{"auth": {"token": "T"}, "since": "2026-01-31T12:00:00"}',
        '{"auth": {"token": "T"}, "since": "99999-01-31T12:00:00Z"}',
        "[" * 15_000,
        "9" * 15_000,
        b'{"auth": {"token": "T"}}',
    ],
    ids=lambda message: repr(message[:40]),
)
@pytest.mark.parametrize("is_connected", [False, True], ids=["first", "later"])
@pytest.mark.gen_test(timeout=30)
async def test_malformed_frame_is_refused(redis_url: str, message: str | bytes, is_connected: bool) -> None:
    """A malformed frame gets `Malformed frame` and 4400, as the first frame and later."""
    async with Process(redis_url) as process:
        client = await process.connect() if is_connected else await process.open()
        if isinstance(message, bytes):
            await client.socket.send_bytes(message.replace(b"T", make_token().encode()))
        else:
            await client.socket.send_str(message.replace('"T"', f'"{make_token()}"'))
        assert await client.frame() == {"event": "error", "message": "Malformed frame"}
        assert await client.code() == 4400


@pytest.mark.gen_test(timeout=30)
async def test_oversized_frame_is_refused(redis_url: str) -> None:
    """A frame of 16 KiB is accepted; one more byte is 1009, before the frame is stored in memory."""
    async with Process(redis_url) as process:
        client, other = await process.connect(), await process.connect()
        renewal = f'{{"auth": {{"token": "{make_token()}"}}}}'
        await client.socket.send_str(renewal.ljust(16 * 1024))
        await publish(process, 1)
        assert await client.frame() == make_event(1)
        await client.socket.send_str(renewal.ljust(16 * 1024 + 1))
        assert await client.code() == 1009
        await publish(process, 2)
        assert await other.frames(2) == [make_event(1), make_event(2)]


@pytest.mark.parametrize("kind", ["text", "ping", "pong"])
@pytest.mark.gen_test(timeout=30)
async def test_too_many_frames_are_refused(redis_url: str, kind: str) -> None:
    """Ten frames at once are accepted; twenty, also of control frames, are 4429."""
    async with Process(redis_url) as process:
        client = await process.connect(autoping=False)
        send = {
            "text": lambda: client.send({"auth": {"token": make_token()}}),
            "ping": client.socket.ping,
            "pong": client.socket.pong,
        }[kind]
        for _ in range(10):
            await send()
        await publish(process, 1)
        pongs = [await client.socket.receive(WAIT_SECONDS) for _ in range(10 if kind == "ping" else 0)]
        assert {message.type for message in pongs} <= {aiohttp.WSMsgType.PONG, aiohttp.WSMsgType.TEXT}
        for _ in range(10):
            await send()
        seen = []
        while (message := await client.socket.receive(WAIT_SECONDS)).type is not aiohttp.WSMsgType.CLOSE:
            if message.type is aiohttp.WSMsgType.TEXT:
                seen.append(message.json())
        assert seen[-1] == {"event": "error", "message": "Too many frames"}
        assert client.socket.close_code == 4429


@pytest.mark.gen_test(timeout=30)
async def test_steady_frames_are_never_too_many(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten frames a second are accepted for minutes."""
    clock = time.monotonic()
    async with Process(redis_url) as process:
        client = await process.connect()
        monkeypatch.setattr(pipeline.handlers.client_frames, "time", SimpleNamespace(monotonic=lambda: clock))
        for number in range(300):
            clock += 0.1001
            await client.send({"auth": {"token": make_token()}})
            await client.socket.ping()  # the server answers it, so it has read the frame
            clock += 0.1001
            await publish(process, number)
            assert await client.frame() == make_event(number)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x83\x80\0\0\0\0", 1002),
        (b"\x8b\x80\0\0\0\0", 1002),
        (b"\xc1\x85\0\0\0\0hello", 1002),
        (b"\x80\x85\0\0\0\0hello", 1002),
        (b"\x01\x81\0\0\0\0{\x81\x81\0\0\0\0}", 1002),
        (b"\x09\x80\0\0\0\0", 1002),
        (b"\x89\xfe\x00\x7e\0\0\0\0" + b"x" * 126, 1002),
        (b"\x81\x82\0\0\0\0\xc3\x28", 1007),
        (b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff", 1009),
        (b"\x01\xfe\x40\x00\0\0\0\0" + b"x" * 16384 + b"\x80\x81\0\0\0\0x", 1009),
    ],
    ids=[
        "unknown opcode",
        "unknown control opcode",
        "compressed, as bombs are",
        "continuation of nothing",
        "message in a message",
        "control frame in pieces",
        "control frame too long",
        "text that is not UTF-8",
        "eight exabytes announced",
        "too large in pieces",
    ],
)
@pytest.mark.gen_test(timeout=30)
async def test_breach_of_the_protocol_closes_with_its_code(redis_url: str, sent: bytes, code: int) -> None:
    """The close code names the breach, and other sockets still get their events."""
    async with Process(redis_url) as process:
        raw, other = await process.connect_raw(), await process.connect()
        await asyncio.get_running_loop().sock_sendall(raw, sent)
        assert (await read_raw(raw))[-1] == (0x8, code.to_bytes(2))
        raw.close()
        await process.wait_closed(1)
        assert process.count("sockets_closed_total", code=str(code)) == 1
        await publish(process, 1)
        assert await other.frame() == make_event(1)


@pytest.mark.gen_test(timeout=30)
async def test_message_in_fragments_is_accepted(redis_url: str) -> None:
    """A message in a few fragments with a ping between them is read as one frame."""
    async with Process(redis_url) as process:
        raw = process.tcp()
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", process.port))
        await loop.sock_sendall(raw, process.handshake().replace(b"Authorization", b"X-Nothing"))
        text = b'{"auth":{"token":"%s"}}' % make_token().encode()
        pieces = [b"\x01\x8a\0\0\0\0" + text[:10], b"\x89\x80\0\0\0\0", b"\x00\x8a\0\0\0\0" + text[10:20]]
        pieces.append(b"\x80\xfe" + (len(text) - 20).to_bytes(2) + b"\0\0\0\0" + text[20:])
        await loop.sock_sendall(raw, b"".join(pieces))
        received = b""
        while b'"connected"' not in received:
            received += await loop.sock_recv(raw, 4096)
        raw.close()


@pytest.mark.gen_test(timeout=30)
async def test_message_of_many_fragments_is_too_many_frames(redis_url: str) -> None:
    """Empty fragments are counted as frames: 4429."""
    async with Process(redis_url) as process:
        raw = await process.connect_raw()
        await asyncio.get_running_loop().sock_sendall(raw, b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 20)
        assert (await read_raw(raw))[-1] == (0x8, (4429).to_bytes(2))
        raw.close()


@pytest.mark.gen_test(timeout=30)
async def test_flood_that_goes_on_after_the_close_is_cut(redis_url: str) -> None:
    """A client that still sends after a 4429 is dropped at once, not after the five seconds of a close."""
    async with Process(redis_url) as process:
        raw = await process.connect_raw()
        started_at = time.monotonic()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while True:
                await asyncio.get_running_loop().sock_sendall(raw, b"\x89\x80\0\0\0\0" * 100)
        await process.wait_closed()
        assert time.monotonic() - started_at < 4
        assert process.count("sockets_closed_total", code="4429") == 1
        raw.close()


@pytest.mark.gen_test(timeout=30)
async def test_compression_is_never_agreed_to(redis_url: str) -> None:
    """Compression would cost memory for each socket, and make decompression bombs possible."""
    async with Process(redis_url) as process:
        client = await process.connect(compress=15)
        assert client.socket.compress == 0
