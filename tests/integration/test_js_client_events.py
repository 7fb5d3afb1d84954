"""Which events the JavaScript client emits, once each, and how it reads missed ones, against a fake service."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta
from typing import Any

import pytest

from pipeline.assets.asset import AiMetadata, Asset, AssetStatus, ImageRef, to_timestamp
from pipeline.assets.events import asset_processed
from tests.factories import make_asset
from tests.fake_service import FakeService
from tests.integration.js_scripts import NOON, SINCE, in_node_and_chromium, make_event, start_script


@in_node_and_chromium
@pytest.mark.gen_test(timeout=60)
async def test_since_is_the_time_of_the_newest_event(kind: str) -> None:
    """`since` starts as the first serverTime. Older events and later serverTimes do not change it. It is sent anew."""
    async with FakeService() as far, far.script(kind) as script:
        await script.run(start_script(far.url))
        link = await far.accept()
        assert link.first == {"auth": {"token": "a-token"}}
        await link.connected(NOON)
        link.cut()
        link = await far.accept()
        assert link.first == {"auth": {"token": "a-token"}, "since": SINCE}
        await link.connected(NOON + timedelta(hours=1))
        await link.send({"event": "of a later version"}, make_event(1, 30), make_event(2, 20))
        await script.received("asset_processed", 2)
        link.cut()
        link = await far.accept()
        assert link.first["since"] == make_event(1, 30)["timestamp"] == await script.run("return client.since")


@pytest.mark.gen_test(timeout=60)
async def test_repeated_events_are_dropped() -> None:
    """A new connection repeats thousands of events: none is emitted twice, but the next event of an asset is.

    The memory for this is bounded, so the oldest repeat is emitted.
    """
    events = [make_event(number) for number in range(5000)]
    async with FakeService() as far, far.script("node") as script:
        await script.run(start_script(far.url, since=SINCE))
        link = await far.accept()
        await link.connected()
        await link.send(*events, events[0])
        link.cut()
        link = await far.accept()
        await link.connected()
        await link.send(*events, make_event(0, 1), events[0])
        await script.received("asset_processed", 5002)
        assert await script.all("asset_processed") == [*events, make_event(0, 1), events[0]]


def finished_assets() -> list[Asset]:
    """Return one asset for each shape of an event, a second apart."""
    brand, model = {"value": "Nike", "confidence": 0.9}, {"value": "Air Max 90", "confidence": 0.8}
    processed = ImageRef("", "", "https://images.example/p.webp")
    shapes: list[dict[str, Any]] = [
        {"status": AssetStatus.ACTIVE, "ai_metadata": AiMetadata(brand, model, brand), "processed": processed},
        {"status": AssetStatus.ACTIVE, "ai_metadata": AiMetadata(brand, model)},
        {"status": AssetStatus.PARTIAL, "ai_metadata": AiMetadata(model=model), "processed": processed},
        {"status": AssetStatus.PARTIAL, "ai_metadata": AiMetadata(brand=brand)},
        {"status": AssetStatus.FAILED, "ai_metadata": AiMetadata(error="The image was refused")},
        {"status": AssetStatus.FAILED, "ai_metadata": AiMetadata(brand=brand), "processed": processed},
    ]
    instants = [NOON + timedelta(seconds=number) for number in range(len(shapes))]
    return [dataclasses.replace(make_asset(), finished_at=at, **shape) for at, shape in zip(instants, shapes)]


@in_node_and_chromium
@pytest.mark.gen_test(timeout=60)
async def test_resync_is_read_page_by_page(kind: str) -> None:
    """Each listed asset becomes exactly the event that the service would have sent.

    A live event does not change `since` before all pages are read, also when the service is away for a moment.
    """
    assets = finished_assets()
    live = make_event(1, 600)
    async with FakeService() as far, far.script(kind) as script:
        await script.run(start_script(far.url, since=SINCE))
        link = await far.accept()
        await link.connected()
        await link.send({"event": "resync"})
        call = await far.call()
        assert (call.path, call.headers["Authorization"]) == ("/api/assets", "Bearer a-token")
        assert call.query == {"finishedSince": "2026-01-31T11:59:30.000Z", "limit": "100"}
        await link.send(live)
        await script.received("asset_processed")
        assert await script.run("return client.since") == SINCE
        call.reply({"items": [asset.to_json({}) for asset in assets[:3]], "nextCursor": "page-2"})
        await script.received("asset_processed", 4)
        assert await script.run("return client.since") == to_timestamp(assets[2].finished_at)
        call = await far.call()
        assert call.query["cursor"] == "page-2"
        call.refuse(503, "UNAVAILABLE", Retry_After="0")
        call = await far.call()
        # An asset that got a new job after it was listed has no event yet.
        items = [assets[2], make_asset(), *assets[3:]]
        call.reply({"items": [asset.to_json({}) for asset in items], "nextCursor": None})
        await script.received("asset_processed", 7)
        assert await script.all("asset_processed") == [
            live,
            *(asset_processed(asset, asset.processed and asset.processed.url) for asset in assets),
        ]
        assert await script.run("return client.since") == live["timestamp"]


@pytest.mark.gen_test(timeout=60)
async def test_resync_survives_a_broken_connection() -> None:
    """After a cut in the middle `since` is the time of the last listed asset, not of a live event.

    The client does not give up when the service asks it to wait for an hour.
    """
    assets = finished_assets()
    async with FakeService() as far, far.script("node") as script:
        await script.run(start_script(far.url, since=SINCE))
        link = await far.accept()
        await link.connected()
        await link.send({"event": "resync"}, make_event(1, 600))
        call = await far.call()
        call.reply({"items": [assets[1].to_json({})], "nextCursor": "page-2"})
        (await far.call()).refuse(503, "UNAVAILABLE", Retry_After="3600")
        await link.send(make_event(2, 601))
        await script.received("asset_processed", 3)
        link.cut()
        link = await far.accept()
        assert link.first["since"] == to_timestamp(assets[1].finished_at)


@pytest.mark.gen_test(timeout=60)
async def test_resync_asked_for_twice_is_read_twice() -> None:
    """A second resync during the first one begins when the first one has ended."""
    async with FakeService() as far, far.script("node") as script:
        await script.run(start_script(far.url, since=SINCE))
        link = await far.accept()
        await link.connected()
        await link.send({"event": "resync"})
        call = await far.call()
        await link.send({"event": "resync"}, make_event(1, 600))
        await script.received("asset_processed")
        await script.run("globalThis.later = client.asset('later')")
        later = await far.call()
        assert later.path == "/api/assets/later"
        later.reply({})
        call.reply({"items": [], "nextCursor": None})
        call = await far.call()
        assert call.query["finishedSince"] == "2026-01-31T11:59:30.000Z"
        call.reply({"items": [asset_json(make_event(2, 5))], "nextCursor": None})
        await script.received("asset_processed", 2)
        assert await script.run("return client.since") == make_event(1, 600)["timestamp"]


@pytest.mark.gen_test(timeout=60)
async def test_resync_ends_with_the_client() -> None:
    """A listener that closes the client gets no further event of the page."""
    async with FakeService() as far, far.script("node") as script:
        await script.run(start_script(far.url, since=SINCE) + "client.on('asset_processed', () => client.close())")
        link = await far.accept()
        await link.connected()
        await link.send({"event": "resync"})
        (await far.call()).reply({"items": [asset.to_json({}) for asset in finished_assets()], "nextCursor": None})
        await link.wait_ended()
        assert len(await script.all("asset_processed")) == 1


def asset_json(event: dict[str, Any]) -> dict[str, Any]:
    """Return the asset of this event."""
    finished_at = datetime.fromisoformat(event["timestamp"])
    return make_asset(id=event["assetId"], status=AssetStatus.FAILED, finished_at=finished_at).to_json({})
