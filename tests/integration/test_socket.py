"""The WebSocket border on real sockets: who gets in, how, and how each connection ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Iterator, MutableMapping
from types import SimpleNamespace
from typing import Any

import aiohttp
import jwt
import pytest
import structlog

import pipeline.handlers.client_frames
import pipeline.handlers.socket
from pipeline.auth import Principal, TokenVerifier
from pipeline.handlers.page_origins import FOREIGN_ORIGIN
from pipeline.rooms.codes import MALFORMED_SINCE, MESSAGES, NOT_YET_VALID, TOO_MANY_CONNECTIONS
from pipeline.rooms.frames import event_frame
from pipeline.settings import Settings
from tests.constants import MAX_SOCKETS_WITHOUT_TOKEN, PING_SECONDS, PONG_SECONDS, TOKEN_SECONDS
from tests.contract import contracts
from tests.factories import SECRET, make_token
from tests.raw_sockets import read_raw, reset
from tests.slowdown import slowdown
from tests.sockets import ROOMS, WAIT_SECONDS, Process, make_event

LogLines = list[MutableMapping[str, Any]]
INVALID_TOKENS = [
    ("", "empty"),
    ("nonsense", "no JWT"),
    (make_token(secret="another secret of thirty-two bytes or more"), "signed by somebody else"),
    (make_token(expires_in=-60), "expired"),
    (jwt.encode({"sub": "user-1", "exp": time.time() + 300}, None, algorithm="none"), "not signed"),
    (make_token(sub="a b"), "no user id of ours"),
]


@pytest.fixture(autouse=True)
def log_lines(caplog: pytest.LogCaptureFixture) -> Iterator[LogLines]:
    """Our log lines; no test of this file may cause one at error level, from us or from a library."""
    with structlog.testing.capture_logs() as lines:
        yield lines
    errors = [line for line in lines if line["log_level"] in ("error", "critical")]
    errors += [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert errors == []


class HeldVerifier(TokenVerifier):
    """Checks tokens for real, but only when the test lets it."""

    def __init__(self) -> None:
        super().__init__(Settings(jwt_secret=SECRET))
        self.entered = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.calls = 0

    async def verify(self, token: str, *, remembers: bool = True) -> Principal:
        self.calls += 1
        self.entered.set()
        await self.may_go_on.wait()
        return await super().verify(token, remembers=remembers)


async def publish(process: Process, number: int, sub: str = "user-1") -> None:
    await process.fanout.publish(f"user:{sub}", make_event(number))


def record_joins(process: Process, may_go_on: asyncio.Event | None = None) -> asyncio.Queue[str]:
    """Return the rooms somebody joins from now on; joining waits until it may go on."""
    joined: asyncio.Queue[str] = asyncio.Queue()

    async def record(room: str) -> None:
        joined.put_nowait(room)
        if may_go_on:
            await may_go_on.wait()

    process.rooms.on_occupied = record
    return joined


# who gets in


@pytest.mark.spec("T027")
@pytest.mark.spec("T030")
@pytest.mark.parametrize("way", ["header", "subprotocol", "first frame"])
@pytest.mark.gen_test(timeout=30)
async def test_socket_with_a_token_joins_its_users_room(redis_url: str, way: str, log_lines: LogLines) -> None:
    """Each of the three ways leads to `connected`, the room of the token's user, and that user's events."""
    async with Process(redis_url) as process:
        token = make_token("auth0|ann")
        if way == "header":
            client = await process.open(headers={"Authorization": f"Bearer {token}"})
        elif way == "subprotocol":
            client = await process.open(protocols=["pipeline.v1", f"bearer.{token}"])
        else:
            client = await process.open(protocols=["pipeline.v1"])
            await client.send({"auth": {"token": token}})
        connected = await client.frame()
        assert connected.pop("serverTime")[:10] == time.strftime("%Y-%m-%d", time.gmtime())
        assert connected == {"event": "connected", "room": "user:auth0|ann"}
        assert client.socket.protocol == (None if way == "header" else "pipeline.v1")
        await publish(process, 1, "auth0|ann")
        assert await client.frame() == make_event(1)
        assert process.count("sockets_open", transport="socket") == 1
        await client.socket.close()
        await process.wait_closed()
        assert process.count("sockets_open", transport="socket") == 0
        assert process.count("sockets_closed_total", code="1000") == 1
        assert process.count("socket_frames_sent_total") == 2
    opened, closed = (line for line in log_lines if "socket_" in line["event"])
    assert opened.pop("requestId") == closed.pop("requestId") and closed.pop("seconds") >= 0
    same = {"client": "127.0.0.1", "userId": "auth0|ann", "log_level": "info"}
    assert opened == {"event": "socket_opened"} | same
    frames = {"framesIn": 1 if way == "first frame" else 0, "framesOut": 2}
    assert closed == {"event": "socket_closed", "code": 1000} | frames | same


@pytest.mark.spec("T028")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"headers": {"Authorization": "Basic YTpi"}},
        {"protocols": ["pipeline.v1"]},
        {"protocols": [f"bearer.{make_token()}"]},
        {"params": {"token": make_token()}},
    ],
    ids=["nothing", "another scheme", "half a pair", "the other half", "in the URL"],
)
@pytest.mark.gen_test(timeout=30)
async def test_socket_without_token_is_refused(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, options: dict[str, Any]
) -> None:
    """The upgrade completes; when no token has come in time, `Authentication required` and 4401 follow."""
    monkeypatch.setattr(TOKEN_SECONDS, 0.1)
    async with Process(redis_url) as process:
        client = await process.open(**options)
        assert await client.frame() == {"event": "error", "message": "Authentication required"}
        assert await client.code() == 4401
        await process.wait_closed()
        assert process.count("sockets_closed_total", code="4401") == 1


@pytest.mark.spec("T029")
@pytest.mark.parametrize(("token", "remark"), INVALID_TOKENS, ids=[remark for _, remark in INVALID_TOKENS])
@pytest.mark.parametrize("way", ["header", "first frame"])
@pytest.mark.gen_test(timeout=30)
async def test_socket_with_a_bad_token_is_refused(redis_url: str, way: str, token: str, remark: str) -> None:
    """`Invalid token` and 4403, whatever is wrong with it."""
    async with Process(redis_url) as process:
        if way == "header":
            client = await process.open(headers={"Authorization": f"Bearer {token or '.'}"})
        else:
            client = await process.open()
            await client.send({"auth": {"token": token}})
        assert await client.frame() == {"event": "error", "message": "Invalid token"}
        assert await client.code() == 4403
        await process.wait_closed()
        assert process.rooms.names() == []


@pytest.mark.spec("T033")
@pytest.mark.gen_test(timeout=30)
async def test_event_reaches_every_socket_of_its_owner_and_no_other(redis_url: str) -> None:
    """Two sockets of one user both hear; a user whose name begins alike does not."""
    async with Process(redis_url) as process:
        one, two = await process.connect("ann"), await process.connect("ann")
        others = [await process.connect(sub) for sub in ("ann2", "bob", "an")]
        await publish(process, 1, "ann")
        assert [await one.frame(), await two.frame()] == [make_event(1)] * 2
        for number, (other, sub) in enumerate(zip(others, ("ann2", "bob", "an"), strict=True)):
            await publish(process, 10 + number, sub)
            assert await other.frame() == make_event(10 + number), "the first it hears is its own"


@pytest.mark.parametrize(
    ("origin", "is_let_in"),
    [
        (None, True),
        ("http://{host}", True),
        ("HTTP://{host}", True),
        ("https://app.example", True),
        ("https://evil.example", False),
        ("https://app.example.evil.example", False),
        ("http://app.example", False),
        ("http://127.0.0.1:1", False),
        ("http://{host}.evil.example", False),
        ("null", False),
    ],
)
@pytest.mark.gen_test(timeout=30)
async def test_socket_origin(redis_url: str, origin: str | None, is_let_in: bool) -> None:
    """Programs, our own pages and those allowed get in; pages of others are refused at the handshake, readably."""
    async with Process(redis_url, allowed_origins=("https://app.example",)) as process:
        headers = {"Authorization": f"Bearer {make_token()}"}
        if origin:
            headers["Origin"] = origin.format(host=f"127.0.0.1:{process.port}")
        if is_let_in:
            assert (await (await process.open(headers=headers)).frame())["event"] == "connected"
            return
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await process.open(headers=headers)
        assert caught.value.status == 403
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        async with process.session.get(process.url, headers=headers | upgrade) as reply:
            error = (await reply.json())["error"]
            assert (error["code"], error["message"]) == ("FORBIDDEN", "Origin not allowed")
            assert error["details"] == [{"field": "Origin", "message": FOREIGN_ORIGIN}]
        assert process.rooms.connections == set()


@pytest.mark.gen_test(timeout=30)
async def test_plain_request_is_refused_in_the_envelope(redis_url: str) -> None:
    """A browser that is pointed at /ws gets an error like everywhere else, and it is counted."""
    async with Process(redis_url) as process:
        async with process.session.get(process.url) as reply:
            error = {"code": "VALIDATION_ERROR", "message": "This address speaks WebSocket only"}
            assert (reply.status, await reply.json()) == (400, {"success": False, "error": error})
        async with process.session.post(process.url) as reply:
            assert (reply.status, (await reply.json())["error"]["code"]) == (405, "METHOD_NOT_ALLOWED")
        assert process.count("http_requests_total", route="/ws", method="GET", status="400") == 1


# what a client may send


@pytest.mark.parametrize(
    "since",
    ["2026-01-31T12:00:00.123Z", "2026-01-31T13:00:00+01:00", "Sat, 31 Jan 2026 12:00:00 GMT"],
)
@pytest.mark.gen_test(timeout=30)
async def test_first_frame_may_say_since_when(redis_url: str, since: str) -> None:
    """An event's timestamp, a serverTime and the Date of an HTTP reply are understood; so are unknown members."""
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
    """`Malformed frame` and 4400, as first frame and later."""
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
    """16 KiB are read, one byte more closes with 1009 before it is kept in memory."""
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
    """Ten at once are fine; a flood, also of control frames, is 4429."""
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
async def test_frames_in_measure_are_never_too_many(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten a second for minutes on end are fine."""
    clock = time.monotonic()
    async with Process(redis_url) as process:
        client = await process.connect()
        monkeypatch.setattr(pipeline.handlers.client_frames, "time", SimpleNamespace(monotonic=lambda: clock))
        for number in range(300):
            clock += 0.1001
            await client.send({"auth": {"token": make_token()}})
            await client.socket.ping()  # answered, so the server has taken the frame
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
async def test_breach_of_the_protocol_is_named_and_hung_up_on(redis_url: str, sent: bytes, code: int) -> None:
    """The client is told what it did; nobody else notices."""
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
async def test_message_in_pieces_is_understood(redis_url: str) -> None:
    """A few fragments with a ping between them are a frame like any other."""
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
async def test_message_in_endless_pieces_is_too_many_frames(redis_url: str) -> None:
    """Empty fragments never make a message, but they count."""
    async with Process(redis_url) as process:
        raw = await process.connect_raw()
        await asyncio.get_running_loop().sock_sendall(raw, b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 20)
        assert (await read_raw(raw))[-1] == (0x8, (4429).to_bytes(2))
        raw.close()


@pytest.mark.gen_test(timeout=30)
async def test_flood_that_goes_on_after_the_close_is_cut(redis_url: str) -> None:
    """Who was told 4429 and sends on is not read for another five seconds."""
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
    """It would cost memory for each socket, and open the door to bombs."""
    async with Process(redis_url) as process:
        client = await process.connect(compress=15)
        assert client.socket.compress == 0


# how many there may be


@pytest.mark.fault("R6")
@pytest.mark.gen_test(timeout=30)
async def test_newest_socket_of_a_user_wins(redis_url: str) -> None:
    """Nobody is a ghost: the newest is let in at once, the oldest is told to come back later; others do not notice."""
    async with Process(redis_url, max_sockets_per_user=3) as process:
        other = await process.connect("user-2")
        oldest, *clients = [await process.connect() for _ in range(3)]
        clients.append(await process.connect())
        reading = [asyncio.ensure_future(client.frame()) for client in clients]  # also answers pings
        goodbye, error = await oldest.frames(2)
        assert goodbye["event"] == "goodbye" and 30_000 <= goodbye["retryInMs"] <= 60_000
        assert error == {"event": "error", "message": "Too many connections"}
        assert await oldest.code() == 1013
        await publish(process, 1)
        assert await asyncio.gather(*reading) == [make_event(1)] * 3
        await publish(process, 2, "user-2")
        assert await other.frame() == make_event(2)


@pytest.mark.fault("R6")
@pytest.mark.gen_test(timeout=30)
async def test_sockets_that_nobody_uses_any_more_make_room_first(redis_url: str) -> None:
    """A change of network leaves ghosts behind: they are closed within seconds, whoever answers a ping stays."""
    async with Process(redis_url, max_sockets_per_user=4) as process:
        alive = [await process.connect()]
        ghosts = [await process.connect_raw() for _ in range(3)]  # as good as gone: they answer no ping
        alive += [await process.connect() for _ in range(3)]
        reading = [asyncio.ensure_future(client.frame()) for client in alive]  # also answers pings
        await process.wait_closed(4)
        await publish(process, 1)
        assert await asyncio.gather(*reading) == [make_event(1)] * 4
        assert process.count("sockets_closed_total", code="4504") == 3
        for ghost in ghosts:
            ghost.close()


@pytest.mark.fault("R6")
@pytest.mark.gen_test(timeout=30)
async def test_user_who_opens_many_sockets_at_once_has_never_many(redis_url: str) -> None:
    """Beyond twice as many as allowed the oldest goes without a wait."""
    async with Process(redis_url, max_sockets_per_user=3) as process:
        clients = [await process.connect() for _ in range(20)]
        assert len(process.rooms.members("user:user-1")) <= 6
        assert {(await client.frame())["event"] for client in clients[:14]} == {"goodbye"}
        await publish(process, 1)
        assert await clients[-1].frame() == make_event(1)


@pytest.mark.fault("R13")
@pytest.mark.parametrize("auth", [{}, {"token": None}, {"kind": "jwt"}])
@pytest.mark.gen_test(timeout=30)
async def test_first_frame_without_a_token_is_no_authentication(redis_url: str, auth: dict[str, Any]) -> None:
    """It is not malformed: `Authentication required` and 4401."""
    async with Process(redis_url) as process:
        client = await process.open()
        await client.send({"auth": auth})
        assert await client.frame() == {"event": "error", "message": "Authentication required"}
        assert await client.code() == 4401


@pytest.mark.fault("R9")
@pytest.mark.gen_test(timeout=30)
async def test_token_that_is_not_valid_yet_is_no_reason_to_give_up(redis_url: str) -> None:
    """1013: it heals by itself."""
    async with Process(redis_url) as process:
        token = make_token(nbf=time.time() + 60)
        client = await process.open(headers={"Authorization": f"Bearer {token}"})
        assert await client.frame() == {"event": "error", "message": NOT_YET_VALID}
        assert await client.code() == 1013


@pytest.mark.gen_test(timeout=30)
async def test_process_that_is_full_sends_clients_elsewhere(redis_url: str) -> None:
    """1013: perhaps another process has room, perhaps this one later."""
    async with Process(redis_url, max_sockets=2) as process:
        first = await process.connect()
        await process.open()
        extra = await process.open(headers={"Authorization": f"Bearer {make_token('user-2')}"})
        assert await extra.code() == 1013
        await first.socket.close()
        await process.wait_closed(1)
        await process.connect("user-2")


@pytest.mark.gen_test(timeout=30)
async def test_sockets_without_token_are_few(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    """Strangers cannot take all places: who brings a token is let in beside them."""
    monkeypatch.setattr(MAX_SOCKETS_WITHOUT_TOKEN, 2)
    async with Process(redis_url) as process:
        waiting = [await process.open() for _ in range(2)]
        extra = await process.open()
        assert await extra.code() == 1013
        await process.connect()
        await waiting[0].send({"auth": {"token": make_token()}})
        assert (await waiting[0].frame())["event"] == "connected"
        await process.wait_closed(3)
        await process.open()
        assert process.rooms.unauthenticated == 2


@pytest.mark.parametrize("way", [b"Authorization: Bearer ", b"Sec-WebSocket-Protocol: pipeline.v1, bearer."])
@pytest.mark.gen_test(timeout=30)
async def test_no_token_stays_in_memory(redis_url: str, way: bytes) -> None:
    """What the handshake brought is dropped when it is over, however long the socket lives."""
    async with Process(redis_url) as process:
        request = process.handshake("somebody").replace(b"Authorization: Bearer ", way)
        token = request.partition(way)[2].split()[0].decode()
        raw = process.tcp()
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", process.port))
        await loop.sock_sendall(raw, request)
        while b"connected" not in await loop.sock_recv(raw, 4096):
            pass
        gc.collect()
        held = [each for each in gc.get_objects() if isinstance(each, list | tuple | dict) and holds(each, token)]
        assert "user:somebody" in process.rooms and held == []
        raw.close()


def holds(container: Any, text: str) -> bool:
    items = container.values() if isinstance(container, dict) else container
    return any(isinstance(item, str) and text in item and item != text for item in list(items))


# how long it may stay


@pytest.mark.gen_test(timeout=30)
async def test_expired_token_ends_the_connection(redis_url: str) -> None:
    """`Token expired` and 4419 when the token's time is over."""
    async with Process(redis_url) as process:
        expires_at = int(time.time()) + 2
        client = await process.open(headers={"Authorization": f"Bearer {make_token(exp=expires_at)}"})
        assert (await client.frame())["event"] == "connected"
        assert await client.frame() == {"event": "error", "message": "Token expired"}
        assert 0 <= time.time() - expires_at < 1
        assert await client.code() == 4419


@pytest.mark.gen_test(timeout=30)
async def test_renewed_token_prolongs_the_stay(redis_url: str) -> None:
    """A later token of the same user replaces the expiry, without a word; a shorter one too."""
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
    """Another user's token does not open another room, it closes this one: 4403."""
    async with Process(redis_url) as process:
        client = await process.connect("user-1")
        await client.send({"auth": {"token": token}})
        assert await client.frame() == {"event": "error", "message": "Invalid token"}
        assert await client.code() == 4403
        assert process.rooms.names() == []


@pytest.mark.gen_test(timeout=30)
async def test_unanswered_ping_ends_the_connection(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    """A client that stopped answering is closed with 4504; one that answers stays, over many pings."""
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
    """Unasked pongs are no sign that pings are answered."""
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


# slow, broken and vanishing clients


@pytest.mark.gen_test(timeout=60)
async def test_client_that_stops_reading_is_cut_off_and_delays_nobody(redis_url: str) -> None:
    """Its outbox overflows: 4503, at once out of the room; the others get every event, in order."""
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
        assert len(frames) - 2 < sent - 20, "what waited was dropped"
        await process.wait_closed(1)
        assert process.count("sockets_closed_total", code="4503") == 1


@pytest.mark.gen_test(timeout=30)
async def test_vanishing_clients_leave_nothing_behind(redis_url: str, log_lines: LogLines) -> None:
    """Resets before, in and right after the handshake and in the middle of a frame: no error, no socket, no room."""
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
async def test_clients_own_close_code_is_counted_without_making_series(redis_url: str, sent: int, label: str) -> None:
    """A client cannot fill the metrics with codes of its own."""
    async with Process(redis_url) as process:
        client = await process.connect()
        await client.socket.close(code=sent)
        await process.wait_closed()
        assert process.count("sockets_closed_total", code=label) == 1


@pytest.mark.gen_test(timeout=30)
async def test_error_of_ours_is_not_blamed_on_the_client(
    redis_url: str, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1011, and the trace is in the log, not on the wire."""
    async with Process(redis_url) as process:
        client = await process.connect()
        monkeypatch.setattr(pipeline.handlers.socket, "parse_frame", lambda message: 1 / 0)
        await client.send({})
        assert await client.code() == 1011
        (line,) = [line for line in log_lines if line["log_level"] == "error"]
        assert line["event"] == "request_failed" and line["exc_info"][0] is ZeroDivisionError
        log_lines.remove(line)


# while a token is checked


@pytest.mark.gen_test(timeout=30)
async def test_frames_wait_while_a_token_is_checked(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    """A second frame does not overtake the first, however long its check takes; the wait for a token has ended."""
    verifier = HeldVerifier()
    monkeypatch.setattr(TOKEN_SECONDS, 0.2)
    async with Process(redis_url, verifier=verifier) as process:
        client = await process.open()
        await client.send({"auth": {"token": make_token()}})
        await client.send({"auth": {"token": make_token("user-2")}})
        await verifier.entered.wait()
        loop = asyncio.get_running_loop()
        later = loop.create_future()
        loop.call_later(0.3, later.set_result, None)  # longer than the wait for a token
        await later
        assert verifier.calls == 1
        verifier.may_go_on.set()
        assert [frame["event"] for frame in await client.frames(2)] == ["connected", "error"]
        assert await client.code() == 4403


@pytest.mark.gen_test(timeout=30)
async def test_socket_drained_while_its_token_is_checked_joins_nothing(redis_url: str) -> None:
    """The check may end after the connection did."""
    verifier = HeldVerifier()
    async with Process(redis_url, verifier=verifier) as process:
        joined = record_joins(process)
        client = await process.open(headers={"Authorization": f"Bearer {make_token()}"})
        await verifier.entered.wait()
        draining = asyncio.ensure_future(process.admission.drain(WAIT_SECONDS))
        assert (await client.frame())["event"] == "goodbye"
        assert await client.code() == 1012
        verifier.may_go_on.set()
        await draining
        assert joined.empty() and process.rooms.connections == set()


@pytest.mark.gen_test(timeout=30)
async def test_socket_drained_while_its_room_is_subscribed_is_not_opened(
    redis_url: str, log_lines: LogLines
) -> None:
    """Redis may answer after the connection ended: no `connected`, no `socket_opened`, nobody left in the room."""
    async with Process(redis_url) as process:
        may_go_on = asyncio.Event()
        joined = record_joins(process, may_go_on)
        client = await process.open(headers={"Authorization": f"Bearer {make_token()}"})
        assert await joined.get() == "user:user-1"
        draining = asyncio.ensure_future(process.admission.drain(WAIT_SECONDS))
        assert (await client.frame())["event"] == "goodbye"
        assert await client.code() == 1012
        may_go_on.set()
        await draining
        assert process.rooms.names() == []
    assert [line["event"] for line in log_lines if "socket_" in line["event"]] == ["socket_closed"]


@pytest.mark.gen_test(timeout=30)
async def test_socket_is_told_to_come_back_while_tokens_cannot_be_checked(redis_url: str) -> None:
    """An issuer that is away is not the client's fault: 1013."""
    async with Process(redis_url, jwt_jwks_url="http://127.0.0.1:1/keys") as process:
        token = jwt.encode({"sub": "user-1", "exp": time.time() + 60}, SECRET, headers={"kid": "1"})
        client = await process.open(headers={"Authorization": f"Bearer {token}"})
        assert await client.code() == 1013


# goodbye


@pytest.mark.gen_test(timeout=30)
async def test_drain_says_goodbye_to_everyone(redis_url: str) -> None:
    """Every socket, also one without a token yet, gets what waits, `goodbye` and 1012; the waits are spread."""
    async with Process(redis_url) as process:
        clients = [await process.connect(f"user-{number}") for number in range(20)]
        stranger = await process.open()
        for number in range(3):
            process.rooms.deliver("user:user-0", event_frame({"event": "asset_processed", "number": number}))
        started_at = time.monotonic()
        draining = asyncio.ensure_future(process.admission.drain(WAIT_SECONDS))
        waited = [(await clients[0].socket.receive(WAIT_SECONDS)).json()["number"] for _ in range(3)]
        goodbyes = [await client.frame() for client in (*clients, stranger)]
        codes = await asyncio.gather(*[client.code() for client in (*clients, stranger)])
        await draining
        assert time.monotonic() - started_at < 5 * slowdown(), "it does not wait longer than the clients need"
        assert waited == [0, 1, 2]
        assert {frame["event"] for frame in goodbyes} == {"goodbye"} and set(codes) == {1012}
        assert len({frame["retryInMs"] for frame in goodbyes}) > 10
        assert process.rooms.connections == set()
        assert process.count("sockets_closed_total", code="1012") == 21


@pytest.mark.gen_test(timeout=30)
async def test_drain_does_not_wait_for_a_client_that_does_not_answer(redis_url: str) -> None:
    """One dead client costs the given time, no more; what could not be written to it is no error."""
    async with Process(redis_url, outbox_bytes=1024 * 1024 * 1024) as process:
        raw = await process.connect_raw()
        await process.fanout.publish("user:user-1", make_event(error="x" * 20_000_000))
        await process.connect("user-2")
        started_at = time.monotonic()
        await process.admission.drain(0.2)
        assert 0.2 <= time.monotonic() - started_at < 1 * slowdown()
        reset(raw)
        await process.wait_closed()
    gc.collect()


@pytest.mark.gen_test(timeout=30)
async def test_drain_of_nobody_is_over_at_once(redis_url: str) -> None:
    """A process without sockets stops without a wait."""
    async with Process(redis_url) as process:
        async with asyncio.timeout(1):
            await process.admission.drain(WAIT_SECONDS)


# the promise on paper


def test_error_messages_are_those_of_the_contract() -> None:
    """The contract lists every message an `error` frame may have."""
    messages = ROOMS["components"]["schemas"]["Refusal"]["enum"]
    assert set(messages) == {*MESSAGES.values(), MALFORMED_SINCE, NOT_YET_VALID, TOO_MANY_CONNECTIONS}


@pytest.mark.parametrize("name", ["authenticate", "connected", "resync", "error", "goodbye"])
def test_examples_of_the_contract_hold(name: str) -> None:
    """The contract's own examples are valid."""
    message = ROOMS["components"]["messages"][name]
    for example in message["examples"]:
        contracts.check_value(contracts.frame_schema(name), example["payload"])
