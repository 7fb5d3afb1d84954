"""How MongoAssetStore removes assets: a part of it, see mongo.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from heapq import merge
from itertools import islice
from typing import Any

from pymongo import ASCENDING

from pipeline.assets.asset import FINISHED, PREVIEW_SIDES, Asset, AssetStatus
from pipeline.assets.job_search import Cursor
from pipeline.assets.mongo_calls import TRIES
from pipeline.assets.mongo_reads import object_id
from pipeline.assets.mongo_runs import MongoRuns
from pipeline.assets.store import when_finished
from pipeline.errors import DependencyUnavailable

DAMAGED_AT_ONCE = 1000
SIZES_AT_ONCE = 1000
IMAGES = ("original", "processed", *(f"previews.{side}" for side in PREVIEW_SIDES))
# The fields that stored_bytes reads.
OF_SIZES = {f"images.{image}.{field}": 1 for image in IMAGES for field in ("publicId", "bytes")}
IS_FINISHED = {"status": {"$in": sorted(status.value for status in FINISHED)}}


class RetainedDocuments(MongoRuns):
    """Removals from the collection `assets`, and its size. Methods: see AssetRetention."""

    async def delete(self, asset_id: str, user_id: str, *, finished_before: datetime | None = None) -> Asset | None:
        key = object_id(asset_id)
        if key is None:
            return None
        wanted: dict[str, Any] = {"_id": key, "userId": user_id}
        wanted |= {"finishedAt": {"$lt": finished_before}} if finished_before else {}
        for _ in range(TRIES):
            deleted = await self._call(self._assets.find_one_and_delete(wanted))
            # DocumentDB can miss a document that is being updated: nothing was deleted, and it is still there.
            if deleted is not None or await self._call(self._assets.find_one(wanted, {"_id": 1})) is None:
                return self._reading.one(deleted)
        raise DependencyUnavailable("The asset is being changed all the time")

    async def expired(self, before: datetime, *, limit: int, after: Cursor | None = None) -> Sequence[Asset]:
        parts = [await self._finished(gone, before, limit, after) for gone in (None, True)]
        return list(islice(merge(*parts, key=when_finished), limit))

    async def originals_before(self, before: datetime, *, limit: int, after: Cursor | None = None) -> Sequence[Asset]:
        return await self._finished(None, before, limit, after)

    async def _finished(self, gone: bool | None, before: datetime, limit: int, after: Cursor | None) -> list[Asset]:
        # None also matches older documents, which lack the field.
        wanted = {"originalGone": gone, "finishedAt": {"$lt": before}} | IS_FINISHED
        return await self._find(wanted, "finishedAt", ASCENDING, limit, after)

    async def drop_original(self, asset_id: str, job_id: str) -> Asset | None:
        return await self._update(
            asset_id,
            {"processingJobId": job_id, "originalGone": None} | IS_FINISHED,
            {
                "$set": {
                    "originalGone": True,
                    "images.original.backend": "",
                    "images.original.publicId": None,
                    "images.original.url": "",
                }
            },
        )

    async def count_unfinished(self, user_id: str) -> int:
        wanted = {"userId": user_id, "status": AssetStatus.PROCESSING.value}
        return int(await self._call(self._assets.count_documents(wanted)))

    async def stored_bytes(self, user_id: str) -> int:
        total = 0
        cursor = self._assets.find({"userId": user_id}, OF_SIZES)
        while page := await self._call(cursor.to_list(SIZES_AT_ONCE)):
            total += sum(map(_held_bytes, page))
        return total

    async def damaged_of(self, user_id: str) -> Sequence[str]:
        found = self._assets.find({"userId": user_id}).limit(DAMAGED_AT_ONCE)
        documents = await self._call(found.to_list(DAMAGED_AT_ONCE))
        return [str(each["_id"]) for each in documents if self._reading.one(each) is None]

    async def scrub(self) -> None:
        """Do nothing: the server overwrites deleted documents when it needs the room."""


def _held_bytes(document: Mapping[str, Any]) -> int:
    """Return the bytes of the images of a document in our storages; the document may be damaged."""
    images = document.get("images")
    images = images if isinstance(images, dict) else {}
    previews = images.get("previews")
    found = [images.get("original"), images.get("processed")]
    found += previews.values() if isinstance(previews, dict) else ()
    sizes = [each.get("bytes") for each in found if isinstance(each, dict) and each.get("publicId")]
    return sum(size for size in sizes if isinstance(size, int))
