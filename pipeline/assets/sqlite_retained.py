"""How SqliteAssetStore removes assets: a part of it, see sqlite.py."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from heapq import merge
from itertools import islice
from typing import Any

import structlog

from pipeline.assets.asset import Asset
from pipeline.assets.job_search import Cursor
from pipeline.assets.sqlite_rows import optional_milliseconds
from pipeline.assets.sqlite_runs import TOUCHED, SqliteRuns
from pipeline.assets.store import when_finished
from pipeline.instants import milliseconds_of

log = structlog.get_logger(__name__)

DAMAGED_AT_ONCE = 1000
# Rows of one read; other reads wait for it: some milliseconds.
SIZES_AT_ONCE = 1000
# The largest file that is packed; other writes wait for it: about a second.
PACK_BYTES = 256 * 1024 * 1024
# The log cannot be emptied while a read runs.
SCRUB_TRIES = 50
SCRUB_RETRY_SECONDS = 0.1
# SQL: the bytes that a storage of ours has of the image in one column.
HELD = "iif(json_valid({0}) AND json_extract({0}, '$.publicId') != '', json_extract({0}, '$.bytes'), 0)"
HELD_PREVIEWS = f"iif(json_valid(previews), (SELECT sum({HELD.format('value')}) FROM json_each(previews)), 0)"
HELD_IMAGES = (HELD.format("original"), HELD.format("processed"), HELD_PREVIEWS)
STORED_BYTES = " + ".join(f"ifnull({each}, 0)" for each in HELD_IMAGES)
SIZES = f"""SELECT createdAt, id, CAST({STORED_BYTES} AS INTEGER) AS bytes FROM assets INDEXED BY newest_of_user
WHERE userId = :user AND (createdAt, id) > (:at, :id) ORDER BY createdAt, id LIMIT :limit"""
FINISHED = "status IN ('active', 'partial', 'failed')"


class RetainedRows(SqliteRuns):
    """Removals from the table `assets`, and its size. Methods: see AssetRetention."""

    async def delete(self, asset_id: str, user_id: str, *, finished_before: datetime | None = None) -> Asset | None:
        rows = await self._write(
            "DELETE FROM assets WHERE id = :id AND userId = :user AND (:before IS NULL OR finishedAt < :before) "
            "RETURNING *",
            {"id": asset_id, "user": user_id, "before": optional_milliseconds(finished_before)},
        )
        return self._reading.one(rows[0]) if rows else None

    async def expired(self, before: datetime, *, limit: int, after: Cursor | None = None) -> Sequence[Asset]:
        parts = [await self._finished(gone, before, limit, after) for gone in ("IS NULL", "= 1")]
        return list(islice(merge(*parts, key=when_finished), limit))

    async def originals_before(self, before: datetime, *, limit: int, after: Cursor | None = None) -> Sequence[Asset]:
        return await self._finished("IS NULL", before, limit, after)

    async def _finished(self, gone: str, before: datetime, limit: int, after: Cursor | None) -> list[Asset]:
        where = f"originalGone {gone} AND finishedAt < :before AND {FINISHED}"
        return await self._assets(where, "finishedAt", {"before": milliseconds_of(before)}, limit, after)

    async def drop_original(self, asset_id: str, job_id: str) -> Asset | None:
        return await self._update(
            "UPDATE assets SET original = json_set(original, '$.backend', '', '$.publicId', NULL, '$.url', ''), "
            f"originalGone = 1, {TOUCHED} "
            f"WHERE id = :id AND processingJobId = :job AND originalGone IS NULL AND {FINISHED} RETURNING *",
            {"id": asset_id, "job": job_id},
        )

    async def count_unfinished(self, user_id: str) -> int:
        sql = "SELECT count(*) FROM assets INDEXED BY newest_of_user WHERE userId = :user AND status = 'processing'"
        return int((await self._read(sql, {"user": user_id}))[0][0])

    async def stored_bytes(self, user_id: str) -> int:
        total = 0
        place: dict[str, Any] = {"at": -(2**63), "id": ""}
        while True:
            rows = await self._read(SIZES, {"user": user_id, "limit": SIZES_AT_ONCE} | place)
            total += sum(int(row["bytes"]) for row in rows)
            if len(rows) < SIZES_AT_ONCE:
                return total
            place = {"at": rows[-1]["createdAt"], "id": rows[-1]["id"]}

    async def damaged_of(self, user_id: str) -> Sequence[str]:
        sql = "SELECT * FROM assets WHERE userId = :user LIMIT :limit"
        rows = await self._read(sql, {"user": user_id, "limit": DAMAGED_AT_ONCE})
        return [row["id"] for row in rows if self._reading.one(row) is None]

    async def scrub(self) -> None:
        is_packed = await self._on_writer(_pack)
        if not is_packed:
            log.warning("scrub_incomplete", hint="the file is large: run VACUUM on it in a quiet hour")
        for _ in range(SCRUB_TRIES):
            if await self._on_writer(_empty_log):
                return
            await asyncio.sleep(SCRUB_RETRY_SECONDS)
        log.warning("scrub_incomplete", hint="another process reads the file all the time")


def _pack(connection: sqlite3.Connection) -> bool:
    """Rewrite a file that is not too large; return whether it was done.

    SQLite overwrites deleted rows (secure_delete), but not the copies that stay in pages when rows move between them.
    """
    ((pages,),), ((page_bytes,),) = (connection.execute(f"PRAGMA {name}") for name in ("page_count", "page_size"))
    if pages * page_bytes > PACK_BYTES:
        return False
    connection.execute("VACUUM")
    return True


def _empty_log(connection: sqlite3.Connection) -> bool:
    """Move the write-ahead log into the file and empty it; False while a reader needs it."""
    ((is_busy, _, _),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return not is_busy
