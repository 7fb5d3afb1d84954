"""An event that is delivered hours later has a URL that works at its delivery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from pipeline.assets.asset import AssetStatus, ImageRef
from pipeline.assets.events import asset_processed
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from pipeline.metrics import Metrics
from pipeline.queue.job import Job
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.notifying import Notifying
from tests.factories import make_asset
from tests.memory_storage import MemoryStorage


class Receiver:
    """A durable notifier that remembers its events."""

    durable = ("acme",)

    def __init__(self) -> None:
        self.events: list[Mapping[str, Any]] = []

    async def deliver(self, name: str, event: Mapping[str, Any], *_: object) -> None:
        self.events.append(event)


class Delivery:
    """Deliver an event of an asset whose images have another address since."""

    def __init__(self, store: SqliteAssetStore) -> None:
        self.receiver, storage = Receiver(), MemoryStorage()
        storage.host = "later.example"
        unused = cast(Any, None)
        plugins, urls = cast(Any, self.receiver), ImageUrls(storage)
        self._notifying = Notifying(plugins, unused, unused, Metrics(), store=store, urls=urls, deliveries=unused)

    async def deliver(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        data = {"notifier": "acme", "userId": "user-1", "event": event}
        job = cast(Job, type("AJob", (), {"id": "n:1", "data": data, "trace_context": "", "tries": ""}))
        assert await self._notifying.process(job)
        return self.receiver.events[-1]


@pytest.mark.fault("U16")
@pytest.mark.gen_test
async def test_event_delivered_later_has_a_new_url(store: SqliteAssetStore) -> None:
    """Only the URL of the event changes. An event without an image, or with a replaced image, has no URL.

    The event of an asset that was deleted before the delivery is not delivered.
    """
    asset = make_asset(status=AssetStatus.ACTIVE, finished_at=utc_now())
    asset = replace(asset, processed=ImageRef("memory", f"{asset.id}/processed-1", sha256="0" * 64))
    await store.create(asset)
    event = asset_processed(asset, "https://before.example/x")
    delivery = Delivery(store)
    url = f"https://later.example/{asset.id}/processed-1"
    assert await delivery.deliver(event) == event | {"processedImageUrl": url}
    without = {name: value for name, value in event.items() if name != "processedImageUrl"}
    assert await delivery.deliver(without) == without
    assert await delivery.deliver(event | {"timestamp": "2020-01-01T00:00:00.000Z"}) == without | {
        "timestamp": "2020-01-01T00:00:00.000Z"
    }
    delivered = len(delivery.receiver.events)
    await store.delete(asset.id, asset.user_id)
    await delivery.deliver(event)
    assert len(delivery.receiver.events) == delivered
