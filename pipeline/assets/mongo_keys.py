"""The idempotency keys of MongoAssetStore: a part of it, see mongo.py."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pymongo import ASCENDING
from pymongo.errors import DuplicateKeyError

from pipeline.assets.mongo_calls import TRIES, MongoPart
from pipeline.assets.store import KeyRecord, StoredKey
from pipeline.errors import DependencyUnavailable


class MongoKeys(MongoPart):
    """The collection `idempotency_keys`. Methods: see KeyStore."""

    _keys: Any

    async def find_key(self, key: str) -> KeyRecord | None:
        found = await self._call(self._keys.find_one({"_id": key}))
        return KeyRecord(found["assetId"], found["fingerprint"]) if found else None

    async def claim_key(
        self, key: str, record: KeyRecord, created_at: datetime, *, instead_of: str | None = None
    ) -> KeyRecord:
        fields = {"assetId": record.asset_id, "fingerprint": record.fingerprint, "createdAt": created_at}
        for _ in range(TRIES):
            if instead_of is not None:
                named = {"_id": key, "assetId": instead_of}
                if (await self._call(self._keys.update_one(named, {"$set": fields}))).modified_count:
                    return record
            try:
                await self._call(self._keys.insert_one({"_id": key} | fields))
                return record
            except DuplicateKeyError:
                # None: it was purged between the two calls. Only our own insert makes it ours.
                if (found := await self.find_key(key)) is not None:
                    return found
        raise DependencyUnavailable("The asset store does not show a key that it holds")

    async def discard_keys(self, asset_id: str) -> None:
        await self._purge(self._keys, {"assetId": asset_id})

    async def purge_keys(self, before: datetime) -> int:
        return await self._purge(self._keys, {"createdAt": {"$lt": before}})

    async def all_keys(self, *, limit: int, after: str = "") -> Sequence[StoredKey]:
        cursor = self._keys.find({"_id": {"$gt": after}}).sort([("_id", ASCENDING)]).limit(limit)
        return [
            StoredKey(each["_id"], KeyRecord(each["assetId"], each["fingerprint"]), each["createdAt"])
            for each in await self._call(cursor.to_list(limit))
        ]
