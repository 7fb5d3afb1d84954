"""Reads stored documents and passes over damaged ones: a damaged document must stop no list and no search.

Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import structlog

from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

T = TypeVar("T")
# The errors of reading a damaged document.
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
# A damaged document is logged and counted once; beyond this number further ones are not.
KNOWN_AT_MOST = 10_000


class Reader(Generic[T]):
    """Makes assets or records of the documents of one store."""

    def __init__(
        self,
        read: Callable[[Any], T],
        id_name: str,
        on_damaged: Callable[[], None] = lambda: None,
        *,
        what: str = "asset",
    ) -> None:
        """read: makes an asset or a record of a document.

        id_name: the field with the id of a document.
        on_damaged: called once for each document that cannot be read.
        what: its name in log events.
        """
        self._read = read
        self._id_name = id_name
        self._on_damaged = on_damaged
        self._what = what
        self._known: set[str] = set()

    def all(self, documents: Sequence[Any]) -> list[T]:
        """Return what the documents hold, without those that cannot be read."""
        return [entry for document in documents if (entry := self.one(document)) is not None]

    def one(self, document: Any) -> T | None:
        """Return what the document holds, None when there is no document or it cannot be read."""
        if document is None:
            return None
        try:
            return self._read(document)
        except UNREADABLE as error:
            self._report(str(document[self._id_name]), error)
            return None

    async def up_to(self, limit: int, read_page: Callable[[Any, int], Awaitable[Sequence[Any]]]) -> list[T]:
        """Return `limit` entries, fewer only at the end: a damaged document does not count.

        read_page: returns the documents after the given one (None: from the first on), at most so many.
        """
        entries: list[T] = []
        last = None
        while True:
            wanted = limit - len(entries)
            documents = await read_page(last, wanted)
            entries += self.all(documents)
            if len(documents) < wanted or len(entries) >= limit:
                return entries
            last = documents[-1]

    def _report(self, document_id: str, error: Exception) -> None:
        if document_id in self._known or len(self._known) >= KNOWN_AT_MOST:
            return
        self._known.add(document_id)
        log.error(f"{self._what}_damaged", **{f"{self._what}Id": document_id}, cause=cause_of(error))
        self._on_damaged()
