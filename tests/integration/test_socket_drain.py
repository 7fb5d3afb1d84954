"""The WebSocket border on real sockets: a drain, and the check of a token that takes long."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator

import jwt
import pytest

from pipeline.auth import Principal, TokenVerifier
from pipeline.rooms.frames import event_frame
from pipeline.settings import Settings
from tests.constants import TOKEN_SECONDS
from tests.factories import SECRET, make_token
from tests.integration.socket_border import LogLines, lines_without_errors
from tests.slowdown import slowdown
from tests.raw_sockets import reset
from tests.sockets import WAIT_SECONDS, Process, make_event


@pytest.fixture(autouse=True)
def log_lines(caplog: pytest.LogCaptureFixture) -> Iterator[LogLines]:
    """The log lines of the service; no test of this file may cause a line at error level."""
    with lines_without_errors(caplog) as lines:
        yield lines


class WaitingVerifier(TokenVerifier):
    """Verifies tokens as the service does, but waits until the test sets `may_go_on`."""

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


def record_joins(process: Process, may_go_on: asyncio.Event | None = None) -> asyncio.Queue[str]:
    """Return a queue that gets each room that a socket joins; a join waits until `may_go_on` is set."""
    joined: asyncio.Queue[str] = asyncio.Queue()

    async def record(room: str) -> None:
        joined.put_nowait(room)
        if may_go_on:
            await may_go_on.wait()

    process.rooms.on_occupied = record
    return joined


@pytest.mark.gen_test(timeout=30)
async def test_frames_wait_while_a_token_is_checked(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    """The second frame waits for the check of the first one, and the time limit for a token no longer applies."""
    verifier = WaitingVerifier()
    monkeypatch.setattr(TOKEN_SECONDS, 0.2)
    async with Process(redis_url, verifier=verifier) as process:
        client = await process.open()
        await client.send({"auth": {"token": make_token()}})
        await client.send({"auth": {"token": make_token("user-2")}})
        await verifier.entered.wait()
        loop = asyncio.get_running_loop()
        later = loop.create_future()
        loop.call_later(0.3, later.set_result, None)  # longer than the time limit for a token
        await later
        assert verifier.calls == 1
        verifier.may_go_on.set()
        assert [frame["event"] for frame in await client.frames(2)] == ["connected", "error"]
        assert await client.code() == 4403


@pytest.mark.gen_test(timeout=30)
async def test_socket_drained_while_its_token_is_checked_joins_nothing(redis_url: str) -> None:
    """A check that ends after the connection has no effect."""
    verifier = WaitingVerifier()
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
    """When Redis replies after the end of the connection there is no `connected`, no `socket_opened` and no room."""
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
async def test_socket_gets_1013_while_tokens_cannot_be_checked(redis_url: str) -> None:
    """When the issuer cannot be reached, 1013 lets the client connect later."""
    async with Process(redis_url, jwt_jwks_url="http://127.0.0.1:1/keys") as process:
        token = jwt.encode({"sub": "user-1", "exp": time.time() + 60}, SECRET, headers={"kid": "1"})
        client = await process.open(headers={"Authorization": f"Bearer {token}"})
        assert await client.code() == 1013


@pytest.mark.gen_test(timeout=30)
async def test_drain_sends_a_last_frame_to_every_socket(redis_url: str) -> None:
    """Every socket, also one without a token, gets its waiting events, `goodbye` with a random wait, and 1012."""
    async with Process(redis_url) as process:
        clients = [await process.connect(f"user-{number}") for number in range(20)]
        without_token = await process.open()
        for number in range(3):
            process.rooms.deliver("user:user-0", event_frame({"event": "asset_processed", "number": number}))
        started_at = time.monotonic()
        draining = asyncio.ensure_future(process.admission.drain(WAIT_SECONDS))
        waited = [(await clients[0].socket.receive(WAIT_SECONDS)).json()["number"] for _ in range(3)]
        last_frames = [await client.frame() for client in (*clients, without_token)]
        codes = await asyncio.gather(*[client.code() for client in (*clients, without_token)])
        await draining
        assert time.monotonic() - started_at < 5 * slowdown(), "it does not wait longer than the clients need"
        assert waited == [0, 1, 2]
        assert {frame["event"] for frame in last_frames} == {"goodbye"} and set(codes) == {1012}
        assert len({frame["retryInMs"] for frame in last_frames}) > 10
        assert process.rooms.connections == set()
        assert process.count("sockets_closed_total", code="1012") == 21


@pytest.mark.gen_test(timeout=30)
async def test_drain_does_not_wait_for_a_client_that_does_not_answer(redis_url: str) -> None:
    """A dead client delays the drain by the given time only; frames that could not be written are no error."""
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
async def test_drain_without_sockets_ends_at_once(redis_url: str) -> None:
    """A process without sockets stops without a wait."""
    async with Process(redis_url) as process:
        async with asyncio.timeout(1):
            await process.admission.drain(WAIT_SECONDS)
