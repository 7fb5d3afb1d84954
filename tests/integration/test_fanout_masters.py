"""Rooms across processes when the Redis server changes: slots that move, masters that fail or become replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

import pipeline.rooms.lane
from tests.forwarder import Forwarder
from tests.integration.fanout_rooms import ROOM, Gaps, channels
from tests.redis_server import RedisCluster, RedisServer
from tests.sockets import Process, make_event


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as cluster:
        yield cluster


@pytest.mark.gen_test(timeout=60)
async def test_rooms_are_spread_over_the_masters_of_a_cluster(cluster: RedisCluster) -> None:
    """Each channel is on one master. REDIS_URL may name any of them; the events of all channels arrive."""
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
    """When its slot moves, the room is subscribed on the new master, and asks for the events it may have missed."""
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


@pytest.mark.fault("R1")
@pytest.mark.gen_test(timeout=60)
async def test_nothing_is_published_to_a_master_that_became_a_replica(own_redis: RedisServer) -> None:
    """A replica takes a PUBLISH that reaches no subscriber. The new master is found behind the same address."""
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
async def test_rooms_are_not_subscribed_on_a_master_that_became_a_replica(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that publishes nothing subscribes on the new master, too, and asks for missed events."""
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
async def test_idle_connection_cut_silently_costs_less_than_a_second(own_redis: RedisServer) -> None:
    """A publishing connection has to answer a ping at once, before the replies that may take longer."""
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
async def test_rooms_work_without_the_node_of_the_url(cluster: RedisCluster) -> None:
    """A dead node of a cluster is not used: events of channels on other masters are published and received."""
    first, second, _third = cluster.servers
    room = next(room for room in map("user:{}".format, range(99)) if cluster.owner(f"pipeline:0:room:{room}") is second)
    async with Process(first.url) as one, Process(first.url) as two:
        client = await one.connect(room.removeprefix("user:"))
        await two.fanout.publish(room, make_event(1))
        assert await client.frame() == make_event(1)
        gaps = Gaps(one)
        first.kill()
        # Both processes have to connect anew.
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
    """Without full coverage the other masters still work: all events arrive, and the rooms are ready."""
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
