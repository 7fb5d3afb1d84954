"""Events of rooms that are refused or dropped: by the encoder, an ACL of Redis, a bound in memory, or an error."""

from __future__ import annotations

import asyncio
import gc
import time
from contextlib import suppress
from typing import Any
from unittest.mock import Mock

import pytest
import structlog
from redis import Redis
from redis.exceptions import NoPermissionError

import pipeline.rooms.fanout
import pipeline.rooms.publisher
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.link.channels import Channels
from pipeline.link.nodes import Nodes
from pipeline.rooms.lane import PendingMessage
from pipeline.rooms.publisher import Publisher
from tests.integration.fanout_rooms import ROOM, Gaps, eventually
from tests.redis_server import RedisServer
from tests.slowdown import slowdown
from tests.sockets import WAIT_SECONDS, Process, make_event


def pending_messages() -> list[PendingMessage]:
    """Return all pending messages that are still in memory."""
    # Not isinstance: it would ask a weak proxy, whose object may be gone.
    return [each for each in gc.get_objects() if issubclass(type(each), PendingMessage)]


@pytest.mark.fault("E10")
@pytest.mark.gen_test(timeout=30)
async def test_event_that_cannot_be_encoded_is_refused_to_its_publisher(redis_url: str) -> None:
    """The event is refused at once. No socket gets it, later events are published, and no failure is counted."""
    async with Process(redis_url) as one, Process(redis_url) as two:
        on_one, on_two = await one.connect(), await two.connect()
        for room, event in [("user:\ud800", make_event(1)), (ROOM, make_event(1) | {"error": object()})]:
            with pytest.raises((ValueError, TypeError)):
                await one.fanout.publish(room, event)
        await one.fanout.publish(ROOM, make_event(2))
        assert [await on_one.frame(), await on_two.frame()] == [make_event(2)] * 2
        assert one.count("events_published_total") == 1 and one.count("fanout_errors_total") == 0


@pytest.mark.fault("E10")
@pytest.mark.gen_test(timeout=30)
async def test_event_that_redis_refuses_does_not_stop_later_events(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later events are published at once; the refused event is retried and published when Redis takes it."""
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
    """Each try connects and is refused; that is no recovery. When Redis allows it the rooms are subscribed."""
    redis = own_redis.client()
    with structlog.testing.capture_logs() as lines:
        async with Process(own_redis.url) as process:
            gaps = Gaps(process)
            await process.connect()
            redis.execute_command("ACL", "SETUSER", "default", "resetchannels")
            await eventually(lambda: refused_subscriptions(redis) >= 3)
            redis.execute_command("ACL", "SETUSER", "default", "allchannels")
            await gaps.wait("user-1")
    logged = [line["event"] for line in lines if line["event"].startswith("fanout_")]
    assert logged == ["fanout_disconnected", "fanout_reconnected"]


def refused_subscriptions(redis: Redis) -> int:
    stats = redis.info("commandstats")
    return sum(stats[name]["rejected_calls"] for name in ("cmdstat_subscribe", "cmdstat_ssubscribe") if name in stats)


@pytest.mark.fault("E10")
@pytest.mark.gen_test(timeout=30)
async def test_listening_works_after_an_unexpected_exception(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets the exception; waiting sockets are let in. A second call of `listen` asks for missed events."""
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
                await single_exception(listening)
        started_at = time.monotonic()
        await one.connect("user-2")
        assert time.monotonic() - started_at < 0.45 * slowdown() and gaps.reported == []
        listening = asyncio.create_task(one.fanout.listen())
        await gaps.wait("user-1", "user-2")
        await two.fanout.publish(ROOM, make_event(2))
        assert await client.frame() == make_event(2)
        listening.cancel()
        await asyncio.wait([listening])


async def single_exception(listening: asyncio.Task[None]) -> None:
    """Raise the only exception of a group."""
    try:
        await asyncio.wait_for(listening, WAIT_SECONDS)
    except ExceptionGroup as group:
        (error,) = group.exceptions
        raise error from None


@pytest.mark.fault("R15")
@pytest.mark.gen_test(timeout=60)
async def test_too_many_pending_events_are_read_from_the_store(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, logs: list[dict[str, Any]]
) -> None:
    """Dropped events are counted and logged, no publisher waits for them, and every room reads missed events."""
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
            while not gaps.reported:
                await asyncio.sleep(0.01)
        assert [room for room, _ in gaps.reported] == [ROOM] and gaps.reported[0][1] >= before
        # Redis may have taken earlier events that were already sent.
        received = [await client.frame()]
        while received[-1] != make_event(14):
            received.append(await client.frame())
        assert received[-5:] == [make_event(number) for number in range(10, 15)]
        assert two.count("events_dropped_total") == 10
        assert [line["events"] for line in logs if line["event"] == "events_dropped"] == [10]
        await two.fanout.check()


@pytest.mark.gen_test(timeout=60)
async def test_dropped_events_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """While Redis is away only the pending events stay in memory, and no publisher waits for a dropped event."""
    monkeypatch.setattr(pipeline.rooms.publisher, "MAX_PENDING", 10)
    before = set(map(id, pending_messages()))
    publisher = Publisher(
        Channels(Nodes("redis://127.0.0.1:1"), "probe"),
        "probe",
        home=b"home",
        on_demoted=Mock(),
        missed=lambda since: (b"home", b"missed"),
        on_dropped=Mock(),
    )
    waiting = [publisher.publish(b"room", b"message") for _ in range(100)]
    left = [pending for pending in pending_messages() if id(pending) not in before]
    assert len(left) == publisher.pending <= 10
    for pending in left:
        pending.settle()
    await asyncio.wait(waiting)


@pytest.mark.fault("R8")
@pytest.mark.gen_test(timeout=30)
async def test_redis_user_without_channels_gets_the_missing_rule(own_redis: RedisServer) -> None:
    """An ACL without channels makes the rooms unready, and the error names the rule that is missing."""
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
