"""The time of operators' lists with a million jobs: python -m benchmarks.console [--store mongo] [--assets 1000000]

A store with that many assets (statuses, users, categories, providers and errors as in production) and a Redis with the
job of each asset; half of the jobs wait. A real process with ROLE=web answers over HTTP, and no process runs jobs. Each
route of ROUTES is called CALLS times, with other values each time. The report also has the number of commands that one
call sends to Redis and, for SQLite, the query plans. To measure another route, add a line to ROUTES.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
from redis import Redis

from benchmarks import machine
from benchmarks.comparison import Column, Comparison, Goal, Report
from benchmarks.console_world import (
    KEY_PREFIX,
    World,
    all_jobs,
    fill_mongo,
    fill_records,
    fill_redis,
    fill_sqlite,
    started_at,
)
from pipeline.assets.asset import AssetStatus
from pipeline.assets.failures import fingerprint
from pipeline.assets.job_search import JobFilter
from pipeline.assets.mongo import MongoAssetStore
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import AssetStore
from pipeline.queue.queue import JobQueue
from tests.mongo_server import MongoServer
from tests.redis_server import RedisServer
from tests.service import Service

ASSETS, CALLS, WARM_UP = 1_000_000, 100, 5
GOAL_MS = 200.0
Route = Callable[[World], tuple[str, Mapping[str, str]]]


def listed(path: str = "/api/queue/jobs", **fixed: str) -> Route:
    """Return a route whose query is the same in each call."""
    return lambda world: (path, fixed)


def since(path: str = "/api/queue/jobs", **fixed: str) -> Route:
    """Return a route that also has `to`, another moment in each call."""
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
    "jobs provider (none)": since(provider="unknown"),
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
    "overview": listed("/api/queue/overview"),
    "processes": listed("/api/processes"),
    "plugins": listed("/api/plugins"),
    **{f"charts {window}": listed("/api/queue/charts", window=window) for window in ("1h", "24h", "7d")},
    "busiest users": listed("/api/queue/users"),
    "one user": lambda world: (f"/api/users/{world.any().user}", {}),
    "audit": listed("/api/queue/audit", limit="50"),
    "audit of one, one action": listed("/api/queue/audit", who="ops-3", action="retry job"),
    "audit of an unknown operator": listed("/api/queue/audit", who="unknown"),
    "deliveries": listed("/api/queue/deliveries", limit="50"),
    "deliveries, failed": listed("/api/queue/deliveries", state="failed"),
    "deliveries of an asset": lambda world: ("/api/queue/deliveries", {"asset": world.jobs[-9].asset_id}),
    "dead letters": listed("/api/queue/failed", limit="50"),
    "one job that waits": lambda world: (f"/api/queue/jobs/{world.any(status='processing').job_id}", {}),
}


def called(client: httpx.Client, world: World, route: Route) -> tuple[float, httpx.Response]:
    """Call a route once; return the milliseconds and the reply."""
    path, params = route(world)
    started_at = time.perf_counter()
    reply = client.get(path, params=params)
    milliseconds = (time.perf_counter() - started_at) * 1000
    reply.raise_for_status()
    return milliseconds, reply


def figures(client: httpx.Client, world: World, route: Route, redis: Redis, pid: int) -> dict[str, float]:
    """Return the cost of one call of a route: milliseconds, CPU of the service, commands to Redis, KB of the reply."""
    for _ in range(WARM_UP):
        called(client, world, route)
    before = machine.cpu_seconds([pid])
    times = sorted(called(client, world, route)[0] for _ in range(CALLS))
    cpu = (machine.cpu_seconds([pid]) - before) / CALLS * 1000
    # The service caches a snapshot of the queue for 2 s; this call takes a new one, which costs more.
    time.sleep(2.1)
    with redis.monitor() as monitor:
        _, reply = called(client, world, route)
        redis.echo("end")
        commands = list(itertools.takewhile(lambda each: "ECHO" not in each["command"], monitor.listen()))
    names = [each["command"].split()[0] for each in commands if each["client_type"] != "lua"]
    count = sum(name not in ("PING", "TIME") for name in names)
    result = {"p50": statistics.median(times), "p99": times[round(CALLS * 0.99) - 1], "longest": times[-1], "CPU": cpu}
    return result | {"Redis": float(count), "KB": len(reply.content) / 1000}


async def plans_of(store: SqliteAssetStore, world: World, filters: Sequence[JobFilter]) -> list[str]:
    """Return the different steps of the query plans of all statements that the searches with these filters make."""
    statements: list[str] = []
    await store.open()
    await store._on_reader(lambda connection: connection.set_trace_callback(statements.append))
    after = world.any().at, "0" * 24
    for job_filter in filters:
        await store.jobs(job_filter, limit=20)
        await store.jobs(job_filter, limit=20, after=after)
        await store.count_jobs(job_filter)
    await store.failures()
    await store.find_by_job(world.any().job_id)
    await store._on_reader(lambda connection: connection.set_trace_callback(None))
    selects = {statement for statement in statements if statement.startswith("SELECT")}
    plans = [await store._read(f"EXPLAIN QUERY PLAN {sql}", {}) for sql in sorted(selects)]
    await store.close()
    return sorted({row["detail"] for plan in plans for row in plan})


async def claim_queue(store: AssetStore, redis_url: str) -> None:
    """Make the tables and indexes, and let the store own the queue: else the service would compare the two first."""
    await store.open()
    queue = JobQueue(redis_url)
    await queue.own(await store.identity(), is_paused=False)
    await queue.close()
    await store.close()


async def put_records(store: AssetStore, world: World) -> None:
    """Put the records of the jobs into the store: audit entries, deliveries and counts."""
    await store.open()
    await fill_records(store, world.jobs)
    await store.close()


def fill(folder: Path, redis: RedisServer, mongo_uri: str, count: int) -> World:
    """Return the world after putting its assets into the store and its jobs into Redis.

    folder: has the SQLite file; one that an earlier run has filled is not filled again.
    mongo_uri: the store, "" for SQLite.
    """
    is_filled = (folder / "start").exists()

    def open_store() -> AssetStore:
        return MongoAssetStore(mongo_uri) if mongo_uri else SqliteAssetStore(folder / "assets.sqlite")

    asyncio.run(claim_queue(open_store(), redis.url))
    world = World([*all_jobs(count, started_at(folder))])
    if mongo_uri:
        fill_mongo(mongo_uri, world.jobs)
    elif not is_filled:
        fill_sqlite(folder / "assets.sqlite", world.jobs)
    fill_redis(redis.client(), world.jobs)
    if not is_filled:
        asyncio.run(put_records(open_store(), world))
    return world


def measure(kind: str, count: int, names: Sequence[str], saved: Path | None) -> Report:
    """Measure routes on one kind of store.

    names: measure the routes whose name contains one of them, without any: all.
    saved: the folder that has, or gets, a filled SQLite file for the next run.
    """
    report = Report("console", machine=machine.describe())
    columns = [Column("p50", "ms"), Column("p99", "ms"), Column("longest", "ms"), Column("CPU", "ms")]
    columns += [Column("Redis"), Column("KB")]
    what = f"{kind}, {count:,} assets, {count // 2:,} of them waiting; {CALLS} calls each over HTTP."
    comparison = Comparison("Operators' lists", what, columns)
    report.comparisons.append(comparison)
    with ExitStack() as stack:
        folder = saved or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(exist_ok=True)
        redis = stack.enter_context(RedisServer("--appendonly", "no"))
        # The service must not search for lost jobs, which takes minutes: another process seems to have the locks.
        for search in ("urgent", "slow"):
            redis.client().set(f"{KEY_PREFIX}turn:{search}", "another process", ex=86_400)
        uri = stack.enter_context(MongoServer()).uri("console") if kind == "mongo" else ""
        world = fill(folder, redis, uri, count)
        settings = {"ROLE": "web", "REDIS_URL": redis.url} | ({"MONGODB_URI": uri} if uri else {})
        service = stack.enter_context(Service(folder, "http://127.0.0.1:9", **settings))
        headers = service.headers("ops-1", role="admin")
        client = stack.enter_context(httpx.Client(base_url=service.url, headers=headers, timeout=60))
        for name, route in ROUTES.items():
            if not names or any(each in name for each in names):
                comparison.add(name, figures(client, world, route, redis.client(), service.pid))
        if not uri:
            report.notes += asyncio.run(_plans(folder / "assets.sqlite", world))
    report.goals.append(_goal(comparison, count))
    return report


def _goal(comparison: Comparison, count: int) -> Goal:
    slow = [name for name in comparison.runs if (comparison.median(name, "p99") or 0) > GOAL_MS]
    worst = max(comparison.runs, key=lambda name: comparison.median(name, "p99") or 0)
    measured = f"worst: {worst} {comparison.median(worst, 'p99') or 0:.0f} ms; {len(slow)} above"
    return Goal(f"every list with {count:,} jobs", f"p99 < {GOAL_MS:.0f} ms", measured, not slow)


async def _plans(path: Path, world: World) -> list[str]:
    failed = (AssetStatus.FAILED,)
    filters = [JobFilter(), JobFilter(statuses=failed), JobFilter(user_id="user-1", failure=OFTEN)]
    filters += [JobFilter(category="lego"), JobFilter(failure=OFTEN), JobFilter(words=("nike",), provider="http")]
    return [f"plan: {step}" for step in await plans_of(SqliteAssetStore(path), world, filters)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.console", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", choices=("sqlite", "mongo"), default="sqlite")
    parser.add_argument("--assets", type=int, default=ASSETS)
    parser.add_argument("--folder", type=Path, help="where the filled SQLite file stays for the next run")
    parser.add_argument("route", nargs="*", help="only routes whose names contain one of these")
    options = parser.parse_args()
    measure(options.store, options.assets, options.route, options.folder).print()


if __name__ == "__main__":
    main()
