"""Rooms across processes while Redis is paused, stopped, restarted or silent, or its connections are cut."""

from __future__ import annotations

import asyncio
import time

import pytest
import structlog

import pipeline.link.channels
import pipeline.rooms.gaps
from tests.integration.fanout_rooms import ROOM, Gaps, channels, eventually, hang, let_answer
from tests.slowdown import slowdown
from tests.redis_server import RedisServer
from tests.sockets import WAIT_SECONDS, Process, make_event


@pytest.mark.parametrize("trouble", ["paused", "paused, then cut"])
@pytest.mark.gen_test(timeout=30)
async def test_event_that_redis_did_not_take_is_published_later(own_redis: RedisServer, trouble: str) -> None:
    """The publisher does not wait for long, and other processes get the event without a gap."""
    async with Process(own_redis.url) as one, Process(own_redis.url) as two:
        gaps = Gaps(one)
        client, own = await one.connect(), await two.connect()
        await two.fanout.publish(ROOM, make_event(0))
        assert [await client.frame(), await own.frame()] == [make_event(0)] * 2
        redis = own_redis.client()
        redis.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
        started_at = time.monotonic()
        await asyncio.gather(*[two.fanout.publish(ROOM, make_event(number)) for number in (1, 2, 3)])
        assert 0.9 < time.monotonic() - started_at < 2 * slowdown()
        assert await own.frames(3) == [make_event(number) for number in (1, 2, 3)]
        assert two.count("fanout_errors_total") == 3
        if trouble == "paused, then cut":
            assert redis.client_kill_filter(_type="normal", skipme=True)
        redis.client_unpause()
        await two.fanout.publish(ROOM, make_event(4))
        received = [(await client.frame())["assetId"] for _ in range(4)]
        assert received == [make_event(number)["assetId"] for number in (1, 2, 3, 4)]
        assert gaps.reported == []


@pytest.mark.gen_test(timeout=30)
async def test_sockets_that_close_while_redis_hangs_leave_no_waiters(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No task waits for the subscription of an empty room, and no event is fetched for it."""
    monkeypatch.setattr(pipeline.rooms.gaps, "SUBSCRIBE_SECONDS", 0.1)
    hang(own_redis)
    try:
        async with Process(own_redis.url) as process:
            gaps = Gaps(process)
            for number in range(3):
                client = await process.connect(f"user-{number}")
                await client.socket.close()
            await process.wait_closed()
            await process.connect("last")
            let_answer(own_redis)
            await gaps.wait("last")
            # Only the private fields show it: a later socket of the same user would use the old waiter.
            assert process.fanout._gaps._waiters == {} and process.fanout._gaps._since == {}
    finally:
        let_answer(own_redis)


@pytest.mark.parametrize("trouble", ["stopped", "hung"])
@pytest.mark.gen_test(timeout=30)
async def test_local_sockets_get_the_event_while_redis_is_away(own_redis: RedisServer, trouble: str) -> None:
    """Sockets of the process get it at once, before Redis is asked; publishing ends in time and counts an error."""
    async with Process(own_redis.url) as process:
        client = await process.connect()
        if trouble == "stopped":
            own_redis.stop()
        else:
            hang(own_redis)
        try:
            started_at = time.monotonic()
            publishing = asyncio.ensure_future(process.fanout.publish(ROOM, make_event(1)))
            assert await client.frame() == make_event(1)
            assert time.monotonic() - started_at < 0.45 * slowdown()
            await publishing
            assert time.monotonic() - started_at < 1.5 * slowdown()
            assert process.count("fanout_errors_total") == 1
            started_at = time.monotonic()
            late = await process.connect("user-2")
            assert time.monotonic() - started_at < 1.5 * slowdown(), "a new socket does not wait for Redis for long"
            await process.fanout.publish("user:user-2", make_event(2))
            assert await late.frame() == make_event(2)
        finally:
            if trouble == "hung":
                let_answer(own_redis)


@pytest.mark.gen_test(timeout=30)
async def test_rooms_are_subscribed_anew_after_redis_restarts(own_redis: RedisServer) -> None:
    """Rooms from before and during the outage are subscribed; each asks for missed events, once per outage."""
    with structlog.testing.capture_logs() as lines:
        async with Process(own_redis.url) as one, Process(own_redis.url) as two:
            gaps, others = Gaps(one), Gaps(two)
            before = await one.connect("ann")
            await two.connect("carl")
            users = ["ann"]
            assert gaps.reported == [], "the first connection is no reconnect"
            for outage in (1, 2):
                own_redis.stop()
                during = await one.connect(f"bob-{outage}")
                users.append(f"bob-{outage}")
                own_redis.start()
                await gaps.wait(*users)
                await others.wait("carl")
                expected = [f"pipeline:0:room:user:{user}" for user in sorted([*users, "carl"])]
                assert channels(own_redis.client()) == expected
                await two.fanout.publish("user:ann", make_event(outage))
                await two.fanout.publish(f"user:bob-{outage}", make_event(outage))
                assert [await before.frame(), await during.frame()] == [make_event(outage)] * 2
            assert gaps.reported == others.reported == []
            assert two.count("fanout_errors_total") == 0
    logged = [line["event"] for line in lines if line["event"].startswith("fanout_")]
    assert sorted(logged) == ["fanout_disconnected"] * 4 + ["fanout_reconnected"] * 4, "one line each per process"


@pytest.mark.gen_test(timeout=30)
async def test_process_starts_before_its_redis(own_redis: RedisServer) -> None:
    """Sockets are served without Redis; when it starts, their rooms are subscribed and ask for missed events."""
    own_redis.stop()
    async with Process(own_redis.url) as process:
        gaps = Gaps(process)
        await process.connect("ann")
        own_redis.start()
        await gaps.wait("ann")
        assert channels(own_redis.client()) == ["pipeline:0:room:user:ann"]


@pytest.mark.gen_test(timeout=30)
async def test_client_is_connected_when_its_room_is_confirmed(own_redis: RedisServer) -> None:
    """The frame `connected` waits until Redis confirms the subscription; events published meanwhile follow it."""
    async with Process(own_redis.url) as process:
        await process.connect("user-2")
        hang(own_redis)
        try:
            joining = asyncio.ensure_future(process.connect())
            done, _ = await asyncio.wait([joining], timeout=0.3)
            assert not done and ROOM in process.rooms
            publishing = asyncio.ensure_future(process.fanout.publish(ROOM, make_event(1)))
        finally:
            let_answer(own_redis)
        client = await joining
        assert await client.frame() == make_event(1)
        await publishing


@pytest.mark.gen_test(timeout=30)
async def test_room_confirmed_late_asks_for_missed_events(own_redis: RedisServer) -> None:
    """A client that connected before Redis confirmed may have missed events, although no connection broke."""
    async with Process(own_redis.url) as process:
        gaps = Gaps(process)
        await process.connect("user-2")
        hang(own_redis)
        try:
            await process.connect()
            assert gaps.reported == []
        finally:
            let_answer(own_redis)
        await gaps.wait("user-1")
        assert "pipeline:0:room:user:user-1" in channels(own_redis.client())


@pytest.mark.gen_test(timeout=30)
async def test_connection_to_a_silent_redis_is_replaced(own_redis: RedisServer) -> None:
    """A ping finds a connection that is open and does not answer; an idle connection that answers stays."""
    options = {"health_seconds": 0.5}
    with structlog.testing.capture_logs() as lines:
        async with Process(own_redis.url, fanout_options=options) as one, Process(own_redis.url) as two:
            gaps = Gaps(one)
            client = await one.connect()
            for _ in range(3):
                before = pings(own_redis)
                await eventually(lambda before=before: pings(own_redis) > before)  # type: ignore[misc]
            assert not lost(lines)
            hang(own_redis)
            try:
                await one.connect("user-2")
                await eventually(lambda: lost(lines))
            finally:
                let_answer(own_redis)
            await gaps.wait("user-1", "user-2")
            await two.fanout.publish(ROOM, make_event(1))
            assert await client.frame() == make_event(1)


@pytest.mark.gen_test(timeout=30)
async def test_redis_that_accepts_and_does_not_answer_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that never gets its first reply is closed, and the process connects anew."""
    monkeypatch.setattr(pipeline.link.channels, "CONNECT_SECONDS", 0.1)
    accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    writers = []
    server = await asyncio.start_server(lambda _reader, writer: accepted.put_nowait(writer), "127.0.0.1", 0)
    async with Process(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"):
        async with asyncio.timeout(WAIT_SECONDS):
            for _ in range(3):
                writers.append(await accepted.get())
    server.close()
    while not accepted.empty():
        writers.append(accepted.get_nowait())
    for writer in writers:
        writer.close()


def pings(server: RedisServer) -> int:
    calls: int = server.client().info("commandstats")["cmdstat_ping"]["calls"]
    return calls


def lost(lines: list[structlog.typing.EventDict]) -> bool:
    return any(line["event"] == "fanout_disconnected" for line in lines)


@pytest.mark.gen_test(timeout=30)
async def test_event_survives_a_cut_publishing_connection(redis_url: str, redis_server: RedisServer) -> None:
    """A connection that was cut while idle costs a second try, and the event arrives."""
    async with Process(redis_url) as one, Process(redis_url) as two:
        client = await one.connect()
        for number in range(5):
            await two.fanout.publish(ROOM, make_event(number))
            assert await client.frame() == make_event(number)
            redis_server.client().client_kill_filter(_type="normal", skipme=True)
        assert two.count("fanout_errors_total") == 0


@pytest.mark.gen_test(timeout=30)
async def test_cut_subscription_is_renewed(redis_url: str, redis_server: RedisServer) -> None:
    """The process subscribes anew when Redis cuts its subscription, as it does with a slow subscriber."""
    async with Process(redis_url) as one, Process(redis_url) as two:
        gaps = Gaps(one)
        client = await one.connect()
        for number in range(3):
            redis_server.client().client_kill_filter(_type="pubsub")
            await gaps.wait("user-1")
            await two.fanout.publish(ROOM, make_event(number))
            assert await client.frame() == make_event(number)


@pytest.mark.parametrize("trouble", ["none", "stopped", "hung"])
@pytest.mark.gen_test(timeout=30)
async def test_stop_is_quick_without_redis(own_redis: RedisServer, trouble: str) -> None:
    """A shutdown does not wait for Redis, whether it runs, is stopped or hangs. It leaves no task and no connection."""
    tasks = asyncio.all_tasks()
    process = Process(own_redis.url)
    async with process:
        await process.connect()
        if trouble == "stopped":
            own_redis.stop()
        elif trouble == "hung":
            hang(own_redis)
        try:
            started_at = time.monotonic()
            await process.fanout.stop()
            assert time.monotonic() - started_at < 1
            assert not [task for task in asyncio.all_tasks() - tasks if "fanout" in repr(task)]
        finally:
            if trouble == "hung":
                let_answer(own_redis)
    if trouble == "none":
        await eventually(lambda: len(own_redis.client().client_list()) == 1)
