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
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.assets.asset import (
    ATTEMPTS_AT_MOST,
    CANCELLED,
    FINISHED,
    SCHEMA,
    AiMetadata,
    Asset,
    AssetStatus,
    ImageRef,
    ai_metadata_document,
    failure_of,
    image_document,
    previews_document,
)
from pipeline.assets.failures import fingerprint
from pipeline.assets.reading import Reader
from pipeline.assets.sqlite_jobs import INDEXES, JobRows
from pipeline.assets.sqlite_records import SqliteRecords
from pipeline.assets.sqlite_retained import RetainedRows
from pipeline.assets.sqlite_writes import REFUSALS, Rows, RowStatement, Write, commit, refusal
from pipeline.assets.store import KeyRecord, StoredKey
from pipeline.assets.upgrade import BackendOf, missing_backends
from pipeline.clock import utc_now
from pipeline.errors import ConfigurationError, DependencyUnavailable, NotStorable, OutcomeUnknown, PipelineError
from pipeline.images import ImageName
from pipeline.instants import instant_of, milliseconds_of
from pipeline.supervision import Supervisor, SupervisedTask

T = TypeVar("T")
BUSY_SECONDS = 5.0
UNWRITTEN = "The asset store cannot be written"
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
    """
CREATE TABLE kept (
    kind TEXT NOT NULL, id TEXT NOT NULL, at INTEGER NOT NULL, data TEXT NOT NULL, PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE INDEX oldest_kept ON kept (kind, at, id);
""",
    """
ALTER TABLE assets ADD COLUMN previews TEXT;
ALTER TABLE assets ADD COLUMN attempts TEXT;
ALTER TABLE assets ADD COLUMN provenance TEXT;
ALTER TABLE assets ADD COLUMN corrections TEXT;
ALTER TABLE assets ADD COLUMN history TEXT;
ALTER TABLE assets ADD COLUMN schema INTEGER;
""",
    """
ALTER TABLE assets ADD COLUMN originalGone INTEGER;
CREATE INDEX finished ON assets (originalGone, finishedAt, id) WHERE finishedAt IS NOT NULL;
CREATE INDEX key_of_asset ON idempotency_keys (assetId);
ALTER TABLE kept ADD COLUMN userId TEXT NOT NULL DEFAULT '';
ALTER TABLE kept ADD COLUMN assetId TEXT NOT NULL DEFAULT '';
UPDATE kept SET userId = coalesce(json_extract(data, '$.data.userId'), ''),
    assetId = coalesce(json_extract(data, '$.data.assetId'), '') WHERE kind LIKE 'job of %' AND json_valid(data);
CREATE INDEX kept_of_user ON kept (userId, assetId) WHERE userId != '';
""",
    f"""
ALTER TABLE assets ADD COLUMN failure TEXT;
UPDATE assets SET failure = fingerprint(iif(json_valid(aiMetadata), json_extract(aiMetadata, '$.error'), NULL))
    WHERE status = 'failed';
{INDEXES}
""",
    """
ALTER TABLE assets ADD COLUMN claims TEXT;
""",
)
# The limits of MongoDB, so that both stores hold the same documents.
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
MAX_INTEGER_BITS = 63
# What SQLite says of a file that waiting does not mend.
DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
# The asset's attempts and one more, without the oldest when there would be too many.
WITH_ATTEMPT = (
    f"json_insert(CASE WHEN json_array_length(COALESCE(attempts, '[]')) >= {ATTEMPTS_AT_MOST} "
    "THEN json_remove(attempts, '$[0]') ELSE COALESCE(attempts, '[]') END, '$[#]', json(:attempt))"
)
CREATED_AS_JSON = ("attempts", "provenance", "corrections", "history", "claims")
CURRENT_RUN = "id = :id AND processingJobId = :job AND fence = :fence"
FINISHED_STATUSES = ", ".join(f"'{status}'" for status in sorted(FINISHED))
COLUMNS = (
    *("id", "userId", "category", "status", "original", "processed", "previews", "processingJobId", "fence", "excused"),
    *("aiMetadata", "attempts", "provenance", "corrections", "history", "claims", "finishedAt", "createdAt"),
    *("updatedAt", "originalGone", "failure", "schema"),
)
CREATE = RowStatement(
    f"INSERT INTO assets ({', '.join(COLUMNS)}) VALUES",
    f"({', '.join('?' * len(COLUMNS))})",
    "ON CONFLICT (id) DO NOTHING",
)
# Of a run that knows its asset: it is written only if nothing has changed since, which every change of an asset says.
SEEN = ("id", "processingJobId", "fence", "updatedAt")
RESULT = (
    *("status", "aiMetadata", "processed", "previews", "attempts", "provenance", "finishedAt", "failure", "updatedAt"),
)
FINISH, FINISH_AGAIN = (
    RowStatement(
        f"UPDATE assets SET {', '.join(f'{name} = new.column{at}' for at, name in enumerate(RESULT, len(SEEN) + 1))} "
        "FROM (VALUES",
        f"({', '.join('?' * len(SEEN + RESULT))})",
        f") AS new WHERE {' AND '.join(f'{name} = new.column{at}' for at, name in enumerate(SEEN, 1))} AND {status}",
    )
    for status in ("status = 'processing'", f"status IN ({FINISHED_STATUSES})")
)


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


class SqliteAssetStore(SqliteRecords, RetainedRows, JobRows):
    """An AssetStore in one SQLite file (WAL, synchronous=FULL). Instants are kept as milliseconds since 1970."""

    def __init__(
        self, path: Path, supervisor: Supervisor | None = None, on_damaged: Callable[[], None] = lambda: None
    ) -> None:
        """supervisor: keeps the writer running; default: one of its own. on_damaged: see Reader."""
        super().__init__()
        self._path = path
        self._reading = Reader(_asset, "id", on_damaged)
        self._supervisor = supervisor or Supervisor()
        self._writer: _Connection | None = None
        self._reader: _Connection | None = None
        self._writing: SupervisedTask | None = None
        self._waiting: list[Write] = []
        self._is_refused = False
        self._added = asyncio.Event()

    async def open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._writing is None:
                self._writer = await self._open()
                self._writing = self._supervisor.start("sqlite writer", self._write_forever, kind="store")
            if self._reader is None:
                self._reader = await self._open()
        except (sqlite3.Error, OSError) as error:
            if self._path.is_dir() or getattr(error, "sqlite_errorcode", None) in DAMAGED:
                raise ConfigurationError(f"{self._path} is no asset store, or damaged: {error}") from None
            raise DependencyUnavailable("The asset store cannot be opened") from error

    async def close(self) -> None:
        reader, writing = self._reader, self._writing
        self._reader = self._writing = None
        if writing is not None:
            await asyncio.gather(*(write.done for write in self._waiting), return_exceptions=True)
            await self._supervisor.stop([writing])
        for connection in (reader, self._writer):
            if connection is not None:
                await connection.close()
        self._writer = None

    async def check(self) -> None:
        await self._read("SELECT 1 FROM assets LIMIT 1", {})
        if self._writer is None:
            raise DependencyUnavailable(UNWRITTEN)
        # A disk that hangs, or a file that another process has locked for long, keeps the writer's thread. Where the
        # last commit was refused, a read that works says nothing: only trying tells when writing works again.
        await self._on_writer(_try_to_write if self._is_refused else lambda connection: None)
        self._is_refused = False

    async def create(self, asset: Asset) -> bool:
        row = _row(asset)
        is_new: bool = await self._add(CREATE, [row[name] for name in COLUMNS])
        return is_new

    async def begin(self, asset_id: str, user_id: str, job_id: str, *, again: bool = False) -> Asset | None:
        return await self._update(
            f"UPDATE assets SET fence = fence + 1, excused = excused + {int(again)}, updatedAt = :now "
            f"WHERE id = :id AND userId = :user AND processingJobId = :job AND {_status_of_run(again)} RETURNING *",
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
        processed: ImageRef | None,
        finished_at: datetime,
        previews: Mapping[str, ImageRef] | None = None,
        attempt: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        again: bool = False,
        seen: Asset | None = None,
    ) -> Asset | None:
        if seen is not None:
            now = utc_now()
            done = seen.finished(status, ai_metadata, processed, finished_at, now, previews, attempt, provenance)
            row = _row(done)
            values = [asset_id, job_id, fence, milliseconds_of(seen.updated_at), *(row[name] for name in RESULT)]
            if await self._add(FINISH_AGAIN if again else FINISH, values):
                return done
        added = f", attempts = {WITH_ATTEMPT}" if attempt else ""
        return await self._update(
            "UPDATE assets SET status = :status, aiMetadata = :meta, processed = :processed, finishedAt = :finished, "
            f"previews = COALESCE(:previews, previews), provenance = :provenance{added}, failure = :failure, "
            "updatedAt = :now "
            f"WHERE {CURRENT_RUN} AND {_status_of_run(again)} RETURNING *",
            {
                "attempt": _json(attempt),
                "provenance": _json(provenance),
                "id": asset_id,
                "job": job_id,
                "fence": fence,
                "status": status.value,
                "meta": _meta_json(ai_metadata),
                "processed": _json(image_document(processed)),
                "previews": _json(None if previews is None else previews_document(previews)),
                "finished": milliseconds_of(finished_at),
                "failure": failure_of(status, ai_metadata),
            },
        )

    async def fail(
        self,
        asset_id: str,
        job_id: str,
        fence: int,
        *,
        error: str,
        finished_at: datetime,
        previews: Mapping[str, ImageRef] | None = None,
    ) -> Asset | None:
        return await self.finish(
            asset_id,
            job_id,
            fence,
            status=AssetStatus.FAILED,
            ai_metadata=AiMetadata(error=error),
            processed=None,
            finished_at=finished_at,
            previews=previews,
        )

    async def add_attempt(self, asset_id: str, job_id: str, fence: int, attempt: Mapping[str, Any]) -> None:
        await self._update(
            f"UPDATE assets SET attempts = {WITH_ATTEMPT}, updatedAt = :now WHERE {CURRENT_RUN} RETURNING *",
            {"id": asset_id, "job": job_id, "fence": fence, "attempt": _json(attempt)},
        )

    async def correct(self, seen: Asset, corrected: Asset) -> Asset | None:
        before, after = seen.to_document(), corrected.to_document()
        return await self._update(
            "UPDATE assets SET corrections = :corrections, history = :history, status = :status, failure = :failure, "
            "updatedAt = :now "
            "WHERE id = :id AND status = :seen AND fence = :fence AND COALESCE(corrections, '{}') = :same RETURNING *",
            {
                "id": seen.id,
                "seen": seen.status.value,
                "fence": seen.fence,
                "same": _json(before["corrections"]),
                "status": after["status"],
                "failure": after["failure"],
                **{name: _json(after[name]) for name in ("corrections", "history")},
            },
        )

    async def cancel(self, asset_id: str, job_id: str, *, finished_at: datetime) -> Asset | None:
        return await self._update(
            "UPDATE assets SET status = 'failed', aiMetadata = :meta, processed = NULL, finishedAt = :finished, "
            "fence = fence + 1, failure = :failure, updatedAt = :now "
            "WHERE id = :id AND processingJobId = :job AND status = 'processing' RETURNING *",
            {
                "failure": fingerprint(CANCELLED),
                "id": asset_id,
                "job": job_id,
                "meta": _meta_json(AiMetadata(error=CANCELLED)),
                "finished": milliseconds_of(finished_at),
            },
        )

    async def refund_start(self, asset_id: str, job_id: str) -> None:
        await self._update(
            "UPDATE assets SET excused = excused + 1, updatedAt = :now "
            "WHERE id = :id AND processingJobId = :job AND status = 'processing' AND excused < fence RETURNING *",
            {"id": asset_id, "job": job_id},
        )

    async def requeue(self, asset_id: str, user_id: str, job_id: str) -> Asset | None:
        return await self._update(
            "UPDATE assets SET status = 'processing', processingJobId = :job, aiMetadata = :meta, processed = NULL, "
            "provenance = NULL, finishedAt = NULL, failure = NULL, excused = fence, updatedAt = :now "
            "WHERE id = :id AND userId = :user AND status IN ('failed', 'partial') AND originalGone IS NULL "
            "RETURNING *",
            {"id": asset_id, "user": user_id, "job": job_id, "meta": _meta_json(AiMetadata())},
        )

    async def get(self, asset_id: str) -> Asset | None:
        rows = await self._read("SELECT * FROM assets WHERE id = :id", {"id": asset_id})
        return self._reading.one(rows[0]) if rows else None

    async def get_many(self, asset_ids: Collection[str]) -> Sequence[Asset]:
        # As one value: SQLite limits how many a statement may have.
        sql = "SELECT * FROM assets WHERE id IN (SELECT value FROM json_each(:ids))"
        return self._reading.all(await self._read(sql, {"ids": json.dumps([*asset_ids])}))

    async def known(self, asset_ids: Collection[str]) -> Collection[str]:
        sql = "SELECT id FROM assets WHERE id IN (SELECT value FROM json_each(:ids))"
        return {row["id"] for row in await self._read(sql, {"ids": json.dumps([*asset_ids])})}

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
        # With a plus it is no reason to read the index of all users' assets of that status.
        conditions += ["+status = :status"] if status else []
        conditions += ["category = :category"] if category else []
        values = {"user": user_id, "status": status and status.value, "category": category}
        return await self._assets(" AND ".join(conditions), "createdAt", values, limit, after, newest_first=True)

    async def finished_since(
        self, user_id: str, since: datetime, *, limit: int, after: tuple[datetime, str] | None = None
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

    async def unfinished_before(
        self, before: datetime, *, limit: int, after: tuple[datetime, str] | None = None
    ) -> Sequence[Asset]:
        where = "status = 'processing' AND createdAt < :before"
        return await self._assets(where, "createdAt", {"before": milliseconds_of(before)}, limit, after)

    async def unfinished_jobs(self, *, limit: int) -> Sequence[tuple[str, str]]:
        sql = (
            "SELECT userId, processingJobId FROM assets WHERE status = 'processing' ORDER BY createdAt, id LIMIT :limit"
        )
        return [(row["userId"], row["processingJobId"]) for row in await self._read(sql, {"limit": limit})]

    async def delete(
        self, asset_id: str, user_id: str, *, finished_before: datetime | None = None
    ) -> Asset | None:
        rows = await self._write(
            "DELETE FROM assets WHERE id = :id AND userId = :user AND (:before IS NULL OR finishedAt < :before) "
            "RETURNING *",
            {"id": asset_id, "user": user_id, "before": _milliseconds(finished_before)},
        )
        return self._reading.one(rows[0]) if rows else None

    async def all_ids(self, *, limit: int, after: str = "") -> Sequence[str]:
        sql = "SELECT id FROM assets WHERE id > :after ORDER BY id LIMIT :limit"
        return [row["id"] for row in await self._read(sql, {"after": after, "limit": limit})]

    async def replace_image(self, asset_id: str, old: ImageName, new: ImageRef) -> Asset | None:
        current = await self.get(asset_id)
        place = current.place_of(old) if current else None
        if place is None:
            return None
        column, path = place[0], "".join(f'."{step}"' for step in place[1:])
        return await self._update(
            f"UPDATE assets SET {column} = json_set({column}, :path, json(:new)), updatedAt = :now WHERE id = :id "
            f"AND json_extract({column}, :path || '.publicId') = :public_id "
            f"AND COALESCE(json_extract({column}, :path || '.backend'), :backend) = :backend RETURNING *",
            {
                "id": asset_id,
                "path": f"${path}",
                "new": _json(image_document(new)),
                "public_id": old.public_id,
                "backend": old.backend,
            },
        )

    async def upgrade(self, after: str, *, limit: int, backend_of: BackendOf) -> tuple[int, str | None]:
        page = await self._read(
            "SELECT id, original, processed, schema FROM assets WHERE id > :after ORDER BY id LIMIT :limit",
            {"after": after, "limit": limit},
        )
        done = await asyncio.gather(*(self._upgrade(row, backend_of) for row in page if row["schema"] is None))
        return sum(done), page[-1]["id"] if len(page) == limit else None

    async def _upgrade(self, row: sqlite3.Row, backend_of: BackendOf) -> int:
        try:
            images = {role: _loaded(row[role]) for role in ("original", "processed")}
        except ValueError:
            return 0
        if (backends := missing_backends(images, backend_of)) is None:
            return 0
        texts = {role: _json(images[role] | {"backend": backend}) for role, backend in backends.items()}
        rows = await self._write(
            "UPDATE assets SET original = :original, processed = :processed, schema = :schema WHERE id = :id "
            "AND schema IS NULL AND original IS :original_was AND processed IS :processed_was RETURNING id",
            {role: texts.get(role, row[role]) for role in images}
            | {f"{role}_was": row[role] for role in images}
            | {"id": row["id"], "schema": SCHEMA},
        )
        return len(rows)

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
                "created": milliseconds_of(created_at),
            },
        )
        return KeyRecord(row["assetId"], row["fingerprint"])

    async def discard_keys(self, asset_id: str) -> None:
        await self._write("DELETE FROM idempotency_keys WHERE assetId = :asset", {"asset": asset_id})

    async def purge_keys(self, before: datetime) -> int:
        rows = await self._write(
            "DELETE FROM idempotency_keys WHERE createdAt < :before RETURNING key", {"before": milliseconds_of(before)}
        )
        return len(rows)

    async def all_keys(self, *, limit: int, after: str = "") -> Sequence[StoredKey]:
        sql = "SELECT * FROM idempotency_keys WHERE key > :after ORDER BY key LIMIT :limit"
        return [
            StoredKey(row["key"], KeyRecord(row["assetId"], row["fingerprint"]), instant_of(row["createdAt"]))
            for row in await self._read(sql, {"after": after, "limit": limit})
        ]

    async def _open(self) -> _Connection:
        connection = _Connection()
        await connection.open(self._connect)
        return connection

    def _connect(self) -> sqlite3.Connection:
        # Transactions are ours to begin and end (isolation_level None).
        connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            connection.row_factory = sqlite3.Row
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_DOCUMENT_BYTES)
            _use_wal(connection)
            # An accepted upload must survive a power cut, not only the end of the process.
            connection.execute("PRAGMA synchronous = FULL")
            # What is deleted is overwritten: it must not stay readable in the file.
            connection.execute("PRAGMA secure_delete = ON").fetchall()
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
        connection.create_function("fingerprint", 1, fingerprint, deterministic=True)
        connection.execute("BEGIN IMMEDIATE")
        # Asked again: of two processes that open an old file at once, the second finds it done.
        for script in MIGRATIONS[_version(connection) :]:
            for statement in filter(str.strip, script.split(";")):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")

    async def _read(self, sql: str, values: Mapping[str, Any]) -> Rows:
        return await self._on_reader(lambda connection: connection.execute(sql, values).fetchall())

    async def _on_reader(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what the work, which only reads, returns."""
        if self._reader is None:
            raise DependencyUnavailable("The asset store is not open")
        try:
            return await self._reader.run(work)
        except REFUSALS as error:
            raise refusal(error, "The asset store cannot be read") from error

    async def _assets(
        self,
        where: str,
        instant: str,
        values: Mapping[str, Any],
        limit: int,
        after: tuple[datetime, str] | None,
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

    async def _update(self, sql: str, values: dict[str, Any]) -> Asset | None:
        rows = await self._write(sql, {"now": milliseconds_of(utc_now())} | values)
        return _asset(rows[0]) if rows else None

    async def _write(self, sql: str, values: Mapping[str, Any]) -> Rows:
        """Return what the statement returns, once it is on the disk."""
        rows: Rows = await self._add(sql, values)
        return rows

    async def _add(self, statement: str | RowStatement, values: Mapping[str, Any] | Sequence[Any]) -> Any:
        """Return how the write ended, once it is on the disk: see Write."""
        if self._writing is None:
            raise DependencyUnavailable("The asset store is not open")
        write = Write(statement, values, asyncio.get_running_loop().create_future())
        self._waiting.append(write)
        self._added.set()
        return await write.done

    async def _on_writer(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what the work returns, done between two commits."""
        if self._writer is None:
            raise DependencyUnavailable(UNWRITTEN)
        try:
            return await self._writer.run(work)
        except REFUSALS as error:
            raise refusal(error, UNWRITTEN) from error

    async def _write_forever(self) -> None:
        """Commit what waits, all of it at a time. Called again after a failure, it opens the file anew."""
        if self._writer is None:
            self._writer = await self._open()
        batch: list[Write] = []
        try:
            while True:
                await self._added.wait()
                self._added.clear()
                # It stays in the list meanwhile, so that `close` waits for it.
                batch = list(self._waiting)
                self._is_refused = not await _commit_batch(self._writer, batch)
                del self._waiting[: len(batch)]
                batch = []
                if self._waiting:
                    self._added.set()
        except BaseException as error:
            # The thread may yet commit it.
            _fail(batch, lambda: OutcomeUnknown("The asset store does not answer"), error)
            _fail(self._waiting, lambda: DependencyUnavailable(UNWRITTEN), error)
            self._waiting.clear()
            self._writer = None
            raise


async def _commit_batch(writer: _Connection, batch: Sequence[Write]) -> bool:
    """Return whether there was a commit."""
    try:
        results = await writer.run(partial(commit, batch))
    except REFUSALS as error:
        _fail(batch, partial(refusal, error, UNWRITTEN), error)
        return False
    for write, result in zip(batch, results, strict=True):
        if isinstance(result, Exception):
            _fail([write], partial(refusal, result, UNWRITTEN), result)
        elif not write.done.done():
            write.done.set_result(result)
    return True


def _try_to_write(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ROLLBACK")


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


def _fail(writes: Sequence[Write], make_error: Callable[[], PipelineError], cause: BaseException) -> None:
    for write in writes:
        if not write.done.done():
            error = make_error()
            error.__cause__ = cause
            write.done.set_exception(error)


def _asset(row: sqlite3.Row) -> Asset:
    meta = json.loads(row["aiMetadata"])
    document = dict(row) | {
        "_id": row["id"],
        "images": {
            "original": json.loads(row["original"]),
            **{name: _loaded(row[name]) for name in ("processed", "previews")},
        },
        **{name: _loaded(row[name]) for name in CREATED_AS_JSON},
        "aiMetadata": meta | {"processedAt": _instant(meta["processedAt"])},
        "finishedAt": _instant(row["finishedAt"]),
        "createdAt": _instant(row["createdAt"]),
        "updatedAt": _instant(row["updatedAt"]),
    }
    return Asset.from_document(document)


def _row(asset: Asset) -> dict[str, Any]:
    """Return what the columns hold of the asset, by their names."""
    document = asset.to_document()
    return document | {
        "id": asset.id,
        **{role: _json(image) for role, image in document["images"].items()},
        **{name: _json(document[name]) for name in CREATED_AS_JSON},
        "aiMetadata": _meta_json(asset.ai_metadata),
        **{name: _milliseconds(document[name]) for name in ("finishedAt", "createdAt", "updatedAt")},
    }


def _loaded(text: str | None) -> Any:
    return json.loads(text) if text else None


def _meta_json(meta: AiMetadata) -> str | None:
    return _json(ai_metadata_document(meta) | {"processedAt": _milliseconds(meta.processed_at)})


def _status_of_run(again: bool) -> str:
    return f"status IN ({FINISHED_STATUSES})" if again else "status = 'processing'"


def _json(value: Mapping[str, Any] | Sequence[Any] | None) -> str | None:
    if value is None:
        return None
    try:
        _check_integers(value)
        # Not escaped: half a surrogate pair is refused when it is bound, as in every other text.
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise NotStorable("a value is of no type it knows") from error


def _check_integers(value: Any) -> None:
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        raise NotStorable("a number is too large")
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        _check_integers(inner)


def _milliseconds(instant: datetime | None) -> int | None:
    return milliseconds_of(instant) if instant is not None else None


def _instant(milliseconds: int | None) -> datetime | None:
    return instant_of(milliseconds) if milliseconds is not None else None
