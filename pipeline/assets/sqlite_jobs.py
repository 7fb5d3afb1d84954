"""How SqliteAssetStore searches jobs: a part of it, see sqlite.py; job_search.py says how far a call reads.

Every statement names its index, so that no guess of SQLite's planner makes it read the whole table.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

import orjson

from pipeline.assets.asset import Asset
from pipeline.assets.job_search import (
    COUNTED_AT_MOST,
    EXAMINED_AT_MOST,
    KINDS_AT_MOST,
    READ_AT_MOST,
    Count,
    FailureGroup,
    JobFilter,
    JobPage,
    Cursor,
    largest_first,
)
from pipeline.assets.sqlite_reads import SqliteReads
from pipeline.assets.sqlite_schema import OF_RETRY
from pipeline.instants import instant_of, milliseconds_of

# (createdAt in milliseconds, id), which is also their order.
RowCursor = tuple[int, str]
NEWEST_FIRST = "ORDER BY createdAt DESC, id DESC"
# The columns that are read to look for words, and for a provider.
OF_WORDS, OF_PROVIDER = ("aiMetadata", "corrections"), ("attempts", "provenance")
# The rows of one user are scattered over the file, those of a time are side by side: of the former so many are read.
SCATTERED_AT_MOST = 500


@dataclass(frozen=True, slots=True)
class _Range:
    """A part of an index, in the order of (createdAt, id). where: what its first columns are."""

    index: str
    where: str
    values: Mapping[str, Any]

    def select(self, columns: str, conditions: Sequence[str], rest: str = "") -> str:
        """Return the statement that reads it."""
        where = " AND ".join((self.where, *conditions))
        return f"SELECT {columns} FROM assets INDEXED BY {self.index} WHERE {where} {rest}"


class JobRows(SqliteReads):
    """Searches of the table `assets` for operators. Methods: see AssetReads."""

    async def jobs(self, wanted: JobFilter, *, limit: int, after: Cursor | None = None) -> JobPage:
        last = (milliseconds_of(after[0]), after[1]) if after else None
        rows, cursor = await self._on_reader(lambda connection: _page(connection, wanted, limit, last))
        return JobPage(self._reading.all(rows), (instant_of(cursor[0]), cursor[1]) if cursor else None)

    async def count_jobs(self, wanted: JobFilter) -> Count:
        return await self._on_reader(lambda connection: _count(connection, wanted))

    async def failures(self, since: datetime | None = None, until: datetime | None = None) -> Sequence[FailureGroup]:
        return await self._on_reader(lambda connection: _failures(connection, since, until))

    async def find_by_job(self, job_id: str) -> Asset | None:
        rows = await self._on_reader(
            lambda connection: connection.execute(
                f"SELECT * FROM assets WHERE processingJobId = :job AND {OF_RETRY} "
                "UNION ALL SELECT * FROM assets WHERE id = substr(:job, -24) AND processingJobId = :job",
                {"job": job_id},
            ).fetchall()
        )
        return self._reading.one(rows[0]) if rows else None


def _page(
    connection: sqlite3.Connection, wanted: JobFilter, limit: int, after: RowCursor | None
) -> tuple[list[sqlite3.Row], RowCursor | None]:
    """Return the rows of a page, and the cursor of the next page."""
    end = _end(connection, wanted, EXAMINED_AT_MOST, after)
    # One more row than asked for shows whether there is a next page.
    found = list(islice(_found(connection, wanted, after, end, limit + 1), limit + 1))
    rows = _rows_of(connection, found[:limit])
    return rows, found[limit - 1] if len(found) > limit else end


def _count(connection: sqlite3.Connection, wanted: JobFilter) -> Count:
    end = _end(connection, wanted, READ_AT_MOST if wanted.needs_reading else COUNTED_AT_MOST, None)
    if wanted.needs_reading:
        count = sum(1 for _ in _found(connection, wanted, None, end, COUNTED_AT_MOST + 1))
        return Count(count, end is None)
    conditions, values = _conditions(wanted, None, end)
    count = 0
    for each in _ranges(wanted):
        inner = each.select("1", conditions, f"LIMIT {COUNTED_AT_MOST + 1}")
        count += connection.execute(f"SELECT count(*) FROM ({inner})", {**each.values, **values}).fetchone()[0]
    return Count(min(count, COUNTED_AT_MOST), end is None and count <= COUNTED_AT_MOST)


def _ranges(wanted: JobFilter) -> list[_Range]:
    if wanted.user_id is not None:
        return [_Range("newest_of_user", "userId = :user", {"user": wanted.user_id})]
    if wanted.failure is not None:
        return [_Range("failures", "failure = :failure", {"failure": wanted.failure})]
    return [_Range("by_status", "status = :status", {"status": each.value}) for each in wanted.searched_statuses]


def _conditions(wanted: JobFilter, after: RowCursor | None, end: RowCursor | None) -> tuple[list[str], dict[str, Any]]:
    """Return the further conditions for rows, in SQL. after, end: bounds, `after` excluded and `end` included."""
    conditions, values = _bounds(wanted.since, wanted.until, after, end)
    if after is not None:
        conditions.append("(createdAt, id) < (:after_at, :after_id)")
        values |= {"after_at": after[0], "after_id": after[1]}
    if end is not None:
        conditions.append("(createdAt, id) >= (:end_at, :end_id)")
        values |= {"end_at": end[0], "end_id": end[1]}
    if wanted.statuses and (wanted.user_id is not None or wanted.failure is not None):
        conditions.append("status IN (SELECT value FROM json_each(:statuses))")
        values["statuses"] = orjson.dumps([status.value for status in wanted.statuses]).decode()
    if wanted.failure is not None and wanted.user_id is not None:
        conditions.append("failure = :failure")
        values["failure"] = wanted.failure
    if wanted.provider is not None:
        # A rough filter in SQL: other rows are not even passed to Python.
        conditions.append("(instr(attempts, :provider) OR instr(provenance, :provider))")
        values["provider"] = orjson.dumps(wanted.provider).decode()
    if wanted.category is not None:
        conditions.append("category = :category")
        values["category"] = wanted.category
    return conditions, values


def _bounds(
    since: datetime | None, until: datetime | None, after: RowCursor | None = None, end: RowCursor | None = None
) -> tuple[list[str], dict[str, Any]]:
    """Return one bound at each side: of two bounds SQLite would use one in the index, and not the nearer one."""
    lowest = [milliseconds_of(since)] if since else []
    lowest += [end[0]] if end else []
    highest = [milliseconds_of(until)] if until else []
    highest += [after[0]] if after else []
    conditions = ["createdAt >= :lowest"] if lowest else []
    conditions += ["createdAt <= :highest"] if highest else []
    values = {"lowest": max(lowest, default=None), "highest": min(highest, default=None)}
    return conditions, {name: value for name, value in values.items() if value is not None}


def _end(connection: sqlite3.Connection, wanted: JobFilter, at_most: int, after: RowCursor | None) -> RowCursor | None:
    """Return the last cursor that a call reads, None when it reads to the end of the list."""
    if wanted.is_indexed:
        return None
    if wanted.user_id is not None and (wanted.needs_reading or wanted.failure is not None):
        at_most = min(at_most, SCATTERED_AT_MOST)
    conditions, values = _conditions(JobFilter(since=wanted.since, until=wanted.until), after, None)
    cursors = []
    for each in _ranges(wanted):
        sql = each.select("createdAt, id", conditions, f"{NEWEST_FIRST} LIMIT 1 OFFSET {at_most - 1}")
        cursors += [tuple(row) for row in connection.execute(sql, {**each.values, **values})]
    # In all ranges everything newer than this has been read.
    return max(cursors, default=None)


def _found(
    connection: sqlite3.Connection, wanted: JobFilter, after: RowCursor | None, end: RowCursor | None, at_most: int
) -> Iterator[RowCursor]:
    """Yield the cursors of the wanted rows, newest first; reads only as far as the caller iterates."""
    conditions, values = _conditions(wanted, after, end)
    texts = (*(OF_WORDS if wanted.words else ()), *(OF_PROVIDER if wanted.provider else ()))
    columns = ", ".join(("createdAt", "id", *(("userId", *texts) if texts else ())))
    limit = "" if texts else f"LIMIT {at_most}"
    cursors = [
        connection.execute(each.select(columns, conditions, f"{NEWEST_FIRST} {limit}"), {**each.values, **values})
        for each in _ranges(wanted)
    ]
    for row in heapq.merge(*cursors, key=lambda row: (row["createdAt"], row["id"]), reverse=True):
        if not wanted.needs_reading or wanted.is_match(_document(row, texts)):
            yield row["createdAt"], row["id"]


def _document(row: sqlite3.Row, texts: Sequence[str]) -> dict[str, Any]:
    try:
        found = {name: orjson.loads(text) for name in texts if (text := row[name])}
    except ValueError:
        return {}
    return {"userId": row["userId"], **found}


def _error_of(text: str) -> str:
    try:
        meta = orjson.loads(text)
    except ValueError:
        meta = None
    error = meta.get("error") if isinstance(meta, dict) else None
    return error if isinstance(error, str) and error else "Unknown"


def _rows_of(connection: sqlite3.Connection, cursors: Sequence[RowCursor]) -> list[sqlite3.Row]:
    ids = orjson.dumps([cursor[1] for cursor in cursors]).decode()
    sql = "SELECT * FROM assets WHERE id IN (SELECT value FROM json_each(:ids))"
    rows = {row["id"]: row for row in connection.execute(sql, {"ids": ids})}
    return [rows[cursor[1]] for cursor in cursors if cursor[1] in rows]


def _failures(connection: sqlite3.Connection, since: datetime | None, until: datetime | None) -> Sequence[FailureGroup]:
    groups: list[FailureGroup] = []
    failure = ""
    for _ in range(KINDS_AT_MOST):
        sql = "SELECT failure FROM assets INDEXED BY failures WHERE failure > :last ORDER BY failure LIMIT 1"
        row = connection.execute(sql, {"last": failure}).fetchone()
        if row is None:
            break
        failure = row["failure"]
        if group := _group(connection, failure, since, until):
            groups.append(group)
    return largest_first(groups)


def _group(
    connection: sqlite3.Connection, failure: str, since: datetime | None, until: datetime | None
) -> FailureGroup | None:
    conditions, values = _bounds(since, until)
    each, values = _Range("failures", "failure = :failure", {}), values | {"failure": failure}

    def read(columns: str, rest: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = connection.execute(each.select(columns, conditions, rest), values).fetchone()
        return row

    newest = read("createdAt, aiMetadata", f"{NEWEST_FIRST} LIMIT 1")
    oldest = read("createdAt", "ORDER BY createdAt, id LIMIT 1")
    if newest is None or oldest is None:
        return None
    inner = each.select("1", conditions, f"LIMIT {COUNTED_AT_MOST + 1}")
    count = connection.execute(f"SELECT count(*) FROM ({inner})", values).fetchone()[0]
    return FailureGroup(
        failure,
        _error_of(newest["aiMetadata"]),
        Count(min(count, COUNTED_AT_MOST), count <= COUNTED_AT_MOST),
        instant_of(oldest["createdAt"]),
        instant_of(newest["createdAt"]),
    )
