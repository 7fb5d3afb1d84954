"""What operators' lists take with a million jobs: python -m benchmarks.console [--store mongo] [--assets 1000000]

A store of so many assets (by status, user, category, provider and error as in life), and a Redis that knows the job of
each: half of them wait. A real process of role web answers over HTTP; nothing runs jobs. Each route of ROUTES is called
CALLS times, with other values each time. Beside the times stand the commands that one call sends to Redis and, of
SQLite, the plans of the statements. A route of yours: add a line to ROUTES.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pymongo
from bson import ObjectId
from redis import Redis

from benchmarks import machine
from benchmarks.comparison import Column, Comparison, Goal, Report
from pipeline.assets.failures import fingerprint
from pipeline.assets.mongo import MongoAssetStore
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import AssetStore
from pipeline.queue.queue import JobQueue
from tests.mongo_server import MongoServer
from tests.redis_server import RedisServer
from tests.service import Service

ASSETS, CALLS, WARM_UP = 1_000_000, 100, 5
GOAL_MS = 200.0
CALM_PER_SECOND = 50
DAYS, USERS, BATCH = 30, 20_000, 5_000
# The status of an asset that is not among the newest half, which wait, and how many of a thousand have it.
STATUSES = {"active": 780, "partial": 120, "failed": 100}
CATEGORIES = {"sneaker": 500, "lego": 300, "camera": 150, "other": 50}
PROVIDERS = {"http": 900, "openai": 98, "local": 2}
BRANDS = (("Nike", "Air Max 90"), ("LEGO", "10265 Ford Mustang"), ("Canon", "AE-1"), ("Adidas", "Samba"))
ERRORS = {
    "The AI service answered 503 after {n} s": 600,
    'Host ai{n}.example.com: connection refused ("attempt {n}")': 250,
    "Cancelled": 100,
    "The AI service cannot read this image": 49,
    "The disk is full": 1,
}
BASE = "pipeline:{ai-processing}:"
DELAYED = 400


@dataclass(frozen=True, slots=True)
class Job:
    """One asset and its job, as this program makes them."""

    asset_id: str
    user: str
    category: str
    status: str
    provider: str
    error: str | None
    at: datetime

    @property
    def job_id(self) -> str:
        """The id of its job."""
        return f"ai-processing:{self.asset_id}"


@dataclass
class World:
    """What routes take their values from."""

    jobs: list[Job] = field(default_factory=list)
    random: random.Random = field(default_factory=lambda: random.Random(7))

    def any(self, **wanted: str) -> Job:
        """Return some job with these values."""
        while True:
            job = self.random.choice(self.jobs)
            if all(getattr(job, name) == value for name, value in wanted.items()):
                return job

    def moment(self) -> str:
        """Return some instant of the time that there are jobs of."""
        return f"{self.any().at:%Y-%m-%dT%H:%M:%S}Z"


Route = Callable[[World], tuple[str, Mapping[str, str]]]


def listed(path: str = "/api/queue/jobs", **fixed: str) -> Route:
    """Return a route with the same query each time."""
    return lambda world: (path, fixed)


def since(path: str = "/api/queue/jobs", **fixed: str) -> Route:
    """Return a route that also begins anywhere."""
    return lambda world: (path, {**fixed, "to": world.moment()})


KIND = fingerprint("The disk is full")
OFTEN = fingerprint("The AI service answered 503 after 1 s")
COUNT = "/api/queue/jobs/count"
ROUTES: dict[str, Route] = {
    "jobs": listed(limit="50"),
    "jobs, from any time": since(limit="50"),
    **{f"jobs state={state}": listed(state=state) for state in ("waiting", "delayed", "active", "completed", "failed")},
    "jobs state=completed, from any time": since(state="completed"),
    "jobs state=failed, from any time": since(state="failed"),
    "jobs state=waiting, from any time": since(state="waiting"),
    "jobs user": lambda world: ("/api/queue/jobs", {"user": world.any().user}),
    "jobs user, failed": lambda world: ("/api/queue/jobs", {"user": world.any().user, "state": "failed"}),
    "jobs category": lambda world: ("/api/queue/jobs", {"category": world.any().category, "to": world.moment()}),
    "jobs category (rare), failed": since(state="failed", category="other"),
    "jobs provider": since(provider="openai", state="completed"),
    "jobs provider (rare)": since(provider="local"),
    "jobs provider (none)": since(provider="nobody"),
    "jobs failure": since(failure=OFTEN),
    "jobs failure (rare)": listed(failure=KIND),
    "jobs q brand": since(q="nike max", state="completed"),
    "jobs q nothing": since(q="nowhere"),
    "jobs q user": lambda world: ("/api/queue/jobs", {"q": world.any().user}),
    "jobs q job": lambda world: ("/api/queue/jobs", {"q": world.any().job_id}),
    "jobs of all filters": since(state="failed", category="lego", provider="http", failure=OFTEN, q="503"),
    "count": listed(COUNT),
    **{f"count state={state}": listed(COUNT, state=state) for state in ("waiting", "completed", "failed")},
    "count user": lambda world: (COUNT, {"user": world.any().user}),
    "count category": since(COUNT, category="lego"),
    "count provider": since(COUNT, provider="openai", state="completed"),
    "count failure": since(COUNT, failure=OFTEN),
    "count q": since(COUNT, q="nike", state="completed"),
    "count waiting, category": listed(COUNT, state="waiting", category="camera"),
    "failures": listed("/api/queue/failures"),
    "failures of a period": lambda world: ("/api/queue/failures", {"from": world.moment()}),
    "one job": lambda world: (f"/api/queue/jobs/{world.any().job_id}", {}),
    "one job that waits": lambda world: (f"/api/queue/jobs/{world.any(status='processing').job_id}", {}),
}


def one_of(chooser: random.Random, weights: Mapping[str, int]) -> str:
    """Return one of the names, as often as its weight says."""
    return chooser.choices([*weights], [*weights.values()])[0]


def all_jobs(count: int, start: datetime) -> Iterator[Job]:
    """Yield so many jobs, the oldest first; the newer half has not ended. start: when the first one came."""
    chooser = random.Random(17)
    for number in range(count):
        at = start + timedelta(seconds=DAYS * 86_400 * number / count, milliseconds=number % 1000)
        milliseconds = round(at.timestamp() * 1000)
        asset_id = f"{milliseconds // 1000:08x}{number:016x}"
        status = "processing" if number >= count // 2 else one_of(chooser, STATUSES)
        error = one_of(chooser, ERRORS).format(n=number % 90) if status == "failed" else None
        # A few have many.
        user = f"user-{int(USERS * chooser.random() ** 3)}"
        category, provider = one_of(chooser, CATEGORIES), one_of(chooser, PROVIDERS)
        yield Job(asset_id, user, category, status, provider, error, at)


def document_of(job: Job) -> dict[str, Any]:
    """Return the document of a job's asset, as the stores of today write it."""
    image = {"backend": "local", "publicId": f"{job.asset_id}/original-1", "url": "", "sha256": "0" * 64}
    image |= {"bytes": 2_000_000, "width": 4000, "height": 3000, "contentType": "image/jpeg"}
    is_done = job.status != "processing"
    brand, model = BRANDS[int(job.asset_id, 16) % len(BRANDS)] if is_done and not job.error else (None, None)
    attempt = {"attempt": 1, "startedAt": "2026-01-31T12:00:00.000Z", "endedAt": "2026-01-31T12:00:01.000Z"}
    attempt |= {"provider": job.provider, "model": None, "outcome": "failed" if job.error else "completed"}
    result = {"provider": job.provider, "model": None, "promptVersion": None, "confidenceKind": None, "usage": None}
    done_at = job.at + timedelta(seconds=5)
    return {
        "_id": job.asset_id,
        "userId": job.user,
        "category": job.category,
        "status": job.status,
        "images": {
            "original": image,
            "processed": None,
            "previews": {side: image | {"publicId": f"{job.asset_id}/preview/{side}"} for side in ("320", "1280")}
            if is_done
            else {},
        },
        "processingJobId": job.job_id,
        "fence": int(is_done),
        "excused": 0,
        "aiMetadata": {
            "brand": {"value": brand, "confidence": 0.9} if brand else None,
            "model": {"value": model, "confidence": 0.9} if model and job.status == "active" else None,
            "colorway": None,
            "processedAt": None,
            "error": job.error,
            "extra": {},
        },
        "attempts": [attempt | {"reason": job.error}] if is_done else [],
        "provenance": result if is_done and not job.error else None,
        "corrections": {},
        "history": [],
        "finishedAt": done_at if is_done else None,
        "createdAt": job.at,
        "updatedAt": done_at,
        "originalGone": None,
        "failure": fingerprint(job.error) if job.error else None,
        "schema": 2,
    }


def row_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a document in SQLite."""
    row = {name: value for name, value in document.items() if name not in ("_id", "images")}
    row |= {"id": document["_id"], **document["images"]}
    return {name: _column(value) for name, value in row.items()}


def _column(value: Any) -> Any:
    if isinstance(value, datetime):
        return round(value.timestamp() * 1000)
    return orjson.dumps(value).decode() if isinstance(value, (dict, list)) else value


def fill_sqlite(path: Path, jobs: Iterable[Job]) -> None:
    """Put the assets of the jobs into the file, whose tables are there."""
    rows = (row_of(document_of(job)) for job in jobs)
    with closing(sqlite3.connect(path)) as connection:
        for batch in batches(rows):
            columns = ", ".join(batch[0])
            places = ", ".join(f":{name}" for name in batch[0])
            with connection:
                connection.executemany(f"INSERT INTO assets ({columns}) VALUES ({places})", batch)


def fill_mongo(uri: str, jobs: Iterable[Job]) -> None:
    """Put the assets of the jobs into the collection, whose indexes are there."""
    with pymongo.MongoClient[dict[str, Any]](uri) as client:
        assets = client.get_default_database()["assets"]
        for batch in batches(document_of(job) for job in jobs):
            assets.insert_many([document | {"_id": ObjectId(document["_id"])} for document in batch])


def fill_redis(redis: Redis, jobs: Iterable[Job]) -> None:
    """Let Redis know the jobs: those that wait, some of them delayed, those that are completed, and dead letters."""
    delayed = DELAYED
    for batch in batches(jobs):
        pipe = redis.pipeline(transaction=False)
        for job in batch:
            at = round(job.at.timestamp() * 1000)
            if job.status in ("active", "partial"):
                pipe.zadd(BASE + "completed", {job.job_id: at})
                continue
            data = {"assetId": job.asset_id, "userId": job.user, "imageUrl": "http://x/y", "category": job.category}
            record = {"enqueuedAt": at, "requestId": "r", "trace": "", "group": "", "lane": job.category, "data": data}
            pipe.set(f"{BASE}record:{job.job_id}", json.dumps(record, separators=(",", ":")))
            if job.status == "failed":
                pipe.set(f"{BASE}state:{job.job_id}", json.dumps({"state": "failed", "error": job.error}))
                pipe.zadd(BASE + "failed", {job.job_id: at})
            elif delayed:
                delayed -= 1
                pipe.set(f"{BASE}state:{job.job_id}", json.dumps({"state": "delayed", "attempt": 1, "error": "503"}))
                pipe.zadd(BASE + "delayed", {job.job_id: round(time.time() * 1000) + 500_000})
            else:
                pipe.lpush(BASE + "waiting", job.job_id)
        pipe.execute()


def batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    """Yield the items in lists of BATCH."""
    items = iter(items)
    while batch := list(itertools.islice(items, BATCH)):
        yield batch


def called(client: httpx.Client, world: World, route: Route) -> tuple[float, httpx.Response]:
    """Call a route once; return the milliseconds and the reply."""
    path, params = route(world)
    started_at = time.perf_counter()
    reply = client.get(path, params=params)
    milliseconds = (time.perf_counter() - started_at) * 1000
    reply.raise_for_status()
    return milliseconds, reply


def figures(client: httpx.Client, world: World, route: Route, redis: Redis, pid: int) -> dict[str, float]:
    """Return what calls of a route take: milliseconds, CPU of the service, commands to Redis, bytes of the reply."""
    for _ in range(WARM_UP):
        called(client, world, route)
    before = machine.cpu_seconds([pid])
    times = sorted(called(client, world, route)[0] for _ in range(CALLS))
    cpu = (machine.cpu_seconds([pid]) - before) / CALLS * 1000
    # Between two snapshots of the line a list costs less; this is the dearer one.
    time.sleep(2.1)
    with redis.monitor() as monitor:
        _, reply = called(client, world, route)
        redis.echo("end")
        heard = list(itertools.takewhile(lambda each: "ECHO" not in each["command"], monitor.listen()))
    sent = [each["command"].split()[0] for each in heard if each["client_type"] != "lua"]
    found = {"p50": statistics.median(times), "p99": times[round(CALLS * 0.99) - 1], "longest": times[-1]}
    return found | {"CPU": cpu, "Redis": float(sum(name not in ("PING", "TIME") for name in sent)), "KB": len(reply.content) / 1000}


async def plans_of(store: SqliteAssetStore, world: World, wanted: Sequence[Any]) -> list[str]:
    """Return the steps of the plans of all statements that searches of these filters make, each once."""
    statements: list[str] = []
    await store.open()
    await store._on_reader(lambda connection: connection.set_trace_callback(statements.append))
    after = world.any().at, "0" * 24
    for each in wanted:
        await store.jobs(each, limit=20)
        await store.jobs(each, limit=20, after=after)
        await store.count_jobs(each)
    await store.failures()
    await store.find_by_job(world.any().job_id)
    await store._on_reader(lambda connection: connection.set_trace_callback(None))
    asked = {each for each in statements if each.startswith("SELECT")}
    plans = [await store._read(f"EXPLAIN QUERY PLAN {sql}", {}) for sql in sorted(asked)]
    await store.close()
    return sorted({row["detail"] for plan in plans for row in plan})


def wait_until_calm(redis: Redis) -> None:
    """Return when the reconciler has compared all that waits with Redis, as it does at a start."""
    calm = 0
    while calm < 5:
        time.sleep(1)
        busy = redis.info("stats")["instantaneous_ops_per_sec"]  # type: ignore[index]
        calm = calm + 1 if busy < CALM_PER_SECOND else 0


async def claim_queue(store: AssetStore, redis_url: str) -> None:
    """Make the tables and indexes, and let the queue be the store's: one that is nobody's would be compared with it."""
    await store.open()
    queue = JobQueue(redis_url)
    await queue.own(await store.identity(), is_paused=False)
    await queue.close()
    await store.close()


def started_at(folder: Path) -> datetime:
    """Return when the first job came, the same for each run with that folder."""
    note = folder / "start"
    if not note.exists():
        note.write_text((datetime.now(UTC) - timedelta(days=DAYS)).isoformat())
    return datetime.fromisoformat(note.read_text())


def measure(kind: str, count: int, names: Sequence[str], kept: Path | None) -> Report:
    """Measure the routes whose names contain one of those, on one kind of store. kept: a folder with a filled SQLite
    file, or where to leave one.
    """
    report = Report("console", machine=machine.describe())
    columns = [Column("p50", "ms"), Column("p99", "ms"), Column("longest", "ms"), Column("CPU", "ms")]
    columns += [Column("Redis"), Column("KB")]
    what = f"{kind}, {count:,} assets, {count // 2:,} of them waiting; {CALLS} calls each over HTTP."
    comparison = Comparison("Operators' lists", what, columns)
    report.comparisons.append(comparison)
    with ExitStack() as stack:
        folder = kept or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(exist_ok=True)
        is_filled = (folder / "start").exists()
        redis = stack.enter_context(RedisServer("--appendonly", "no"))
        more = {"ROLE": "web", "REDIS_URL": redis.url, "RECONCILE_SECONDS": "3600"}
        if kind == "mongo":
            more["MONGODB_URI"] = uri = stack.enter_context(MongoServer()).uri("console")
            asyncio.run(claim_queue(MongoAssetStore(uri), redis.url))
        else:
            asyncio.run(claim_queue(SqliteAssetStore(folder / "assets.sqlite"), redis.url))
        world = World([*all_jobs(count, started_at(folder))])
        if kind == "mongo":
            fill_mongo(uri, world.jobs)
        elif not is_filled:
            fill_sqlite(folder / "assets.sqlite", world.jobs)
        fill_redis(redis.client(), world.jobs)
        service = stack.enter_context(Service(folder, "http://127.0.0.1:9", **more))
        wait_until_calm(redis.client())
        headers = service.headers("ops-1", role="admin")
        client = stack.enter_context(httpx.Client(base_url=service.url, headers=headers, timeout=60))
        for name, route in ROUTES.items():
            if not names or any(each in name for each in names):
                comparison.add(name, figures(client, world, route, redis.client(), service.pid))
        if kind == "sqlite":
            report.notes += asyncio.run(_plans(folder / "assets.sqlite", world))
    slow = [name for name in comparison.runs if (comparison.median(name, "p99") or 0) > GOAL_MS]
    worst = max(comparison.runs, key=lambda name: comparison.median(name, "p99") or 0)
    measured = f"worst: {worst} {comparison.median(worst, 'p99') or 0:.0f} ms; {len(slow)} above"
    report.goals.append(Goal(f"every list with {count:,} jobs", f"p99 < {GOAL_MS:.0f} ms", measured, not slow))
    return report


async def _plans(path: Path, world: World) -> list[str]:
    from pipeline.assets.asset import AssetStatus
    from pipeline.assets.job_search import JobFilter

    failed = (AssetStatus.FAILED,)
    filters = [JobFilter(), JobFilter(statuses=failed), JobFilter(user_id="user-1", failure=OFTEN)]
    filters += [JobFilter(category="lego"), JobFilter(failure=OFTEN), JobFilter(words=("nike",), provider="http")]
    return [f"plan: {step}" for step in await plans_of(SqliteAssetStore(path), world, filters)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.console", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", choices=("sqlite", "mongo"), default="sqlite")
    parser.add_argument("--assets", type=int, default=ASSETS)
    parser.add_argument("--folder", type=Path, help="keeps the SQLite file for the next run")
    parser.add_argument("route", nargs="*", help="only routes whose names contain one of these")
    options = parser.parse_args()
    measure(options.store, options.assets, options.route, options.folder).print()


if __name__ == "__main__":
    main()
