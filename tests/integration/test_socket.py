"""The WebSocket border on real sockets: which sockets are accepted, and how."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import jwt
import pytest

from pipeline.handlers.page_origins import FOREIGN_ORIGIN
from pipeline.rooms.codes import MALFORMED_SINCE, MESSAGES, NOT_YET_VALID, TOO_MANY_CONNECTIONS
from tests.constants import TOKEN_SECONDS
from tests.contract import contracts
from tests.factories import make_token
from tests.integration.socket_border import LogLines, lines_without_errors, publish
from tests.sockets import ROOMS, Process, make_event

INVALID_TOKENS = [
    ("", "empty"),
    ("nonsense", "not a JWT"),
    (make_token(secret="another secret of thirty-two bytes or more"), "signed by another issuer"),
    (make_token(expires_in=-60), "expired"),
    (jwt.encode({"sub": "user-1", "exp": time.time() + 300}, None, algorithm="none"), "not signed"),
    (make_token(sub="a b"), "a malformed user id"),
]


@pytest.fixture(autouse=True)
def log_lines(caplog: pytest.LogCaptureFixture) -> Iterator[LogLines]:
    """The log lines of the service; no test of this file may cause a line at error level."""
    with lines_without_errors(caplog) as lines:
        yield lines


@pytest.mark.spec("T027")
@pytest.mark.spec("T030")
@pytest.mark.parametrize("way", ["header", "subprotocol", "first frame"])
@pytest.mark.gen_test(timeout=30)
async def test_socket_with_a_token_joins_its_users_room(redis_url: str, way: str, log_lines: LogLines) -> None:
    """A token sent in each of three ways gives `connected`, the room of its user, and the events of that user."""
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
    """An empty, malformed, foreign, expired or unsigned token gets `Invalid token` and 4403."""
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
    """Both sockets of a user get the event; sockets of users with a similar name do not."""
    async with Process(redis_url) as process:
        one, two = await process.connect("ann"), await process.connect("ann")
        others = [await process.connect(sub) for sub in ("ann2", "bob", "an")]
        await publish(process, 1, "ann")
        assert [await one.frame(), await two.frame()] == [make_event(1)] * 2
        for number, (other, sub) in enumerate(zip(others, ("ann2", "bob", "an"), strict=True)):
            await publish(process, 10 + number, sub)
            assert await other.frame() == make_event(10 + number), "its first event is its own"


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
async def test_socket_is_accepted_by_its_origin(redis_url: str, origin: str | None, is_let_in: bool) -> None:
    """Programs, pages of the service and allowed origins are accepted; other origins get a 403 with the reason."""
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
    """A plain GET of /ws gets an error in the usual envelope, and is counted."""
    async with Process(redis_url) as process:
        async with process.session.get(process.url) as reply:
            error = {"code": "VALIDATION_ERROR", "message": "This address speaks WebSocket only"}
            assert (reply.status, await reply.json()) == (400, {"success": False, "error": error})
        async with process.session.post(process.url) as reply:
            assert (reply.status, (await reply.json())["error"]["code"]) == (405, "METHOD_NOT_ALLOWED")
        assert process.count("http_requests_total", route="/ws", method="GET", status="400") == 1


@pytest.mark.fault("R13")
@pytest.mark.parametrize("auth", [{}, {"token": None}, {"kind": "jwt"}])
@pytest.mark.gen_test(timeout=30)
async def test_first_frame_without_a_token_is_no_authentication(redis_url: str, auth: dict[str, Any]) -> None:
    """Such a frame is not malformed: it gets `Authentication required` and 4401."""
    async with Process(redis_url) as process:
        client = await process.open()
        await client.send({"auth": auth})
        assert await client.frame() == {"event": "error", "message": "Authentication required"}
        assert await client.code() == 4401


@pytest.mark.fault("R9")
@pytest.mark.gen_test(timeout=30)
async def test_token_that_is_not_valid_yet_gets_1013(redis_url: str) -> None:
    """1013 lets the client connect later, when the token is valid."""
    async with Process(redis_url) as process:
        token = make_token(nbf=time.time() + 60)
        client = await process.open(headers={"Authorization": f"Bearer {token}"})
        assert await client.frame() == {"event": "error", "message": NOT_YET_VALID}
        assert await client.code() == 1013


@pytest.mark.parametrize("way", [b"Authorization: Bearer ", b"Sec-WebSocket-Protocol: pipeline.v1, bearer."])
@pytest.mark.gen_test(timeout=30)
async def test_no_token_stays_in_memory(redis_url: str, way: bytes) -> None:
    """The token of the handshake is not in memory after the handshake, while the socket stays open."""
    async with Process(redis_url) as process:
        request = process.handshake("user-7").replace(b"Authorization: Bearer ", way)
        token = request.partition(way)[2].split()[0].decode()
        raw = process.tcp()
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", process.port))
        await loop.sock_sendall(raw, request)
        while b"connected" not in await loop.sock_recv(raw, 4096):
            pass
        gc.collect()
        collections = [each for each in gc.get_objects() if issubclass(type(each), list | tuple | dict)]
        containers = [each for each in collections if contains(each, token)]
        assert "user:user-7" in process.rooms and containers == []
        raw.close()


def contains(container: Any, text: str) -> bool:
    """Tell whether an item of the container is a longer text with this text in it."""
    items = container.values() if isinstance(container, dict) else container
    return any(isinstance(item, str) and text in item and item != text for item in list(items))


def test_error_messages_are_those_of_the_contract() -> None:
    """The contract lists every message that an `error` frame can have."""
    messages = ROOMS["components"]["schemas"]["Refusal"]["enum"]
    assert set(messages) == {*MESSAGES.values(), MALFORMED_SINCE, NOT_YET_VALID, TOO_MANY_CONNECTIONS}


@pytest.mark.parametrize("name", ["authenticate", "connected", "resync", "error", "goodbye"])
def test_examples_of_the_contract_hold(name: str) -> None:
    """The contract's own examples are valid."""
    message = ROOMS["components"]["messages"][name]
    for example in message["examples"]:
        contracts.check_value(contracts.frame_schema(name), example["payload"])
