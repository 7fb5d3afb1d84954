"""How MongoAssetStore changes assets by the runs of their jobs: a part of it, see mongo.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import bson
from bson import ObjectId
from pymongo import ASCENDING, ReturnDocument, UpdateOne
from pymongo.errors import BulkWriteError, DocumentTooLarge, OperationFailure, ServerSelectionTimeoutError

from pipeline.assets.asset import (
    ATTEMPTS_AT_MOST,
    CANCELLED,
    FINISHED,
    SCHEMA,
    AiMetadata,
    Asset,
    AssetStatus,
    ImageRef,
)
from pipeline.assets.asset_parts import ai_metadata_document, failure_of, image_document, previews_document
from pipeline.assets.mongo_calls import TRIES, UNSENDABLE, Calls
from pipeline.assets.mongo_reads import MongoReads, object_id
from pipeline.assets.photo_store import FailByFinish
from pipeline.assets.upgrade import BackendOf, missing_backends
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, OutcomeUnknown
from pipeline.grouped import WriteGroups
from pipeline.images import ImageName

DUPLICATE_KEY = 11000
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024


class MongoRuns(FailByFinish, MongoReads):
    """Writes to the collection `assets`. Methods: see AssetRuns."""

    _calls: Calls
    _inserts: WriteGroups[dict[str, Any], bool]
    _updates: WriteGroups[UpdateOne, bool]

    async def create(self, asset: Asset) -> bool:
        # In an outage a read fails first, and then it is certain that nothing was inserted.
        if self._calls.has_failed:
            await self.check()
        # A document that the server refuses must not fail the others in its call.
        document = await self._call(_checked(_document(asset)))
        try:
            is_new: bool = await self._call(self._inserts.add(document))
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

    async def begin(self, asset_id: str, user_id: str, job_id: str, *, is_reanalysis: bool = False) -> Asset | None:
        return await self._update(
            asset_id,
            {"userId": user_id, "processingJobId": job_id, "status": _status_of_run(is_reanalysis)},
            {"$inc": {"fence": 1} | ({"excused": 1} if is_reanalysis else {})},
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
        is_reanalysis: bool = False,
        seen: Asset | None = None,
    ) -> Asset | None:
        result = _result(status, ai_metadata, processed, finished_at, previews)
        change: dict[str, Any] = {"$set": result | {"provenance": dict(provenance) if provenance else None}}
        change |= _with_attempt(attempt) if attempt else {}
        wanted = {"processingJobId": job_id, "fence": fence, "status": _status_of_run(is_reanalysis)}
        if seen is not None:
            now = utc_now()
            done = seen.finished(status, ai_metadata, processed, finished_at, now, previews, attempt, provenance)
            # Every change of an asset raises updatedAt.
            as_seen = {"_id": ObjectId(asset_id), "updatedAt": seen.updated_at} | wanted
            full_change = change | {"$set": {"updatedAt": done.updated_at} | change["$set"]}
            have_all_changed = await self._call(self._updates.add(UpdateOne(as_seen, full_change)))
            if have_all_changed or await self.get(asset_id) == done:
                return done
        return await self._update(asset_id, wanted, change)

    async def _update_all(self, updates: Sequence[UpdateOne]) -> list[bool | Exception]:
        """Make the updates; True for each if all of them matched, False for each if it is not known which did."""
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
        # None: older documents have no such field.
        same = before["corrections"] if seen.corrections else {"$in": [{}, None]}
        return await self._update(
            seen.id,
            {"status": seen.status.value, "fence": seen.fence, "corrections": same},
            {"$set": {name: after[name] for name in ("corrections", "history", "status", "failure")}},
            seen,
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
            # The fence only grows. None: older documents have no such field.
            excused = {"$in": [0, None]} if current.excused == 0 else current.excused
            wanted = {"processingJobId": job_id, "status": AssetStatus.PROCESSING.value}
            if (current.processing_job_id, current.status.value) != (job_id, wanted["status"]):
                return
            if await self._update(asset_id, wanted | {"excused": excused}, {"$inc": {"excused": 1}}, current):
                return
        raise DependencyUnavailable("The asset is being changed all the time")

    async def requeue(self, asset_id: str, user_id: str, job_id: str) -> Asset | None:
        current = await self.get(asset_id)
        if current is None:
            return None
        # The fence changes only while processing, so the values read are still true if the filter matches.
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

    async def replace_image(self, asset_id: str, old: ImageName, new: ImageRef) -> Asset | None:
        current = await self.get(asset_id)
        place = current.image_path(old) if current else None
        if place is None:
            return None
        field = ".".join(("images", *place))
        # Version 0.1 wrote no backend.
        wanted = {f"{field}.publicId": old.public_id, f"{field}.backend": {"$in": [old.backend, None]}}
        return await self._update(asset_id, wanted, {"$set": {field: image_document(new)}}, current)

    async def upgrade(self, after: str, *, limit: int, backend_of: BackendOf) -> tuple[int, str | None]:
        further: dict[str, Any] = {"_id": {"$gt": ObjectId(after)}} if after else {}
        cursor = self._assets.find(further, {"images": 1, "schema": 1}).sort([("_id", ASCENDING)]).limit(limit)
        page = await self._call(cursor.to_list(limit))
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
            changed += (await self._call(self._assets.update_one(wanted, {"$set": change}))).modified_count
        return changed, str(page[-1]["_id"]) if len(page) == limit else None

    async def _update(
        self, asset_id: str, wanted: Mapping[str, Any], change: Mapping[str, Any], before: Asset | None = None
    ) -> Asset | None:
        """Change the asset if it matches `wanted`, in one atomic step, and return it as it is then.

        before: the asset before a change that keeps its status and its fence: only updatedAt shows it to `finish`.
        """
        key = object_id(asset_id)
        if key is None:
            return None
        now = before.changed_at(utc_now()) if before else utc_now()
        change = dict(change) | {"$set": {"updatedAt": now} | change.get("$set", {})}
        return _asset(
            await self._call(
                self._assets.find_one_and_update({"_id": key, **wanted}, change, return_document=ReturnDocument.AFTER)
            )
        )


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


def _status_of_run(is_reanalysis: bool) -> Any:
    return {"$in": sorted(FINISHED)} if is_reanalysis else AssetStatus.PROCESSING.value


def _with_attempt(attempt: Mapping[str, Any]) -> dict[str, Any]:
    return {"$push": {"attempts": {"$each": [dict(attempt)], "$slice": -ATTEMPTS_AT_MOST}}}


def _document(asset: Asset) -> dict[str, Any]:
    document = asset.to_document() | {"_id": ObjectId(asset.id)}
    # The index is for jobs of a retry only.
    is_retry = not asset.processing_job_id.endswith(asset.id)
    return document | ({"retryJobId": asset.processing_job_id} if is_retry else {})


async def _checked(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document; raise what the driver would, for Calls.call."""
    if len(bson.encode(document)) > MAX_DOCUMENT_BYTES:
        raise DocumentTooLarge("it is too large")
    return document


def _asset(document: Mapping[str, Any] | None) -> Asset | None:
    return Asset.from_document(document) if document is not None else None
