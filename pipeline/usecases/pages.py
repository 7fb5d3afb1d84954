"""Whole lists of the asset store, a page at a time: nobody holds all of one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from pipeline.assets.store import Kept, StoredKey

PAGE, DATED_PAGE = 100, 500
T = TypeVar("T")
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


def dated_pages(read: Read[Kept]) -> AsyncIterator[Sequence[Kept]]:
    """Yield the pages of `kept` of one kind, the oldest first."""
    return pages(read, lambda kept: (kept.at, kept.id), None, DATED_PAGE)


def key_pages(read: Read[StoredKey]) -> AsyncIterator[Sequence[StoredKey]]:
    """Yield the pages of `all_keys`."""
    return pages(read, lambda each: each.key, "")
