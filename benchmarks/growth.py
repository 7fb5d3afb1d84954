"""What grows with jobs, assets and processes: python -m benchmarks.growth

The cost of a job with 0, 10^4 and 10^6 waiting; the asset store's reads with 10^3 and 10^6 assets in SQLite, and the
reconciler that looks for 10,000 lost jobs among them; one, two and four worker processes on one Redis; a Redis Cluster
of three masters beside a single server. The job does nothing; every part of it is benchmarks/queue/ours.py.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from functools import partial
from pathlib import Path

from benchmarks import machine
from benchmarks.comparison import Column, Comparison, Goal, Report
from benchmarks.queue.suite import all_candidates, asked, program, read, tell
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
from tests.redis_server import RedisCluster, RedisServer

WAITING = (0, 10_000, 1_000_000)
ASSETS = (1_000, 1_000_000)
USERS = 1_000
COLUMNS = (
    "id, userId, category, status, original, processed, processingJobId, fence, aiMetadata, finishedAt, createdAt, "
    "updatedAt, excused"
)
DRAINED = 5_000
CALLS = 200
SHARED = 20_000
OURS = all_candidates()[0]
JOB_COST = [
    Column("drain", "jobs/s", more_is_better=True),
    Column("enqueue", "jobs/s", more_is_better=True),
    Column("commands/job"),
    Column("CPU", "s per 1,000"),
    Column("Redis CPU", "s per 1,000"),
]


def drained(url: str, server: RedisServer) -> dict[str, float]:
    """Return what DRAINED jobs cost that are enqueued behind what waits already. server: where the queue is."""
    enqueue = CALLS / tell(OURS, "enqueue", url, CALLS)
    tell(OURS, "bulk", url, DRAINED)
    _, commands = asked(server)
    cpu = machine.cpu_seconds([server.pid])
    with program(OURS, "work", url, DRAINED) as worker:
        found = read(worker)
        _, commands_after = asked(server)
        cpu = machine.cpu_seconds([server.pid]) - cpu
    assert isinstance(found["seconds"], float) and isinstance(found["cpu"], float)
    # What runs until the worker is stopped is counted too, with all that waits behind: less than a hundredth.
    return {
        "drain": DRAINED / found["seconds"],
        "enqueue": enqueue,
        "commands/job": (commands_after - commands) / DRAINED,
        "CPU": found["cpu"] / DRAINED * 1000,
        "Redis CPU": cpu / DRAINED * 1000,
    }


def measure_waiting(report: Report, rounds: int) -> None:
    """Add the cost of a job by how many wait."""
    comparison = Comparison("Cost of a job by how many wait", f"{DRAINED:,} more are drained.", JOB_COST)
    report.comparisons.append(comparison)
    with ExitStack() as stack:
        servers = {count: stack.enter_context(RedisServer()) for count in WAITING}
        for count, server in servers.items():
            before = server.client().info("memory")["used_memory"]  # type: ignore[index]
            if count:
                tell(OURS, "bulk", server.url, count)
                bytes_each = (server.client().info("memory")["used_memory"] - before) / count  # type: ignore[index]
                report.notes.append(f"A waiting job takes {bytes_each:,.0f} bytes of Redis (of {count:,}).")
        candidates = {f"{count:,}": partial(drained, server.url, server) for count, server in servers.items()}
        comparison.measure(candidates, rounds)
    empty, full = f"{WAITING[0]:,}", f"{WAITING[-1]:,}"
    costs = {name: sum(comparison.median(name, part) or 0.0 for part in ("CPU", "Redis CPU")) for name in (empty, full)}
    more = costs[full] / costs[empty] - 1
    ratio = comparison.ratio("drain", full, empty) or 0.0
    measured = f"CPU {more * 100:+.0f} %, drain x {ratio:.2f}"
    what, wanted = f"cost of a job with {full} waiting", "within 10 % of an empty queue"
    report.goals.append(Goal(what, wanted, measured, more <= 0.1))


def filled(path: Path, count: int) -> Path:
    """Return the file of a store with so many assets of a thousand users, one in a hundred of them unfinished and
    old.
    """
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
        places = ", ".join("?" * len(COLUMNS.split(",")))
        connection.executemany(f"INSERT INTO assets ({COLUMNS}) VALUES ({places})", rows())
    return path


async def _open_and_close(store: SqliteAssetStore) -> None:
    await store.open()
    await store.close()


async def store_calls(store: SqliteAssetStore) -> dict[str, float]:
    """Return the median milliseconds of each call the service makes."""
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
    found = {}
    for name, call in calls.items():
        times = []
        for number in range(CALLS):
            started_at = time.perf_counter()
            await call(number)
            times.append(time.perf_counter() - started_at)
        found[name] = statistics.median(times) * 1000
    await store.close()
    return found


def run_calls(path: Path) -> dict[str, float]:
    """Return store_calls in an event loop of its own, to which the store belongs."""
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
    """Return how many lost jobs were enqueued again, after how many seconds, and the loop's longest lag meanwhile."""
    await store.open()
    queue = JobQueue(url)
    wanted = len(await _unfinished(store))
    lags = []

    async def feel() -> None:
        while True:
            due = asyncio.get_running_loop().time() + 0.005
            await asyncio.sleep(0.005)
            lags.append(asyncio.get_running_loop().time() - due)

    async def nothing_old() -> None:
        pass

    feeling = asyncio.create_task(feel())
    started_at = time.perf_counter()
    unfinished = UnfinishedAssets(store, queue, ImageUrls(MemoryStorage()), age_seconds=60, is_fair=False)
    reconciler = Reconciler(store, queue, [unfinished], Metrics(), purge=nothing_old)
    searching = asyncio.create_task(reconciler.run())
    while (await queue.stats()).waiting < wanted:
        await asyncio.sleep(0.02)
    seconds = time.perf_counter() - started_at
    for task in (searching, feeling):
        task.cancel()
    await queue.close()
    await store.close()
    return wanted, seconds, max(lags)


async def _unfinished(store: SqliteAssetStore) -> list[str]:
    found: list[str] = []
    after = None
    while page := await store.unfinished_before(utc_now(), limit=1000, after=after):
        found += (asset.id for asset in page)
        after = (page[-1].created_at, page[-1].id)
    return found


def measure_store(report: Report, rounds: int) -> None:
    """Add what the store's calls take by how many assets there are, and the search for lost jobs."""
    names = ("list", "list on", "replay", "unfinished", "get", "create, begin, finish")
    what = f"Median of {CALLS} calls; {USERS:,} users; `list on` begins after the hundredth, `replay` 3 hours ago."
    comparison = Comparison("SQLite by assets", what, [Column(name, "ms") for name in names])
    report.comparisons.append(comparison)
    with tempfile.TemporaryDirectory() as folder, RedisServer() as server:
        paths = {count: filled(Path(folder) / f"{count}.sqlite", count) for count in ASSETS}
        candidates = {f"{count:,}": partial(run_calls, path) for count, path in paths.items()}
        comparison.measure(candidates, rounds)
        # What filling has left behind would be looked through by the garbage collector, on the loop.
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


def shared(count: int) -> dict[str, float]:
    """Return how fast so many worker processes drain one queue together."""
    with ExitStack() as stack, RedisServer() as server:
        tell(OURS, "bulk", server.url, SHARED)
        asyncio.run(_ask(server.url, JobQueue.pause))
        workers = [stack.enter_context(program(OURS, "work", server.url, SHARED)) for _ in range(count)]
        while server.client().info("clients")["blocked_clients"] < count:  # type: ignore[index]
            time.sleep(0.01)
        pids = [pid for worker in workers for pid in machine.descendants(worker.pid)]
        cpu = machine.cpu_seconds(pids)
        started_at = time.perf_counter()
        asyncio.run(_ask(server.url, JobQueue.resume))
        while server.client().zcard("pipeline:{ai-processing}:completed") < SHARED:
            time.sleep(0.005)
        seconds = time.perf_counter() - started_at
        cpu = machine.cpu_seconds(pids) - cpu
    return {"drain": SHARED / seconds, "CPU": cpu / SHARED * 1000}


async def _ask(url: str, what: Callable[[JobQueue], Awaitable[None]]) -> None:
    queue = JobQueue(url)
    await what(queue)
    await queue.close()


def on_cluster() -> dict[str, float]:
    """Return the cost of a job on a cluster, asked at the address of a server that does not have the queue."""
    with RedisCluster("--appendonly", "yes") as cluster:
        owner = cluster.owner("pipeline:{ai-processing}:waiting")
        other = next(server for server in cluster.servers if server is not owner)
        return drained(other.url, owner)


def on_one_server() -> dict[str, float]:
    """Return the same on a server that is in no cluster."""
    with RedisServer() as server:
        return drained(server.url, server)


def measure(rounds: int) -> Report:
    """Measure it all."""
    report = Report("growth", machine=machine.describe())
    measure_waiting(report, rounds)
    measure_store(report, rounds)
    columns = [Column("drain", "jobs/s", more_is_better=True), Column("CPU", "s per 1,000")]
    together = Comparison("Worker processes on one Redis", f"{SHARED:,} no-op jobs; five slots each.", columns)
    together.measure({f"{count}": partial(shared, count) for count in (1, 2, 4)}, rounds)
    cluster = Comparison("Redis Cluster", "Three masters; the queue is on one of them.", JOB_COST)
    cluster.measure({"one server": on_one_server, "three masters": on_cluster}, rounds)
    report.comparisons += [together, cluster]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.growth", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    measure(parser.parse_args().rounds).print()


if __name__ == "__main__":
    main()
