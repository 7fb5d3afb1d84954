"""MongoAssetStore: the asset store on MongoDB 6 to 8 or DocumentDB behind FerretDB 2.

Only plain features: single-document writes, ordinary indexes; no transactions, no partial or TTL indexes, no pipelines.
All reads are the primary's, and every filter of a write holds `_id`, by which a collection may be sharded. Runs on the
event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import bson
from bson import ObjectId
from bson.codec_options import CodecOptions
from bson.errors import InvalidId
from pymongo import ASCENDING, DESCENDING, IndexModel, ReadPreference, ReturnDocument, UpdateOne
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import BulkWriteError, DocumentTooLarge, OperationFailure, ServerSelectionTimeoutError

from pipeline.assets import mongo_indexes
from pipeline.assets.asset import (
    ATTEMPTS_AT_MOST,
    CANCELLED,
    FINISHED,
    SCHEMA,
    AiMetadata,
    Asset,
    AssetStatus,
    ImageRef,
    ai_metadata_document,
    failure_of,
    image_document,
    previews_document,
)
from pipeline.assets.mongo_calls import TRIES, UNSENDABLE, Calls, refused_options
from pipeline.assets.mongo_driver import DEFAULT_DRIVER, close_client, open_client
from pipeline.assets.mongo_jobs import JobDocuments
from pipeline.assets.mongo_records import MongoRecords
from pipeline.assets.mongo_retained import RetainedDocuments
from pipeline.assets.reading import Reader
from pipeline.assets.upgrade import BackendOf, missing_backends
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, OutcomeUnknown
from pipeline.grouped import Groups
from pipeline.images import ImageName

DATABASE = "ai_queue_pipeline"
DUPLICATE_KEY = 11000
# One more than one, so that the server works while an answer is on its way.
CALLS_AT_ONCE = 2
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024


class MongoAssetStore(MongoRecords, RetainedDocuments, JobDocuments):
    """An AssetStore in the collections `assets`, `idempotency_keys` and `kept` of the URI's database."""

    def __init__(
        self,
        uri: str,
        timeout_seconds: float = 5,
        on_damaged: Callable[[], None] = lambda: None,
        driver: str = DEFAULT_DRIVER,
    ) -> None:
        """timeout_seconds: no call of the driver takes longer, whatever is away. on_damaged: see Reader. driver: see
        mongo_driver.py.
        """
        super().__init__()
        self._reading = Reader(Asset.from_document, "_id", on_damaged)
        self._calls = Calls(timeout_seconds)
        self._reach = self._calls.reach
        # A little less for the driver, so that its own error, which says what is wrong, comes before ours.
        milliseconds = round(timeout_seconds * 900)
        with refused_options():
            self._client = open_client(
                driver,
                uri,
                serverSelectionTimeoutMS=milliseconds,
                connectTimeoutMS=milliseconds,
                socketTimeoutMS=milliseconds,
                timeoutMS=milliseconds,
                # An accepted upload must survive a power cut and a failover, whatever the server's defaults are.
                w="majority",
                journal=True,
                appname="ai-queue-pipeline",
            )
        database = self._client.get_default_database(DATABASE, read_preference=ReadPreference.PRIMARY)
        aware: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True, tzinfo=UTC)
        self._assets: AsyncCollection[dict[str, Any]] = database.get_collection("assets", codec_options=aware)
        self._keys: AsyncCollection[dict[str, Any]] = database.get_collection(
            "idempotency_keys", codec_options=aware
        )
        self._inserts: Groups[dict[str, Any], bool] = Groups(self._insert, calls_at_once=CALLS_AT_ONCE)
        self._updates: Groups[UpdateOne, bool] = Groups(self._update_all, calls_at_once=CALLS_AT_ONCE)
        self._records = database.get_collection("kept", codec_options=aware)
        self._spans = {}
        self._builder = mongo_indexes.IndexBuilder(uri, DATABASE)

    async def open(self) -> None:
        wanted = {
            self._assets: mongo_indexes.ASSETS,
            self._keys: mongo_indexes.KEYS,
            self._records: mongo_indexes.KEPT,
        }
        await self._claim_version()
        is_new = await self._reach(self._assets.find_one({}, {"_id": 1})) is None
        missing: list[tuple[str, IndexModel]] = []
        for collection, indexes in wanted.items():
            found = await self._reach(collection.index_information())
            lacking = [index for index in indexes if index.document["name"] not in found]
            if lacking and is_new:
                # Done at once: there is nothing to sort yet.
                await self._reach(collection.create_indexes(lacking))
            else:
                missing += [(collection.name, index) for index in lacking]
        if missing:
            self._builder.start(missing)

    async def close(self) -> None:
        await self._builder.close()
        await close_client(self._client)

    async def check(self) -> None:
        await self._reach(self._assets.find_one({}, {"_id": 1}))

    async def create(self, asset: Asset) -> bool:
        # In an outage a read fails first, and then it is certain that nothing was inserted.
        if self._calls.has_failed:
            await self.check()
        # One that no server takes must not spoil those that go with it.
        document = await self._reach(_checked(_document(asset)))
        try:
            is_new: bool = await self._reach(self._inserts.add(document))
            return is_new
        except DependencyUnavailable as error:
            # Without a server to send it to, nothing was sent.
            if isinstance(error.__cause__, ServerSelectionTimeoutError):
                raise
            raise OutcomeUnknown(error.message) from error.__cause__

    async def _insert(self, documents: Sequence[dict[str, Any]]) -> list[bool | Exception]:
        """Insert the documents; False for each whose id is there already."""
        try:
            await self._assets.insert_many(documents, ordered=False)
        except BulkWriteError as error:
            details: Any = error.details
            if details.get("writeConcernErrors"):
                raise
            ends: list[bool | Exception] = [True] * len(documents)
            for each in details["writeErrors"]:
                is_there = each["code"] == DUPLICATE_KEY
                ends[each["index"]] = False if is_there else OperationFailure(each["errmsg"], each["code"])
            return ends
        return [True] * len(documents)

    async def begin(self, asset_id: str, user_id: str, job_id: str, *, again: bool = False) -> Asset | None:
        return await self._update(
            asset_id,
            {"userId": user_id, "processingJobId": job_id, "status": _status_of_run(again)},
            {"$inc": {"fence": 1} | ({"excused": 1} if again else {})},
        )

    async def finish(
        self,
        asset_id: str,
        job_id: str,
        fence: int,
        *,
        status: AssetStatus,
        ai_metadata: AiMetadata,
        processed: ImageRef | None,
        finished_at: datetime,
        previews: Mapping[str, ImageRef] | None = None,
        attempt: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        again: bool = False,
        seen: Asset | None = None,
    ) -> Asset | None:
        result = _result(status, ai_metadata, processed, finished_at, previews)
        change: dict[str, Any] = {"$set": result | {"provenance": dict(provenance) if provenance else None}}
        change |= _with_attempt(attempt) if attempt else {}
        wanted = {"processingJobId": job_id, "fence": fence, "status": _status_of_run(again)}
        if seen is not None:
            # Every change of an asset says when it was made.
            now, as_seen = utc_now(), {"_id": ObjectId(asset_id), "updatedAt": seen.updated_at} | wanted
            whole = change | {"$set": {"updatedAt": now} | change["$set"]}
            have_all_changed = await self._reach(self._updates.add(UpdateOne(as_seen, whole)))
            done = seen.finished(status, ai_metadata, processed, finished_at, now, previews, attempt, provenance)
            if have_all_changed or await self.get(asset_id) == done:
                return done
        return await self._update(asset_id, wanted, change)

    async def _update_all(self, updates: Sequence[UpdateOne]) -> list[bool | Exception]:
        """Make the updates; True for each if all of them have changed something, False if nobody knows which have."""
        try:
            done = await self._assets.bulk_write(updates, ordered=False)
        except (OperationFailure, *UNSENDABLE):
            return [False] * len(updates)
        return [done.matched_count == len(updates)] * len(updates)

    async def add_attempt(self, asset_id: str, job_id: str, fence: int, attempt: Mapping[str, Any]) -> None:
        await self._update(
            asset_id,
            {"processingJobId": job_id, "fence": fence},
            _with_attempt(attempt),
        )

    async def correct(self, seen: Asset, corrected: Asset) -> Asset | None:
        before, after = seen.to_document(), corrected.to_document()
        # None: documents of before have no such field.
        same = before["corrections"] if seen.corrections else {"$in": [{}, None]}
        return await self._update(
            seen.id,
            {"status": seen.status.value, "fence": seen.fence, "corrections": same},
            {"$set": {name: after[name] for name in ("corrections", "history", "status", "failure")}},
        )

    async def fail(
        self,
        asset_id: str,
        job_id: str,
        fence: int,
        *,
        error: str,
        finished_at: datetime,
        previews: Mapping[str, ImageRef] | None = None,
    ) -> Asset | None:
        return await self.finish(
            asset_id,
            job_id,
            fence,
            status=AssetStatus.FAILED,
            ai_metadata=AiMetadata(error=error),
            processed=None,
            finished_at=finished_at,
            previews=previews,
        )

    async def cancel(self, asset_id: str, job_id: str, *, finished_at: datetime) -> Asset | None:
        return await self._update(
            asset_id,
            {"processingJobId": job_id, "status": AssetStatus.PROCESSING.value},
            {
                "$set": _result(AssetStatus.FAILED, AiMetadata(error=CANCELLED), None, finished_at),
                "$inc": {"fence": 1},
            },
        )

    async def refund_start(self, asset_id: str, job_id: str) -> None:
        for _ in range(TRIES):
            current = await self.get(asset_id)
            if current is None or current.excused >= current.fence:
                return
            # The fence only grows. None: documents of before have no such field.
            excused = {"$in": [0, None]} if current.excused == 0 else current.excused
            wanted = {"processingJobId": job_id, "status": AssetStatus.PROCESSING.value}
            if (current.processing_job_id, current.status.value) != (job_id, wanted["status"]):
                return
            if await self._update(asset_id, wanted | {"excused": excused}, {"$inc": {"excused": 1}}):
                return
        raise DependencyUnavailable("The asset is being changed all the time")

    async def requeue(self, asset_id: str, user_id: str, job_id: str) -> Asset | None:
        current = await self.get(asset_id)
        if current is None:
            return None
        # The fence changes only while processing, so what was read still stands if the filter matches.
        return await self._update(
            asset_id,
            {
                "userId": user_id,
                "status": {"$in": [AssetStatus.FAILED.value, AssetStatus.PARTIAL.value]},
                "fence": current.fence,
                "originalGone": None,
            },
            {
                "$set": {
                    "excused": current.fence,
                    "status": AssetStatus.PROCESSING.value,
                    "processingJobId": job_id,
                    "retryJobId": job_id,
                    "failure": None,
                    "aiMetadata": ai_metadata_document(AiMetadata()),
                    "images.processed": None,
                    "provenance": None,
                    "finishedAt": None,
                }
            },
        )

    async def get(self, asset_id: str) -> Asset | None:
        key = _object_id(asset_id)
        return self._reading.one(await self._reach(self._assets.find_one({"_id": key}))) if key else None

    async def get_many(self, asset_ids: Collection[str]) -> Sequence[Asset]:
        keys = [key for asset_id in asset_ids if (key := _object_id(asset_id))]
        found = await self._reach(self._assets.find({"_id": {"$in": keys}}).to_list(len(keys))) if keys else []
        return self._reading.all(found)

    async def known(self, asset_ids: Collection[str]) -> Collection[str]:
        keys = [key for asset_id in asset_ids if (key := _object_id(asset_id))]
        found = await self._reach(self._assets.find({"_id": {"$in": keys}}, {"_id": 1}).to_list(None)) if keys else []
        return {str(each["_id"]) for each in found}

    async def page(
        self,
        user_id: str,
        *,
        status: AssetStatus | None = None,
        category: str | None = None,
        limit: int = 20,
        after: tuple[datetime, str] | None = None,
    ) -> Sequence[Asset]:
        wanted: dict[str, Any] = {"userId": user_id}
        wanted |= {"status": status.value} if status else {}
        wanted |= {"category": category} if category else {}
        return await self._find(wanted, "createdAt", DESCENDING, limit, after)

    async def finished_since(
        self, user_id: str, since: datetime, *, limit: int, after: tuple[datetime, str] | None = None
    ) -> Sequence[Asset]:
        return await self._find(
            {"userId": user_id, "finishedAt": {"$gte": since}}, "finishedAt", ASCENDING, limit, after
        )

    async def unfinished_before(
        self, before: datetime, *, limit: int, after: tuple[datetime, str] | None = None
    ) -> Sequence[Asset]:
        return await self._find(
            {"status": AssetStatus.PROCESSING.value, "createdAt": {"$lt": before}}, "createdAt", ASCENDING, limit, after
        )

    async def unfinished_jobs(self, *, limit: int) -> Sequence[tuple[str, str]]:
        unfinished, fields = {"status": AssetStatus.PROCESSING.value}, {"userId": 1, "processingJobId": 1}
        cursor = self._assets.find(unfinished, fields).sort([("createdAt", ASCENDING), ("_id", ASCENDING)]).limit(limit)
        documents = await self._reach(cursor.to_list(limit))
        return [(str(each.get("userId", "")), str(each.get("processingJobId", ""))) for each in documents]

    async def delete(
        self, asset_id: str, user_id: str, *, finished_before: datetime | None = None
    ) -> Asset | None:
        key = _object_id(asset_id)
        if key is None:
            return None
        wanted: dict[str, Any] = {"_id": key, "userId": user_id}
        wanted |= {"finishedAt": {"$lt": finished_before}} if finished_before else {}
        for _ in range(TRIES):
            deleted = await self._reach(self._assets.find_one_and_delete(wanted))
            # DocumentDB can miss a document that is being updated: nothing was deleted, and it is still there.
            if deleted is not None or await self._reach(self._assets.find_one(wanted, {"_id": 1})) is None:
                return self._reading.one(deleted)
        raise DependencyUnavailable("The asset is being changed all the time")

    async def all_ids(self, *, limit: int, after: str = "") -> Sequence[str]:
        # An _id of another kind is none of ours, and no page would ever come past it.
        further = {"$gt": ObjectId(after)} if after else {"$gte": ObjectId("0" * 24)}
        cursor = self._assets.find({"_id": further}, {"_id": 1}).sort([("_id", ASCENDING)]).limit(limit)
        return [str(document["_id"]) for document in await self._reach(cursor.to_list(limit))]

    async def replace_image(self, asset_id: str, old: ImageName, new: ImageRef) -> Asset | None:
        current = await self.get(asset_id)
        place = current.place_of(old) if current else None
        if place is None:
            return None
        field = ".".join(("images", *place))
        # Version 0.1 wrote no backend.
        wanted = {f"{field}.publicId": old.public_id, f"{field}.backend": {"$in": [old.backend, None]}}
        return await self._update(asset_id, wanted, {"$set": {field: image_document(new)}})

    async def upgrade(self, after: str, *, limit: int, backend_of: BackendOf) -> tuple[int, str | None]:
        further: dict[str, Any] = {"_id": {"$gt": ObjectId(after)}} if after else {}
        cursor = self._assets.find(further, {"images": 1, "schema": 1}).sort([("_id", ASCENDING)]).limit(limit)
        page = await self._reach(cursor.to_list(limit))
        changed = 0
        for document in page:
            if document.get("schema") is not None:
                continue
            images = document.get("images")
            if (backends := missing_backends(images, backend_of)) is None:
                continue
            as_it_was = {f"images.{role}.publicId": images[role].get("publicId") for role in backends}
            if images.get("processed") is None:
                as_it_was["images.processed"] = None
            change = {f"images.{role}.backend": backend for role, backend in backends.items()} | {"schema": SCHEMA}
            wanted = {"_id": document["_id"], "schema": None} | as_it_was
            changed += (await self._reach(self._assets.update_one(wanted, {"$set": change}))).modified_count
        return changed, str(page[-1]["_id"]) if len(page) == limit else None

    async def _update(self, asset_id: str, wanted: Mapping[str, Any], change: Mapping[str, Any]) -> Asset | None:
        """Change the asset if it is as wanted, in one atomic step, and return it as it is then."""
        key = _object_id(asset_id)
        if key is None:
            return None
        change = dict(change) | {"$set": {"updatedAt": utc_now()} | change.get("$set", {})}
        return _asset(
            await self._reach(
                self._assets.find_one_and_update({"_id": key, **wanted}, change, return_document=ReturnDocument.AFTER)
            )
        )

    async def _find(
        self, wanted: dict[str, Any], instant: str, order: int, limit: int, after: tuple[datetime, str] | None
    ) -> list[Asset]:
        """Return up to so many assets in that order."""
        beyond = "$lt" if order == DESCENDING else "$gt"

        async def page(last: Any, limit: int) -> list[Any]:
            place = (after[0], ObjectId(after[1])) if after else None
            if last is not None:
                place = last.get(instant), last["_id"]
                if not isinstance(place[0], datetime):
                    return []
            query = wanted
            if place is not None:
                # The bound that is not part of $or lets the server start in the index where the last page ended.
                bound = {instant: {f"{beyond}e": place[0]}}
                further = {"$or": [{instant: {beyond: place[0]}}, {"_id": {beyond: place[1]}}]}
                query = {"$and": [wanted, bound, further]}
            cursor = self._assets.find(query).sort([(instant, order), ("_id", order)]).limit(limit)
            return [*await self._reach(cursor.to_list(limit))]

        return await self._reading.up_to(limit, page)


def _result(
    status: AssetStatus,
    ai_metadata: AiMetadata,
    processed: ImageRef | None,
    finished_at: datetime,
    previews: Mapping[str, ImageRef] | None = None,
) -> dict[str, Any]:
    result = {
        "status": status.value,
        "aiMetadata": ai_metadata_document(ai_metadata),
        "images.processed": image_document(processed),
        "finishedAt": finished_at,
        "failure": failure_of(status, ai_metadata),
    }
    return result if previews is None else result | {"images.previews": previews_document(previews)}


def _status_of_run(again: bool) -> Any:
    return {"$in": sorted(FINISHED)} if again else AssetStatus.PROCESSING.value


def _with_attempt(attempt: Mapping[str, Any]) -> dict[str, Any]:
    return {"$push": {"attempts": {"$each": [dict(attempt)], "$slice": -ATTEMPTS_AT_MOST}}}


def _document(asset: Asset) -> dict[str, Any]:
    document = asset.to_document() | {"_id": ObjectId(asset.id)}
    # The index has jobs of a retry only.
    is_retry = not asset.processing_job_id.endswith(asset.id)
    return document | ({"retryJobId": asset.processing_job_id} if is_retry else {})


async def _checked(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document; raise what the driver would, for Calls.reach."""
    if len(bson.encode(document)) > MAX_DOCUMENT_BYTES:
        raise DocumentTooLarge("it is too large")
    return document


def _object_id(asset_id: str) -> ObjectId | None:
    try:
        return ObjectId(asset_id)
    except InvalidId:
        return None


def _asset(document: Mapping[str, Any] | None) -> Asset | None:
    return Asset.from_document(document) if document is not None else None
