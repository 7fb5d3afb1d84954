"""How MongoAssetStore reads assets, one by one and in pages: a part of it, see mongo.py."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from bson import ObjectId
from bson.errors import InvalidId
from pymongo import ASCENDING, DESCENDING
from pymongo.asynchronous.collection import AsyncCollection

from pipeline.assets.asset import Asset, AssetStatus
from pipeline.assets.job_search import Cursor
from pipeline.assets.mongo_calls import MongoPart
from pipeline.assets.reading import Reader


class MongoReads(MongoPart):
    """Reads of the collection `assets`. Methods: see AssetReads."""

    _assets: AsyncCollection[dict[str, Any]]
    _reading: Reader[Asset]

    async def check(self) -> None:
        await self._call(self._assets.find_one({}, {"_id": 1}))

    async def get(self, asset_id: str) -> Asset | None:
        key = object_id(asset_id)
        return self._reading.one(await self._call(self._assets.find_one({"_id": key}))) if key else None

    async def get_many(self, asset_ids: Collection[str]) -> Sequence[Asset]:
        keys = [key for asset_id in asset_ids if (key := object_id(asset_id))]
        found = await self._call(self._assets.find({"_id": {"$in": keys}}).to_list(len(keys))) if keys else []
        return self._reading.all(found)

    async def existing_ids(self, asset_ids: Collection[str]) -> Collection[str]:
        keys = [key for asset_id in asset_ids if (key := object_id(asset_id))]
        found = await self._call(self._assets.find({"_id": {"$in": keys}}, {"_id": 1}).to_list(None)) if keys else []
        return {str(each["_id"]) for each in found}

    async def all_ids(self, *, limit: int, after: str = "") -> Sequence[str]:
        # A document whose _id is of another type is none of ours, and no page would get past it.
        further = {"$gt": ObjectId(after)} if after else {"$gte": ObjectId("0" * 24)}
        cursor = self._assets.find({"_id": further}, {"_id": 1}).sort([("_id", ASCENDING)]).limit(limit)
        return [str(document["_id"]) for document in await self._call(cursor.to_list(limit))]

    async def page(
        self,
        user_id: str,
        *,
        status: AssetStatus | None = None,
        category: str | None = None,
        limit: int = 20,
        after: Cursor | None = None,
    ) -> Sequence[Asset]:
        wanted: dict[str, Any] = {"userId": user_id}
        wanted |= {"status": status.value} if status else {}
        wanted |= {"category": category} if category else {}
        return await self._find(wanted, "createdAt", DESCENDING, limit, after)

    async def finished_since(
        self, user_id: str, since: datetime, *, limit: int, after: Cursor | None = None
    ) -> Sequence[Asset]:
        return await self._find(
            {"userId": user_id, "finishedAt": {"$gte": since}}, "finishedAt", ASCENDING, limit, after
        )

    async def unfinished_before(self, before: datetime, *, limit: int, after: Cursor | None = None) -> Sequence[Asset]:
        return await self._find(
            {"status": AssetStatus.PROCESSING.value, "createdAt": {"$lt": before}}, "createdAt", ASCENDING, limit, after
        )

    async def unfinished_jobs(self, *, limit: int) -> Sequence[tuple[str, str]]:
        unfinished, fields = {"status": AssetStatus.PROCESSING.value}, {"userId": 1, "processingJobId": 1}
        cursor = self._assets.find(unfinished, fields).sort([("createdAt", ASCENDING), ("_id", ASCENDING)]).limit(limit)
        documents = await self._call(cursor.to_list(limit))
        return [(str(each.get("userId", "")), str(each.get("processingJobId", ""))) for each in documents]

    async def _find(
        self, wanted: dict[str, Any], instant: str, order: int, limit: int, after: Cursor | None
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
                # The bound outside of $or lets the server start in the index where the last page ended.
                bound = {instant: {f"{beyond}e": place[0]}}
                further = {"$or": [{instant: {beyond: place[0]}}, {"_id": {beyond: place[1]}}]}
                query = {"$and": [wanted, bound, further]}
            cursor = self._assets.find(query).sort([(instant, order), ("_id", order)]).limit(limit)
            return [*await self._call(cursor.to_list(limit))]

        return await self._reading.up_to(limit, page)


def object_id(asset_id: str) -> ObjectId | None:
    try:
        return ObjectId(asset_id)
    except InvalidId:
        return None
