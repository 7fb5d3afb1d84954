"""What is kept by day with KEEP_ASSETS_DAYS=7: python -m benchmarks.retention

One upload a second, thinned out by --thinning, on a simulated clock: each day of a month is lived through in seconds,
with a real Redis, a real SQLite store and the real rounds of retention. A tenth of the photos fail and become dead
letters. Figures are those measured, multiplied by the thinning.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks import machine
from benchmarks.comparison import Goal, Report
from pipeline.assets.asset import AiMetadata, AssetStatus, job_data
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import KeyRecord
from pipeline.clock import CLOCK, utc_now
from pipeline.metrics import Metrics
from pipeline.queue.job import Finish, NewJob, Outcome
from pipeline.queue.queue import JobQueue
from pipeline.usecases.expiry import Expiry
from pipeline.usecases.job_records import JobRecords
from pipeline.usecases.orphaned_images import OrphanedImages
from pipeline.usecases.removing import QueueParts, Removing
from tests.factories import make_asset
from tests.memory_storage import MemoryStorage
from tests.redis_server import RedisServer

DAY_SECONDS = 86_400
KEEP_DAYS = 7
ROUNDS_A_DAY = 24
START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
IMAGE = b"x" * 100


class Life:
    """One installation whose clock stands wherever it is put."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.path = folder / "assets.sqlite"
        self.store, self.storage = SqliteAssetStore(self.path), MemoryStorage()
        self.queue, self.notifications = JobQueue(redis_url), JobQueue(redis_url, name="notifications")
        self.job_records = JobRecords(self.store, self.queue, keep_failed_seconds=604_800, max_age_seconds=DAY_SECONDS)
        orphaned_images = OrphanedImages(self.store, self.storage)
        removing = Removing(
            self.store,
            orphaned_images,
            QueueParts(self.queue, self.job_records),
            QueueParts(self.notifications, self.job_records),
        )
        self.expiry = Expiry(
            *(self.store, self.queue, removing, orphaned_images, Metrics()),
            keep_assets_days=KEEP_DAYS,
            keep_originals_days=0,
        )
        self.number = 0

    def set_clock(self, seconds: float) -> None:
        """Let it be so long after the start."""
        CLOCK._wall = lambda: START + seconds
        # Another suite of the same run may have measured the time of its Redis.
        CLOCK._course = None
        self.queue.clock_offset_ms = round((START + seconds - time.time()) * 1000)

    async def upload(self) -> None:
        """Live through one photo: stored, queued, claimed, finished, acknowledged."""
        self.number += 1
        is_bad = self.number % 10 == 0
        asset = make_asset(f"user-{self.number % 1000}")
        await self.storage.save(asset.original.public_id, io.BytesIO(IMAGE), "image/jpeg")
        await self.store.claim_key(f"key-{self.number}", KeyRecord(asset.id, "print"), utc_now())
        await self.store.create(asset)
        await self.queue.enqueue(asset.processing_job_id, job_data(asset))
        (job,) = (await self.queue.step(f"w:{self.number}", [], 1)).claimed
        begun = await self.store.begin(asset.id, asset.user_id, job.id)
        assert begun is not None
        if is_bad:
            await self.job_records.put(NewJob(job.id, job.data))
            await self.store.fail(asset.id, job.id, begun.fence, error="No photo", finished_at=utc_now())
            await self.job_records.put_failed(job, "No photo")
        else:
            found = AiMetadata({"value": "Nike", "confidence": 0.9}, {"value": "Air Max", "confidence": 0.9})
            status, processed = AssetStatus.ACTIVE, None
            await self.store.finish(
                *(asset.id, job.id, begun.fence),
                status=status,
                ai_metadata=found,
                processed=processed,
                finished_at=utc_now(),
            )
        outcome = Outcome.FAILED if is_bad else Outcome.COMPLETED
        await self.queue.step(f"a:{self.number}", [Finish(job, outcome, error="No photo" if is_bad else "")], 0)

    async def day(self, day: int, uploads: int) -> None:
        """Live through one day, with the rounds of retention in between."""
        for number in range(uploads):
            self.set_clock(day * DAY_SECONDS + number * DAY_SECONDS / uploads)
            await self.upload()
            if number % max(1, uploads // ROUNDS_A_DAY) == 0:
                await self.expiry.round()
                await self.queue.trim()
                await self.job_records.purge()
                await self.store.purge_keys(utc_now() - timedelta(days=1))


async def live(days: int, thinning: int) -> list[tuple[int, int, int, int]]:
    """Return assets, images, bytes of the store's file and bytes of Redis at the end of each day."""
    found = []
    wall = CLOCK._wall
    with tempfile.TemporaryDirectory() as folder, RedisServer() as server:
        life = Life(Path(folder), server.url)
        await life.store.open()
        empty = server.client().info("memory")["used_memory"]  # type: ignore[index]
        for day in range(days):
            await life.day(day, DAY_SECONDS // thinning)
            memory = server.client().info("memory")["used_memory"] - empty  # type: ignore[index]
            ((assets,),) = await life.store._read("SELECT count(*) FROM assets", {})
            found.append((assets, len(life.storage.images), life.path.stat().st_size, memory))
            print(f"day {day + 1}: {found[-1]}", flush=True)
        await life.queue.close()
        await life.notifications.close()
        await life.store.close()
    CLOCK._wall = wall
    return found


def measure(days: int, thinning: int) -> Report:
    """Measure it all."""
    report = Report("retention", machine=machine.describe())
    by_day = asyncio.run(live(days, thinning))
    for day, (assets, images, size, memory) in enumerate(by_day, 1):
        megabytes = f"store {size * thinning / 1e6:,.0f} MB, Redis {memory * thinning / 1e6:,.0f} MB"
        report.notes.append(f"Day {day}: {assets * thinning:,} assets, {images * thinning:,} images, {megabytes}.")
    full, last = by_day[KEEP_DAYS + 1], by_day[-1]
    growth = max(after / before for before, after in zip(full, last, strict=True)) - 1
    report.goals.append(
        Goal(f"growth from day {KEEP_DAYS + 2} to day {days}", "at most 5 %", f"{growth * 100:+.1f} %", growth <= 0.05)
    )
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.retention", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--days", type=int, default=21)
    parser.add_argument("--thinning", type=int, default=200, help="one of so many uploads is made")
    options = parser.parse_args()
    measure(options.days, options.thinning).print()


if __name__ == "__main__":
    main()
