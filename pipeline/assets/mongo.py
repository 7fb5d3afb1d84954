"""MongoAssetStore: the asset store on MongoDB 6 to 8 or DocumentDB behind FerretDB 2.

This file connects. Its parts: mongo_driver.py, mongo_calls.py, mongo_indexes.py, mongo_reads.py, mongo_runs.py,
mongo_jobs.py (searches), mongo_retained.py, mongo_keys.py, mongo_records.py.

Only plain features: single-document writes, ordinary indexes; no transactions, no partial or TTL indexes, no pipelines.
All reads are the primary's, and every filter of a write holds `_id`, by which a collection may be sharded. Runs on the
event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from datetime import UTC
from typing import Any

import structlog
from bson.codec_options import CodecOptions
from pymongo import IndexModel, ReadPreference

from pipeline.assets import mongo_indexes
from pipeline.assets.asset import Asset
from pipeline.assets.mongo_calls import RENEW_AFTER_SECONDS, Calls, refused_options
from pipeline.assets.mongo_driver import DEFAULT_DRIVER, MOTOR, close_client, open_client
from pipeline.assets.mongo_jobs import JobDocuments
from pipeline.assets.mongo_keys import MongoKeys
from pipeline.assets.mongo_records import MongoRecords, record_of
from pipeline.assets.mongo_retained import RetainedDocuments
from pipeline.assets.reading import Reader
from pipeline.assets.records import record_reader
from pipeline.errors import ConfigurationError
from pipeline.grouped import WriteGroups

log = structlog.get_logger(__name__)

DATABASE = "ai_queue_pipeline"
# More than one, so that the server works while a reply is on its way.
CALLS_AT_ONCE = 2


class MongoAssetStore(RetainedDocuments, JobDocuments, MongoKeys, MongoRecords):
    """An AssetStore in the collections `assets`, `idempotency_keys` and `kept` of the URI's database."""

    def __init__(
        self,
        uri: str,
        timeout_seconds: float = 5,
        on_damaged: Callable[[], None] = lambda: None,
        driver: str = DEFAULT_DRIVER,
    ) -> None:
        """timeout_seconds: the longest time of any call of the driver.

        on_damaged: see Reader.
        driver: see mongo_driver.py.
        """
        self._reading = Reader(Asset.from_document, "_id", on_damaged)
        self._reading_records = record_reader(record_of, "_id")
        self._calls = Calls(timeout_seconds, self._renew)
        self._call = self._calls.call
        self._uri, self._driver = uri, driver
        # A little less for the driver, so that its own error, which says what is wrong, comes before ours.
        self._milliseconds = round(timeout_seconds * 900)
        # Closed in the background, so that the call that failed does not wait for it.
        self._closing: set[asyncio.Task[None]] = set()
        self._inserts = WriteGroups(self._insert, calls_at_once=CALLS_AT_ONCE)
        self._updates = WriteGroups(self._update_all, calls_at_once=CALLS_AT_ONCE)
        self._spans = {}
        self._builder = mongo_indexes.IndexBuilder(uri, DATABASE)
        self._make_client()

    def _make_client(self) -> None:
        with refused_options():
            self._client = open_client(
                self._driver,
                self._uri,
                serverSelectionTimeoutMS=self._milliseconds,
                connectTimeoutMS=self._milliseconds,
                socketTimeoutMS=self._milliseconds,
                timeoutMS=self._milliseconds,
                # An accepted upload must survive a power cut and a failover, whatever the server's defaults are.
                w="majority",
                journal=True,
                appname="ai-queue-pipeline",
            )
        database = self._client.get_default_database(DATABASE, read_preference=ReadPreference.PRIMARY)
        aware: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True, tzinfo=UTC)
        self._assets = database.get_collection("assets", codec_options=aware)
        self._keys = database.get_collection("idempotency_keys", codec_options=aware)
        self._records = database.get_collection("kept", codec_options=aware)

    def _renew(self) -> None:
        if self._driver == MOTOR:
            return  # its close would block the event loop
        replaced = self._client
        try:
            self._make_client()
        except ConfigurationError as error:  # a file that the URI names is missing, such as one that is being replaced
            log.warning("store_client_not_renewed", error=error.message)
            return
        log.warning("store_client_renewed", failingSeconds=RENEW_AFTER_SECONDS)
        # In a context of its own: the call that failed has a deadline and log fields of its own.
        closing = asyncio.create_task(close_client(replaced), name="close_store_client", context=Context())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def open(self) -> None:
        wanted = {
            self._assets: mongo_indexes.ASSETS,
            self._keys: mongo_indexes.KEYS,
            self._records: mongo_indexes.RECORDS,
        }
        await self._claim_version()
        is_new = await self._call(self._assets.find_one({}, {"_id": 1})) is None
        missing: list[tuple[str, IndexModel]] = []
        for collection, indexes in wanted.items():
            found = await self._call(collection.index_information())
            lacking = [index for index in indexes if index.document["name"] not in found]
            if lacking and is_new:
                # Done at once: there is nothing to sort yet.
                await self._call(collection.create_indexes(lacking))
            else:
                missing += [(collection.name, index) for index in lacking]
        if missing:
            self._builder.start(missing)

    async def close(self) -> None:
        await self._builder.close()
        for closing in self._closing:
            closing.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await close_client(self._client)
