"""The part of benchmarks/growth.py about the SQLite asset store: its calls by the number of assets, its reconciler."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path

from benchmarks.comparison import Column, Comparison, Goal, Report
from pipeline.assets.asset import AiMetadata, AssetStatus
from pipeline.assets.asset_ids import new_asset_id
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from pipeline.metrics import Metrics
from pipeline.queue.queue import JobQueue
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.job_records import UnfinishedAssets
from pipeline.usecases.reconciler import Reconciler
from tests.factories import make_asset
from tests.memory_storage import MemoryStorage
from tests.redis_server import RedisServer

ASSETS = (1_000, 1_000_000)
USERS = 1_000
COLUMNS = (
    "id, userId, category, status, original, processed, processingJobId, fence, aiMetadata, finishedAt, createdAt, "
    "updatedAt, excused"
)
CALLS = 200


def filled(path: Path, count: int) -> Path:
    """Return the path after filling a store with that many assets of USERS users; one in a hundred is unfinished."""
    asyncio.run(_open_and_close(SqliteAssetStore(path)))
    start = utc_now() - timedelta(days=1)
    template = make_asset()

    def rows() -> Iterator[tuple[object, ...]]:
        for number in range(count):
            at = round((start.timestamp() + number * 80_000 / count) * 1000)
            is_open = number % 100 == 0
            status = "processing" if is_open else "active"
            done = None if is_open else at + 1000
            asset_id = new_asset_id()
            job_id = f"ai-processing:{asset_id}"
            original = f'{{"url": "http://x/{asset_id}.jpg", "publicId": "{asset_id}/original", "bytes": 100000, '
            original += '"width": 1000, "height": 1000, "contentType": "image/jpeg"}'
            meta = '{"brand": null, "model": null, "colorway": null, "processedAt": null, "error": null}'
            user = f"user-{number % USERS}"
            yield asset_id, user, template.category, status, original, None, job_id, 1, meta, done, at, at, 0

    with closing(sqlite3.connect(path)) as connection, connection:
        values = ", ".join("?" * len(COLUMNS.split(",")))
        connection.executemany(f"INSERT INTO assets ({COLUMNS}) VALUES ({values})", rows())
    return path


async def _open_and_close(store: SqliteAssetStore) -> None:
    await store.open()
    await store.close()


async def store_calls(store: SqliteAssetStore) -> dict[str, float]:
    """Return the median milliseconds of each call that the service makes."""
    await store.open()
    users = [f"user-{number * 7 % USERS}" for number in range(CALLS)]
    pages = {user: await store.page(user, limit=100) for user in set(users)}
    lasts = {user: (page[-1].created_at, page[-1].id) for user, page in pages.items() if page}
    ids = [page[0].id for page in pages.values() if page]
    since = utc_now() - timedelta(hours=3)
    calls: dict[str, Callable[[int], Awaitable[object]]] = {
        "list": lambda n: store.page(users[n], limit=20),
        "list on": lambda n: store.page(users[n], limit=20, after=lasts.get(users[n])),
        "replay": lambda n: store.finished_since(users[n], since, limit=100),
        "unfinished": lambda n: store.unfinished_before(utc_now(), limit=100),
        "get": lambda n: store.get(ids[n % len(ids)]),
        "create, begin, finish": lambda n: _one_life(store),
    }
    medians = {}
    for name, call in calls.items():
        times = []
        for number in range(CALLS):
            started_at = time.perf_counter()
            await call(number)
            times.append(time.perf_counter() - started_at)
        medians[name] = statistics.median(times) * 1000
    await store.close()
    return medians


def run_calls(path: Path) -> dict[str, float]:
    """Run store_calls in an event loop of its own."""
    return asyncio.run(store_calls(SqliteAssetStore(path)))


async def _one_life(store: SqliteAssetStore) -> None:
    asset = make_asset()
    await store.create(asset)
    begun = await store.begin(asset.id, asset.user_id, asset.processing_job_id)
    assert begun is not None
    await store.finish(
        asset.id,
        asset.processing_job_id,
        begun.fence,
        status=AssetStatus.ACTIVE,
        ai_metadata=AiMetadata(processed_at=utc_now()),
        processed=None,
        finished_at=utc_now(),
    )


async def reconciled(store: SqliteAssetStore, url: str) -> tuple[int, float, float]:
    """Let the reconciler enqueue all lost jobs; return their number, the seconds, and the loop's longest lag."""
    await store.open()
    queue = JobQueue(url)
    wanted = len(await _unfinished(store))
    lags = []

    async def measure_lag() -> None:
        while True:
            due = asyncio.get_running_loop().time() + 0.005
            await asyncio.sleep(0.005)
            lags.append(asyncio.get_running_loop().time() - due)

    async def purge_nothing() -> None:
        pass

    measuring = asyncio.create_task(measure_lag())
    started_at = time.perf_counter()
    unfinished = UnfinishedAssets(store, queue, ImageUrls(MemoryStorage()), age_seconds=60, is_fair=False)
    reconciler = Reconciler(store, queue, [unfinished], Metrics(), purge=purge_nothing)
    searching = asyncio.create_task(reconciler.run())
    while (await queue.stats()).waiting < wanted:
        await asyncio.sleep(0.02)
    seconds = time.perf_counter() - started_at
    for task in (searching, measuring):
        task.cancel()
    await queue.close()
    await store.close()
    return wanted, seconds, max(lags)


async def _unfinished(store: SqliteAssetStore) -> list[str]:
    ids: list[str] = []
    after = None
    while page := await store.unfinished_before(utc_now(), limit=1000, after=after):
        ids += (asset.id for asset in page)
        after = (page[-1].created_at, page[-1].id)
    return ids


def measure_store(report: Report, rounds: int) -> None:
    """Add the times of the store's calls by the number of assets, and the search for lost jobs."""
    names = ("list", "list on", "replay", "unfinished", "get", "create, begin, finish")
    what = f"Median of {CALLS} calls; {USERS:,} users; `list on` begins after the hundredth, `replay` 3 hours ago."
    comparison = Comparison("SQLite by assets", what, [Column(name, "ms") for name in names])
    report.comparisons.append(comparison)
    with tempfile.TemporaryDirectory() as folder, RedisServer() as server:
        paths = {count: filled(Path(folder) / f"{count}.sqlite", count) for count in ASSETS}
        candidates = {f"{count:,}": partial(run_calls, path) for count, path in paths.items()}
        comparison.measure(candidates, rounds)
        # Else the garbage collector would search the objects of `filled`, on the loop.
        gc.freeze()
        count, seconds, lag = asyncio.run(reconciled(SqliteAssetStore(paths[ASSETS[-1]]), server.url))
    few, many = (f"{count:,}" for count in ASSETS)
    report.notes.append(
        f"Reconciler after a wipe of Redis: {count:,} lost jobs among {many} assets were enqueued again in "
        f"{seconds:.1f} s; the event loop was at most {lag * 1000:.0f} ms late."
    )
    worst = max(names[4:], key=lambda name: comparison.ratio(name, many, few) or 0.0)
    measured = f"worst: {worst} x {comparison.ratio(worst, many, few) or 0.0:.2f}"
    is_met = all((comparison.ratio(name, many, few) or 0.0) <= 2 for name in names[4:])
    report.goals.append(Goal(f"get and write with {many} assets", f"at most 2 x those with {few}", measured, is_met))
