"""Progress frames while other things happen at the same time, with a real Redis and a real asset store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from pipeline.assets.asset import Asset, job_data
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.metrics import Metrics
from pipeline.rooms.fanout import RoomFanout
from pipeline.rooms.rooms import Rooms
from pipeline.supervision import cancel
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.progress import Progress
from pipeline.usecases.progress_frames import ProgressFrames
from tests.factories import make_asset
from tests.memory_storage import MemoryStorage
from tests.workers import Bench, Claimer


class FramesOfProcess:
    """The progress frames of one process; `sent` has the room and the event of each frame."""

    def __init__(self, bench: Bench, store: SqliteAssetStore, redis_url: str) -> None:
        self.rooms = Rooms(max_frames=100, max_bytes=100_000, metrics=Metrics())
        self.progress = Progress(bench.queue, {"": ("acme",)}, ImageUrls(MemoryStorage()))
        fanout = RoomFanout(self.rooms, redis_url, metrics=Metrics())
        self.frames = ProgressFrames(store, self.rooms, fanout, self.progress)
        self.sent: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    def record(self, room: str, frames: bytes) -> None:
        """Record the room and the event of a frame."""
        self.sent.put_nowait((room, orjson.loads(frames[frames.index(b"{") :])["event"]))


@asynccontextmanager
async def running(process: FramesOfProcess, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Record each frame, and run the loop that sends them."""
    monkeypatch.setattr(process.rooms, "offer", process.record)
    task = asyncio.create_task(process.frames.run())
    try:
        yield
    finally:
        await cancel([task])


async def submit(bench: Bench, store: SqliteAssetStore, user_id: str) -> Asset:
    asset = make_asset(user_id)
    assert await store.create(asset)
    assert await bench.queue.enqueue(asset.processing_job_id, job_data(asset))
    return asset


@pytest.mark.gen_test(timeout=30)
async def test_socket_that_asks_during_a_read_for_another_user_gets_its_frame_soon(
    bench: Bench, store: SqliteAssetStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first user has no photo, so nothing else would make the process read the photos for a while."""
    process = FramesOfProcess(bench, store, redis_url)
    await submit(bench, store, "late")
    page = store.page

    async def read(user_id: str, **wanted: Any) -> Any:
        if user_id == "early":
            process.rooms.on_progress_wanted("user:late")
        return await page(user_id, **wanted)

    monkeypatch.setattr(store, "page", read)
    async with running(process, monkeypatch):
        process.rooms.on_progress_wanted("user:early")
        assert await asyncio.wait_for(process.sent.get(), 5) == ("user:late", "asset_queued")


@pytest.mark.gen_test(timeout=30)
async def test_older_snapshot_does_not_undo_a_start_that_was_sent(
    bench: Bench, store: SqliteAssetStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a newer snapshot was taken for another user before the older one is used."""
    process, claim = FramesOfProcess(bench, store, redis_url), Claimer(bench.queue)
    await submit(bench, store, "user-1")
    page, is_read = store.page, asyncio.Event()

    async def read(user_id: str, **wanted: Any) -> Any:
        (job,) = await claim()
        process.frames.send(job, {"event": "asset_started", "attempt": 1, "provider": "acme"}, False)
        await process.progress.snapshot(["ai-processing:other"])
        is_read.set()
        return await page(user_id, **wanted)

    monkeypatch.setattr(store, "page", read)
    async with running(process, monkeypatch):
        process.rooms.on_progress_wanted("user:user-1")
        assert await asyncio.wait_for(process.sent.get(), 5) == ("user:user-1", "asset_started")
        await asyncio.wait_for(is_read.wait(), 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.sent.get(), 2)
