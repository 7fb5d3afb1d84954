"""The replay of missed events from the asset store to a socket that connects.

Sockets, Redis and SQLite are real; the stores of these tests can wait and can fail.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pipeline.assets.asset import AiMetadata, AssetStatus, to_timestamp
from pipeline.assets.events import asset_processed
from pipeline.clock import utc_now
from pipeline.client.cursor import OVERLAP_SECONDS
from pipeline.usecases.replay import LATE_EVENT_SECONDS
from pipeline.settings import Settings
from tests.factories import SECRET, make_asset, make_token
from tests.integration.missed_events import NOON, SECOND, ControlledStore, connect_since, finish, make_finished
from tests.service import ROOT
from tests.sockets import ROOMS, Process


@pytest.mark.parametrize("way", ["first frame", "query, then frame", "query with header", "query with subprotocol"])
@pytest.mark.gen_test(timeout=30)
async def test_missed_events_are_sent_before_live_events(redis_url: str, way: str) -> None:
    """The user's events of every status are replayed, oldest first, without older ones and those of other users."""
    async with Process(redis_url) as process:
        await finish(process, -60)
        await finish(process, 2, "user-2")
        await process.store.create(make_asset(created_at=NOON + SECOND))
        failed = AiMetadata(error="The image was refused")
        third = await finish(process, 3, status=AssetStatus.FAILED, ai_metadata=failed)
        first = await finish(process, 0)
        second = await finish(process, 1, status=AssetStatus.PARTIAL)
        client = await connect_since(process, way, to_timestamp(NOON) or "")
        await process.fanout.publish("user:user-1", live := asset_processed(make_finished()))
        assert await client.frames(4) == [first, second, third, live]
        assert process.count("events_replayed_total") == 3
        assert process.count("replays_total", outcome="complete") == 1


@pytest.mark.gen_test(timeout=30)
async def test_nothing_is_replayed_without_since(redis_url: str) -> None:
    """A client without `since` gets only live events."""
    async with Process(redis_url) as process:
        await finish(process, 0)
        client = await process.connect()
        await process.fanout.publish("user:user-1", live := asset_processed(make_finished()))
        assert await client.frame() == live


@pytest.mark.gen_test(timeout=30)
async def test_replay_begins_before_since(redis_url: str) -> None:
    """A replay includes events of a clock that is 5 s slow, and events that waited for a killed process's lease."""
    async with Process(redis_url, lease_seconds=15) as process:
        await finish(process, -30.5)
        late, behind, last = await finish(process, -29.5), await finish(process, -4.9), await finish(process, 0)
        client = await connect_since(process, "first frame", last["timestamp"])
        assert await client.frames(3) == [late, behind, last]


@pytest.mark.gen_test(timeout=60)
async def test_too_many_missed_events_are_a_resync(redis_url: str) -> None:
    """500 events are replayed, not counting the overlap; for 501 the client gets `resync` instead."""
    async with Process(redis_url) as process:
        await finish(process, -1)
        events = [await finish(process, number / 1000) for number in range(500)]
        client = await connect_since(process, "first frame", events[0]["timestamp"])
        assert await client.frames(500) == events
        events.append(await finish(process, 1))
        other = await connect_since(process, "first frame", events[0]["timestamp"])
        assert await other.frame() == {"event": "resync"}
        await process.fanout.publish("user:user-1", live := asset_processed(make_finished()))
        assert [await client.frame(), await other.frame()] == [live, live]
        assert process.count("replays_total", outcome="resync") == 1
        nearer = await connect_since(process, "first frame", events[1]["timestamp"])
        assert (await nearer.frames(500))[-1] == events[-1]


@pytest.mark.gen_test(timeout=30)
async def test_replay_larger_than_an_outbox_is_a_resync(redis_url: str) -> None:
    """A replay that has more bytes than outbox_bytes is `resync` instead."""
    async with Process(redis_url, outbox_bytes=10_000) as process:
        error = AiMetadata(error="x" * 1000)
        first = [await finish(process, n, status=AssetStatus.FAILED, ai_metadata=error) for n in range(8)][0]
        client = await connect_since(process, "first frame", first["timestamp"])
        assert len(await client.frames(8)) == 8
        for number in range(8, 12):
            await finish(process, number, status=AssetStatus.FAILED, ai_metadata=error)
        client = await connect_since(process, "first frame", first["timestamp"])
        assert await client.frame() == {"event": "resync"}


@pytest.mark.gen_test(timeout=30)
async def test_event_during_the_read_of_the_store_is_sent_after_the_replay(redis_url: str, tmp_path: Path) -> None:
    """Events published while the store is read wait for the replay: subscribe, read, merge."""
    store = ControlledStore(tmp_path)
    async with Process(redis_url, store=store) as process, Process(redis_url) as other:
        missed = await finish(process, 0)
        store.may_go_on.clear()
        opening = asyncio.ensure_future(connect_since(process, "first frame", missed["timestamp"]))
        await store.reads.get()
        here, there = asset_processed(make_finished()), asset_processed(make_finished())
        await process.fanout.publish("user:user-1", here)
        await other.fanout.publish("user:user-1", there)
        probe = await process.connect()  # gets the last event when all sockets have it
        await other.fanout.publish("user:user-1", last := asset_processed(make_finished()))
        assert await probe.frame() == last
        store.may_go_on.set()
        assert await (await opening).frames(4) == [missed, here, there, last]


@pytest.mark.gen_test(timeout=30)
async def test_socket_with_since_is_closed_with_1013_without_the_store(redis_url: str, tmp_path: Path) -> None:
    """Without the store a replay is impossible: 1013 and no `connected`; a socket without `since` is connected."""
    store = ControlledStore(tmp_path)
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
    """The refusal comes after the upgrade, so that a browser can read the reason."""
    async with Process(redis_url) as process:
        process.url += f"?since={since}"
        client = await process.open(headers={"Authorization": f"Bearer {make_token()}"})
        assert await client.frame() == {"event": "error", "message": "Malformed since"}
        assert await client.code() == 4400


@pytest.mark.gen_test(timeout=30)
async def test_since_of_any_age_is_accepted(redis_url: str) -> None:
    """The first instant of a timestamp is accepted too."""
    async with Process(redis_url) as process:
        event = await finish(process, 0)
        client = await connect_since(process, "first frame", "0001-01-01T00:00:00Z")
        assert await client.frame() == event


@pytest.mark.fault("R7")
@pytest.mark.parametrize("ahead_seconds", [6, 3600, 250_000_000_000])
@pytest.mark.gen_test(timeout=30)
async def test_since_in_the_future_is_a_resync(redis_url: str, ahead_seconds: int, logs: list[Any]) -> None:
    """A `since` in the future cannot be compared, so the client gets `resync`; the log has the user and thedistance."""
    async with Process(redis_url) as process:
        since = to_timestamp(utc_now() + ahead_seconds * SECOND)
        client = await connect_since(process, "first frame", since or "")
        assert await client.frame() == {"event": "resync"}
        assert process.count("replays_total", outcome="resync") == 1
        (line,) = [line for line in logs if line["event"] == "since_in_future"]
        assert (line["userId"], round(line["aheadSeconds"])) == ("user-1", ahead_seconds)
        await process.fanout.publish("user:user-1", live := asset_processed(make_finished()))
        assert await client.frame() == live


def test_overlap_of_clients_is_that_of_the_service() -> None:
    """The overlap in the contract and in the Python and JavaScript clients is that of the default lease."""
    overlap = Settings(jwt_secret=SECRET).lease_seconds + LATE_EVENT_SECONDS
    assert overlap == OVERLAP_SECONDS == 30
    assert "less 30 s" in ROOMS["components"]["messages"]["resync"]["summary"]
    assert "const OVERLAP_MS = 30_000;" in (ROOT / "clients" / "js" / "cursor.js").read_text()
