"""The writes of SqliteAssetStore: those that wait are committed together, in as few statements as possible.

Each step of a statement releases the interpreter's lock, and the writer's thread then waits for it while the event loop
is busy. So writes that only insert or change one known row share a statement. Runs in the
writer's thread.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DependencyUnavailable, NotStorable, PipelineError

Rows = list[sqlite3.Row]
# The errors of a statement that SQLite, or the binding of its values, refuses.
REFUSALS = (sqlite3.Error, ValueError, OverflowError)
# Only these numbers of rows, so that few statements have to be prepared.
ROWS_AT_ONCE = (16, 8, 4, 2)


@dataclass(frozen=True, slots=True)
class RowStatement:
    """A statement that writes any number of rows and returns none.

    row: the SQL of one row, which stands between head and tail.
    """

    head: str
    row: str
    tail: str

    def text(self, count: int) -> str:
        """Return the statement for so many rows."""
        return f"{self.head} {', '.join([self.row] * count)} {self.tail}"


@dataclass(slots=True)
class Write:
    """A statement that waits to be committed.

    done: the rows that it returns; for a RowStatement with the values of one row: whether the row was written.
    """

    statement: str | RowStatement
    values: Mapping[str, Any] | Sequence[Any]
    done: asyncio.Future[Any]


class _NotTogether(Exception):
    """Not all of several rows were written: each has to be tried by itself."""


def commit(batch: Sequence[Write], connection: sqlite3.Connection) -> list[Any]:
    """Return the result of each write, once all are on the disk; its error for a write that alone was refused."""
    try:
        return _commit(batch, connection, ROWS_AT_ONCE)
    except _NotTogether:
        return _commit(batch, connection, ())


def _commit(batch: Sequence[Write], connection: sqlite3.Connection, at_once: Sequence[int]) -> list[Any]:
    ends: list[Any] = [None] * len(batch)
    rows: dict[RowStatement, list[int]] = {}
    try:
        connection.execute("BEGIN IMMEDIATE")
        for place, write in enumerate(batch):
            if isinstance(write.statement, RowStatement):
                rows.setdefault(write.statement, []).append(place)
                continue
            try:
                ends[place] = connection.execute(write.statement, write.values).fetchall()
            except REFUSALS as error:
                ends[place] = _of_one(error, connection)
        for statement, places in rows.items():
            for some in _portions(places, at_once):
                values = [value for place in some for value in batch[place].values]
                try:
                    count = connection.execute(statement.text(len(some)), values).rowcount
                    if count != len(some) > 1:
                        raise _NotTogether
                    ends[some[0]] = count == len(some)
                except REFUSALS as error:
                    ends[some[0]] = _of_one(error, connection)
                    if len(some) > 1:
                        raise _NotTogether from error
                for place in some[1:]:
                    ends[place] = True
        connection.execute("COMMIT")
    except BaseException:
        with suppress(*REFUSALS):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        raise
    return ends


def _of_one(error: Exception, connection: sqlite3.Connection) -> Exception:
    """Return the error of one statement that undid only itself; raise it if SQLite ended the transaction."""
    if not connection.in_transaction:
        raise error
    return error


def _portions(places: Sequence[int], at_once: Sequence[int]) -> Iterator[Sequence[int]]:
    at = 0
    while at < len(places):
        size = next((size for size in at_once if size <= len(places) - at), 1)
        yield places[at : at + size]
        at += size


def refusal(error: BaseException, otherwise: str) -> PipelineError:
    """Return the error for the caller: the fault is in the values, or else in the file. otherwise: its text."""
    if isinstance(error, sqlite3.DataError):
        return NotStorable("it is too large")
    if isinstance(error, OverflowError):
        return NotStorable("a number is too large")
    if isinstance(error, UnicodeEncodeError):
        return NotStorable("a text is not valid Unicode")
    return DependencyUnavailable(otherwise)
