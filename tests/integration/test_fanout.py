"""Rooms across processes on a real Redis, with the faults it may have: gone, hung, restarted, connections cut."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import structlog
from redis import Redis
from redis.exceptions import NoPermissionError

import pipeline.link.channels
import pipeline.rooms.fanout
import pipeline.rooms.gaps
import pipeline.rooms.lane
import pipeline.rooms.publisher
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.hooks import Notifier
from pipeline.hooks.manager import build_plugins
from pipeline.link.channels import Channels
from pipeline.link.nodes import Nodes
from pipeline.metrics import Metrics
from pipeline.rooms.lane import PendingMessage
from pipeline.rooms.publisher import Publisher
from pipeline.settings import Settings
from pipeline.testing import NotifierSuite
from pipeline.plugins.notify_websocket import WebSocketNotifier
from tests.factories import SECRET
from tests.forwarder import Forwarder
from tests.slowdown import slowdown
from tests.redis_server import RedisCluster, RedisServer
from tests.sockets import WAIT_SECONDS, Process, make_event

ROOM = "user:user-1"
WITHOUT_SHARDS = ("--rename-command", "SPUBLISH", "", "--rename-command", "SSUBSCRIBE", "")


class TestWebSocketNotifier(NotifierSuite):
    """The built-in notifier `websocket`."""

    @pytest.fixture
    def notifier(self) -> Notifier:
        return WebSocketNotifier()


class Gaps:
    """An on_gap the test can wait for."""

    def __init__(self, process: Process) -> None:
        self.told: list[tuple[str, datetime]] = []
        self._arrived = asyncio.Event()
        process.fanout.on_gap = self

    def __call__(self, room: str, since: datetime) -> None:
        self.told.append((room, since))
        self._arrived.set()

    async def wait(self, *users: str) -> None:
        """Return when the rooms of these users and no others were told of, and forget them."""
        async with asyncio.timeout(WAIT_SECONDS):
            while {room for room, _ in self.told} != {f"user:{user}" for user in users}:
                self._arrived.clear()
                await self._arrived.wait()
        self.told.clear()


def all_owed() -> list[PendingMessage]:
    """Return the messages that something still refers to."""
    return [each for each in gc.get_objects() if isinstance(each, PendingMessage)]


async def eventually(is_so: Callable[[], bool]) -> None:
    """Ask again and again, as Redis tells nobody that a channel has lost its last subscriber."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not is_so():
            await asyncio.sleep(0.01)


def channels(redis: Redis) -> list[str]:
    """Return the rooms' channels somebody is subscribed to, sharded ones and others."""
    pattern = "pipeline:0:room:user:*"
    found: list[str] = redis.pubsub_channels(pattern) + redis.pubsub_shardchannels(pattern)
    return sorted(found)


def hang(server: RedisServer) -> None:
    os.kill(server.pid, signal.SIGSTOP)


def unhang(server: RedisServer) -> None:
    os.kill(server.pid, signal.SIGCONT)


# two processes, one Redis


@pytest.mark.spec("T033")
@pytest.mark.gen_test(timeout=30)
async def test_event_reaches_sockets_of_its_owner_on_every_process_once(redis_url: str) -> None:
    """Whichever process publishes; the publisher's own echo is dropped; another user hears nothing."""
    async with Process(redis_url) as one, Process(redis_url) as two:
        here, there = await one.connect("ann"), await two.connect("ann")
        stranger = await two.connect("ann2")
        await one.fanout.publish("user:ann", make_event(1))
        # Redis keeps the order, so an echo of 1 would arrive before 2.
        await two.fanout.publish("user:ann", make_event(2))
        assert await here.frames(2) == [make_event(1), make_event(2)]
        assert sorted(frame["assetId"][-1] for frame in await there.frames(2)) == ["1", "2"]
        await one.fanout.publish("user:ann", make_event(3))
        assert [await here.frame(), await there.frame()] == [make_event(3)] * 2
        await one.fanout.publish("user:ann2", make_event(4))
        assert await stranger.frame() == make_event(4)
        assert one.count("events_published_total") == 3 and two.count("events_published_total") == 1


@pytest.mark.gen_test(timeout=30)
async def test_event_of_any_text_arrives_unchanged(redis_url: str) -> None:
    """Quotes, line breaks, spaces, other scripts and half a surrogate pair survive both ways."""
    event = make_event(1, error="a \"b\"\n c\u2028 \u00e9 \U0001f45f \ud83d \x00")
    async with Process(redis_url) as one, Process(redis_url) as two:
        here, there = await one.connect(), await two.connect()
        await one.fanout.publish(ROOM, event)
        assert await here.frame() == event
        assert await there.frame() == event


@pytest.mark.gen_test(timeout=30)
async def test_room_is_subscribed_only_while_somebody_is_in_it(redis_url: str, redis_server: RedisServer) -> None:
    """One channel per room, from its first socket to its last; also when they come and go quickly."""
    redis = redis_server.client()
    async with Process(redis_url) as process:
        assert channels(redis) == []
        first, second = await process.connect("ann"), await process.connect("ann")
        assert channels(redis) == ["pipeline:0:room:user:ann"]
        await first.socket.close()
        await process.wait_closed(1)
        other = await process.connect("bob")
        assert channels(redis) == ["pipeline:0:room:user:ann", "pipeline:0:room:user:bob"]
        await second.socket.close()
        await eventually(lambda: channels(redis) == ["pipeline:0:room:user:bob"])
        for _ in range(50):
            client = await process.connect("ann")
            assert "pipeline:0:room:user:ann" in channels(redis), "connected means subscribed"
            await client.socket.close()
        await other.socket.close()
        await eventually(lambda: channels(redis) == [])


@pytest.mark.gen_test(timeout=30)
async def test_many_rooms_at_once_are_all_subscribed(redis_url: str, redis_server: RedisServer) -> None:
    """A storm of clients after a restart ends with every room heard."""
    async with Process(redis_url) as one, Process(redis_url) as two:
        clients = await asyncio.gather(*[one.connect(f"user-{number}") for number in range(200)])
        assert len(channels(redis_server.client())) == 200
        for number in range(200):
            await two.fanout.publish(f"user:user-{number}", make_event(number))
        assert await asyncio.gather(*[client.frame() for client in clients]) == [make_event(n) for n in range(200)]


@pytest.mark.gen_test(timeout=30)
async def test_databases_of_one_redis_do_not_hear_each_other(redis_url: str) -> None:
    """Two deployments may share a Redis server under different numbers and have users of the same name."""
    elsewhere = redis_url.removesuffix("/0") + "/1"
    async with Process(redis_url) as one, Process(elsewhere) as other, Process(elsewhere) as third:
        await one.connect()
        client = await other.connect()
        await one.fanout.publish(ROOM, make_event(1))
        await third.fanout.publish(ROOM, make_event(2))
        assert await client.frame() == make_event(2)


# which Redis


@pytest.mark.parametrize("options", [(), WITHOUT_SHARDS], ids=["sharded", "plain"])
@pytest.mark.gen_test(timeout=30)
async def test_sharded_pubsub_is_used_where_there_is_one(options: tuple[str, ...]) -> None:
    """Redis 7 and Valkey have it; an older one gets plain Pub/Sub. Either way events arrive."""
    with RedisServer(*options) as server:
        async with Process(server.url) as one, Process(server.url) as two:
            client = await one.connect()
            assert server.client().pubsub_channels("*:user:*") == (["pipeline:0:room:user:user-1"] if options else [])
            assert channels(server.client()) == ["pipeline:0:room:user:user-1"]
            await two.fanout.publish(ROOM, make_event(1))
            assert await client.frame() == make_event(1)
            await client.socket.close()
            await eventually(lambda: channels(server.client()) == [])


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as cluster:
        yield cluster


@pytest.mark.gen_test(timeout=60)
async def test_rooms_are_spread_over_the_masters_of_a_cluster(cluster: RedisCluster) -> None:
    """Each channel lives on one master, whichever of them REDIS_URL names; all are heard."""
    async with Process(cluster.servers[0].url) as one, Process(cluster.servers[2].url) as two:
        clients = await asyncio.gather(*[one.connect(f"user-{number}") for number in range(60)])
        spread = [channels(server.client()) for server in cluster.servers]
        assert min(map(len, spread)) > 5 and sum(map(len, spread)) == 60
        for number in range(60):
            await two.fanout.publish(f"user:user-{number}", make_event(number))
        assert await asyncio.gather(*[client.frame() for client in clients]) == [make_event(n) for n in range(60)]
        assert two.count("fanout_errors_total") == 0


@pytest.mark.gen_test(timeout=60)
async def test_channel_that_moves_to_another_master_is_followed(cluster: RedisCluster) -> None:
    """When its slot is given away, the room is subscribed where it is now, and asks for what it may have missed."""
    async with Process(cluster.servers[0].url) as one, Process(cluster.servers[0].url) as two:
        gaps = Gaps(one)
        client = await one.connect()
        await two.fanout.publish(ROOM, make_event(1))
        assert await client.frame() == make_event(1)
        (source,) = [server for server in cluster.servers if channels(server.client())]
        target = cluster.servers[cluster.servers.index(source) - 1]
        cluster.move_slot("pipeline:0:room:user:user-1", source, target)
        await gaps.wait("user-1")
        assert channels(target.client()) == ["pipeline:0:room:user:user-1"]
        await two.fanout.publish(ROOM, make_event(2))
        assert await client.frame() == make_event(2)


# Redis in trouble


@pytest.mark.parametrize("trouble", ["held up", "held up, then cut"])
@pytest.mark.gen_test(timeout=30)
async def test_event_that_could_not_be_told_is_told_later(own_redis: RedisServer, trouble: str) -> None:
    """The publisher is not held up for long, and the event is not lost for other processes, which heard no gap."""
    async with Process(own_redis.url) as one, Process(own_redis.url) as two:
        gaps = Gaps(one)
        client, own = await one.connect(), await two.connect()
        await two.fanout.publish(ROOM, make_event(0))
        assert [await client.frame(), await own.frame()] == [make_event(0)] * 2
        redis = own_redis.client()
        redis.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
        started_at = time.monotonic()
        await asyncio.gather(*[two.fanout.publish(ROOM, make_event(number)) for number in (1, 2, 3)])
        assert 0.9 < time.monotonic() - started_at < 2
        assert await own.frames(3) == [make_event(number) for number in (1, 2, 3)]
        assert two.count("fanout_errors_total") == 3
        if trouble == "held up, then cut":
            assert redis.client_kill_filter(_type="normal", skipme=True)
        redis.client_unpause()
        await two.fanout.publish(ROOM, make_event(4))
        heard = [(await client.frame())["assetId"] for _ in range(4)]
        assert heard == [make_event(number)["assetId"] for number in (1, 2, 3, 4)]
        assert gaps.told == []


@pytest.mark.gen_test(timeout=30)
async def test_users_who_come_and_go_while_redis_hangs_leave_nothing_behind(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the word of Redis about a room nobody is in, and nothing is to be caught up with there."""
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
            unhang(own_redis)
            await gaps.wait("last")
            # Nothing but memory shows it: a later socket of the same user would take the old waiter over.
            assert process.fanout._gaps._waiters == {} and process.fanout._gaps._since == {}
    finally:
        unhang(own_redis)


@pytest.mark.parametrize("trouble", ["gone", "hung"])
@pytest.mark.gen_test(timeout=30)
async def test_local_sockets_get_the_event_while_redis_is_away(own_redis: RedisServer, trouble: str) -> None:
    """At once, before Redis is even asked; publishing is bounded in time, counted, and raises nothing."""
    async with Process(own_redis.url) as process:
        client = await process.connect()
        if trouble == "gone":
            own_redis.stop()
        else:
            hang(own_redis)
        try:
            started_at = time.monotonic()
            publishing = asyncio.ensure_future(process.fanout.publish(ROOM, make_event(1)))
            assert await client.frame() == make_event(1)
            assert time.monotonic() - started_at < 0.5
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
                unhang(own_redis)


@pytest.mark.gen_test(timeout=30)
async def test_rooms_are_heard_again_after_redis_restarts(own_redis: RedisServer) -> None:
    """Those from before and those entered meanwhile; each asks for what it may have missed, once per outage."""
    with structlog.testing.capture_logs() as lines:
        async with Process(own_redis.url) as one, Process(own_redis.url) as two:
            gaps, others = Gaps(one), Gaps(two)
            before = await one.connect("ann")
            await two.connect("carl")
            users = ["ann"]
            assert gaps.told == [], "the first connection is no reconnect"
            for round in (1, 2):
                own_redis.stop()
                during = await one.connect(f"bob-{round}")
                users.append(f"bob-{round}")
                own_redis.start()
                await gaps.wait(*users)
                await others.wait("carl")
                expected = [f"pipeline:0:room:user:{user}" for user in sorted([*users, "carl"])]
                assert channels(own_redis.client()) == expected
                await two.fanout.publish("user:ann", make_event(round))
                await two.fanout.publish(f"user:bob-{round}", make_event(round))
                assert [await before.frame(), await during.frame()] == [make_event(round)] * 2
            assert gaps.told == others.told == []
            assert two.count("fanout_errors_total") == 0
    told = [line["event"] for line in lines if line["event"].startswith("fanout_")]
    assert sorted(told) == ["fanout_disconnected"] * 4 + ["fanout_reconnected"] * 4, "one line each per process"


@pytest.mark.gen_test(timeout=30)
async def test_process_starts_before_its_redis(own_redis: RedisServer) -> None:
    """Sockets are served without it; when it comes, their rooms are subscribed and ask for what they missed."""
    own_redis.stop()
    async with Process(own_redis.url) as process:
        gaps = Gaps(process)
        await process.connect("ann")
        own_redis.start()
        await gaps.wait("ann")
        assert channels(own_redis.client()) == ["pipeline:0:room:user:ann"]


@pytest.mark.gen_test(timeout=30)
async def test_client_is_connected_when_its_room_is_confirmed(own_redis: RedisServer) -> None:
    """`connected` waits for Redis' word; what is published here meanwhile follows it."""
    async with Process(own_redis.url) as process:
        await process.connect("user-2")
        hang(own_redis)
        try:
            joining = asyncio.ensure_future(process.connect())
            done, _ = await asyncio.wait([joining], timeout=0.3)
            assert not done and ROOM in process.rooms
            publishing = asyncio.ensure_future(process.fanout.publish(ROOM, make_event(1)))
        finally:
            unhang(own_redis)
        client = await joining
        assert await client.frame() == make_event(1)
        await publishing


@pytest.mark.gen_test(timeout=30)
async def test_room_confirmed_late_asks_for_what_it_missed(own_redis: RedisServer) -> None:
    """A client that was let in without Redis' word may have missed something, although no connection broke."""
    async with Process(own_redis.url) as process:
        gaps = Gaps(process)
        await process.connect("user-2")
        hang(own_redis)
        try:
            await process.connect()
            assert gaps.told == []
        finally:
            unhang(own_redis)
        await gaps.wait("user-1")
        assert "pipeline:0:room:user:user-1" in channels(own_redis.client())


@pytest.mark.gen_test(timeout=30)
async def test_silent_redis_is_given_up_and_found_again(own_redis: RedisServer) -> None:
    """A connection that is up but dead is noticed by a ping; an idle one that answers is kept."""
    options = {"health_seconds": 0.5}
    with structlog.testing.capture_logs() as lines:
        async with Process(own_redis.url, fanout_options=options) as one, Process(own_redis.url) as two:
            gaps = Gaps(one)
            client = await one.connect()
            for _ in range(3):
                asked = pings(own_redis)
                await eventually(lambda asked=asked: pings(own_redis) > asked)  # type: ignore[misc]
            assert not lost(lines)
            hang(own_redis)
            try:
                await one.connect("user-2")
                await eventually(lambda: lost(lines))
            finally:
                unhang(own_redis)
            await gaps.wait("user-1", "user-2")
            await two.fanout.publish(ROOM, make_event(1))
            assert await client.frame() == make_event(1)


@pytest.mark.gen_test(timeout=30)
async def test_redis_that_accepts_and_says_nothing_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that never gets its first answer is given up, too."""
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
    """A connection that died while idle costs a second try, not the event."""
    async with Process(redis_url) as one, Process(redis_url) as two:
        client = await one.connect()
        for number in range(5):
            await two.fanout.publish(ROOM, make_event(number))
            assert await client.frame() == make_event(number)
            redis_server.client().client_kill_filter(_type="normal", skipme=True)
        assert two.count("fanout_errors_total") == 0


@pytest.mark.gen_test(timeout=30)
async def test_cut_subscription_is_renewed(redis_url: str, redis_server: RedisServer) -> None:
    """Redis cutting off the listening connection, as it does with one that falls behind, is repaired."""
    async with Process(redis_url) as one, Process(redis_url) as two:
        gaps = Gaps(one)
        client = await one.connect()
        for number in range(3):
            redis_server.client().client_kill_filter(_type="pubsub")
            await gaps.wait("user-1")
            await two.fanout.publish(ROOM, make_event(number))
            assert await client.frame() == make_event(number)


@pytest.mark.parametrize("trouble", ["none", "gone", "hung"])
@pytest.mark.gen_test(timeout=30)
async def test_stop_is_quick_whatever_redis_does(own_redis: RedisServer, trouble: str) -> None:
    """A shutdown does not wait for Redis, and leaves no task and no connection."""
    tasks = asyncio.all_tasks()
    process = Process(own_redis.url)
    async with process:
        await process.connect()
        if trouble == "gone":
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
                unhang(own_redis)
    if trouble == "none":
        await eventually(lambda: len(own_redis.client().client_list()) == 1)


# what no channel carries, and what Redis refuses


@pytest.mark.fault("E10")
@pytest.mark.gen_test(timeout=30)
async def test_event_that_cannot_be_encoded_is_refused_to_its_publisher(redis_url: str) -> None:
    """At once, and neither for sockets nor for the events behind it; nothing of it stays owed."""
    async with Process(redis_url) as one, Process(redis_url) as two:
        here, there = await one.connect(), await two.connect()
        for room, event in [("user:\ud800", make_event(1)), (ROOM, make_event(1) | {"error": object()})]:
            with pytest.raises((ValueError, TypeError)):
                await one.fanout.publish(room, event)
        await one.fanout.publish(ROOM, make_event(2))
        assert [await here.frame(), await there.frame()] == [make_event(2)] * 2
        assert one.count("events_published_total") == 1 and one.count("fanout_errors_total") == 0


@pytest.mark.fault("E10")
@pytest.mark.gen_test(timeout=30)
async def test_event_that_redis_refuses_does_not_stop_those_behind_it(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are told at once; it is tried again and told when Redis takes it."""
    monkeypatch.setattr(pipeline.rooms.publisher, "REFUSED_SECONDS", 0.1)
    acl, url = ("ACL", "SETUSER", "one", "on", "nopass", "+@all", "~*"), own_redis.url.replace("//", "//one:any@")
    own_redis.client().execute_command(*acl, "resetchannels", "&pipeline:0:room:user:allowed", "&pipeline:probe")
    async with Process(url) as one, Process(own_redis.url) as two:
        allowed, other = await two.connect("allowed"), await two.connect("other")
        refused = asyncio.ensure_future(one.fanout.publish("user:other", make_event(1)))
        for number in (2, 3):
            await one.fanout.publish("user:allowed", make_event(number))
            assert await allowed.frame() == make_event(number)
        await refused
        assert one.count("fanout_errors_total") == 1
        own_redis.client().execute_command(*acl, "allchannels")
        assert await other.frame() == make_event(1)


@pytest.mark.gen_test(timeout=30)
async def test_refused_subscriptions_are_one_outage(own_redis: RedisServer) -> None:
    """Each try connects and is refused; that is no recovery. The rooms are heard again when Redis takes them."""
    redis = own_redis.client()
    with structlog.testing.capture_logs() as lines:
        async with Process(own_redis.url) as process:
            gaps = Gaps(process)
            await process.connect()
            redis.execute_command("ACL", "SETUSER", "default", "resetchannels")
            await eventually(lambda: refusals(redis) >= 3)
            redis.execute_command("ACL", "SETUSER", "default", "allchannels")
            await gaps.wait("user-1")
    told = [line["event"] for line in lines if line["event"].startswith("fanout_")]
    assert told == ["fanout_disconnected", "fanout_reconnected"]


def refusals(redis: Redis) -> int:
    stats = redis.info("commandstats")
    return sum(stats[name]["rejected_calls"] for name in ("cmdstat_subscribe", "cmdstat_ssubscribe") if name in stats)


@pytest.mark.gen_test(timeout=30)
async def test_prefixes_of_one_redis_do_not_hear_each_other(redis_url: str, redis_server: RedisServer) -> None:
    """Two services may share a database under different prefixes and have users of the same name."""
    options = {"prefix": "other"}
    async with (
        Process(redis_url) as one,
        Process(redis_url, fanout_options=options) as other,
        Process(redis_url, fanout_options=options) as third,
    ):
        client = await other.connect()
        redis = redis_server.client()
        found = redis.pubsub_shardchannels("*:user:*") + redis.pubsub_channels("*:user:*")
        assert found == ["other:0:room:user:user-1"]
        await one.fanout.publish(ROOM, make_event(1))
        await third.fanout.publish(ROOM, make_event(2))
        assert await client.frame() == make_event(2)


@pytest.mark.fault("E10")
@pytest.mark.gen_test(timeout=30)
async def test_listening_heals_after_an_exception_nobody_foresaw(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised to the caller; sockets that wait are let in; called again, it asks for what was missed."""
    async with Process(redis_url) as one, Process(redis_url) as two:
        client = await one.connect()
        await one.fanout.stop()
        gaps = Gaps(one)
        listening = asyncio.create_task(one.fanout.listen())
        await gaps.wait("user-1")
        with monkeypatch.context() as patched:
            patched.setattr(one.rooms, "deliver", lambda room, frame: 1 // 0)
            await two.fanout.publish(ROOM, make_event(1))
            with pytest.raises(ZeroDivisionError):
                await one_of(listening)
        started_at = time.monotonic()
        await one.connect("user-2")
        assert time.monotonic() - started_at < 0.5 and gaps.told == []
        listening = asyncio.create_task(one.fanout.listen())
        await gaps.wait("user-1", "user-2")
        await two.fanout.publish(ROOM, make_event(2))
        assert await client.frame() == make_event(2)
        listening.cancel()
        await asyncio.wait([listening])


async def one_of(listening: asyncio.Task[None]) -> None:
    """Raise the only exception of a group."""
    try:
        await asyncio.wait_for(listening, WAIT_SECONDS)
    except ExceptionGroup as group:
        (error,) = group.exceptions
        raise error from None


# servers that go


@pytest.mark.fault("R1")
@pytest.mark.gen_test(timeout=60)
async def test_master_that_became_a_replica_is_not_told(own_redis: RedisServer) -> None:
    """It would take a PUBLISH and reach nobody. Behind an address that keeps old connections the new one is found."""
    with RedisServer() as successor:
        async with Forwarder(own_redis.port) as address, Process(address.url) as one:
            await one.fanout.publish(ROOM, make_event(0))
            address.upstream_port = successor.port
            own_redis.client().replicaof("127.0.0.1", successor.port)
            async with Process(successor.url) as two:
                client = await two.connect()
                for number in (1, 2, 3):
                    await one.fanout.publish(ROOM, make_event(number))
                    assert await client.frame() == make_event(number)
            assert one.count("fanout_errors_total") == 0


@pytest.mark.fault("R1")
@pytest.mark.gen_test(timeout=60)
async def test_master_that_became_a_replica_is_not_listened_to(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that publishes nothing moves, too, and asks for what it may have missed."""
    monkeypatch.setattr(pipeline.rooms.lane, "CHECK_SECONDS", 0.1)
    with RedisServer() as successor:
        async with Forwarder(own_redis.port) as address, Process(address.url) as one:
            gaps = Gaps(one)
            client = await one.connect()
            address.upstream_port = successor.port
            own_redis.client().replicaof("127.0.0.1", successor.port)
            await gaps.wait("user-1")
            assert channels(successor.client()) == ["pipeline:0:room:user:user-1"]
            async with Process(successor.url) as two:
                await two.fanout.publish(ROOM, make_event(1))
            assert await client.frame() == make_event(1)


@pytest.mark.fault("R5")
@pytest.mark.gen_test(timeout=30)
async def test_idle_connection_cut_without_a_word_costs_less_than_a_second(own_redis: RedisServer) -> None:
    """A publishing connection has to give a sign of life at once, before the replies that may take their time."""
    async with Forwarder(own_redis.port) as address, Process(address.url) as one, Process(own_redis.url) as two:
        client = await two.connect()
        await one.fanout.publish(ROOM, make_event(1))
        assert await client.frame() == make_event(1)
        address.silence()
        started_at = time.monotonic()
        await one.fanout.publish(ROOM, make_event(2))
        assert await client.frame() == make_event(2)
        assert time.monotonic() - started_at < 1
        assert one.count("fanout_errors_total") == 0


@pytest.mark.fault("R2")
@pytest.mark.gen_test(timeout=60)
async def test_rooms_go_on_without_the_node_of_the_url(cluster: RedisCluster) -> None:
    """A cluster's node that is dead for good is left: events of channels on other masters are told and heard."""
    first, second, _third = cluster.servers
    room = next(room for room in map("user:{}".format, range(99)) if cluster.owner(f"pipeline:0:room:{room}") is second)
    async with Process(first.url) as one, Process(first.url) as two:
        client = await one.connect(room.removeprefix("user:"))
        await two.fanout.publish(room, make_event(1))
        assert await client.frame() == make_event(1)
        gaps = Gaps(one)
        first.kill()
        # Both have to connect anew.
        second.client().client_kill_filter(_type="pubsub")
        second.client().client_kill_filter(_type="normal", skipme=True)
        await gaps.wait(room.removeprefix("user:"))
        await two.fanout.publish(room, make_event(2))
        assert await client.frame() == make_event(2)
        both = f"redis://127.0.0.1:{first.port},127.0.0.1:{second.port}/0"
        async with Process(both) as restarted:
            await restarted.fanout.publish(room, make_event(3))
            assert await client.frame() == make_event(3)


@pytest.mark.fault("R3")
@pytest.mark.gen_test(timeout=60)
async def test_master_that_no_channel_needs_may_be_dead(cluster: RedisCluster) -> None:
    """Without full coverage the other masters go on: all events arrive, and the rooms are ready."""
    for server in cluster.servers:
        server.client().config_set("cluster-require-full-coverage", "no")
    home = cluster.owner("pipeline:0:room:{ai-processing}")
    room = next(room for room in map("user:{}".format, range(99)) if cluster.owner(f"pipeline:0:room:{room}") is home)
    dead = next(server for server in cluster.servers if server is not home)
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in (dead, home))
    async with Process(home.url) as one, Process(f"redis://{hosts}/0") as two:
        client = await one.connect(room.removeprefix("user:"))
        gaps = Gaps(one)
        dead.kill()
        home.client().client_kill_filter(_type="pubsub")
        home.client().client_kill_filter(_type="normal", skipme=True)
        await gaps.wait(room.removeprefix("user:"))
        async with Process(f"redis://{hosts}/0") as restarted:
            for number in range(10):
                await (two, restarted)[number % 2].fanout.publish(room, make_event(number))
                assert await client.frame() == make_event(number)
            for process in (one, two, restarted):
                await process.fanout.check()
                assert process.count("fanout_errors_total") == 0


@pytest.mark.fault("R15")
@pytest.mark.gen_test(timeout=60)
async def test_too_many_owed_events_are_read_from_the_store(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, logs: list[dict[str, Any]]
) -> None:
    """They are counted and logged, nobody is left waiting for them, and every room is asked to catch up."""
    monkeypatch.setattr(pipeline.rooms.publisher, "MAX_PENDING", 10)
    monkeypatch.setattr(pipeline.rooms.fanout, "PUBLISH_SECONDS", 0.01)
    async with Process(own_redis.url) as one, Process(own_redis.url) as two:
        await one.fanout.check()
        gaps = Gaps(one)
        client = await one.connect()
        own_redis.client().execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
        before = utc_now()
        for number in range(15):
            await two.fanout.publish(ROOM, make_event(number))
        own_redis.client().client_unpause()
        async with asyncio.timeout(WAIT_SECONDS):
            while not gaps.told:
                await asyncio.sleep(0.01)
        assert [room for room, _ in gaps.told] == [ROOM] and gaps.told[0][1] >= before
        # Redis may have taken those before that were on their way.
        heard = [await client.frame()]
        while heard[-1] != make_event(14):
            heard.append(await client.frame())
        assert heard[-5:] == [make_event(number) for number in range(10, 15)]
        assert two.count("events_dropped_total") == 10
        assert [line["events"] for line in logs if line["event"] == "events_dropped"] == [10]
        await two.fanout.check()


@pytest.mark.gen_test(timeout=60)
async def test_dropped_events_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are dropped while Redis is away, only those owed now are kept; all who wait are told of the end."""
    monkeypatch.setattr(pipeline.rooms.publisher, "MAX_PENDING", 10)
    before = set(map(id, all_owed()))
    publisher = Publisher(
        Channels(Nodes("redis://127.0.0.1:1"), "probe"),
        "probe",
        home=b"home",
        on_demoted=Mock(),
        missed=lambda since: (b"home", b"missed"),
        on_dropped=Mock(),
    )
    waiting = [publisher.publish(b"room", b"message") for _ in range(100)]
    left = [pending for pending in all_owed() if id(pending) not in before]
    assert len(left) == publisher.pending <= 10
    for pending in left:
        pending.settle()
    await asyncio.wait(waiting)


@pytest.mark.fault("R8")
@pytest.mark.gen_test(timeout=30)
async def test_user_without_channels_is_told_what_is_missing(own_redis: RedisServer) -> None:
    """What an ACL leaves out by default makes the rooms unready, and the text names the rule that mends it."""
    acl, url = ("ACL", "SETUSER", "one", "on", "nopass", "+@all", "~*"), own_redis.url.replace("//", "//one:any@")
    own_redis.client().execute_command(*acl, "resetchannels")
    async with Process(url) as process:
        with pytest.raises(DependencyUnavailable, match="ACL rules &pipeline:\\*") as raised:
            await process.fanout.check()
        assert isinstance(raised.value.__cause__, NoPermissionError)
        own_redis.client().execute_command(*acl, "&pipeline:*")
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                with suppress(DependencyUnavailable):
                    await process.fanout.check()
                    break


# the plugin


@pytest.mark.gen_test(timeout=30)
async def test_notifier_reaches_the_owners_sockets(redis_url: str, tmp_path: Path) -> None:
    """What is chosen by default, `websocket`, puts the event unchanged in the owner's room, on every process."""
    async with Process(redis_url) as one, Process(redis_url) as two:
        here, there, stranger = await one.connect("ann"), await two.connect("ann"), await two.connect("bob")
        settings = Settings(jwt_secret=SECRET, data_dir=tmp_path, ai_service_url="http://127.0.0.1:1")
        plugins = build_plugins(settings, Metrics(), one.fanout)
        await plugins.notifiers.notify(make_event(1), "ann")
        await plugins.notifiers.notify(make_event(2), "bob")
        assert [await here.frame(), await there.frame()] == [make_event(1)] * 2
        assert await stranger.frame() == make_event(2)
        await plugins.close()
