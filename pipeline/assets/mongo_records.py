"""The records of MongoAssetStore: a part of it, see mongo.py."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pymongo import ASCENDING, DESCENDING
from pymongo.errors import DuplicateKeyError

from pipeline.assets.asset import SCHEMA
from pipeline.assets.job_search import Cursor
from pipeline.assets.reading import Reader
from pipeline.assets.records import as_data, damaged
from pipeline.assets.mongo_calls import TRIES, MongoPart
from pipeline.assets.store import IDENTITY, SCHEMA_KIND, Record
from pipeline.clock import utc_now
from pipeline.errors import ConfigurationError, DependencyUnavailable

RECORDS_AT_ONCE = 1000
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


class MongoRecords(MongoPart):
    """The collection `kept`. Methods: see RecordStore."""

    _records: Any
    _reading_records: Reader[Record]

    async def _claim_version(self) -> None:
        """Record that this version writes here; ConfigurationError when a newer version has done so."""
        for _ in range(TRIES):
            found = await self._call(self._records.find_one({"_id": _document_id(SCHEMA_KIND, "store")}))
            record = self._reading_records.one(found)
            version = record.data.get("version", 0) if record else 0
            if version > SCHEMA:
                raise ConfigurationError("MONGODB_URI: it was written by a newer version of this service")
            if version == SCHEMA:
                return
            new = _record_document(Record(SCHEMA_KIND, "store", utc_now(), {"version": SCHEMA}))
            if found is None:
                with suppress(DuplicateKeyError):
                    await self._call(self._records.insert_one(new))
            else:
                # Unless a newer version has written it meanwhile.
                await self._call(self._records.replace_one({"_id": new["_id"], "data": found["data"]}, new))
        raise DependencyUnavailable("The asset store does not keep what it is given")

    async def identity(self) -> str:
        new = Record(IDENTITY, IDENTITY, utc_now(), {"id": secrets.token_hex(8)})
        return str((await self.insert_record(new)).data["id"])

    async def insert_record(self, record: Record) -> Record:
        with suppress(DuplicateKeyError):
            await self._call(self._records.insert_one(_record_document(record)))
        found = await self._call(self._records.find_one({"_id": _document_id(record.kind, record.id)}))
        if found is None:
            raise DependencyUnavailable("The asset store does not keep what it is given")
        return record_of(found)

    async def put_record(self, record: Record) -> None:
        document = _record_document(record)
        await self._call(self._records.replace_one({"_id": document["_id"]}, document, upsert=True))

    async def delete_records(self, kind: str, *ids: str) -> None:
        await self._call(self._records.delete_many({"_id": {"$in": [_document_id(kind, each) for each in ids]}}))

    async def records(self, kind: str, *, limit: int, after: Cursor | None = None) -> Sequence[Record]:
        return await self._of_kind(kind, limit, after, "$gt", ASCENDING)

    async def newest_records(self, kind: str, *, limit: int, after: Cursor | None = None) -> Sequence[Record]:
        return await self._of_kind(kind, limit, after, "$lt", DESCENDING)

    async def _of_kind(
        self, kind: str, limit: int, after: Cursor | None, is_further: str, order: int
    ) -> Sequence[Record]:
        async def page(last: Any, wanted: int) -> list[Any]:
            # The bound leaves out documents without a date, so that the last one of a page is always a cursor.
            condition: dict[str, Any] = {"kind": kind, "at": {"$gte": EARLIEST}}
            seen = (after[0], _document_id(kind, after[1])) if after else None
            seen = (last["at"], last["_id"]) if last else seen
            if seen is not None:
                further = [{"at": {is_further: seen[0]}}, {"at": seen[0], "_id": {is_further: seen[1]}}]
                bound = {"$gte": EARLIEST, f"{is_further}e": seen[0]}
                condition = {"kind": kind, "at": bound, "$or": further}
            cursor = self._records.find(condition).sort([("at", order), ("_id", order)]).limit(wanted)
            return [*await self._call(cursor.to_list(wanted))]

        return await self._reading_records.up_to(limit, page)

    async def records_of(
        self, user_id: str, asset_id: str | None = None, *, kinds: Collection[str] = ()
    ) -> Sequence[Record]:
        if not user_id:
            return []
        wanted: dict[str, Any] = {"userId": user_id} | ({"assetId": asset_id} if asset_id is not None else {})
        wanted |= {"kind": {"$in": [*kinds]}} if kinds else {}
        found = await self._call(self._records.find(wanted).limit(RECORDS_AT_ONCE).to_list(RECORDS_AT_ONCE))
        return [self._reading_records.one(each) or _damaged(each) for each in found]

    async def find_record(self, kind: str, id: str) -> Record | None:
        return self._reading_records.one(await self._call(self._records.find_one({"_id": _document_id(kind, id)})))

    async def all_records(self, *, limit: int, after: tuple[str, str] = ("", "")) -> Sequence[Record]:
        async def page(last: Any, wanted: int) -> list[Any]:
            place = last["_id"] if last else _document_id(*after) if after[0] else ""
            cursor = self._records.find({"_id": {"$gt": place}}).sort([("_id", ASCENDING)]).limit(wanted)
            return [*await self._call(cursor.to_list(wanted))]

        return await self._reading_records.up_to(limit, page)

    async def purge_records(self, kind: str, before: datetime) -> int:
        return await self._purge(self._records, {"kind": kind, "at": {"$lt": before}})


def _document_id(kind: str, each: str) -> str:
    return f"{kind} {each}"


def record_of(document: Mapping[str, Any]) -> Record:
    kind, at = document["kind"], document["at"]
    if not isinstance(at, datetime):
        raise TypeError("no instant")
    # Records of version 0.1 name their user only in their data.
    subject = document.get("userId", ""), document.get("assetId", "")
    return Record(kind, _id_of(document), at, as_data(document["data"]), *subject)


def _damaged(document: Mapping[str, Any]) -> Record:
    return damaged(document["kind"], _id_of(document), {"userId": "", "assetId": ""} | dict(document))


def _id_of(document: Mapping[str, Any]) -> str:
    return str(document["_id"]).removeprefix(_document_id(document["kind"], ""))


def _record_document(record: Record) -> dict[str, Any]:
    # As text, so that all keys and numbers of JSON are possible.
    return {
        "_id": _document_id(record.kind, record.id),
        "kind": record.kind,
        "at": record.at,
        "data": json.dumps(record.data),
        "userId": record.user_id,
        "assetId": record.asset_id,
    }
