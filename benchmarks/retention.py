"""The data that exists after each day with KEEP_ASSETS_DAYS=7: python -m benchmarks.retention

One upload a second on a simulated clock; of --thinning uploads only one is made. A day takes seconds, with a real
Redis, a real SQLite store and the real rounds of retention. A tenth of the photos fail and become dead letters. The
figures are the measured ones multiplied by the thinning.
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
from pipeline.usecases.removing import QueueJobs, Removing
from tests.factories import make_asset
from tests.memory_storage import MemoryStorage
from tests.redis_server import RedisServer

DAY_SECONDS = 86_400
KEEP_DAYS = 7
ROUNDS_A_DAY = 24
START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
IMAGE = b"x" * 100


class Installation:
    """One installation with a clock that the benchmark sets."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.path = folder / "assets.sqlite"
        self.store, self.storage = SqliteAssetStore(self.path), MemoryStorage()
        self.queue, self.notifications = JobQueue(redis_url), JobQueue(redis_url, name="notifications")
        self.job_records = JobRecords(self.store, self.queue, keep_failed_seconds=604_800, max_age_seconds=DAY_SECONDS)
        orphaned_images = OrphanedImages(self.store, self.storage)
        removing = Removing(
            self.store,
            orphaned_images,
            QueueJobs(self.queue, self.job_records),
            QueueJobs(self.notifications, self.job_records),
        )
        self.expiry = Expiry(
            *(self.store, self.queue, removing, orphaned_images, Metrics()),
            keep_assets_days=KEEP_DAYS,
            keep_originals_days=0,
        )
        self.number = 0

    def set_clock(self, seconds: float) -> None:
        """Set the clock to that many seconds after START."""
        CLOCK._wall = lambda: START + seconds
        # An earlier suite of the same run may have set it from its Redis.
        CLOCK._course = None
        self.queue.clock_offset_ms = round((START + seconds - time.time()) * 1000)

    async def upload(self) -> None:
        """Run one photo through all steps: stored, queued, claimed, finished, acknowledged."""
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
            result = AiMetadata({"value": "Nike", "confidence": 0.9}, {"value": "Air Max", "confidence": 0.9})
            await self.store.finish(
                *(asset.id, job.id, begun.fence),
                status=AssetStatus.ACTIVE,
                ai_metadata=result,
                processed=None,
                finished_at=utc_now(),
            )
        outcome = Outcome.FAILED if is_bad else Outcome.COMPLETED
        await self.queue.step(f"a:{self.number}", [Finish(job, outcome, error="No photo" if is_bad else "")], 0)

    async def day(self, day: int, uploads: int) -> None:
        """Run one day: its uploads, and the rounds of retention between them."""
        for number in range(uploads):
            self.set_clock(day * DAY_SECONDS + number * DAY_SECONDS / uploads)
            await self.upload()
            if number % max(1, uploads // ROUNDS_A_DAY) == 0:
                await self.expiry.round()
                await self.queue.trim()
                await self.job_records.purge()
                await self.store.purge_keys(utc_now() - timedelta(days=1))


async def run_days(days: int, thinning: int) -> list[tuple[int, int, int, int]]:
    """Return assets, images, bytes of the store's file and bytes of Redis at the end of each day."""
    by_day = []
    wall = CLOCK._wall
    with tempfile.TemporaryDirectory() as folder, RedisServer() as server:
        installation = Installation(Path(folder), server.url)
        await installation.store.open()
        empty = server.client().info("memory")["used_memory"]  # type: ignore[index]
        for day in range(days):
            await installation.day(day, DAY_SECONDS // thinning)
            memory = server.client().info("memory")["used_memory"] - empty  # type: ignore[index]
            ((assets,),) = await installation.store._read("SELECT count(*) FROM assets", {})
            by_day.append((assets, len(installation.storage.images), installation.path.stat().st_size, memory))
            print(f"day {day + 1}: {by_day[-1]}", flush=True)
        await installation.queue.close()
        await installation.notifications.close()
        await installation.store.close()
    CLOCK._wall = wall
    return by_day


def measure(days: int, thinning: int) -> Report:
    """Run that many days and report the figures of each."""
    report = Report("retention", machine=machine.describe())
    by_day = asyncio.run(run_days(days, thinning))
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
    parser.add_argument("--thinning", type=int, default=200, help="of that many uploads one is made")
    options = parser.parse_args()
    measure(options.days, options.thinning).print()


if __name__ == "__main__":
    main()
