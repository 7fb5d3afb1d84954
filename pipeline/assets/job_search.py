"""What an operator's list of jobs asks of the asset store, and what it gets. Pure: knows no database.

A job here is an asset's last job. Lists go back in time by createdAt, then by id. Both stores search in the same way:
an index gives one user's assets, or those of each status, newest first; other conditions are checked in at most
EXAMINED_AT_MOST documents of each index range, and the caller goes on from where that ended. So no call reads more,
however large the collection is and however rare the wanted assets are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.assets.asset import Asset, AssetStatus

EXAMINED_AT_MOST = 2000
# Counts are exact up to this; for conditions without an index so many documents are examined.
COUNTED_AT_MOST = 10_000
# Conditions that need the documents themselves are checked in so many documents.
READ_AT_MOST = 2000
# So many kinds of failures are read, and so many returned.
KINDS_AT_MOST, GROUPS_AT_MOST = 500, 100
# Where a list goes on: the instant by which it is sorted, and the id, of the last asset that was read.
Cursor = tuple[datetime, str]


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs are wanted; None and () mean no condition.

    statuses: of their assets.
    provider: that at least one attempt has asked.
    failure: fingerprint of a failed asset's error, see failures.py.
    words: each must be found, casefolded: in brand, model or error, or at the beginning of the user's id.
    since, until: the first and last createdAt.
    """

    statuses: Collection[AssetStatus] = ()
    user_id: str | None = None
    category: str | None = None
    provider: str | None = None
    failure: str | None = None
    words: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None

    @property
    def needs_reading(self) -> bool:
        """True when the documents themselves must be read to decide which are wanted."""
        return bool(self.words) or self.provider is not None

    @property
    def is_indexed(self) -> bool:
        """True when an index alone decides which are wanted."""
        needs_more = self.category is not None or self.needs_reading
        if self.user_id is not None:
            return not (needs_more or self.statuses or self.failure)
        return not needs_more

    @property
    def searched_statuses(self) -> Sequence[AssetStatus]:
        """The statuses whose assets are searched, when there is no other index."""
        wanted = self.statuses or tuple(AssetStatus)
        return [status for status in AssetStatus if status in wanted]

    def holds(self, asset: Asset) -> bool:
        """Return whether the asset is wanted."""
        return (
            (not self.statuses or asset.status in self.statuses)
            and self.user_id in (None, asset.user_id)
            and self.category in (None, asset.category)
            and self.failure in (None, asset.failure)
            and (self.since is None or asset.created_at >= self.since)
            and (self.until is None or asset.created_at <= self.until)
            and (not self.needs_reading or self.is_match(asset.to_document()))
        )

    def is_match(self, document: Mapping[str, Any]) -> bool:
        """Return whether the document has provider and words of the filter; False for a damaged one.

        document: with userId, aiMetadata, corrections, attempts and provenance.
        """
        try:
            return self._has_provider(document) and self._has_words(document)
        except (LookupError, TypeError, AttributeError):
            return False

    def _has_provider(self, document: Mapping[str, Any]) -> bool:
        if self.provider is None or (document.get("provenance") or {}).get("provider") == self.provider:
            return True
        return any(each.get("provider") == self.provider for each in document.get("attempts") or ())

    def _has_words(self, document: Mapping[str, Any]) -> bool:
        if not self.words:
            return True
        meta, corrections = document.get("aiMetadata") or {}, document.get("corrections") or {}
        texts = [(each.get(name) or {}).get("value") for each in (meta, corrections) for name in ("brand", "model")]
        found = "\n".join(str(text) for text in (*texts, meta.get("error")) if text).casefold()
        user_id = str(document["userId"]).casefold()
        return all(word in found or user_id.startswith(word) for word in self.words)


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some of the wanted assets, newest first. next_after: where the next call begins; None at the end of the list."""

    assets: Sequence[Asset]
    next_after: Cursor | None


@dataclass(frozen=True, slots=True)
class Count:
    """A number: exact, or at least so many."""

    count: int
    is_exact: bool


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failed assets of one kind.

    reason: of the newest.
    first_at, last_at: createdAt of the oldest and the newest.
    """

    failure: str
    reason: str
    count: Count
    first_at: datetime
    last_at: datetime


def largest_first(groups: Sequence[FailureGroup]) -> list[FailureGroup]:
    """Return the groups to show, the largest first."""
    return sorted(groups, key=lambda group: (-group.count.count, group.failure))[:GROUPS_AT_MOST]
