"""Rooms across processes on a real Redis: which events reach which sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pipeline.hooks import Notifier
from pipeline.hooks.manager import build_plugins
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.testing import NotifierSuite
from pipeline.plugins.notify_websocket import WebSocketNotifier
from tests.factories import SECRET
from tests.integration.fanout_rooms import ROOM, channels, eventually
from tests.redis_server import RedisServer
from tests.sockets import Process, make_event

WITHOUT_SHARDS = ("--rename-command", "SPUBLISH", "", "--rename-command", "SSUBSCRIBE", "")


class TestWebSocketNotifier(NotifierSuite):
    """The built-in notifier `websocket`."""

    @pytest.fixture
    def notifier(self) -> Notifier:
        return WebSocketNotifier()


@pytest.mark.spec("T033")
@pytest.mark.gen_test(timeout=30)
async def test_event_reaches_sockets_of_its_owner_on_every_process_once(redis_url: str) -> None:
    """Any process may publish; the publisher drops its own echo; another user gets no event."""
    async with Process(redis_url) as one, Process(redis_url) as two:
        on_one, on_two = await one.connect("ann"), await two.connect("ann")
        other_user = await two.connect("ann2")
        await one.fanout.publish("user:ann", make_event(1))
        # Redis keeps the order, so an echo of 1 would arrive before 2.
        await two.fanout.publish("user:ann", make_event(2))
        assert await on_one.frames(2) == [make_event(1), make_event(2)]
        assert sorted(frame["assetId"][-1] for frame in await on_two.frames(2)) == ["1", "2"]
        await one.fanout.publish("user:ann", make_event(3))
        assert [await on_one.frame(), await on_two.frame()] == [make_event(3)] * 2
        await one.fanout.publish("user:ann2", make_event(4))
        assert await other_user.frame() == make_event(4)
        assert one.count("events_published_total") == 3 and two.count("events_published_total") == 1


@pytest.mark.gen_test(timeout=30)
async def test_event_of_any_text_arrives_unchanged(redis_url: str) -> None:
    """Quotes, line breaks, spaces, other scripts and half a surrogate pair survive both ways."""
    event = make_event(1, error="a \"b\"\n c\u2028 \u00e9 \U0001f45f \ud83d \x00")
    async with Process(redis_url) as one, Process(redis_url) as two:
        on_one, on_two = await one.connect(), await two.connect()
        await one.fanout.publish(ROOM, event)
        assert await on_one.frame() == event
        assert await on_two.frame() == event


@pytest.mark.gen_test(timeout=30)
async def test_room_is_subscribed_only_while_it_has_sockets(redis_url: str, redis_server: RedisServer) -> None:
    """A room has one channel, from its first socket to its last, also when sockets open and close quickly."""
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
    """Many clients that connect at once, as after a restart, each get the events of their rooms."""
    async with Process(redis_url) as one, Process(redis_url) as two:
        clients = await asyncio.gather(*[one.connect(f"user-{number}") for number in range(200)])
        assert len(channels(redis_server.client())) == 200
        for number in range(200):
            await two.fanout.publish(f"user:user-{number}", make_event(number))
        assert await asyncio.gather(*[client.frame() for client in clients]) == [make_event(n) for n in range(200)]


@pytest.mark.gen_test(timeout=30)
async def test_databases_of_one_redis_do_not_share_rooms(redis_url: str) -> None:
    """Two deployments may share a Redis server under different numbers and have users of the same name."""
    other_database = redis_url.removesuffix("/0") + "/1"
    async with Process(redis_url) as one, Process(other_database) as other, Process(other_database) as third:
        await one.connect()
        client = await other.connect()
        await one.fanout.publish(ROOM, make_event(1))
        await third.fanout.publish(ROOM, make_event(2))
        assert await client.frame() == make_event(2)


@pytest.mark.parametrize("options", [(), WITHOUT_SHARDS], ids=["sharded", "plain"])
@pytest.mark.gen_test(timeout=30)
async def test_sharded_pubsub_is_used_where_there_is_one(options: tuple[str, ...]) -> None:
    """Redis 7 and Valkey have sharded Pub/Sub; an older server gets plain Pub/Sub. Events arrive in both cases."""
    with RedisServer(*options) as server:
        async with Process(server.url) as one, Process(server.url) as two:
            client = await one.connect()
            assert server.client().pubsub_channels("*:user:*") == (["pipeline:0:room:user:user-1"] if options else [])
            assert channels(server.client()) == ["pipeline:0:room:user:user-1"]
            await two.fanout.publish(ROOM, make_event(1))
            assert await client.frame() == make_event(1)
            await client.socket.close()
            await eventually(lambda: channels(server.client()) == [])


@pytest.mark.gen_test(timeout=30)
async def test_prefixes_of_one_redis_do_not_share_rooms(redis_url: str, redis_server: RedisServer) -> None:
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


@pytest.mark.gen_test(timeout=30)
async def test_notifier_reaches_the_owners_sockets(redis_url: str, tmp_path: Path) -> None:
    """The default notifier, `websocket`, publishes the event unchanged in the owner's room, on every process."""
    async with Process(redis_url) as one, Process(redis_url) as two:
        on_one, on_two, other_user = await one.connect("ann"), await two.connect("ann"), await two.connect("bob")
        settings = Settings(jwt_secret=SECRET, data_dir=tmp_path, ai_service_url="http://127.0.0.1:1")
        plugins = build_plugins(settings, Metrics(), one.fanout)
        await plugins.notifiers.notify(make_event(1), "ann")
        await plugins.notifiers.notify(make_event(2), "bob")
        assert [await on_one.frame(), await on_two.frame()] == [make_event(1)] * 2
        assert await other_user.frame() == make_event(2)
        await plugins.close()
