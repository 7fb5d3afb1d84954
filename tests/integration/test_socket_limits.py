"""The WebSocket border on real sockets: how many sockets a user and a process may have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.constants import MAX_SOCKETS_WITHOUT_TOKEN
from tests.factories import make_token
from tests.integration.socket_border import LogLines, lines_without_errors, publish
from tests.sockets import Process, make_event


@pytest.fixture(autouse=True)
def log_lines(caplog: pytest.LogCaptureFixture) -> Iterator[LogLines]:
    """The log lines of the service; no test of this file may cause a line at error level."""
    with lines_without_errors(caplog) as lines:
        yield lines


@pytest.mark.fault("R6")
@pytest.mark.gen_test(timeout=30)
async def test_newest_socket_of_a_user_replaces_the_oldest(redis_url: str) -> None:
    """All sockets answer pings: the newest is connected at once, the oldest gets `goodbye` and 1013, others stay."""
    async with Process(redis_url, max_sockets_per_user=3) as process:
        other = await process.connect("user-2")
        oldest, *clients = [await process.connect() for _ in range(3)]
        clients.append(await process.connect())
        reading = [asyncio.ensure_future(client.frame()) for client in clients]  # also answers pings
        close, error = await oldest.frames(2)
        assert close["event"] == "goodbye" and 30_000 <= close["retryInMs"] <= 60_000
        assert error == {"event": "error", "message": "Too many connections"}
        assert await oldest.code() == 1013
        await publish(process, 1)
        assert await asyncio.gather(*reading) == [make_event(1)] * 3
        await publish(process, 2, "user-2")
        assert await other.frame() == make_event(2)


@pytest.mark.fault("R6")
@pytest.mark.gen_test(timeout=30)
async def test_sockets_that_answer_no_ping_are_closed_first(redis_url: str) -> None:
    """After a change of network dead sockets are left: they are closed within seconds, and live sockets stay."""
    async with Process(redis_url, max_sockets_per_user=4) as process:
        alive = [await process.connect()]
        dead = [await process.connect_raw() for _ in range(3)]  # plain TCP sockets, which answer no ping
        alive += [await process.connect() for _ in range(3)]
        reading = [asyncio.ensure_future(client.frame()) for client in alive]  # also answers pings
        await process.wait_closed(4)
        await publish(process, 1)
        assert await asyncio.gather(*reading) == [make_event(1)] * 4
        assert process.count("sockets_closed_total", code="4504") == 3
        for raw in dead:
            raw.close()


@pytest.mark.fault("R6")
@pytest.mark.gen_test(timeout=30)
async def test_user_with_many_new_sockets_has_at_most_twice_the_limit(redis_url: str) -> None:
    """Beyond twice max_sockets_per_user the oldest socket is closed at once."""
    async with Process(redis_url, max_sockets_per_user=3) as process:
        clients = [await process.connect() for _ in range(20)]
        assert len(process.rooms.members("user:user-1")) <= 6
        assert {(await client.frame())["event"] for client in clients[:14]} == {"goodbye"}
        await publish(process, 1)
        assert await clients[-1].frame() == make_event(1)


@pytest.mark.gen_test(timeout=30)
async def test_process_with_max_sockets_closes_a_new_one_with_1013(redis_url: str) -> None:
    """1013 lets the client connect later, to this process or to another one."""
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
    """Unauthenticated sockets have their own limit, so that sockets with a token are still accepted."""
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
