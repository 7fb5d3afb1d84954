"""Whole lists of the asset store, a page at a time: nobody holds all of one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from pipeline.assets.store import Kept, StoredKey

PAGE, DATED_PAGE = 100, 500
# A page of a filtered list looks at so many: where hardly any passes it ends with fewer than it may have.
LOOKED_AT_MOST = 2000
T = TypeVar("T")
Place = tuple[datetime, str]
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


def kept_pages(read: Read[Kept]) -> AsyncIterator[Sequence[Kept]]:
    """Yield the pages of `all_kept`."""
    return pages(read, lambda kept: (kept.kind, kept.id), ("", ""))


def dated_pages(read: Read[Kept], first: Place | None = None) -> AsyncIterator[Sequence[Kept]]:
    """Yield the pages of `kept` of one kind, the oldest first. first: see pages."""
    return pages(read, lambda kept: (kept.at, kept.id), first, DATED_PAGE)


def key_pages(read: Read[StoredKey]) -> AsyncIterator[Sequence[StoredKey]]:
    """Yield the pages of `all_keys`."""
    return pages(read, lambda each: each.key, "")


async def newest_page(
    read: Read[Kept], limit: int, after: Place | None, is_wanted: Callable[[Kept], bool] | None = None
) -> tuple[list[Kept], Place | None]:
    """Return what is wanted of a kind, newest first, and after what the next page begins, None at the end.

    read: newest_kept of that kind. is_wanted: None: all are.
    """
    found: list[Kept] = []
    size = limit + 1 if is_wanted is None else DATED_PAGE
    for _ in range(0, LOOKED_AT_MOST, size):
        page = await read(limit=size, after=after)
        for number, kept in enumerate(page, 1):
            after = kept.at, kept.id
            if is_wanted is None or is_wanted(kept):
                found.append(kept)
            if len(found) == limit:
                return found, after if number < len(page) or len(page) == size else None
        if len(page) < size:
            return found, None
    return found, after
