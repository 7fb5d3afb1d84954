"""SqliteAssetStore: the embedded asset store, one file under DATA_DIR that several processes may share.

Every write is one statement. Writes that arrive while a commit is on its way to the disk share the next one, so the
price of a durable commit (an fsync) is paid per batch, not per upload. Runs on the event loop, with one thread for
writing and one for reading; a batch goes to its thread and comes back once, however many statements it has.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.assets.asset import (
    AiMetadata,
    Asset,
    AssetStatus,
    ProcessedImageRef,
    ai_metadata_document,
    processed_document,
    utc_now,
)
from pipeline.assets.store import KeyRecord
from pipeline.errors import ConfigurationError, DependencyUnavailable

T = TypeVar("T")
Rows = list[sqlite3.Row]
BUSY_SECONDS = 5.0
# A file of an older version is brought up to date by the scripts that follow it; the last one's number is its version.
MIGRATIONS = (
    """
CREATE TABLE IF NOT EXISTS assets (
    id TEXT PRIMARY KEY, userId TEXT NOT NULL, category TEXT NOT NULL, status TEXT NOT NULL,
    original TEXT NOT NULL, processed TEXT, processingJobId TEXT NOT NULL, fence INTEGER NOT NULL,
    aiMetadata TEXT NOT NULL, finishedAt INTEGER, createdAt INTEGER NOT NULL, updatedAt INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS newest_of_user ON assets (userId, createdAt, id);
CREATE INDEX IF NOT EXISTS finished_of_user ON assets (userId, finishedAt, id);
CREATE INDEX IF NOT EXISTS unfinished ON assets (createdAt, id) WHERE status = 'processing';
CREATE TABLE IF NOT EXISTS idempotency_keys (
    key TEXT PRIMARY KEY, assetId TEXT NOT NULL, fingerprint TEXT NOT NULL, createdAt INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS oldest_key ON idempotency_keys (createdAt);
""",
    """
ALTER TABLE assets ADD COLUMN excused INTEGER NOT NULL DEFAULT 0;
""",
)
# What a statement raises that SQLite, or the binding of its values, refuses.
REFUSALS = (sqlite3.Error, ValueError, OverflowError)
# What SQLite says of a file that waiting does not mend.
DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
CURRENT_RUN = "id = :id AND processingJobId = :job AND fence = :fence AND status = 'processing'"


@dataclass(slots=True)
class _Write:
    sql: str
    values: Mapping[str, Any]
    done: asyncio.Future[Rows]


class _Connection:
    """A connection and the one thread that uses it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        self._connection: sqlite3.Connection | None = None

    async def open(self, connect: Callable[[], sqlite3.Connection]) -> None:
        try:
            self._connection = await asyncio.get_running_loop().run_in_executor(self._thread, connect)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        assert self._connection is not None
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._connection)

    async def close(self) -> None:
        await self.run(sqlite3.Connection.close)
        self._thread.shutdown(wait=False)


class SqliteAssetStore:
    """An AssetStore in one SQLite file (WAL, synchronous=FULL). Instants are kept as milliseconds since 1970."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: _Connection | None = None
        self._reader: _Connection | None = None
        self._waiting: list[_Write] = []
        self._committing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._writer is None:
                self._writer = await self._open()
            if self._reader is None:
                self._reader = await self._open()
        except (sqlite3.Error, OSError) as error:
            if self._path.is_dir() or getattr(error, "sqlite_errorcode", None) in DAMAGED:
                raise ConfigurationError(f"{self._path} is no asset store, or damaged: {error}") from None
            raise DependencyUnavailable("The asset store cannot be opened") from error

    async def close(self) -> None:
        connections = (self._reader, self._writer)
        self._reader = self._writer = None
        if self._committing is not None:
            await self._committing
        for connection in connections:
            if connection is not None:
                await connection.close()

    async def check(self) -> None:
        await self._read("SELECT 1 FROM assets LIMIT 1", {})

    async def create(self, asset: Asset) -> bool:
        document = asset.to_document()
        rows = await self._write(
            "INSERT INTO assets VALUES (:id, :user, :category, :status, :original, :processed, :job, :fence, :meta, "
            ":finished, :created, :updated, :excused) ON CONFLICT (id) DO NOTHING RETURNING *",
            {
                "id": asset.id,
                "user": asset.user_id,
                "category": asset.category,
                "status": asset.status.value,
                "original": json.dumps(document["images"]["original"]),
                "processed": _json(document["images"]["processed"]),
                "job": asset.processing_job_id,
                "fence": asset.fence,
                "meta": _meta_json(asset.ai_metadata),
                "finished": _milliseconds(asset.finished_at),
                "created": _milliseconds(asset.created_at),
                "updated": _milliseconds(asset.updated_at),
                "excused": asset.excused,
            },
        )
        return bool(rows)

    async def begin(self, asset_id: str, user_id: str, job_id: str) -> Asset | None:
        return await self._update(
            "UPDATE assets SET fence = fence + 1, updatedAt = :now "
            "WHERE id = :id AND userId = :user AND processingJobId = :job AND status = 'processing' RETURNING *",
            {"id": asset_id, "user": user_id, "job": job_id},
        )

    async def finish(
        self,
        asset_id: str,
        job_id: str,
        fence: int,
        *,
        status: AssetStatus,
        ai_metadata: AiMetadata,
        processed: ProcessedImageRef | None,
        finished_at: datetime,
    ) -> Asset | None:
        return await self._update(
            "UPDATE assets SET status = :status, aiMetadata = :meta, processed = :processed, finishedAt = :finished, "
            f"updatedAt = :now WHERE {CURRENT_RUN} RETURNING *",
            {
                "id": asset_id,
                "job": job_id,
                "fence": fence,
                "status": status.value,
                "meta": _meta_json(ai_metadata),
                "processed": _json(processed_document(processed)),
                "finished": _milliseconds(finished_at),
            },
        )

    async def fail(self, asset_id: str, job_id: str, fence: int, *, error: str, finished_at: datetime) -> Asset | None:
        return await self.finish(
            asset_id,
            job_id,
            fence,
            status=AssetStatus.FAILED,
            ai_metadata=AiMetadata(error=error),
            processed=None,
            finished_at=finished_at,
        )

    async def excuse(self, asset_id: str, job_id: str) -> None:
        await self._update(
            "UPDATE assets SET excused = excused + 1, updatedAt = :now "
            "WHERE id = :id AND processingJobId = :job AND status = 'processing' AND excused < fence RETURNING *",
            {"id": asset_id, "job": job_id},
        )

    async def requeue(self, asset_id: str, user_id: str, job_id: str) -> Asset | None:
        return await self._update(
            "UPDATE assets SET status = 'processing', processingJobId = :job, aiMetadata = :meta, processed = NULL, "
            "finishedAt = NULL, excused = fence, updatedAt = :now "
            "WHERE id = :id AND userId = :user AND status IN ('failed', 'partial') RETURNING *",
            {"id": asset_id, "user": user_id, "job": job_id, "meta": _meta_json(AiMetadata())},
        )

    async def get(self, asset_id: str) -> Asset | None:
        rows = await self._read("SELECT * FROM assets WHERE id = :id", {"id": asset_id})
        return _asset(rows[0]) if rows else None

    async def page(
        self,
        user_id: str,
        *,
        status: AssetStatus | None = None,
        category: str | None = None,
        limit: int = 20,
        after: tuple[datetime, str] | None = None,
    ) -> Sequence[Asset]:
        conditions = ["userId = :user"]
        conditions += ["status = :status"] if status else []
        conditions += ["category = :category"] if category else []
        conditions += ["(createdAt, id) < (:instant, :id)"] if after else []
        return await self._assets(
            f"WHERE {' AND '.join(conditions)} ORDER BY createdAt DESC, id DESC",
            {"user": user_id, "status": status and status.value, "category": category},
            limit,
            after,
        )

    async def finished_since(
        self, user_id: str, since: datetime, *, limit: int, after: tuple[datetime, str] | None = None
    ) -> Sequence[Asset]:
        # One lower bound, not both: SQLite would search by the first and walk again over all pages seen before.
        is_further = after is not None and after[0] >= since
        start = "(finishedAt, id) > (:instant, :id)" if is_further else "finishedAt >= :since"
        return await self._assets(
            f"WHERE userId = :user AND {start} ORDER BY finishedAt, id",
            {"user": user_id, "since": _milliseconds(since)},
            limit,
            after,
        )

    async def unfinished_before(
        self, before: datetime, *, limit: int, after: tuple[datetime, str] | None = None
    ) -> Sequence[Asset]:
        further = "AND (createdAt, id) > (:instant, :id)" if after else ""
        return await self._assets(
            f"WHERE status = 'processing' AND createdAt < :before {further} ORDER BY createdAt, id",
            {"before": _milliseconds(before)},
            limit,
            after,
        )

    async def delete(self, asset_id: str, user_id: str) -> Asset | None:
        return await self._update(
            "DELETE FROM assets WHERE id = :id AND userId = :user RETURNING *", {"id": asset_id, "user": user_id}
        )

    async def find_key(self, key: str) -> KeyRecord | None:
        rows = await self._read("SELECT * FROM idempotency_keys WHERE key = :key", {"key": key})
        return KeyRecord(rows[0]["assetId"], rows[0]["fingerprint"]) if rows else None

    async def claim_key(
        self, key: str, record: KeyRecord, created_at: datetime, *, instead_of: str | None = None
    ) -> KeyRecord:
        # An update even where nothing changes: without it a row that is there already would not be returned.
        changes = (
            f"{name} = CASE WHEN assetId = :instead THEN excluded.{name} ELSE {name} END"
            for name in ("assetId", "fingerprint", "createdAt")
        )
        (row,) = await self._write(
            "INSERT INTO idempotency_keys VALUES (:key, :asset, :fingerprint, :created) "
            f"ON CONFLICT (key) DO UPDATE SET {', '.join(changes)} RETURNING *",
            {
                "instead": instead_of,
                "key": key,
                "asset": record.asset_id,
                "fingerprint": record.fingerprint,
                "created": _milliseconds(created_at),
            },
        )
        return KeyRecord(row["assetId"], row["fingerprint"])

    async def purge_keys(self, before: datetime) -> int:
        rows = await self._write(
            "DELETE FROM idempotency_keys WHERE createdAt < :before RETURNING key", {"before": _milliseconds(before)}
        )
        return len(rows)

    async def _open(self) -> _Connection:
        connection = _Connection()
        await connection.open(self._connect)
        return connection

    def _connect(self) -> sqlite3.Connection:
        # Transactions are ours to begin and end (isolation_level None).
        connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            connection.row_factory = sqlite3.Row
            _use_wal(connection)
            # An accepted upload must survive a power cut, not only the end of the process.
            connection.execute("PRAGMA synchronous = FULL")
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        version = _version(connection)
        if version > len(MIGRATIONS):
            raise ConfigurationError(f"{self._path} was written by a newer version of this service")
        if version == len(MIGRATIONS):
            return
        connection.execute("BEGIN IMMEDIATE")
        # Asked again: of two processes that open an old file at once, the second finds it done.
        for script in MIGRATIONS[_version(connection) :]:
            for statement in filter(str.strip, script.split(";")):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")

    async def _read(self, sql: str, values: Mapping[str, Any]) -> Rows:
        if self._reader is None:
            raise DependencyUnavailable("The asset store is not open")
        try:
            return await self._reader.run(lambda connection: connection.execute(sql, values).fetchall())
        except REFUSALS as error:
            raise DependencyUnavailable("The asset store cannot be read") from error

    async def _assets(
        self, clauses: str, values: dict[str, Any], limit: int, after: tuple[datetime, str] | None
    ) -> list[Asset]:
        seen = {"instant": _milliseconds(after[0]), "id": after[1]} if after else {}
        rows = await self._read(f"SELECT * FROM assets {clauses} LIMIT :limit", values | seen | {"limit": limit})
        return [_asset(row) for row in rows]

    async def _update(self, sql: str, values: dict[str, Any]) -> Asset | None:
        rows = await self._write(sql, {"now": _milliseconds(utc_now())} | values)
        return _asset(rows[0]) if rows else None

    async def _write(self, sql: str, values: Mapping[str, Any]) -> Rows:
        """Return what the statement returns, once it is on the disk."""
        if self._writer is None:
            raise DependencyUnavailable("The asset store is not open")
        write = _Write(sql, values, asyncio.get_running_loop().create_future())
        self._waiting.append(write)
        if self._committing is None or self._committing.done():
            # A task of its own, so that a caller who is cancelled leaves the others' transaction alone.
            self._committing = asyncio.create_task(self._commit_waiting(self._writer), name="commit")
        return await write.done

    async def _commit_waiting(self, writer: _Connection) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                results = await writer.run(partial(_commit, batch))
            except REFUSALS as error:
                _fail(batch, error)
                continue
            except BaseException as error:
                # This task ends here, and with it whoever came meanwhile would wait for ever.
                _fail(batch + self._waiting, error)
                self._waiting = []
                raise
            for write, result in zip(batch, results, strict=True):
                if isinstance(result, Exception):
                    _fail([write], result)
                elif not write.done.done():
                    write.done.set_result(result)


def _version(connection: sqlite3.Connection) -> int:
    ((version,),) = connection.execute("PRAGMA user_version")
    return int(version)


def _use_wal(connection: sqlite3.Connection) -> None:
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            return
        except sqlite3.OperationalError as error:
            # Of two processes that switch a new file at the same moment SQLite refuses one without waiting.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def _commit(batch: Sequence[_Write], connection: sqlite3.Connection) -> list[Rows | Exception]:
    """Return what each statement returns, once all are on the disk; an error where it alone was refused."""
    results: list[Rows | Exception] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for write in batch:
            try:
                results.append(connection.execute(write.sql, write.values).fetchall())
            except REFUSALS as error:
                # A refused statement undoes itself only, unless SQLite gave up the whole transaction (disk full).
                if not connection.in_transaction:
                    raise
                results.append(error)
        connection.execute("COMMIT")
    except BaseException:
        with suppress(*REFUSALS):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        raise
    return results


def _fail(writes: Sequence[_Write], error: BaseException) -> None:
    for write in writes:
        if not write.done.done():
            unavailable = DependencyUnavailable("The asset store cannot be written")
            unavailable.__cause__ = error
            write.done.set_exception(unavailable)


def _asset(row: sqlite3.Row) -> Asset:
    meta = json.loads(row["aiMetadata"])
    document = dict(row) | {
        "_id": row["id"],
        "images": {
            "original": json.loads(row["original"]),
            "processed": json.loads(row["processed"]) if row["processed"] else None,
        },
        "aiMetadata": meta | {"processedAt": _instant(meta["processedAt"])},
        "finishedAt": _instant(row["finishedAt"]),
        "createdAt": _instant(row["createdAt"]),
        "updatedAt": _instant(row["updatedAt"]),
    }
    return Asset.from_document(document)


def _meta_json(meta: AiMetadata) -> str:
    return json.dumps(ai_metadata_document(meta) | {"processedAt": _milliseconds(meta.processed_at)})


def _json(value: Mapping[str, Any] | None) -> str | None:
    return json.dumps(value) if value is not None else None


def _milliseconds(instant: datetime | None) -> int | None:
    return round(instant.timestamp() * 1000) if instant is not None else None


def _instant(milliseconds: int | None) -> datetime | None:
    if milliseconds is None:
        return None
    # From whole numbers: a float of milliseconds would lose the last digit.
    return datetime.fromtimestamp(milliseconds // 1000, UTC).replace(microsecond=milliseconds % 1000 * 1000)
