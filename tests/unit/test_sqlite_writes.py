"""Writes that wait for the SQLite writer are committed together, and each has the result that it would have alone."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.assets.sqlite_writes import ROWS_AT_ONCE, RowStatement, Write, commit

ADD = RowStatement("INSERT INTO things (id, size) VALUES", "(?, ?)", "ON CONFLICT (id) DO NOTHING")
GROW = RowStatement(
    "UPDATE things SET size = new.column2 FROM (VALUES",
    "(?, ?)",
    ") AS new WHERE id = new.column1 AND size < new.column2",
)
DOUBLE = "UPDATE things SET size = size * 2 WHERE id = :id RETURNING size"


class Recorded(sqlite3.Connection):
    """A connection that records its statements."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ran: list[str] = []

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        self.ran.append(sql)
        return super().execute(sql, *values)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Recorded]:
    """A connection to a database with a table of things that have a size."""
    with closing(sqlite3.connect(tmp_path / "things", isolation_level=None, factory=Recorded)) as connection:
        connection.execute("CREATE TABLE things (id TEXT PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID")
        connection.ran.clear()
        yield connection


@pytest.fixture
def done() -> Iterator[asyncio.Future[Any]]:
    """The future of a write, for which no code waits here."""
    with closing(asyncio.new_event_loop()) as loop:
        yield loop.create_future()


def sizes(connection: sqlite3.Connection) -> dict[str, int]:
    """Return the size of each thing."""
    return dict(sqlite3.Connection.execute(connection, "SELECT id, size FROM things ORDER BY id").fetchall())


def test_rows_of_one_kind_are_one_statement(connection: Recorded, done: asyncio.Future[Any]) -> None:
    """The rows are split into statements of a few fixed sizes, so that each statement is prepared once."""
    count = 2 * ROWS_AT_ONCE[0] + 7
    ends = commit([Write(ADD, (f"{number:03}", number), done) for number in range(count)], connection)
    assert ends == [True] * count and len(sizes(connection)) == count
    assert [sql.count("?") // 2 for sql in connection.ran] == [0, 16, 16, 4, 2, 1, 0]


def test_each_write_has_the_result_that_it_would_have_alone(connection: Recorded, done: asyncio.Future[Any]) -> None:
    """An existing row, a changed row and an invalid value do not affect the other writes."""
    commit([Write(ADD, ("old", 5), done)], connection)
    batch = [
        Write(ADD, ("a", 1), done),
        Write(ADD, ("old", 9), done),
        Write(DOUBLE, {"id": "old"}, done),
        Write(ADD, ("b", 2**70), done),
        Write(GROW, ("old", 7), done),
        Write(GROW, ("old", 20), done),
        Write(GROW, ("missing", 20), done),
        Write(ADD, ("c", 3), done),
        Write("UPDATE missing SET size = 1", {}, done),
    ]
    ends = commit(batch, connection)
    assert ends[:3] == [True, False, [(10,)]] and ends[4:8] == [False, True, False, True]
    assert isinstance(ends[3], OverflowError) and isinstance(ends[8], sqlite3.OperationalError)
    assert sizes(connection) == {"a": 1, "c": 3, "old": 20}


def test_failed_commit_writes_no_row(connection: Recorded, done: asyncio.Future[Any]) -> None:
    """An error that ends the transaction fails all writes, and no row is stored."""
    refuse = "SELECT RAISE(ROLLBACK, 'full')"
    connection.execute(f"CREATE TRIGGER full BEFORE INSERT ON things WHEN new.id = 'x' BEGIN {refuse}; END")
    with pytest.raises(sqlite3.IntegrityError, match="full"):
        commit([Write(ADD, (name, 1), done) for name in "abxc"], connection)
    assert sizes(connection) == {} and not connection.in_transaction
    assert commit([Write(ADD, (name, 1), done) for name in "abc"], connection) == [True] * 3
