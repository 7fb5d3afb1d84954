"""How SqliteAssetStore reads assets, one by one and in pages: a part of it, see sqlite.py."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from pipeline.assets.asset import Asset, AssetStatus
from pipeline.assets.job_search import Cursor
from pipeline.assets.reading import Reader
from pipeline.assets.sqlite_file import SqliteFile
from pipeline.assets.sqlite_writes import Rows
from pipeline.instants import milliseconds_of


class SqliteReads(SqliteFile):
    """Reads of the table `assets`. Methods: see AssetReads."""

    _reading: Reader[Asset]

    async def get(self, asset_id: str) -> Asset | None:
        rows = await self._read("SELECT * FROM assets WHERE id = :id", {"id": asset_id})
        return self._reading.one(rows[0]) if rows else None

    async def get_many(self, asset_ids: Collection[str]) -> Sequence[Asset]:
        # As one value: SQLite limits how many a statement may have.
        sql = "SELECT * FROM assets WHERE id IN (SELECT value FROM json_each(:ids))"
        return self._reading.all(await self._read(sql, {"ids": json.dumps([*asset_ids])}))

    async def existing_ids(self, asset_ids: Collection[str]) -> Collection[str]:
        sql = "SELECT id FROM assets WHERE id IN (SELECT value FROM json_each(:ids))"
        return {row["id"] for row in await self._read(sql, {"ids": json.dumps([*asset_ids])})}

    async def page(
        self,
        user_id: str,
        *,
        status: AssetStatus | None = None,
        category: str | None = None,
        limit: int = 20,
        after: Cursor | None = None,
    ) -> Sequence[Asset]:
        conditions = ["userId = :user"]
        # With a plus it is no reason to read the index of all users' assets of that status.
        conditions += ["+status = :status"] if status else []
        conditions += ["category = :category"] if category else []
        values = {"user": user_id, "status": status and status.value, "category": category}
        return await self._assets(" AND ".join(conditions), "createdAt", values, limit, after, newest_first=True)

    async def finished_since(
        self, user_id: str, since: datetime, *, limit: int, after: Cursor | None = None
    ) -> Sequence[Asset]:
        # One lower bound, not both: SQLite would search by the first and walk again over all pages seen before.
        return await self._assets(
            "userId = :user",
            "finishedAt",
            {"user": user_id, "since": milliseconds_of(since)},
            limit,
            after if after is not None and after[0] >= since else None,
            start="finishedAt >= :since",
        )

    async def unfinished_before(self, before: datetime, *, limit: int, after: Cursor | None = None) -> Sequence[Asset]:
        where = "status = 'processing' AND createdAt < :before"
        return await self._assets(where, "createdAt", {"before": milliseconds_of(before)}, limit, after)

    async def unfinished_jobs(self, *, limit: int) -> Sequence[tuple[str, str]]:
        sql = (
            "SELECT userId, processingJobId FROM assets WHERE status = 'processing' ORDER BY createdAt, id LIMIT :limit"
        )
        return [(row["userId"], row["processingJobId"]) for row in await self._read(sql, {"limit": limit})]

    async def all_ids(self, *, limit: int, after: str = "") -> Sequence[str]:
        sql = "SELECT id FROM assets WHERE id > :after ORDER BY id LIMIT :limit"
        return [row["id"] for row in await self._read(sql, {"after": after, "limit": limit})]

    async def _assets(
        self,
        where: str,
        instant: str,
        values: Mapping[str, Any],
        limit: int,
        after: Cursor | None,
        *,
        start: str = "",
        newest_first: bool = False,
    ) -> list[Asset]:
        """Return up to so many assets in the order of that instant and the id.

        start: where the list begins, when not after `after`.
        """
        beyond, direction = ("<", " DESC") if newest_first else (">", "")
        order = f"ORDER BY {instant}{direction}, id{direction} LIMIT :limit"

        async def page(last: Any, wanted: int) -> Rows:
            seen = (last[instant], last["id"]) if last else (milliseconds_of(after[0]), after[1]) if after else None
            bound = f"({instant}, id) {beyond} (:instant, :id)" if seen else start
            sql = f"SELECT * FROM assets WHERE {where}{' AND ' if bound else ''}{bound} {order}"
            place = {"instant": seen[0], "id": seen[1]} if seen else {}
            return await self._read(sql, {**values, **place, "limit": wanted})

        return await self._reading.up_to(limit, page)
