"""The Python client after refusals and without replies: when it retries, gives up or changes the transport."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from aiohttp import web

import pipeline.client.feed
import pipeline.client.transports
from pipeline.client import Client, ClientError, Unavailable
from pipeline.client.access import Fault, TokenSource
from pipeline.client.cursor import Cursor
from pipeline.client.http import Http
from pipeline.client.transports import open_connection
from tests.integration.scripted_service import (
    Peer,
    ScriptedService,
    accept_and_end,
    accept_and_wait,
    at,
    make_event,
    next_events,
    numbers,
    page,
)
from tests.integration.scripted_service import drawn_waits, reconnects_at_once  # noqa: F811
from tests.integration.switched_proxy import Switch
from tests.toxiproxy import free_port

__all__ = ["drawn_waits", "reconnects_at_once"]


@pytest.mark.fault("R6")
@pytest.mark.gen_test(timeout=60)
async def test_too_many_frames_or_sockets_is_not_final(drawn_waits: list[tuple[float, float]]) -> None:
    """After too many frames the client waits 30 to 60 s; after too many sockets, as long as the service asks."""
    ended_at = 0.0

    async def too_many_frames(peer: Peer) -> None:
        await peer.accept()
        await peer.end(4429, "Too many frames")

    async def too_many_sockets(peer: Peer) -> None:
        nonlocal ended_at
        await peer.accept()
        ended_at = time.monotonic()
        await peer.send({"event": "goodbye", "retryInMs": 400})
        await peer.end(1013, "Too many connections")

    notices: list[str] = []
    async with ScriptedService(too_many_frames, too_many_sockets, accept_and_wait) as fake:
        async with Client(fake.url, "a fixed token", on_notice=notices.append) as client:
            await client.listen()
            await fake.handshake(3)
            assert drawn_waits == [(30, 60)]
            assert time.monotonic() - ended_at >= 0.4
    assert "Too many frames (4429)" in notices[0] and "Too many connections (1013)" in notices[2]


@pytest.mark.usefixtures("reconnects_at_once")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (4400, "Malformed since"),
        (4403, "Invalid token"),
        (4419, "Token expired"),
        (1002, None),
        (1007, None),
        (1009, None),
    ],
)
@pytest.mark.gen_test(timeout=60)
async def test_client_gives_up_when_refused(code: int, message: str | None) -> None:
    """The client yields the events that arrived before; then each call raises an error that names the reason."""

    async def refuse(peer: Peer) -> None:
        await peer.accept()
        await peer.send(make_event(1))
        await peer.end(code, message)

    async with ScriptedService(accept_and_end, refuse) as fake, Client(fake.url, "a fixed token") as client:
        await client.listen()
        assert numbers(await next_events(client, 1)) == [1]
        for _ in range(2):
            with pytest.raises(ClientError, match=rf"{message or ''}.*\({code}\)"):
                await next_events(client, 1)
        assert len(fake.requests) == 2


@pytest.mark.gen_test(timeout=60)
async def test_listen_raises_the_first_error() -> None:
    """The first attempt of listen is not repeated; listen may be called after an error and succeeds then."""

    async def refuse(peer: Peer) -> None:
        await peer.end(1013)

    async with ScriptedService(refuse, accept_and_wait) as fake, Client(fake.url, "a token") as client:
        with pytest.raises(ClientError, match="1013"):
            await client.listen()
        assert await client.listen() == await client.listen() == "user:user-1"
        assert len(fake.requests) == 2
    async with Client(f"http://127.0.0.1:{free_port()}", "a token") as client:
        with pytest.raises(ClientError, match="Cannot reach"):
            await client.listen()


@pytest.mark.gen_test(timeout=60)
async def test_attempt_without_a_reply_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt without a reply to the handshake, or without a frame after it, ends after a timeout.

    The first attempt raises an error. A later attempt is retried.
    """
    monkeypatch.setattr(pipeline.client.transports, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(pipeline.client.feed, "BACKOFF_SECONDS", (0.01, 0.01))
    left, release = asyncio.Event(), asyncio.Event()

    async def stay_silent(peer: Peer) -> None:
        await peer.wait_until_closed()
        left.set()

    async def hold_then_end(peer: Peer) -> None:
        await peer.accept()
        await release.wait()
        await peer.end(1011)

    async with ScriptedService(stay_silent, hold_then_end, stay_silent, accept_and_wait) as fake:
        async with Switch(None) as switch, Client(switch.url, "a token") as client:
            with pytest.raises(ClientError, match="no answer in time"):
                await client.listen()
            switch.port = int(fake.url.rpartition(":")[2])
            fake.replies += [web.Response(status=404) for _ in range(4)]
            with pytest.raises(ClientError, match="404"):
                await client.listen()
            await left.wait()
            await client.listen()
            switch.port = None
            release.set()
            await switch.wait_unanswered(5)
            fake.replies += [web.Response(status=404) for _ in range(4)]
            switch.port = int(fake.url.rpartition(":")[2])
            await fake.handshake(4)


@pytest.mark.usefixtures("reconnects_at_once")
@pytest.mark.gen_test(timeout=60)
async def test_client_changes_a_silent_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    """When nothing arrives by a socket, and then by a stream, not even a pong, the client uses the next transport."""
    monkeypatch.setattr(pipeline.client.transports, "MUTE_SECONDS", 0.3)
    release = asyncio.Event()
    transports: list[str] = []

    async def fall_silent(peer: Peer) -> None:
        await peer.accept()
        await release.wait()

    async def stream(request: web.Request) -> web.Response:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        hello = {"event": "connected", "room": "user:user-1", "serverTime": at(0)}
        await response.write(f"event: connected\ndata: {json.dumps(hello)}\n\n:\n\n".encode())
        await release.wait()
        return response

    async with ScriptedService(fall_silent) as fake:
        async with Client(fake.url, "a token", on_transport=transports.append) as client:
            fake.replies += [stream, page([]), page([]), page([1])]
            await client.listen()
            assert numbers(await next_events(client, 1)) == [1]
            assert transports == ["socket", "sse", "poll"] and client.transport == "poll"
            release.set()


@pytest.mark.gen_test(timeout=60)
async def test_list_without_the_time_of_the_service_is_no_transport() -> None:
    """Without the time of the service there is no cursor to begin at: the transport counts as not opened."""
    async with ScriptedService() as fake:
        http = Http(fake.url, TokenSource("a token"))
        http.open()
        data = {"items": [], "nextCursor": None}
        fake.replies.append(web.json_response({"success": True, "data": data}, headers={"Date": ""}))
        with pytest.raises(Unavailable, match="time") as caught:
            await open_connection("poll", http, "a token", Cursor(None), False)
        assert caught.value.fault is Fault.NOT_OPENED
        await http.close()
