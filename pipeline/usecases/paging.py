"""Whole lists of the asset store, a page at a time: nobody holds all of one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from pipeline.assets.store import Record, StoredKey

PAGE, DATED_PAGE = 100, 500
# A page of a filtered list looks at so many: where hardly any passes it ends with fewer than it may have.
LOOKED_AT_MOST = 2000
T = TypeVar("T")
Cursor = tuple[datetime, str]
# One of the store's methods that take limit and after.
Read = Callable[..., Awaitable[Sequence[T]]]


async def pages(
    read: Read[T], place: Callable[[T], Any], first: Any, limit: int = PAGE
) -> AsyncIterator[Sequence[T]]:
    """Yield the pages of a list. place: returns after what the next page begins. first: after what the first one."""
    after = first
    while page := await read(limit=limit, after=after):
        yield page
        after = place(page[-1])


def id_pages(read: Read[str]) -> AsyncIterator[Sequence[str]]:
    """Yield the pages of `all_ids`."""
    return pages(read, str, "")


def record_pages(read: Read[Record]) -> AsyncIterator[Sequence[Record]]:
    """Yield the pages of `all_records`."""
    return pages(read, lambda record: (record.kind, record.id), ("", ""))


def dated_pages(read: Read[Record], first: Cursor | None = None) -> AsyncIterator[Sequence[Record]]:
    """Yield the pages of `kept` of one kind, the oldest first. first: see pages."""
    return pages(read, lambda record: (record.at, record.id), first, DATED_PAGE)


def key_pages(read: Read[StoredKey]) -> AsyncIterator[Sequence[StoredKey]]:
    """Yield the pages of `all_keys`."""
    return pages(read, lambda each: each.key, "")


async def newest_page(
    read: Read[Record], limit: int, after: Cursor | None, is_wanted: Callable[[Record], bool] | None = None
) -> tuple[list[Record], Cursor | None]:
    """Return what is wanted of a kind, newest first, and after what the next page begins, None at the end.

    read: newest_records of that kind. is_wanted: None: all are.
    """
    found: list[Record] = []
    size = limit + 1 if is_wanted is None else DATED_PAGE
    for _ in range(0, LOOKED_AT_MOST, size):
        page = await read(limit=size, after=after)
        for number, record in enumerate(page, 1):
            after = record.at, record.id
            if is_wanted is None or is_wanted(record):
                found.append(record)
            if len(found) == limit:
                return found, after if number < len(page) or len(page) == size else None
        if len(page) < size:
            return found, None
    return found, after
