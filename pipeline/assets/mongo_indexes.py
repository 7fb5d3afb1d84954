"""IndexBuilder: makes the indexes of MongoAssetStore's collections, however long that takes.

A new index on a large collection takes longer than any call may. So it has a client of its own without time limits:
PyMongo's asyncio client, whose calls can be cancelled; Motor's would keep a thread until the server answers. Several
processes may ask for the same index at the same time: the server builds it once and answers all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import structlog
from pymongo import ASCENDING, DESCENDING, AsyncMongoClient, IndexModel
from pymongo.errors import PyMongoError

from pipeline.delays import retry_delays
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

# The reads of pipeline/assets/store.py, and nothing else.
ASSETS = (
    IndexModel([("userId", ASCENDING), ("createdAt", DESCENDING), ("_id", DESCENDING)], name="newest_of_user"),
    IndexModel([("userId", ASCENDING), ("finishedAt", ASCENDING), ("_id", ASCENDING)], name="finished_of_user"),
    IndexModel([("status", ASCENDING), ("createdAt", ASCENDING), ("_id", ASCENDING)], name="unfinished"),
    # Only jobs of a retry: an upload's first job is called after its asset.
    IndexModel([("retryJobId", ASCENDING)], name="job_of_retry", sparse=True),
    IndexModel([("originalGone", ASCENDING), ("finishedAt", ASCENDING), ("_id", ASCENDING)], name="finished"),
)
KEYS = (
    IndexModel([("createdAt", ASCENDING)], name="oldest_key"),
    IndexModel([("assetId", ASCENDING)], name="key_of_asset"),
)
RECORDS = (
    IndexModel([("kind", ASCENDING), ("at", ASCENDING), ("_id", ASCENDING)], name="oldest_kept"),
    IndexModel([("userId", ASCENDING), ("assetId", ASCENDING)], name="kept_of_user"),
)
# The first and the longest retry delay after a build that failed.
RETRY_SECONDS = (1.0, 60.0)


class IndexBuilder:
    """Builds indexes in the background, one after the other, until all are there."""

    def __init__(self, uri: str, database: str) -> None:
        """database: its name, for a URI without one."""
        self._uri = uri
        self._database = database
        self._client: AsyncMongoClient[dict[str, Any]] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, missing: Sequence[tuple[str, IndexModel]]) -> None:
        """Begin to build indexes, each given with its collection's name; does nothing while a build runs."""
        if self._task is None or self._task.done():
            # The URI's own limits, if any, are overruled.
            self._client = AsyncMongoClient(
                self._uri, timeoutMS=None, socketTimeoutMS=None, appname="ai-queue-pipeline indexes"
            )
            self._task = asyncio.create_task(self._build_all(self._client, missing), name="build_indexes")

    async def close(self) -> None:
        """Stop waiting; the server may go on with the build that it has begun."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._client is not None:
            # Closed a second time if all is built: the first close may have been cancelled.
            await self._client.close()

    async def _build_all(
        self, client: AsyncMongoClient[dict[str, Any]], missing: Sequence[tuple[str, IndexModel]]
    ) -> None:
        for collection, index in missing:
            await self._build(client, collection, index)
        await client.close()

    async def _build(self, client: AsyncMongoClient[dict[str, Any]], collection: str, index: IndexModel) -> None:
        started_at = time.monotonic()
        name = index.document["name"]
        log.info("index_build_started", collection=collection, index=name)
        for delay in retry_delays(*RETRY_SECONDS):
            try:
                await client.get_default_database(self._database)[collection].create_indexes([index])
                log.info("index_built", collection=collection, index=name, seconds=round(time.monotonic() - started_at))
                return
            except (PyMongoError, OSError) as error:
                log.warning(
                    "index_build_failed",
                    collection=collection,
                    index=name,
                    delayMs=round(delay * 1000),
                    cause=cause_of(error),
                )
            await asyncio.sleep(delay)
