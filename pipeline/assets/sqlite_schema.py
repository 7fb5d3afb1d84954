"""The form of the SQLite store's file: its tables, its settings, and how an older file is brought up to date.

Runs in the thread of a connection.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from pipeline.assets.failures import fingerprint
from pipeline.errors import ConfigurationError

BUSY_SECONDS = 5.0
OF_RETRY = "substr(processingJobId, -24) != id"
# The indexes of sqlite_jobs.py; the first two serve the reconciler and owners too. The columns behind the id spare
# searches the row itself, which costs a page of the file.
INDEXES = f"""
DROP INDEX unfinished;
CREATE INDEX by_status ON assets (status, createdAt, id, category);
DROP INDEX newest_of_user;
CREATE INDEX newest_of_user ON assets (userId, createdAt, id, status, category);
CREATE INDEX failures ON assets (failure, createdAt, id, category) WHERE failure IS NOT NULL;
CREATE INDEX job_of_retry ON assets (processingJobId) WHERE {OF_RETRY};
"""
# A file of an older version is brought up to date by the scripts after its version; the last number is the version.
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


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection to the file, which is made or brought up to date first.

    ConfigurationError when a newer version of this service wrote it.
    """
    # Transactions are ours to begin and end (isolation_level None).
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        connection.row_factory = sqlite3.Row
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_DOCUMENT_BYTES)
        _use_wal(connection)
        # An accepted upload must survive a power cut, not only the end of the process.
        connection.execute("PRAGMA synchronous = FULL")
        # Deleted rows are overwritten: they must not stay readable in the file.
        connection.execute("PRAGMA secure_delete = ON").fetchall()
        _migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = _version(connection)
    if version > len(MIGRATIONS):
        raise ConfigurationError(f"{path} was written by a newer version of this service")
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
