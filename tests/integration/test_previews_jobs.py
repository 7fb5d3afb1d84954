"""Previews of a job's photo: when they are stored, when they are too late, and when they fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.assets.asset import AssetStatus
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.errors import PermanentJobError, RetryableJobError
from pipeline.metrics import Metrics
from pipeline.sandbox import Preview
from pipeline.usecases.previews import Previews
from tests.factories import make_asset, make_image
from tests.integration.processed_jobs import Plugins, make_processing, run, submit
from tests.memory_storage import MemoryStorage


class Maker:
    """A preview maker that returns or raises `result`. With None it never returns."""

    def __init__(self, result: Sequence[Preview] | Exception | None) -> None:
        self.result = result
        self.calls = 0

    async def previews(self, content: bytes, sides: Sequence[int]) -> Sequence[Preview]:
        self.calls += 1
        if isinstance(self.result, Exception):
            raise self.result
        if self.result is None:
            await asyncio.Event().wait()
        assert self.result is not None
        return self.result


MADE = [Preview(1280, 640, 480, b"large"), Preview(320, 320, 240, b"small")]


@pytest.mark.gen_test
async def test_committed_result_has_its_previews(store: SqliteAssetStore) -> None:
    """The previews are stored before the commit. A later run of the same photo makes no new ones."""
    plugins, maker = Plugins(), Maker(MADE)
    asset, job = await submit(store)
    plugins.images[asset.original.public_id] = make_image()
    processing = make_processing(store, plugins, maker=maker)
    await run(processing, job)
    current = await store.get(asset.id)
    assert current is not None
    assert {side: (each.width, each.height) for side, each in current.previews.items()} == {
        "320": (320, 240),
        "1280": (640, 480),
    }
    assert plugins.images[f"{asset.id}/preview/320"] == b"small"
    urls = await processing._urls.of([current])
    assert current.to_json(urls)["images"]["previews"]["320"]["url"].endswith("/preview/320")
    later = Previews(plugins, maker, Metrics())
    later.begin(current, lambda: plugins.read(current.image_names[0]))
    assert await later.take(current) is None
    assert maker.calls == 1


@pytest.mark.gen_test
async def test_previews_of_a_failed_attempt_are_used_by_the_next(store: SqliteAssetStore) -> None:
    """The previews are made once and stored, also when the last attempt fails."""
    plugins, maker = Plugins(), Maker(MADE)
    asset, job = await submit(store)
    plugins.images[asset.original.public_id] = make_image()
    processing = make_processing(store, plugins, maker=maker)
    for _ in range(2):
        plugins.analysis = RetryableJobError("not now")
        with pytest.raises(RetryableJobError):
            await processing.process(job)
    await processing.give_up(job, "not now")
    current = await store.get(asset.id)
    assert current is not None and (current.status, set(current.previews)) == (AssetStatus.FAILED, {"320", "1280"})
    assert maker.calls == 1


@pytest.mark.gen_test
async def test_cancelled_run_drops_its_previews(store: SqliteAssetStore) -> None:
    """The second run of the same job continues without previews."""
    plugins, maker = Plugins(), Maker(None)
    asset, _ = await submit(store)
    plugins.images[asset.original.public_id] = make_image()
    previews = Previews(plugins, maker, Metrics())
    previews.begin(asset, lambda: plugins.read(asset.image_names[0]))
    second = asyncio.create_task(previews.take(asset))
    while not maker.calls:
        await asyncio.sleep(0)
    await previews.drop(asset)
    assert await second is None


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("result", "limits"),
    [
        (PermanentJobError("no picture"), {}),
        (OSError("a fault of a plugin"), {}),
        (None, {"seconds": 0.05}),
        (None, {"wait_seconds": 0.05}),
    ],
    ids=["failed", "plugin fault", "too long", "late"],
)
async def test_failed_or_late_previews_fail_no_job(
    store: SqliteAssetStore, result: Any, limits: dict[str, float]
) -> None:
    """The result is committed without previews, and the metric counts the reason."""
    plugins, metrics = Plugins(), Metrics()
    asset, job = await submit(store)
    plugins.images[asset.original.public_id] = make_image()
    processing = make_processing(store, plugins, metrics, maker=Maker(result))
    processing.analysis._previews = Previews(plugins, Maker(result), metrics, **limits)
    await run(processing, job)
    current = await store.get(asset.id)
    assert current is not None and (current.status, current.previews) == (AssetStatus.ACTIVE, {})
    outcome = {"outcome": "failed" if result else "late"}
    assert metrics.registry.get_sample_value("pipeline_previews_total", outcome) == 1


@pytest.mark.gen_test
async def test_late_previews_shorten_the_wait_of_the_next_results() -> None:
    """Each late preview halves the wait. A preview in time restores it."""
    maker, asset = Maker(None), make_asset()
    previews = Previews(MemoryStorage(), maker, Metrics(), wait_seconds=0.04)

    async def read() -> bytes:
        return b"photo"

    for left in (0.02, 0.01):
        previews.begin(asset, read)
        assert await previews.take(asset) is None
        assert previews._current_wait_seconds == left
    maker.result = MADE
    previews.begin(asset, read)
    while not previews._making[asset.id].done():
        await asyncio.sleep(0)
    assert await previews.take(asset) is not None
    assert previews._current_wait_seconds == 0.04


@pytest.mark.gen_test
async def test_previews_that_cannot_be_stored_fail_no_job(store: SqliteAssetStore) -> None:
    """The storage is unavailable: the result has no previews."""
    storage = MemoryStorage()
    asset = make_asset()
    storage.put(asset.original.public_id)

    async def read() -> bytes:
        storage.is_away = True
        return b"photo"

    previews = Previews(storage, Maker(MADE), Metrics())
    previews.begin(asset, read)
    assert await previews.take(asset) is None
