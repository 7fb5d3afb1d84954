"""The Python client reconnects after each lost connection and yields each event once."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest

import pipeline.client.feed
from pipeline.client import Client, ClientError
from tests.integration.scripted_service import (
    WAIT_SECONDS,
    Peer,
    Script,
    ScriptedService,
    accept_and_end,
    accept_and_wait,
    at,
    make_event,
    next_events,
    numbers,
)
from tests.integration.scripted_service import drawn_waits, reconnects_at_once  # noqa: F811

__all__ = ["drawn_waits", "reconnects_at_once"]


@pytest.mark.gen_test(timeout=60)
async def test_retry_delay_doubles_until_the_client_is_accepted(drawn_waits: list[tuple[float, float]]) -> None:
    """The wait is drawn from 0 to 0.5 s, doubling up to 30 s; after an accepted connection from 0 to 0.5 s."""

    def refuse(code: int) -> Script:
        return lambda peer: peer.end(code)

    refusals = [refuse(code) for code in (1001, 1011, 1012, 1013, 4503, 4504, 1000, 1013)]
    async with ScriptedService(accept_and_end, *refusals, accept_and_end, accept_and_wait) as fake:
        async with Client(fake.url, "a token") as client:
            await client.listen()
            await fake.handshake(11)
    assert drawn_waits == [(0, high) for high in (0.5, 1, 2, 4, 8, 16, 30, 30, 30, 0.5)]


@pytest.mark.gen_test(timeout=60)
async def test_client_waits_as_the_close_frame_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client connects again after the wait that the service asked for, without a wait of its own."""
    monkeypatch.setattr(pipeline.client.feed, "BACKOFF_SECONDS", (3600, 3600))
    left_at = 0.0

    async def leave(peer: Peer) -> None:
        nonlocal left_at
        await peer.accept()
        left_at = time.monotonic()
        await peer.send({"event": "goodbye", "retryInMs": 400})
        await peer.end(1012)

    async with ScriptedService(leave, accept_and_wait) as fake, Client(fake.url, "a token") as client:
        await client.listen()
        await fake.handshake(2)
        assert time.monotonic() - left_at >= 0.4


@pytest.mark.usefixtures("reconnects_at_once")
@pytest.mark.gen_test(timeout=60)
async def test_client_yields_each_event_once() -> None:
    """The client asks for all events since the last one that it yielded, and drops events that arrive twice."""

    async def first(peer: Peer) -> None:
        await peer.accept(at(1000))
        await peer.send({"event": "news"}, make_event(1), make_event(1), make_event(2), make_event(3))
        await peer.end(4503)

    async def second(peer: Peer) -> None:
        await peer.accept(at(1000))
        newer = make_event(2) | {"timestamp": at(5)}
        await peer.send(*(make_event(number) for number in (1, 2, 3, 4)), newer, make_event(6))
        await peer.wait_until_closed()

    async with ScriptedService(first, second) as fake, Client(fake.url, "a token", since=at(0)) as client:
        await client.listen()
        assert client.since == at(0)
        assert numbers(await next_events(client, 1)) == [1]
        assert (await fake.handshake(2)).query["since"] == client.since == at(1)
        assert numbers(await next_events(client, 5)) == [2, 3, 4, 2, 6]
        assert client.since == at(6)


@pytest.mark.usefixtures("reconnects_at_once")
@pytest.mark.gen_test(timeout=60)
async def test_client_remembers_the_newest_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """To drop duplicates, the client remembers a fixed number of the newest events, at least 2,000."""
    assert pipeline.client.feed.REMEMBERED_EVENTS >= 2000
    monkeypatch.setattr(pipeline.client.feed, "REMEMBERED_EVENTS", 3)

    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send(*(make_event(number) for number in (1, 2, 3, 4, 2, 3, 4, 1, 5)))
        await peer.wait_until_closed()

    async with ScriptedService(script) as fake, Client(fake.url, "a token") as client:
        await client.listen()
        assert numbers(await next_events(client, 6)) == [1, 2, 3, 4, 1, 5]


@pytest.mark.usefixtures("reconnects_at_once")
@pytest.mark.gen_test(timeout=60)
async def test_client_keeps_the_first_server_time() -> None:
    """Without an event, a later `serverTime` does not move the cursor: the client asks since the first one."""

    async def later(peer: Peer) -> None:
        await peer.accept(at(100))
        await peer.end(1011)

    async with ScriptedService(accept_and_end, later, accept_and_wait) as fake, Client(fake.url, "a token") as client:
        await client.listen()
        assert "since" not in (await fake.handshake(1)).query
        assert (await fake.handshake(3)).query["since"] == client.since == at(0)


@pytest.mark.gen_test(timeout=60)
async def test_client_starts_at_the_cursor_of_another_client() -> None:
    """The first connection sends `since`, written as the service writes instants."""
    async with ScriptedService(accept_and_wait) as fake:
        async with Client(fake.url, "a token", since="2026-01-31T13:00:07+01:00") as client:
            await client.listen()
        assert (await fake.handshake(1)).query["since"] == client.since == at(7)
    with pytest.raises(ValueError, match="zone"):
        Client(fake.url, "a token", since="2026-01-31T13:00:07")


@pytest.mark.gen_test(timeout=60)
async def test_cancelled_wait_loses_no_event() -> None:
    """After a wait for the next event was cancelled, the next wait returns that event."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.accept()
        await go.wait()
        await peer.send(make_event(1))
        await peer.wait_until_closed()

    async with ScriptedService(script) as fake, Client(fake.url, "a token") as client:
        await client.listen()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(client.events())
        go.set()
        assert numbers(await next_events(client, 1)) == [1]


@pytest.mark.gen_test(timeout=60)
async def test_closed_client_ends_a_waiting_consumer() -> None:
    """A task that waits for an event gets an error; a client that is closed at once leaves nothing open."""
    async with ScriptedService(accept_and_wait) as fake:
        async with Client(fake.url, "a token") as client:
            await client.listen()
        async with Client(fake.url, "a token") as client:
            await client.listen()
            waiting = asyncio.create_task(next_events(client, 1))
            await asyncio.sleep(0)  # The task begins to wait.
        with pytest.raises(ClientError, match="closed"):
            await waiting


@pytest.mark.gen_test(timeout=60)
async def test_client_yields_progress_only_with_its_option() -> None:
    """With `progress` the connection requests progress frames, and they come between the events."""
    queued = {"event": "asset_queued", "assetId": "1", "position": 3, "etaSeconds": 12}

    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send(queued, make_event(1), queued)
        await peer.wait_until_closed()

    async with ScriptedService(script) as fake:
        async with Client(fake.url, "a token", progress=True) as client:
            assert await next_events(client, 3) == [queued, make_event(1), queued]
        async with Client(fake.url, "a token") as client:
            assert await next_events(client, 1) == [make_event(1)]
    assert [request.query.get("events") for request in fake.requests] == ["progress", None]


@pytest.mark.gen_test(timeout=60)
async def test_client_answers_pings_while_its_consumer_is_busy() -> None:
    """The client answers a ping while its consumer awaits something else."""
    busy, answered = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send(make_event(1))
        await busy.wait()
        await peer.socket.ping(b"there?")
        if (await peer.socket.receive()).type is aiohttp.WSMsgType.PONG:
            answered.set()
        await peer.wait_until_closed()

    async with ScriptedService(script) as fake, Client(fake.url, "a token") as client:
        await client.listen()
        async for _ in client.events():
            busy.set()
            async with asyncio.timeout(WAIT_SECONDS):
                await answered.wait()
            break


@pytest.mark.usefixtures("reconnects_at_once")
@pytest.mark.gen_test(timeout=60)
async def test_client_with_a_slow_consumer_stops_reading() -> None:
    """Of 20 MB of events the client reads only a part while its consumer waits; after a reconnect it gets the rest."""
    count, padding = 5000, "x" * 4096
    sent: list[int] = []
    ended = asyncio.Event()

    async def flood(peer: Peer) -> None:
        await peer.accept()
        try:
            async with asyncio.timeout(1):  # No signal exists for data that is not read.
                for number in range(1, count + 1):
                    await peer.send(make_event(number, padding))
                    sent.append(number)
        except TimeoutError:
            pass
        peer.transport.abort()
        ended.set()

    async def replay(peer: Peer) -> None:
        await peer.accept()
        await peer.send(*(make_event(number) for number in range(1, count + 1)))
        await peer.wait_until_closed()

    async with ScriptedService(flood, replay) as fake, Client(fake.url, "a token") as client:
        await client.listen()
        events = await next_events(client, 1)
        await ended.wait()
        assert len(sent) < count
        events += await next_events(client, count - 1)
        assert numbers(events) == [*range(1, count + 1)]
