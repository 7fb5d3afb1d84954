"""Reads stored documents and passes over those that are damaged: one of them must stop no list and no search.

Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import structlog

from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

T = TypeVar("T")
# What reading a document raises that does not hold what it should.
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
# A document that is met again is logged and counted once, as long as there are not too many.
KNOWN_AT_MOST = 10_000


class Reader(Generic[T]):
    """Makes assets, or what is kept beside them, of the documents of one store."""

    def __init__(
        self,
        read: Callable[[Any], T],
        id_name: str,
        on_damaged: Callable[[], None] = lambda: None,
        *,
        what: str = "asset",
    ) -> None:
        """read: makes one of a document.

        id_name: where a document has its id.
        on_damaged: called once for each document that cannot be read.
        what: as log lines name it.
        """
        self._read = read
        self._id_name = id_name
        self._on_damaged = on_damaged
        self._what = what
        self._known: set[str] = set()

    def all(self, documents: Sequence[Any]) -> list[T]:
        """Return what the documents hold, without those that cannot be read."""
        return [found for document in documents if (found := self.one(document)) is not None]

    def one(self, document: Any) -> T | None:
        """Return what the document holds, None when there is no document or it cannot be read."""
        if document is None:
            return None
        try:
            return self._read(document)
        except UNREADABLE as error:
            self._note(str(document[self._id_name]), error)
            return None

    async def up_to(self, limit: int, read_page: Callable[[Any, int], Awaitable[Sequence[Any]]]) -> list[T]:
        """Return so many, fewer only at the end: a document that is damaged takes no other one's place.

        read_page: returns the documents behind that one, None: the first ones, and at most so many.
        """
        found: list[T] = []
        last = None
        while True:
            wanted = limit - len(found)
            documents = await read_page(last, wanted)
            found += self.all(documents)
            if len(documents) < wanted or len(found) >= limit:
                return found
            last = documents[-1]

    def _note(self, document_id: str, error: Exception) -> None:
        if document_id in self._known or len(self._known) >= KNOWN_AT_MOST:
            return
        self._known.add(document_id)
        log.error(f"{self._what}_damaged", **{f"{self._what}Id": document_id}, cause=cause_of(error))
        self._on_damaged()
