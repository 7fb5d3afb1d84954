"""Lists of the asset store, a page at a time, so that no list is in memory as a whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from pipeline.assets.store import Record, StoredKey

PAGE, DATED_PAGE = 100, 500
# A page of a filtered list reads so many records at most, and has fewer than its limit when few of them match.
READ_AT_MOST = 2000
T = TypeVar("T")
Cursor = tuple[datetime, str]
# A method of the store with the parameters limit and after.
Read = Callable[..., Awaitable[Sequence[T]]]


async def pages(
    read: Read[T], cursor_of: Callable[[T], Any], first: Any, limit: int = PAGE
) -> AsyncIterator[Sequence[T]]:
    """Yield the pages of a list.

    cursor_of: returns the cursor of an item, after which the next page begins
    first: the cursor after which the first page begins
    """
    after = first
    while page := await read(limit=limit, after=after):
        yield page
        after = cursor_of(page[-1])


def id_pages(read: Read[str]) -> AsyncIterator[Sequence[str]]:
    """Yield the pages of `all_ids`."""
    return pages(read, str, "")


def record_pages(read: Read[Record]) -> AsyncIterator[Sequence[Record]]:
    """Yield the pages of `all_records`."""
    return pages(read, lambda record: (record.kind, record.id), ("", ""))


def dated_pages(read: Read[Record], first: Cursor | None = None) -> AsyncIterator[Sequence[Record]]:
    """Yield the pages of `records` of one kind, the oldest first.

    first: see pages
    """
    return pages(read, lambda record: (record.at, record.id), first, DATED_PAGE)


def key_pages(read: Read[StoredKey]) -> AsyncIterator[Sequence[StoredKey]]:
    """Yield the pages of `all_keys`."""
    return pages(read, lambda each: each.key, "")


async def newest_page(
    read: Read[Record], limit: int, after: Cursor | None, is_wanted: Callable[[Record], bool] | None = None
) -> tuple[list[Record], Cursor | None]:
    """Return matching records of a kind, newest first, and the cursor of the next page, None at the end.

    read: newest_records of that kind
    is_wanted: returns whether a record matches; None: all match
    """
    records: list[Record] = []
    size = limit + 1 if is_wanted is None else DATED_PAGE
    for _ in range(0, READ_AT_MOST, size):
        page = await read(limit=size, after=after)
        for number, record in enumerate(page, 1):
            after = record.at, record.id
            if is_wanted is None or is_wanted(record):
                records.append(record)
            if len(records) == limit:
                return records, after if number < len(page) or len(page) == size else None
        if len(page) < size:
            return records, None
    return records, after
