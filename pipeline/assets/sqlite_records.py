"""What SqliteAssetStore keeps beside the assets: a part of it, see sqlite.py."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from pipeline.assets.records import as_data, damaged, record_reader
from pipeline.assets.store import IDENTITY, Record
from pipeline.clock import utc_now
from pipeline.instants import instant_of, milliseconds_of

KEEP = (
    "INSERT INTO kept (kind, id, at, data, userId, assetId) VALUES (:kind, :id, :at, :data, :user, :asset) "
    "ON CONFLICT (kind, id) DO UPDATE SET "
)
KEPT_AT_ONCE = 1000
Run = Callable[[str, Mapping[str, Any]], Awaitable[list[sqlite3.Row]]]


class SqliteRecords:
    """The table `kept`. Methods: see AssetStore."""

    _read: Run
    _write: Run

    def __init__(self) -> None:
        self._reading_records = record_reader(_record, "id")

    async def identity(self) -> str:
        new = Record(IDENTITY, IDENTITY, utc_now(), {"id": secrets.token_hex(8)})
        return str((await self.insert_record(new)).data["id"])

    async def insert_record(self, record: Record) -> Record:
        # A conflict changes nothing, but only an update returns the row that is there.
        (row,) = await self._write(KEEP + "data = data RETURNING *", _values(record))
        return _record(row)

    async def put_record(self, record: Record) -> None:
        await self._write(
            KEEP + "at = excluded.at, data = excluded.data, userId = excluded.userId, assetId = excluded.assetId",
            _values(record),
        )

    async def delete_records(self, kind: str, *ids: str) -> None:
        await self._write(
            "DELETE FROM kept WHERE kind = :kind AND id IN (SELECT value FROM json_each(:ids))",
            {"kind": kind, "ids": json.dumps(ids)},
        )

    async def records(self, kind: str, *, limit: int, after: tuple[datetime, str] | None = None) -> Sequence[Record]:
        return await self._of_kind(kind, limit, after, "(at, id) > (:at, :id)", "at, id")

    async def newest_records(
        self, kind: str, *, limit: int, after: tuple[datetime, str] | None = None
    ) -> Sequence[Record]:
        return await self._of_kind(kind, limit, after, "(at, id) < (:at, :id)", "at DESC, id DESC")

    async def _of_kind(
        self, kind: str, limit: int, after: tuple[datetime, str] | None, is_further: str, order: str
    ) -> Sequence[Record]:
        async def page(last: Any, wanted: int) -> list[sqlite3.Row]:
            seen = (last["at"], last["id"]) if last else (milliseconds_of(after[0]), after[1]) if after else None
            further = f"AND {is_further}" if seen else ""
            sql = f"SELECT * FROM kept WHERE kind = :kind {further} ORDER BY {order} LIMIT :limit"
            place = {"at": seen[0], "id": seen[1]} if seen else {}
            return await self._read(sql, {"kind": kind, "limit": wanted} | place)

        return await self._reading_records.up_to(limit, page)

    async def records_of(
        self, user_id: str, asset_id: str | None = None, *, kinds: Collection[str] = ()
    ) -> Sequence[Record]:
        which = "AND assetId = :asset" if asset_id is not None else ""
        which += " AND kind IN (SELECT value FROM json_each(:kinds))" if kinds else ""
        rows = await self._read(
            f"SELECT * FROM kept WHERE userId = :user AND userId != '' {which} LIMIT :limit",
            {"user": user_id, "asset": asset_id, "kinds": json.dumps([*kinds]), "limit": KEPT_AT_ONCE},
        )
        return [self._reading_records.one(row) or damaged(row["kind"], row["id"], row) for row in rows]

    async def find_record(self, kind: str, id: str) -> Record | None:
        rows = await self._read("SELECT * FROM kept WHERE kind = :kind AND id = :id", {"kind": kind, "id": id})
        return self._reading_records.one(rows[0]) if rows else None

    async def all_records(self, *, limit: int, after: tuple[str, str] = ("", "")) -> Sequence[Record]:
        async def page(last: Any, wanted: int) -> list[sqlite3.Row]:
            kind, id = (last["kind"], last["id"]) if last else after
            sql = "SELECT * FROM kept WHERE (kind, id) > (:kind, :id) ORDER BY kind, id LIMIT :limit"
            return await self._read(sql, {"kind": kind, "id": id, "limit": wanted})

        return await self._reading_records.up_to(limit, page)

    async def purge_records(self, kind: str, before: datetime) -> int:
        rows = await self._write(
            "DELETE FROM kept WHERE kind = :kind AND at < :before RETURNING id",
            {"kind": kind, "before": milliseconds_of(before)},
        )
        return len(rows)


def _record(row: Any) -> Record:
    return Record(row["kind"], row["id"], instant_of(row["at"]), as_data(row["data"]), row["userId"], row["assetId"])


def _values(record: Record) -> dict[str, Any]:
    return {
        "kind": record.kind,
        "id": record.id,
        "at": milliseconds_of(record.at),
        "data": json.dumps(record.data),
        "user": record.user_id,
        "asset": record.asset_id,
    }
