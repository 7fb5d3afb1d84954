"""Reads stored documents and passes over those that are damaged: one of them must stop no list and no search.

Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import structlog

from pipeline.assets.asset import Asset
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

# What reading a document raises that does not hold what it should.
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
# A document that is met again is logged and counted once, as long as there are not too many.
KNOWN_AT_MOST = 10_000


class Reader:
    """Makes assets of the documents of one store."""

    def __init__(self, read: Callable[[Any], Asset], id_name: str, on_damaged: Callable[[], None]) -> None:
        """read: makes an asset of a document. id_name: where a document has its id.

        on_damaged: called once for each document that cannot be read.
        """
        self._read = read
        self._id_name = id_name
        self._on_damaged = on_damaged
        self._known: set[str] = set()

    def all(self, documents: Sequence[Any]) -> list[Asset]:
        """Return the assets, without those that cannot be read."""
        return [asset for document in documents if (asset := self.one(document)) is not None]

    def one(self, document: Any) -> Asset | None:
        """Return the asset, None when there is no document or it cannot be read."""
        if document is None:
            return None
        try:
            return self._read(document)
        except UNREADABLE as error:
            self._note(str(document[self._id_name]), error)
            return None

    def _note(self, asset_id: str, error: Exception) -> None:
        if asset_id in self._known or len(self._known) >= KNOWN_AT_MOST:
            return
        self._known.add(asset_id)
        log.error("asset_damaged", assetId=asset_id, cause=cause_of(error))
        self._on_damaged()
