"""SqliteAssetStore: the embedded asset store, one file under DATA_DIR that several processes may share.

Its parts: sqlite_file.py (threads and commits), sqlite_schema.py, sqlite_rows.py, sqlite_reads.py, sqlite_runs.py,
sqlite_jobs.py (searches), sqlite_retained.py, sqlite_keys.py, sqlite_records.py. Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.assets.reading import Reader
from pipeline.assets.records import record_reader
from pipeline.assets.sqlite_jobs import JobRows
from pipeline.assets.sqlite_keys import SqliteKeys
from pipeline.assets.sqlite_records import SqliteRecords, record_of
from pipeline.assets.sqlite_retained import RetainedRows
from pipeline.assets.sqlite_rows import asset_of
from pipeline.supervision import Supervisor


class SqliteAssetStore(RetainedRows, JobRows, SqliteKeys, SqliteRecords):
    """An AssetStore in one SQLite file."""

    def __init__(
        self, path: Path, supervisor: Supervisor | None = None, on_damaged: Callable[[], None] = lambda: None
    ) -> None:
        """supervisor: keeps the writer running; default: a supervisor of its own.
        on_damaged: see Reader.
        """
        super().__init__(path, supervisor or Supervisor())
        self._reading = Reader(asset_of, "id", on_damaged)
        self._reading_records = record_reader(record_of, "id")
