"""The data of benchmarks/console.py: many jobs, spread over statuses, users, providers and errors as in production.

The assets go into an asset store, the jobs into Redis.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pymongo
from bson import ObjectId
from redis import Redis

from benchmarks.charts import BUSY
from pipeline.assets.failures import fingerprint
from pipeline.assets.store import AssetStore, Record
from pipeline.usecases.job_statistics import RETENTION_SECONDS

DAYS, USERS, BATCH = 30, 20_000, 5_000
# The statuses of the older half of the assets, by their weight; the newer half waits.
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
ACTIONS = ("pause queue", "retry job", "delete asset")
# The number of audit entries and of deliveries; the number of processes that have written counts.
RECORDS, PROCESSES = 20_000, 5
KEY_PREFIX = "pipeline:{ai-processing}:"
DELAYED = 400


@dataclass(frozen=True, slots=True)
class Job:
    """One asset and its job."""

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
    """All jobs, and a random choice of values for the queries of routes."""

    jobs: list[Job] = field(default_factory=list)
    random: random.Random = field(default_factory=lambda: random.Random(7))

    def any(self, **wanted: str) -> Job:
        """Return a random job with these values."""
        while True:
            job = self.random.choice(self.jobs)
            if all(getattr(job, name) == value for name, value in wanted.items()):
                return job

    def moment(self) -> str:
        """Return a random instant between the oldest and the newest job."""
        return f"{self.any().at:%Y-%m-%dT%H:%M:%S}Z"


def choose(chooser: random.Random, weights: Mapping[str, int]) -> str:
    """Return a random name; a name with twice the weight comes twice as often."""
    return chooser.choices([*weights], [*weights.values()])[0]


def all_jobs(count: int, start: datetime) -> Iterator[Job]:
    """Yield that many jobs, the oldest first; the newer half has not ended.

    start: the time of the first upload.
    """
    chooser = random.Random(17)
    for number in range(count):
        at = start + timedelta(seconds=DAYS * 86_400 * number / count, milliseconds=number % 1000)
        milliseconds = round(at.timestamp() * 1000)
        asset_id = f"{milliseconds // 1000:08x}{number:016x}"
        status = "processing" if number >= count // 2 else choose(chooser, STATUSES)
        error = choose(chooser, ERRORS).format(n=number % 90) if status == "failed" else None
        # A few users have many jobs.
        user = f"user-{int(USERS * chooser.random() ** 3)}"
        category, provider = choose(chooser, CATEGORIES), choose(chooser, PROVIDERS)
        yield Job(asset_id, user, category, status, provider, error, at)


def document_of(job: Job) -> dict[str, Any]:
    """Return the document of a job's asset, as the stores write it."""
    is_done = job.status != "processing"
    attempt = {"attempt": 1, "startedAt": "2026-01-31T12:00:00.000Z", "endedAt": "2026-01-31T12:00:01.000Z"}
    attempt |= {"provider": job.provider, "model": None, "outcome": "failed" if job.error else "completed"}
    result = {"provider": job.provider, "model": None, "promptVersion": None, "confidenceKind": None, "usage": None}
    done_at = job.at + timedelta(seconds=5)
    return {
        "_id": job.asset_id,
        "userId": job.user,
        "category": job.category,
        "status": job.status,
        "images": _images_of(job),
        "processingJobId": job.job_id,
        "fence": int(is_done),
        "excused": 0,
        "aiMetadata": _ai_metadata_of(job),
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


def _images_of(job: Job) -> dict[str, Any]:
    image: dict[str, Any] = {"backend": "local", "publicId": f"{job.asset_id}/original-1", "url": ""}
    image |= {"sha256": "0" * 64, "bytes": 2_000_000, "width": 4000, "height": 3000, "contentType": "image/jpeg"}
    sides = () if job.status == "processing" else ("320", "1280")
    previews = {side: image | {"publicId": f"{job.asset_id}/preview/{side}"} for side in sides}
    return {"original": image, "processed": None, "previews": previews}


def _ai_metadata_of(job: Job) -> dict[str, Any]:
    has_result = job.status != "processing" and not job.error
    brand, model = BRANDS[int(job.asset_id, 16) % len(BRANDS)] if has_result else (None, None)
    return {
        "brand": {"value": brand, "confidence": 0.9} if brand else None,
        "model": {"value": model, "confidence": 0.9} if model and job.status == "active" else None,
        "colorway": None,
        "processedAt": None,
        "error": job.error,
        "extra": {},
    }


def row_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the SQLite row of a document."""
    row = {name: value for name, value in document.items() if name not in ("_id", "images")}
    row |= {"id": document["_id"], **document["images"]}
    return {name: _column(value) for name, value in row.items()}


def _column(value: Any) -> Any:
    if isinstance(value, datetime):
        return round(value.timestamp() * 1000)
    return orjson.dumps(value).decode() if isinstance(value, (dict, list)) else value


def fill_sqlite(path: Path, jobs: Iterable[Job]) -> None:
    """Put the assets of the jobs into a file that has the tables."""
    rows = (row_of(document_of(job)) for job in jobs)
    with closing(sqlite3.connect(path)) as connection:
        for batch in batches(rows):
            columns = ", ".join(batch[0])
            values = ", ".join(f":{name}" for name in batch[0])
            with connection:
                connection.executemany(f"INSERT INTO assets ({columns}) VALUES ({values})", batch)


def fill_mongo(uri: str, jobs: Iterable[Job]) -> None:
    """Put the assets of the jobs into a collection that has the indexes."""
    with pymongo.MongoClient[dict[str, Any]](uri) as client:
        assets = client.get_default_database()["assets"]
        for batch in batches(document_of(job) for job in jobs):
            assets.insert_many([document | {"_id": ObjectId(document["_id"])} for document in batch])


def fill_redis(redis: Redis, jobs: Iterable[Job]) -> None:
    """Put the jobs into Redis: waiting, delayed and completed ones, and dead letters."""
    delayed = DELAYED
    for batch in batches(jobs):
        pipe = redis.pipeline(transaction=False)
        for job in batch:
            at = round(job.at.timestamp() * 1000)
            if job.status in ("active", "partial"):
                pipe.zadd(KEY_PREFIX + "completed", {job.job_id: at})
                continue
            data = {"assetId": job.asset_id, "userId": job.user, "imageUrl": "http://x/y", "category": job.category}
            record = {"enqueuedAt": at, "requestId": "r", "trace": "", "group": "", "lane": job.category, "data": data}
            state_key = f"{KEY_PREFIX}state:{job.job_id}"
            pipe.set(f"{KEY_PREFIX}record:{job.job_id}", json.dumps(record, separators=(",", ":")))
            if job.status == "failed":
                pipe.set(state_key, json.dumps({"state": "failed", "error": job.error}))
                pipe.zadd(KEY_PREFIX + "failed", {job.job_id: at})
            elif delayed:
                delayed -= 1
                pipe.set(state_key, json.dumps({"state": "delayed", "attempt": 1, "error": "503"}))
                pipe.zadd(KEY_PREFIX + "delayed", {job.job_id: round(time.time() * 1000) + 500_000})
            else:
                pipe.lpush(KEY_PREFIX + "waiting", job.job_id)
        pipe.execute()


async def fill_records(store: AssetStore, jobs: Sequence[Job]) -> None:
    """Put the audit entries and deliveries of the last RECORDS jobs into the store, and the counts of all windows."""
    for batch in batches(_records(jobs[-RECORDS:])):
        await asyncio.gather(*map(store.put_record, batch))


def _records(jobs: Sequence[Job]) -> Iterator[Record]:
    now = datetime.now(UTC)
    for number, job in enumerate(jobs):
        at = now - timedelta(seconds=5 * (len(jobs) - number))
        entry: dict[str, Any] = {"who": f"ops-{number % 7}", "action": ACTIONS[number % len(ACTIONS)]}
        entry |= {"target": job.job_id, "count": None, "outcome": "done", "address": "10.0.0.1", "request_id": "r"}
        yield Record("audit", f"{number:024x}", at, entry)
        delivery: dict[str, Any] = {"notifier": "webhook", "userId": job.user, "assetId": job.asset_id}
        delivery |= {"event": {"event": "x" * 500}, "attempts": 1, "response": "HTTP 200", "finishedAt": None}
        delivery |= {"state": "failed" if number % 1000 == 0 else "delivered"}
        yield Record("delivery", f"notifications:{number:024x}", at, delivery, job.user, job.asset_id)
    for step, seconds in RETENTION_SECONDS.items():
        for start in range(0, seconds, step):
            for process in range(PROCESSES):
                yield Record(f"tally {step}", f"{start}-{process}", now - timedelta(seconds=start), BUSY)


def batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    """Yield the items in lists of BATCH."""
    items = iter(items)
    while batch := list(itertools.islice(items, BATCH)):
        yield batch


def started_at(folder: Path) -> datetime:
    """Return the time of the first upload; a file in the folder makes it the same in each run."""
    file = folder / "start"
    if not file.exists():
        file.write_text((datetime.now(UTC) - timedelta(days=DAYS)).isoformat())
    return datetime.fromisoformat(file.read_text())
