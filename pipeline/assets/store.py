"""AssetStore: where the truth about every photo is stored, and what each method promises.

Two implementations pass one conformance suite (tests/integration/test_asset_store*.py): mongo.py and sqlite.py. All
methods run on the event loop. The rules for all of them:
- A damaged document is passed over, logged and counted; it stops no list and no search.
- Any failure to reach the database is raised as DependencyUnavailable with the driver's error chained.
- A value that no document can hold (more than 16 MiB, an integer of more than 64 bits, half a surrogate pair) is raised
  as NotStorable.
- `after` is the cursor of the last entry that was read; the entries after it follow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from pipeline.assets.asset import Asset
from pipeline.assets.job_search import Cursor
from pipeline.assets.photo_store import AssetReads, AssetRetention, AssetRuns

# The kind and the id of the record that holds the id of the database.
IDENTITY = "identity"
# The kind of records about the form of the documents. Its record "store" has the newest version that opened a MongoDB.
SCHEMA_KIND = "schema"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """The asset that the first request with an Idempotency-Key made or is making.

    fingerprint: hash of that request's payload.
    """

    asset_id: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class StoredKey:
    """An Idempotency-Key with its record, as a backup holds it. key: see claim_key."""

    key: str
    record: KeyRecord
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Record:
    """Data beside the assets that must outlive Redis: that a queue is paused, a dead letter, an event that has yet to
    be delivered.

    kind, id: together its name.
    data: any JSON object.
    user_id, asset_id: the user and the asset that it concerns, "" when none.
    """

    kind: str
    id: str
    at: datetime
    data: Mapping[str, Any]
    user_id: str = ""
    asset_id: str = ""


class KeyStore(Protocol):
    """The idempotency keys."""

    async def find_key(self, key: str) -> KeyRecord | None:
        """Return the record of the idempotency key, None when no request has claimed it. key: see claim_key."""

    async def claim_key(
        self, key: str, record: KeyRecord, created_at: datetime, *, instead_of: str | None = None
    ) -> KeyRecord:
        """Insert the idempotency key if it is new; return the record that stands, the first one's.

        key: hash of (user, route, Idempotency-Key).
        instead_of: a record with this asset id is replaced.
        """

    async def discard_keys(self, asset_id: str) -> None:
        """Remove the idempotency keys of the asset."""

    async def purge_keys(self, before: datetime) -> int:
        """Remove idempotency keys created before that instant; return how many."""

    async def all_keys(self, *, limit: int, after: str = "") -> Sequence[StoredKey]:
        """Return idempotency keys in their order. after: the last one read."""


class RecordStore(Protocol):
    """The records beside the assets."""

    async def put_record(self, record: Record) -> None:
        """Insert the record durably, or replace the record of its name."""

    async def insert_record(self, record: Record) -> Record:
        """Insert the record durably unless its name is in use; return the record that stands, the first one's."""

    async def delete_records(self, kind: str, *ids: str) -> None:
        """Remove the records of these names; names without a record do not matter."""

    async def find_record(self, kind: str, id: str) -> Record | None:
        """Return the record of this name."""

    async def records(self, kind: str, *, limit: int, after: Cursor | None = None) -> Sequence[Record]:
        """Return the records of a kind, oldest first (at, then id)."""

    async def newest_records(self, kind: str, *, limit: int, after: Cursor | None = None) -> Sequence[Record]:
        """Return the records of a kind, newest first (at, then id, both descending)."""

    async def records_of(
        self, user_id: str, asset_id: str | None = None, *, kinds: Collection[str] = ()
    ) -> Sequence[Record]:
        """Return up to a thousand records about the user, or about one asset of the user, of these kinds or of all.

        A damaged record is among them, without its data.
        """

    async def all_records(self, *, limit: int, after: tuple[str, str] = ("", "")) -> Sequence[Record]:
        """Return the records of all kinds, by kind, then id. after: (kind, id) of the last one read."""

    async def purge_records(self, kind: str, before: datetime) -> int:
        """Remove the records of a kind that are older than that instant; return how many."""


class AssetStore(AssetRuns, AssetReads, AssetRetention, KeyStore, RecordStore, Protocol):
    """The narrow door to the database."""

    async def open(self) -> None:
        """Return once the database answers and tables exist; may be called again after a failure.

        Indexes that take long are built in the background: reads work without them, slowly.
        """

    async def close(self) -> None:
        """Release connections."""

    async def check(self) -> None:
        """Return when the database answers; DependencyUnavailable otherwise."""

    async def identity(self) -> str:
        """Return the id of this database: made at random by the first call of all, the same for ever."""


def when_finished(asset: Asset) -> Cursor:
    """Return the cursor of a finished asset in lists by finishedAt."""
    return asset.finished_at or asset.updated_at, asset.id
