"""Records of deliveries in a real store: after faults of the queue, deletes of assets, and seven days."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tornado.ioloop import IOLoop

from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from pipeline.errors import Conflict, DependencyUnavailable, PipelineError
from pipeline.metrics import Metrics
from pipeline.usecases import deliveries as deliveries_module
from pipeline.usecases.deliveries import Deliveries, DeliveryState
from pipeline.usecases.notifying import Notifying
from pipeline.usecases.undelivered import Undelivered
from tests.factories import make_asset

JOB_ID = f"notifications:{'1' * 24}"


@pytest.fixture
def store(io_loop: IOLoop, tmp_path: Path) -> Iterator[SqliteAssetStore]:
    store = SqliteAssetStore(tmp_path / "assets.sqlite")
    io_loop.run_sync(store.open)
    yield store
    io_loop.run_sync(store.close)


async def deliver(store: SqliteAssetStore, asset_id: str) -> None:
    """Store the record of an event that was delivered."""
    payload = {"notifier": "webhook", "event": {"event": "asset_processed"}, "userId": "user-1", "assetId": asset_id}
    await Deliveries(store).update(
        JOB_ID, payload, utc_now(), DeliveryState.DELIVERED, attempts=2, response="HTTP 204"
    )


@pytest.mark.gen_test
@pytest.mark.parametrize("error", [DependencyUnavailable, Conflict], ids=["Redis away", "not acknowledged yet"])
async def test_failed_resend_does_not_change_the_record_of_a_delivery(
    store: SqliteAssetStore, error: type[PipelineError]
) -> None:
    """When the event cannot be enqueued a second time, the record does not change."""
    asset = make_asset()
    await store.create(asset)
    await deliver(store, asset.id)

    async def enqueue(*_: Any, **__: Any) -> bool:
        if error is DependencyUnavailable:
            raise DependencyUnavailable("away")
        return False

    async def put(*_: Any) -> None:
        return None

    queue = cast(Any, SimpleNamespace(name="notifications", enqueue=enqueue))
    records, unused, deliveries = cast(Any, SimpleNamespace(put=put)), cast(Any, None), Deliveries(store)
    notifying = Notifying(unused, queue, records, Metrics(), store=store, urls=unused, deliveries=deliveries)
    undelivered = Undelivered(queue, records, notifying, deliveries, durable=["webhook"])
    before = await store.find_record("delivery", JOB_ID)
    with pytest.raises(error):
        await undelivered.send_again(JOB_ID, "r-1")
    assert before is not None and await store.find_record("delivery", JOB_ID) == before


@pytest.mark.gen_test
async def test_delivery_of_a_deleted_asset_leaves_no_record(store: SqliteAssetStore) -> None:
    """An asset may be deleted while its event is delivered; no later step would remove the record."""
    await deliver(store, "a" * 24)
    assert await store.find_record("delivery", JOB_ID) is None


@pytest.mark.gen_test
async def test_deliveries_are_purged_after_seven_days(store: SqliteAssetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record exists on the seventh day and is purged on the eighth."""
    asset = make_asset()
    await store.create(asset)
    await deliver(store, asset.id)
    now = utc_now()
    for days, exists in ((6.9, True), (7.1, False)):
        monkeypatch.setattr(deliveries_module, "utc_now", lambda days=days: now + timedelta(days=days))
        await Deliveries(store).purge()
        assert (await store.find_record("delivery", JOB_ID) is not None) is exists
