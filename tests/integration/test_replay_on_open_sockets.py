"""The replay of missed events to a socket that is open: with a new token, and after Redis was down.

Sockets, Redis and SQLite are real; the stores of these tests can wait and can fail.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pipeline.assets.events import asset_processed
from pipeline.clock import utc_now
from tests.factories import make_token
from tests.integration.missed_events import NOON, SECOND, ControlledStore, connect_since, finish, make_finished
from tests.redis_server import RedisServer
from tests.sockets import WAIT_SECONDS, Process


@pytest.mark.gen_test(timeout=30)
async def test_renewed_token_may_ask_for_missed_events(redis_url: str, tmp_path: Path) -> None:
    """A frame with a fresh token and `since` replays on the open connection; live events wait meanwhile."""
    store = ControlledStore(tmp_path)
    async with Process(redis_url, store=store) as process:
        missed = await finish(process, 0)
        client = await process.connect()
        store.may_go_on.clear()
        await client.send({"auth": {"token": make_token()}, "since": missed["timestamp"]})
        await store.reads.get()
        await process.fanout.publish("user:user-1", live := asset_processed(make_finished()))
        store.may_go_on.set()
        assert await client.frames(2) == [missed, live]


@pytest.mark.gen_test(timeout=30)
async def test_replays_on_an_open_connection_are_few(redis_url: str) -> None:
    """A replay costs as much as several frames, so that a client cannot occupy the store: 4429."""
    async with Process(redis_url) as process:
        client = await process.connect()
        for _ in range(3):
            await client.send({"auth": {"token": make_token()}, "since": "2026-01-31T12:00:00Z"})
        assert await client.frame() == {"event": "error", "message": "Too many frames"}
        assert await client.code() == 4429
        assert process.count("replays_total", outcome="complete") == 1


@pytest.mark.parametrize("trouble", ["restarted", "failed over to an empty one"])
@pytest.mark.gen_test(timeout=60)
async def test_events_missed_while_redis_was_down_are_sent_before_later_events(
    own_redis: RedisServer, tmp_path: Path, trouble: str
) -> None:
    """Each socket gets what was finished since the last reply of Redis, and since it joined; later events wait."""
    store = ControlledStore(tmp_path)
    async with Process(own_redis.url, store=store) as process, Process(own_redis.url) as other:
        early = await process.connect()
        other_user = await process.connect("user-2")
        if trouble == "restarted":
            own_redis.stop()
        else:
            own_redis.kill(loses_data=True)
        missed = await finish(process, (utc_now() - NOON) / SECOND)
        store.may_go_on.clear()
        own_redis.start()
        assert {await store.reads.get(), await store.reads.get()} == {"user-1", "user-2"}
        await other.fanout.publish("user:user-1", later := asset_processed(make_finished()))
        await other.fanout.publish("user:user-2", its := asset_processed(make_finished()))
        late = await process.connect()
        await other.fanout.publish("user:user-1", last := asset_processed(make_finished()))
        assert await late.frame() == last
        store.may_go_on.set()
        assert await early.frames(3) == [missed, later, last]
        assert await other_user.frame() == its


@pytest.mark.gen_test(timeout=60)
async def test_too_many_events_missed_while_redis_was_down_are_a_resync(own_redis: RedisServer) -> None:
    """More missed events than max_replay_events are one `resync` on an open socket."""
    async with Process(own_redis.url, max_replay_events=3) as process:
        client = await process.connect()
        own_redis.stop()
        for _ in range(4):
            await finish(process, (utc_now() - NOON) / SECOND)
        own_redis.start()
        assert await client.frame() == {"event": "resync"}


@pytest.mark.gen_test(timeout=60)
async def test_own_event_is_sent_after_events_of_other_processes_while_redis_is_down(own_redis: RedisServer) -> None:
    """Otherwise a client that got the later event and left would never ask for the earlier event."""
    async with Process(own_redis.url) as process:
        client = await process.connect()
        own_redis.stop()
        async with asyncio.timeout(WAIT_SECONDS):
            while not process.fanout.is_lost:
                await asyncio.sleep(0.01)
        others = await finish(process, (utc_now() - NOON) / SECOND)
        own = await finish(process, (utc_now() - NOON) / SECOND + 0.001)
        await process.fanout.publish("user:user-1", own)
        assert (await client.frames(2))[0] == others


@pytest.mark.gen_test(timeout=60)
async def test_replay_waits_for_a_store_that_fails_but_live_events_do_not(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    """Missed events are sent when the store works; live events are sent before."""
    store = ControlledStore(tmp_path)
    async with Process(own_redis.url, store=store) as process:
        client = await process.connect()
        own_redis.stop()
        missed = await finish(process, (utc_now() - NOON) / SECOND)
        store.is_away = True
        own_redis.start()
        await store.reads.get()
        await process.fanout.publish("user:user-1", live := asset_processed(make_finished()))
        assert await client.frame() == live
        store.is_away = False
        assert await client.frame() == missed


@pytest.mark.gen_test(timeout=30)
async def test_socket_that_is_joining_gets_connected_first(redis_url: str, tmp_path: Path) -> None:
    """A replay that is requested for its room during the join waits until `connected` is sent."""
    store = ControlledStore(tmp_path)
    async with Process(redis_url, store=store) as process:
        store.may_go_on.clear()
        missed = await finish(process, 0)
        opening = asyncio.ensure_future(connect_since(process, "first frame", missed["timestamp"]))
        await store.reads.get()
        store.may_go_on, first_may_go_on = asyncio.Event(), store.may_go_on  # only the first read waits
        store.may_go_on.set()
        since = utc_now()
        at_once = await finish(process, (since - NOON) / SECOND)
        process.replay.request("user:user-1", since)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await store.reads.get()
        first_may_go_on.set()
        assert await (await opening).frames(2) == [missed, at_once]


@pytest.mark.gen_test(timeout=30)
async def test_gap_is_replayed_from_its_start_or_from_the_join(redis_url: str) -> None:
    """Events from before the gap, and events from before the socket joined, are not replayed."""
    async with Process(redis_url) as process:
        client = await process.connect()
        (connection,) = process.rooms.connections
        now = utc_now()
        await finish(process, (now - NOON) / SECOND - 100)
        within = await finish(process, (now - NOON) / SECOND)
        process.replay.request("user:user-1", now - 200 * SECOND)
        assert await client.frame() == within
        connection.joined_at -= 200 * SECOND
        process.replay.request("user:user-1", now)
        assert await client.frame() == within
        await process.fanout.publish("user:user-1", live := asset_processed(make_finished()))
        assert await client.frame() == live
