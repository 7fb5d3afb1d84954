"""SqliteFile: the file of the SQLite store, which several processes may share.

Every write is one statement. Writes that arrive while a commit is on its way to the disk share the next one, so the
price of a durable commit (an fsync) is paid per batch, not per upload. Runs on the event loop, with one thread for
writing and one for reading; a batch goes to its thread and comes back once, however many statements it has.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.assets.sqlite_schema import connect
from pipeline.assets.sqlite_writes import REFUSALS, Rows, RowStatement, Write, commit, refusal
from pipeline.errors import ConfigurationError, DependencyUnavailable, OutcomeUnknown, PipelineError
from pipeline.supervision import Supervisor, SupervisedTask

T = TypeVar("T")
UNWRITTEN = "The asset store cannot be written"
# SQLite's errors for a file that no retry can read.
DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


class SqliteConnection:
    """A connection and its thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        self._connection: sqlite3.Connection | None = None

    async def open(self, path: Path) -> None:
        try:
            self._connection = await asyncio.get_running_loop().run_in_executor(self._thread, connect, path)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        assert self._connection is not None
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._connection)

    async def close(self) -> None:
        await self.run(sqlite3.Connection.close)
        self._thread.shutdown(wait=False)


class SqliteFile:
    """Reads and writes of one file (WAL, synchronous=FULL)."""

    def __init__(self, path: Path, supervisor: Supervisor) -> None:
        """supervisor: keeps the writer running."""
        self._path = path
        self._supervisor = supervisor
        self._writer: SqliteConnection | None = None
        self._reader: SqliteConnection | None = None
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
        # A disk that hangs, or a file that another process has locked for long, blocks the writer's thread. After a
        # refused commit a successful read proves nothing: only a try shows when writing works again.
        await self._on_writer(_try_to_write if self._is_refused else lambda connection: None)
        self._is_refused = False

    async def _open(self) -> SqliteConnection:
        connection = SqliteConnection()
        await connection.open(self._path)
        return connection

    async def _read(self, sql: str, values: Mapping[str, Any]) -> Rows:
        return await self._on_reader(lambda connection: connection.execute(sql, values).fetchall())

    async def _on_reader(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of work that only reads."""
        if self._reader is None:
            raise DependencyUnavailable("The asset store is not open")
        try:
            return await self._reader.run(work)
        except REFUSALS as error:
            raise refusal(error, "The asset store cannot be read") from error

    async def _write(self, sql: str, values: Mapping[str, Any]) -> Rows:
        """Return the rows of the statement, once it is on the disk."""
        rows: Rows = await self._add(sql, values)
        return rows

    async def _add(self, statement: str | RowStatement, values: Mapping[str, Any] | Sequence[Any]) -> Any:
        """Return the result of the write, once it is on the disk: see Write."""
        if self._writing is None:
            raise DependencyUnavailable("The asset store is not open")
        write = Write(statement, values, asyncio.get_running_loop().create_future())
        self._waiting.append(write)
        self._added.set()
        return await write.done

    async def _on_writer(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of work that is done between two commits."""
        if self._writer is None:
            raise DependencyUnavailable(UNWRITTEN)
        try:
            return await self._writer.run(work)
        except REFUSALS as error:
            raise refusal(error, UNWRITTEN) from error

    async def _write_forever(self) -> None:
        """Commit the waiting writes, all at a time. Called again after a failure, it reopens the file."""
        if self._writer is None:
            self._writer = await self._open()
        batch: list[Write] = []
        try:
            while True:
                await self._added.wait()
                self._added.clear()
                # The batch stays in the list meanwhile, so that `close` waits for it.
                batch = list(self._waiting)
                self._is_refused = not await _commit_batch(self._writer, batch)
                del self._waiting[: len(batch)]
                batch = []
                if self._waiting:
                    self._added.set()
        except BaseException as error:
            # The thread may still commit the batch.
            _fail(batch, lambda: OutcomeUnknown("The asset store does not answer"), error)
            _fail(self._waiting, lambda: DependencyUnavailable(UNWRITTEN), error)
            self._waiting.clear()
            self._writer = None
            raise


async def _commit_batch(writer: SqliteConnection, batch: Sequence[Write]) -> bool:
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


def _fail(writes: Sequence[Write], make_error: Callable[[], PipelineError], cause: BaseException) -> None:
    for write in writes:
        if not write.done.done():
            error = make_error()
            error.__cause__ = cause
            write.done.set_exception(error)
