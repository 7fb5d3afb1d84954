"""What a socket missed, from the asset store: on connect, with a new token, and after others could not be heard.

Real sockets, a real Redis and a real SQLite; the stores of the test can be held and can fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.assets.asset import AiMetadata, Asset, AssetStatus, to_timestamp
from pipeline.assets.events import asset_processed
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.client.cursor import OVERLAP_SECONDS
from pipeline.usecases.replay import TOLD_LATE_SECONDS
from pipeline.settings import Settings
from tests.factories import SECRET, make_asset, make_token
from tests.redis_server import RedisServer
from tests.service import ROOT
from tests.sockets import ROOMS, WAIT_SECONDS, Client, Process

NOON = datetime(2026, 1, 31, 12, 0, 0, 123_000, UTC)
SECOND = timedelta(seconds=1)
FOUND = AiMetadata(
    brand={"value": "Nike", "confidence": 0.93}, model={"value": "Air Max 90", "confidence": 0.5}, processed_at=NOON
)


class HeldStore(SqliteAssetStore):
    """A real store whose replay reads the test can hold and let fail."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "assets.sqlite")
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.is_away = False
        self.reads: asyncio.Queue[str] = asyncio.Queue()

    async def finished_since(self, user_id: str, since: datetime, **options: Any) -> Sequence[Asset]:
        self.reads.put_nowait(user_id)
        may_go_on = self.may_go_on
        if self.is_away:
            raise DependencyUnavailable("asset store")
        found = await super().finished_since(user_id, since, **options)
        await may_go_on.wait()
        return found


async def finish(process: Process, seconds: float, user_id: str = "user-1", **fields: Any) -> dict[str, Any]:
    """Store an asset that was finished so many seconds after noon; return its event."""
    at = NOON + seconds * SECOND
    fields = {"status": AssetStatus.ACTIVE, "ai_metadata": FOUND} | fields
    asset = make_asset(user_id, created_at=at, finished_at=at, **fields)
    assert await process.store.create(asset)
    return asset_processed(asset)


async def ask(process: Process, way: str, since: str, sub: str = "user-1") -> Client:
    """Open a socket that asks for what was finished since then; take its first frame."""
    if way == "first frame":
        client = await process.open()
        await client.send({"auth": {"token": make_token(sub)}, "since": since})
    elif way == "query, then frame":
        client = await process.open(params={"since": since})
        await client.send({"auth": {"token": make_token(sub)}})
    elif way == "query with header":
        client = await process.open(params={"since": since}, headers={"Authorization": f"Bearer {make_token(sub)}"})
    else:
        client = await process.open(params={"since": since}, protocols=["pipeline.v1", f"bearer.{make_token(sub)}"])
    assert (await client.frame())["event"] == "connected"
    return client


# on connect


@pytest.mark.parametrize("way", ["first frame", "query, then frame", "query with header", "query with subprotocol"])
@pytest.mark.gen_test(timeout=30)
async def test_missed_events_come_first_then_live_ones(redis_url: str, way: str) -> None:
    """All of the user's, of every status, oldest first; what is older is not among them, nor what is another's."""
    async with Process(redis_url) as process:
        await finish(process, -60)
        await finish(process, 2, "user-2")
        await process.store.create(make_asset(created_at=NOON + SECOND))
        failed = AiMetadata(error="The image was refused")
        third = await finish(process, 3, status=AssetStatus.FAILED, ai_metadata=failed)
        first = await finish(process, 0)
        second = await finish(process, 1, status=AssetStatus.PARTIAL)
        client = await ask(process, way, to_timestamp(NOON) or "")
        await process.fanout.publish("user:user-1", live := asset_processed(make_finished()))
        assert await client.frames(4) == [first, second, third, live]
        assert process.count("events_replayed_total") == 3
        assert process.count("replays_total", outcome="complete") == 1


def make_finished() -> Asset:
    return make_asset(status=AssetStatus.ACTIVE, finished_at=utc_now(), ai_metadata=FOUND)


@pytest.mark.gen_test(timeout=30)
async def test_nothing_is_replayed_unasked(redis_url: str) -> None:
    """A client without `since` starts with what is new."""
    async with Process(redis_url) as process:
        await finish(process, 0)
        client = await process.connect()
        await process.fanout.publish("user:user-1", live := asset_processed(make_finished()))
        assert await client.frame() == live


@pytest.mark.gen_test(timeout=30)
async def test_replay_overlaps_for_clocks_that_differ(redis_url: str) -> None:
    """An event whose process' clock was 5 s behind, or that a killed process owed for a lease, is replayed too."""
    async with Process(redis_url, lease_seconds=15) as process:
        await finish(process, -30.5)
        owed, behind, last = await finish(process, -29.5), await finish(process, -4.9), await finish(process, 0)
        client = await ask(process, "first frame", last["timestamp"])
        assert await client.frames(3) == [owed, behind, last]


@pytest.mark.gen_test(timeout=60)
async def test_too_many_missed_events_are_a_resync(redis_url: str) -> None:
    """500 are replayed, the overlap not counted; one more, and the client is told to read the list."""
    async with Process(redis_url) as process:
        await finish(process, -1)
        events = [await finish(process, number / 1000) for number in range(500)]
        client = await ask(process, "first frame", events[0]["timestamp"])
        assert await client.frames(500) == events
        events.append(await finish(process, 1))
        other = await ask(process, "first frame", events[0]["timestamp"])
        assert await other.frame() == {"event": "resync"}
        await process.fanout.publish("user:user-1", live := asset_processed(make_finished()))
        assert [await client.frame(), await other.frame()] == [live, live]
        assert process.count("replays_total", outcome="resync") == 1
        nearer = await ask(process, "first frame", events[1]["timestamp"])
        assert (await nearer.frames(500))[-1] == events[-1]


@pytest.mark.gen_test(timeout=30)
async def test_replay_larger_than_an_outbox_is_a_resync(redis_url: str) -> None:
    """What may wait for one client bounds its replay as well."""
    async with Process(redis_url, outbox_bytes=10_000) as process:
        error = AiMetadata(error="x" * 1000)
        first = [await finish(process, n, status=AssetStatus.FAILED, ai_metadata=error) for n in range(8)][0]
        client = await ask(process, "first frame", first["timestamp"])
        assert len(await client.frames(8)) == 8
        for number in range(8, 12):
            await finish(process, number, status=AssetStatus.FAILED, ai_metadata=error)
        client = await ask(process, "first frame", first["timestamp"])
        assert await client.frame() == {"event": "resync"}


@pytest.mark.gen_test(timeout=30)
async def test_event_of_the_moment_is_not_lost_between_replay_and_live(redis_url: str, tmp_path: Path) -> None:
    """What is finished while the store is read waits behind the replay: subscribe, read, merge."""
    store = HeldStore(tmp_path)
    async with Process(redis_url, store=store) as process, Process(redis_url) as other:
        missed = await finish(process, 0)
        store.may_go_on.clear()
        opening = asyncio.ensure_future(ask(process, "first frame", missed["timestamp"]))
        await store.reads.get()
        here, there = asset_processed(make_finished()), asset_processed(make_finished())
        await process.fanout.publish("user:user-1", here)
        await other.fanout.publish("user:user-1", there)
        probe = await process.connect()  # hears after the others what comes last
        await other.fanout.publish("user:user-1", last := asset_processed(make_finished()))
        assert await probe.frame() == last
        store.may_go_on.set()
        assert await (await opening).frames(4) == [missed, here, there, last]


@pytest.mark.gen_test(timeout=30)
async def test_socket_is_told_to_come_back_while_the_store_is_away(redis_url: str, tmp_path: Path) -> None:
    """Without the store nothing can be replayed: 1013, no `connected`; who asks for nothing gets in."""
    store = HeldStore(tmp_path)
    async with Process(redis_url, store=store) as process:
        store.is_away = True
        client = await process.open(params={"since": to_timestamp(NOON)})
        await client.send({"auth": {"token": make_token()}})
        assert await client.code() == 1013
        await process.connect()
        assert process.count("replays_total", outcome="unavailable") == 1


@pytest.mark.parametrize("since", ["yesterday", "2026-01-31T12:00:00", "", "%ff"])
@pytest.mark.gen_test(timeout=30)
async def test_malformed_since_in_the_address_is_refused(redis_url: str, since: str) -> None:
    """After the upgrade, so that a browser can read why."""
    async with Process(redis_url) as process:
        process.url += f"?since={since}"
        client = await process.open(headers={"Authorization": f"Bearer {make_token()}"})
        assert await client.frame() == {"event": "error", "message": "Malformed since"}
        assert await client.code() == 4400


@pytest.mark.gen_test(timeout=30)
async def test_since_of_any_age_is_fine(redis_url: str) -> None:
    """Back to the first instant there is."""
    async with Process(redis_url) as process:
        event = await finish(process, 0)
        client = await ask(process, "first frame", "0001-01-01T00:00:00Z")
        assert await client.frame() == event


@pytest.mark.fault("R7")
@pytest.mark.parametrize("ahead_seconds", [6, 3600, 250_000_000_000])
@pytest.mark.gen_test(timeout=30)
async def test_since_in_the_future_is_a_resync(redis_url: str, ahead_seconds: int, logs: list[Any]) -> None:
    """It is no instant of our clocks, so nobody knows what was missed; the operator reads it in the log."""
    async with Process(redis_url) as process:
        since = to_timestamp(utc_now() + ahead_seconds * SECOND)
        client = await ask(process, "first frame", since or "")
        assert await client.frame() == {"event": "resync"}
        assert process.count("replays_total", outcome="resync") == 1
        (line,) = [line for line in logs if line["event"] == "since_in_future"]
        assert (line["userId"], round(line["aheadSeconds"])) == ("user-1", ahead_seconds)
        await process.fanout.publish("user:user-1", live := asset_processed(make_finished()))
        assert await client.frame() == live


# on an open connection


@pytest.mark.gen_test(timeout=30)
async def test_renewed_token_may_ask_for_what_was_missed(redis_url: str, tmp_path: Path) -> None:
    """A frame with a fresh token and `since` replays on the open connection; live events wait meanwhile."""
    store = HeldStore(tmp_path)
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
    """They cost as much as several frames, so that nobody keeps the store busy for nothing: 4429."""
    async with Process(redis_url) as process:
        client = await process.connect()
        for _ in range(3):
            await client.send({"auth": {"token": make_token()}, "since": "2026-01-31T12:00:00Z"})
        assert await client.frame() == {"event": "error", "message": "Too many frames"}
        assert await client.code() == 4429
        assert process.count("replays_total", outcome="complete") == 1


@pytest.mark.parametrize("trouble", ["restarted", "failed over to an empty one"])
@pytest.mark.gen_test(timeout=60)
async def test_events_of_others_missed_while_redis_was_away_come_before_later_ones(
    own_redis: RedisServer, tmp_path: Path, trouble: str
) -> None:
    """Each socket gets what was finished since Redis was last heard, and since it joined; a later event waits."""
    store = HeldStore(tmp_path)
    async with Process(own_redis.url, store=store) as process, Process(own_redis.url) as other:
        early = await process.connect()
        stranger = await process.connect("user-2")
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
        assert await stranger.frame() == its


@pytest.mark.gen_test(timeout=60)
async def test_too_many_events_missed_while_redis_was_away_are_a_resync(own_redis: RedisServer) -> None:
    """As on connect."""
    async with Process(own_redis.url, max_replay_events=3) as process:
        client = await process.connect()
        own_redis.stop()
        for _ in range(4):
            await finish(process, (utc_now() - NOON) / SECOND)
        own_redis.start()
        assert await client.frame() == {"event": "resync"}


@pytest.mark.gen_test(timeout=60)
async def test_event_of_our_own_brings_those_of_others_while_redis_is_away(own_redis: RedisServer) -> None:
    """Or a client that heard the later one and left would never ask for the earlier."""
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
async def test_replay_waits_for_a_store_that_is_away_but_events_do_not(own_redis: RedisServer, tmp_path: Path) -> None:
    """The missed ones come when the store is back; live ones do not wait so long."""
    store = HeldStore(tmp_path)
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
async def test_socket_that_is_still_joining_gets_its_first_frame_first(redis_url: str, tmp_path: Path) -> None:
    """A replay for its room that is asked for meanwhile is put off until it has been told `connected`."""
    store = HeldStore(tmp_path)
    async with Process(redis_url, store=store) as process:
        store.may_go_on.clear()
        missed = await finish(process, 0)
        opening = asyncio.ensure_future(ask(process, "first frame", missed["timestamp"]))
        await store.reads.get()
        store.may_go_on, first_may_go_on = asyncio.Event(), store.may_go_on  # holds the first read only
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
async def test_gap_is_replayed_from_where_it_begins_or_the_socket_joined(redis_url: str) -> None:
    """Not from before: neither what was heard before the gap, nor what was finished before the socket came."""
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


def test_overlap_of_clients_is_that_of_the_service() -> None:
    """The contract's word for clients that read the list themselves, and ours that do, hold for the default lease."""
    overlap = Settings(jwt_secret=SECRET).lease_seconds + TOLD_LATE_SECONDS
    assert overlap == OVERLAP_SECONDS == 30
    assert "less 30 s" in ROOMS["components"]["messages"]["resync"]["summary"]
    assert "const OVERLAP_MS = 30_000;" in (ROOT / "clients" / "js" / "cursor.js").read_text()
