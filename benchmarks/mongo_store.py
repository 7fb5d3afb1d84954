"""The MongoDB asset store by its number of assets: python -m benchmarks.mongo_store

The times of the calls of a job and of a client, with 2,000 and with 100,000 assets: for users with a hundred assets
each, and for one user who has a fifth of all. The report also says which index the server uses for each call. The
server is that of the tests (tests/mongo_server.py).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from unittest.mock import patch

import pymongo
from bson import ObjectId
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.monitoring import CommandListener, CommandStartedEvent

from benchmarks import machine
from benchmarks.comparison import Column, Comparison, Report
from pipeline.assets.asset import AiMetadata, Asset, AssetStatus
from pipeline.assets.mongo import MongoAssetStore
from pipeline.clock import utc_now
from tests.factories import make_asset
from tests.mongo_server import MongoServer

ASSETS = (2_000, 100_000)
OF_EACH_USER = 100
CALLS = 200
BATCH = 5_000
HEAVY = "the user with a fifth of all"
COLUMNS = [Column(name, "ms") for name in ("begin", "finish", "page", "page on", "finished_since", "unfinished_before")]
Database = pymongo.database.Database[dict[str, Any]]


def assets(count: int) -> Iterator[Asset]:
    """Yield that many assets of the last day; one in a hundred is unfinished, one in five belongs to one user."""
    start = utc_now() - timedelta(days=1)
    users = count * 4 // 5 // OF_EACH_USER
    for number in range(count):
        at = start + timedelta(milliseconds=round(number * 80_000_000 / count))
        asset = make_asset(HEAVY if number % 5 == 0 else f"user-{number // 5 % users}", created_at=at)
        if number % 100 == 7:
            yield asset
        else:
            yield replace(asset, status=AssetStatus.ACTIVE, fence=1, finished_at=at + timedelta(seconds=1))


def fill(uri: str, count: int) -> float:
    """Make a store with that many assets, the indexes first; return the seconds of the inserts."""
    asyncio.run(_open_and_close(uri))
    started_at = time.perf_counter()
    with pymongo.MongoClient[dict[str, Any]](uri) as client:
        collection = client.get_default_database()["assets"]
        batch: list[dict[str, Any]] = []
        for asset in assets(count):
            batch.append(asset.to_document() | {"_id": ObjectId(asset.id)})
            if len(batch) == BATCH:
                collection.insert_many(batch)
                batch = []
        if batch:
            collection.insert_many(batch)
    return time.perf_counter() - started_at


async def _open_and_close(uri: str) -> None:
    store = MongoAssetStore(uri)
    await store.open()
    await store.close()


async def times(uri: str, users: Iterable[str]) -> dict[str, float]:
    """Return the median milliseconds of each call.

    users: the users whose pages are read, one after the other.
    """
    store = MongoAssetStore(uri)
    await store.open()
    since = utc_now() - timedelta(hours=5)
    milliseconds: dict[str, list[float]] = {column.name: [] for column in COLUMNS}

    async def timed(name: str, call: Any) -> Any:
        started_at = time.perf_counter()
        result = await call
        milliseconds[name].append((time.perf_counter() - started_at) * 1000)
        return result

    for user in users:
        asset = make_asset("another user")
        await store.create(asset)
        await timed("begin", store.begin(asset.id, asset.user_id, asset.processing_job_id))
        await timed("finish", _finish(store, asset))
        page = await timed("page", store.page(user, limit=20))
        await timed("page on", store.page(user, limit=20, after=(page[-1].created_at, page[-1].id)))
        await timed("finished_since", store.finished_since(user, since, limit=20))
        await timed("unfinished_before", store.unfinished_before(utc_now(), limit=100))
    await store.close()
    return {name: statistics.median(values) for name, values in milliseconds.items()}


async def _finish(store: MongoAssetStore, asset: Asset) -> None:
    now = utc_now()
    done = await store.finish(
        asset.id,
        asset.processing_job_id,
        1,
        status=AssetStatus.ACTIVE,
        ai_metadata=AiMetadata(processed_at=now),
        processed=None,
        finished_at=now,
    )
    assert done is not None


class CommandRecorder(CommandListener):
    """Records the commands that a store sends."""

    def __init__(self) -> None:
        self.commands: list[Mapping[str, Any]] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.commands.append(event.command)

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


def plans(uri: str, user: str) -> list[str]:
    """Return one line for each call: the steps of the server's plan, and the number of documents it examines."""
    recorder = CommandRecorder()
    with patch("pipeline.assets.mongo.AsyncIOMotorClient", partial(AsyncIOMotorClient, event_listeners=[recorder])):
        asyncio.run(times(uri, [user]))
    commands = [each for each in recorder.commands if next(iter(each)) in ("findAndModify", "find")]
    # The first ones come from opening the store.
    commands = commands[-len(COLUMNS) :]
    with pymongo.MongoClient[dict[str, Any]](uri) as client:
        database = client.get_default_database()
        return [f"{column.name}: {_plan(database, each)}" for column, each in zip(COLUMNS, commands, strict=True)]


def _plan(database: Database, command: Mapping[str, Any]) -> str:
    # DocumentDB does not explain findAndModify, but a find with the same filter.
    query = command.get("query") or command["filter"]
    find = {"find": "assets", "filter": query}
    find |= {name: command[name] for name in ("sort", "limit") if name in command}
    answer = database.command({"explain": find, "verbosity": "executionStats"})
    stats, planner = answer.get("executionStats"), answer["queryPlanner"]
    steps = list(_steps(planner.get("Plan") or planner["winningPlan"]))
    # The answer of DocumentDB has no counts, so the documents within the index's bounds are counted here.
    examined = stats["totalDocsExamined"] if stats else database["assets"].count_documents(_bounds(query))
    return f"{' < '.join(steps)}; {examined:,} documents examined"


def _steps(plan: Mapping[str, Any]) -> Iterator[str]:
    kind = plan.get("Node Type") or plan.get("stage")
    index = plan.get("Index Name") or plan.get("indexName")
    if kind != "Custom Scan":  # DocumentDB's wrapper
        yield f"{kind} {index}" if index else str(kind)
    for inner in plan.get("Plans", [plan["inputStage"]] if "inputStage" in plan else []):
        yield from _steps(inner)


def _bounds(query: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a filter that bounds the search in an index."""
    parts = query.get("$and", [query])
    names = ("_id",) if "_id" in query else ("userId", "status", "createdAt", "finishedAt")
    return {"$and": [{name: part[name]} for part in parts for name in names if name in part]}


def measure(rounds: int) -> Report:
    """Measure the calls and the plans with each number of assets."""
    report = Report("MongoDB store", machine=machine.describe())
    what = f"Median of {CALLS} calls. {OF_EACH_USER} assets of each user, pages of 20; `finished_since` 5 hours ago."
    comparison = Comparison("MongoDB store by assets", what, COLUMNS)
    report.comparisons.append(comparison)
    with MongoServer() as server:
        candidates = {}
        for count in ASSETS:
            uri = server.uri(f"assets_{count}")
            seconds = fill(uri, count)
            with pymongo.MongoClient[dict[str, Any]](uri) as client:
                build = client.admin.command("buildInfo")
            name = "DocumentDB behind FerretDB 2" if "ferretdb" in build else f"MongoDB {build['version']}"
            report.notes.append(f"{name}: {count:,} assets inserted in {seconds:.1f} s.")
            users = [f"user-{number * 7 % (count * 4 // 5 // OF_EACH_USER)}" for number in range(CALLS)]
            candidates[f"{count:,}"] = partial(_times, uri, users)
            candidates[f"{count:,}, {HEAVY}"] = partial(_times, uri, [HEAVY] * (CALLS // 10))
            report.notes += [f"{count:,} assets, {line}" for line in plans(uri, "user-7")]
        comparison.measure(candidates, rounds)
        report.notes += [f"{ASSETS[-1]:,} assets, {HEAVY}, {line}" for line in plans(uri, HEAVY)]
    few, many = (f"{count:,}" for count in ASSETS)
    ratios = {column.name: comparison.ratio(column.name, many, few) or 0.0 for column in COLUMNS}
    report.notes.append(f"{many} : {few} assets: {', '.join(f'{name} x {each:.2f}' for name, each in ratios.items())}.")
    return report


def _times(uri: str, users: list[str]) -> dict[str, float]:
    return asyncio.run(times(uri, users))


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.mongo_store", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    measure(parser.parse_args().rounds).print()


if __name__ == "__main__":
    main()
