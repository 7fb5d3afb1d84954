"""What MongoAssetStore keeps beside the assets: a part of it, see mongo.py."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pymongo import ASCENDING, DESCENDING
from pymongo.errors import DuplicateKeyError

from pipeline.assets.asset import SCHEMA
from pipeline.assets.records import as_data, damaged, record_reader
from pipeline.assets.mongo_calls import TRIES
from pipeline.assets.store import IDENTITY, SCHEMA_KIND, Record, KeyRecord, StoredKey
from pipeline.clock import utc_now
from pipeline.errors import ConfigurationError, DependencyUnavailable

PURGE_PAGE = 1000
KEPT_AT_ONCE = 1000
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


class MongoRecords:
    """The collections `kept` and `idempotency_keys`. Methods: see AssetStore."""

    _records: Any
    _keys: Any
    _reach: Callable[[Awaitable[Any]], Awaitable[Any]]

    def __init__(self) -> None:
        self._reading_records = record_reader(_record, "_id")

    async def _claim_version(self) -> None:
        """Note that this version writes here; ConfigurationError when a newer one has done so."""
        for _ in range(TRIES):
            found = await self._reach(self._records.find_one({"_id": _kept_id(SCHEMA_KIND, "store")}))
            record = self._reading_records.one(found)
            version = record.data.get("version", 0) if record else 0
            if version > SCHEMA:
                raise ConfigurationError("MONGODB_URI: it was written by a newer version of this service")
            if version == SCHEMA:
                return
            new = _record_document(Record(SCHEMA_KIND, "store", utc_now(), {"version": SCHEMA}))
            if found is None:
                with suppress(DuplicateKeyError):
                    await self._reach(self._records.insert_one(new))
            else:
                # Not what a newer version has written meanwhile.
                await self._reach(self._records.replace_one({"_id": new["_id"], "data": found["data"]}, new))
        raise DependencyUnavailable("The asset store does not keep what it is given")

    async def find_key(self, key: str) -> KeyRecord | None:
        found = await self._reach(self._keys.find_one({"_id": key}))
        return KeyRecord(found["assetId"], found["fingerprint"]) if found else None

    async def claim_key(
        self, key: str, record: KeyRecord, created_at: datetime, *, instead_of: str | None = None
    ) -> KeyRecord:
        fields = {"assetId": record.asset_id, "fingerprint": record.fingerprint, "createdAt": created_at}
        for _ in range(TRIES):
            if instead_of is not None:
                named = {"_id": key, "assetId": instead_of}
                if (await self._reach(self._keys.update_one(named, {"$set": fields}))).modified_count:
                    return record
            try:
                await self._reach(self._keys.insert_one({"_id": key} | fields))
                return record
            except DuplicateKeyError:
                # None: purged between the two calls. Nothing but an insert of ours makes it ours.
                if (found := await self.find_key(key)) is not None:
                    return found
        raise DependencyUnavailable("The asset store does not show a key that it holds")

    async def discard_keys(self, asset_id: str) -> None:
        await self._purge(self._keys, {"assetId": asset_id})

    async def purge_keys(self, before: datetime) -> int:
        return await self._purge(self._keys, {"createdAt": {"$lt": before}})

    async def identity(self) -> str:
        new = Record(IDENTITY, IDENTITY, utc_now(), {"id": secrets.token_hex(8)})
        return str((await self.insert_record(new)).data["id"])

    async def insert_record(self, record: Record) -> Record:
        with suppress(DuplicateKeyError):
            await self._reach(self._records.insert_one(_record_document(record)))
        found = await self._reach(self._records.find_one({"_id": _kept_id(record.kind, record.id)}))
        if found is None:
            raise DependencyUnavailable("The asset store does not keep what it is given")
        return _record(found)

    async def put_record(self, record: Record) -> None:
        document = _record_document(record)
        await self._reach(self._records.replace_one({"_id": document["_id"]}, document, upsert=True))

    async def delete_records(self, kind: str, *ids: str) -> None:
        await self._reach(self._records.delete_many({"_id": {"$in": [_kept_id(kind, each) for each in ids]}}))

    async def records(self, kind: str, *, limit: int, after: tuple[datetime, str] | None = None) -> Sequence[Record]:
        return await self._of_kind(kind, limit, after, "$gt", ASCENDING)

    async def newest_records(
        self, kind: str, *, limit: int, after: tuple[datetime, str] | None = None
    ) -> Sequence[Record]:
        return await self._of_kind(kind, limit, after, "$lt", DESCENDING)

    async def _of_kind(
        self, kind: str, limit: int, after: tuple[datetime, str] | None, is_further: str, order: int
    ) -> Sequence[Record]:
        async def page(last: Any, wanted: int) -> list[Any]:
            # The bound keeps out what has no date there, so that a page always tells where the next one begins.
            condition: dict[str, Any] = {"kind": kind, "at": {"$gte": EARLIEST}}
            seen = (after[0], _kept_id(kind, after[1])) if after else None
            seen = (last["at"], last["_id"]) if last else seen
            if seen is not None:
                further = [{"at": {is_further: seen[0]}}, {"at": seen[0], "_id": {is_further: seen[1]}}]
                bound = {"$gte": EARLIEST, f"{is_further}e": seen[0]}
                condition = {"kind": kind, "at": bound, "$or": further}
            cursor = self._records.find(condition).sort([("at", order), ("_id", order)]).limit(wanted)
            return [*await self._reach(cursor.to_list(wanted))]

        return await self._reading_records.up_to(limit, page)

    async def records_of(
        self, user_id: str, asset_id: str | None = None, *, kinds: Collection[str] = ()
    ) -> Sequence[Record]:
        if not user_id:
            return []
        wanted: dict[str, Any] = {"userId": user_id} | ({"assetId": asset_id} if asset_id is not None else {})
        wanted |= {"kind": {"$in": [*kinds]}} if kinds else {}
        found = await self._reach(self._records.find(wanted).limit(KEPT_AT_ONCE).to_list(KEPT_AT_ONCE))
        return [self._reading_records.one(each) or _damaged(each) for each in found]

    async def find_record(self, kind: str, id: str) -> Record | None:
        return self._reading_records.one(await self._reach(self._records.find_one({"_id": _kept_id(kind, id)})))

    async def all_records(self, *, limit: int, after: tuple[str, str] = ("", "")) -> Sequence[Record]:
        async def page(last: Any, wanted: int) -> list[Any]:
            place = last["_id"] if last else _kept_id(*after) if after[0] else ""
            cursor = self._records.find({"_id": {"$gt": place}}).sort([("_id", ASCENDING)]).limit(wanted)
            return [*await self._reach(cursor.to_list(wanted))]

        return await self._reading_records.up_to(limit, page)

    async def all_keys(self, *, limit: int, after: str = "") -> Sequence[StoredKey]:
        cursor = self._keys.find({"_id": {"$gt": after}}).sort([("_id", ASCENDING)]).limit(limit)
        return [
            StoredKey(each["_id"], KeyRecord(each["assetId"], each["fingerprint"]), each["createdAt"])
            for each in await self._reach(cursor.to_list(limit))
        ]

    async def purge_records(self, kind: str, before: datetime) -> int:
        return await self._purge(self._records, {"kind": kind, "at": {"$lt": before}})

    async def _purge(self, collection: Any, old: dict[str, Any]) -> int:
        """Remove the documents that match, page by page and by `_id`; return how many."""
        purged = 0
        while True:
            page = await self._reach(collection.find(old, {"_id": 1}).limit(PURGE_PAGE).to_list(PURGE_PAGE))
            if not page:
                return purged
            wanted = {"_id": {"$in": [found["_id"] for found in page]}} | old
            purged += (await self._reach(collection.delete_many(wanted))).deleted_count


def _kept_id(kind: str, each: str) -> str:
    return f"{kind} {each}"


def _record(document: Mapping[str, Any]) -> Record:
    kind, at = document["kind"], document["at"]
    if not isinstance(at, datetime):
        raise TypeError("no instant")
    # Those of version 0.1 say only in their data whom they are about.
    about = document.get("userId", ""), document.get("assetId", "")
    return Record(kind, _id_of(document), at, as_data(document["data"]), *about)


def _damaged(document: Mapping[str, Any]) -> Record:
    return damaged(document["kind"], _id_of(document), {"userId": "", "assetId": ""} | dict(document))


def _id_of(document: Mapping[str, Any]) -> str:
    return str(document["_id"]).removeprefix(_kept_id(document["kind"], ""))


def _record_document(record: Record) -> dict[str, Any]:
    # As text, so that keys and numbers may be whatever JSON lets them be.
    return {
        "_id": _kept_id(record.kind, record.id),
        "kind": record.kind,
        "at": record.at,
        "data": json.dumps(record.data),
        "userId": record.user_id,
        "assetId": record.asset_id,
    }
