"""AssetStore: where the truth about every photo is kept, and what each method promises.

Two implementations pass one conformance suite (tests/integration/test_asset_store.py): mongo.py and sqlite.py. All
methods run on the event loop. A document that is damaged is passed over, logged and counted, and stops no list and no
search. Any failure to reach the database is raised as DependencyUnavailable with the driver's
error chained. What no document can hold (more than 16 MiB, an integer of more than 64 bits, half a surrogate pair) is
raised as NotStorable by whatever method is given it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from pipeline.assets.asset import AiMetadata, Asset, AssetStatus, ImageRef
from pipeline.assets.job_search import Count, FailureGroup, JobFilter, JobPage
from pipeline.assets.upgrade import BackendOf
from pipeline.images import ImageName

# Under which name a database keeps its own id.
IDENTITY = "identity"
# Of what is kept about the form of the documents: under "store" the newest version that has opened a MongoDB.
SCHEMA_KIND = "schema"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What an Idempotency-Key stands for: the asset its first request made or is making.

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
    """Something beside the assets that must outlive Redis: that a queue is paused, a dead letter, an event that has yet
    to be delivered.

    kind, id: together its name. data: whatever JSON can hold. user_id, asset_id: whom and what it is about, "" when
    nobody and nothing.
    """

    kind: str
    id: str
    at: datetime
    data: Mapping[str, Any]
    user_id: str = ""
    asset_id: str = ""


class AssetStore(Protocol):
    """The narrow door to the database."""

    async def open(self) -> None:
        """Return once the database answers and tables exist; may be called again after a failure.

        Indexes that take long are built in the background: reads work without them, slowly.
        """

    async def close(self) -> None:
        """Release connections."""

    async def check(self) -> None:
        """Return when the database answers; DependencyUnavailable otherwise."""

    async def create(self, asset: Asset) -> bool:
        """Insert the asset durably. False when its id is there already (nothing is changed then).

        OutcomeUnknown when it may have been inserted all the same; any other DependencyUnavailable: it was not.
        """

    async def begin(self, asset_id: str, user_id: str, job_id: str, *, again: bool = False) -> Asset | None:
        """Take the fence for one start of the job: add 1 to it in one atomic step and return the asset with the new
        fence.

        Only if the asset belongs to user_id, is `processing` and by job_id; None otherwise. again: only if job_id, its
        last job, has finished it: it is analyzed once more and keeps its status; the start is excused.
        """

    async def finish(
        self,
        asset_id: str,
        job_id: str,
        fence: int,
        *,
        status: AssetStatus,
        ai_metadata: AiMetadata,
        processed: ImageRef | None,
        finished_at: datetime,
        previews: Mapping[str, ImageRef] | None = None,
        attempt: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        again: bool = False,
        seen: Asset | None = None,
    ) -> Asset | None:
        """Commit a result (active or partial) under the fence; return the asset as committed. previews: None leaves
        those there are. attempt: added to the asset's attempts, as add_attempt does. seen: the asset as the run knows
        it: if it still stands so, nothing needs to be read for the answer.

        None when the asset is not `processing` by job_id with exactly this fence: a newer run exists, or it is gone.
        again: when it is not finished by job_id with exactly this fence.
        """

    async def fail(
        self,
        asset_id: str,
        job_id: str,
        fence: int,
        *,
        error: str,
        finished_at: datetime,
        previews: Mapping[str, ImageRef] | None = None,
    ) -> Asset | None:
        """Commit `failed` with the error, under the same rule as finish."""

    async def add_attempt(self, asset_id: str, job_id: str, fence: int, attempt: Mapping[str, Any]) -> None:
        """Add an attempt that came to nothing, while job and fence are these; the last ATTEMPTS_AT_MOST stay."""

    async def correct(self, seen: Asset, corrected: Asset) -> Asset | None:
        """Commit corrections, history and status of `corrected`, a changed copy of `seen`.

        None when the asset's corrections, status or fence are not those of `seen` any more, or it is gone.
        """

    async def cancel(self, asset_id: str, job_id: str, *, finished_at: datetime) -> Asset | None:
        """Commit `failed` with the error CANCELLED, whichever run of the job is under way, and take the fence: what
        that run commits later matches nothing. None when the asset is not `processing` by job_id.
        """

    async def refund_start(self, asset_id: str, job_id: str) -> None:
        """Add 1 to `excused`: a start ended without the job being at fault. Only while `processing` by job_id."""

    async def requeue(self, asset_id: str, user_id: str, job_id: str) -> Asset | None:
        """Make a failed or partial asset `processing` again under a new job id; clear result, error and finishedAt;
        keep the fence, excuse all starts so far.

        None when it is not that user's, in no such status, or its original is no longer kept.
        """

    async def get(self, asset_id: str) -> Asset | None:
        """Return the asset, whosever it is; None also for one that is damaged."""

    async def get_many(self, asset_ids: Collection[str]) -> Sequence[Asset]:
        """Return those of the assets that there are, in any order."""

    async def known(self, asset_ids: Collection[str]) -> Collection[str]:
        """Return those of the ids that some document has, be it damaged or not."""

    async def page(
        self,
        user_id: str,
        *,
        status: AssetStatus | None = None,
        category: str | None = None,
        limit: int = 20,
        after: tuple[datetime, str] | None = None,
    ) -> Sequence[Asset]:
        """Return the user's assets, newest first (createdAt, then id, both descending).

        after: (created_at, id) of the last one seen; those after it follow.
        """

    async def count_unfinished(self, user_id: str) -> int:
        """Return how many of the user's assets are `processing`."""

    async def stored_bytes(self, user_id: str) -> int:
        """Return how many bytes of the user's images our storages hold, as far as that is known. Reads all of the
        user's documents, of each a few numbers.
        """

    async def finished_since(
        self, user_id: str, since: datetime, *, limit: int, after: tuple[datetime, str] | None = None
    ) -> Sequence[Asset]:
        """Return the user's assets with finishedAt >= since, oldest first (finishedAt, then id).

        after: (finished_at, id) of the last one seen.
        """

    async def unfinished_before(
        self, before: datetime, *, limit: int, after: tuple[datetime, str] | None = None
    ) -> Sequence[Asset]:
        """Return assets of all users in `processing` with createdAt < before, oldest first (createdAt, then id).

        after: (created_at, id) of the last one seen. Read by the reconciler.
        """

    async def jobs(self, wanted: JobFilter, *, limit: int, after: tuple[datetime, str] | None = None) -> JobPage:
        """Return assets of all users, newest first (createdAt, then id, both descending), as far as one call looks.

        after: `next_after` of the page before. A page may hold fewer than limit, or none, and have a next one.
        """

    async def count_jobs(self, wanted: JobFilter) -> Count:
        """Return how many assets are wanted, as far as one call looks."""

    async def failures(self, since: datetime | None = None, until: datetime | None = None) -> Sequence[FailureGroup]:
        """Return the failed assets by kind, the most frequent kind first. since, until: first and last createdAt."""

    async def find_by_job(self, job_id: str) -> Asset | None:
        """Return the asset whose last job that is."""

    async def unfinished_jobs(self, *, limit: int) -> Sequence[tuple[str, str]]:
        """Return (user_id, job_id) of assets of all users in `processing`, oldest first."""

    async def delete(self, asset_id: str, user_id: str, *, finished_before: datetime | None = None) -> Asset | None:
        """Remove the user's asset and return what it was; None when there is none of that user's. One that is damaged
        is removed too, and None returned.

        finished_before: only one that was finished before that instant and has not been run again since.
        """

    async def damaged_of(self, user_id: str) -> Sequence[str]:
        """Return the ids of those of the user's documents that cannot be read. Reads a thousand of them at most: for
        a user who has nothing else any more.
        """

    async def expired(
        self, before: datetime, *, limit: int, after: tuple[datetime, str] | None = None
    ) -> Sequence[Asset]:
        """Return finished assets of all users with finishedAt < before, oldest first (finishedAt, then id); archived
        ones are not among them. after: (finished_at, id) of the last one seen.
        """

    async def originals_before(
        self, before: datetime, *, limit: int, after: tuple[datetime, str] | None = None
    ) -> Sequence[Asset]:
        """Return those of `expired` whose original is still kept."""

    async def drop_original(self, asset_id: str, job_id: str) -> Asset | None:
        """Let the asset have an original no longer, only its size and what it was; return the asset as it is then.

        None when it is not finished by that job, or its original is gone already.
        """

    async def scrub(self) -> None:
        """Make the database's files forget what was deleted, as far as that is in our hands."""

    async def all_ids(self, *, limit: int, after: str = "") -> Sequence[str]:
        """Return the ids of all documents in their order, those of damaged ones too. after: the last one seen.

        Read by backup, move and verify.
        """

    async def replace_image(self, asset_id: str, old: ImageName, new: ImageRef) -> Asset | None:
        """Name another image instead of the old one and return the asset; None when the asset does not name that."""

    async def upgrade(self, after: str, *, limit: int, backend_of: BackendOf) -> tuple[int, str | None]:
        """Bring the assets of one page that version 0.1 wrote to the form of today, in order of their ids.

        after: the last id of the page before, "" for the first one. backend_of: tells where their images are.
        Returns how many were changed, and the last id of a full page, None at the end. What changes at the same time,
        or is damaged, stays as it is; no other field is touched.
        """

    async def find_key(self, key: str) -> KeyRecord | None:
        """Return what the idempotency key stands for, None when nobody has claimed it. key: see claim_key."""

    async def claim_key(
        self, key: str, record: KeyRecord, created_at: datetime, *, instead_of: str | None = None
    ) -> KeyRecord:
        """Insert the idempotency key if it is new; return the record that stands, the first one's.

        key: hash of (user, route, Idempotency-Key). instead_of: a record with this asset id is replaced.
        """

    async def discard_keys(self, asset_id: str) -> None:
        """Remove the idempotency keys that stand for the asset."""

    async def purge_keys(self, before: datetime) -> int:
        """Remove idempotency keys created before that instant; return how many."""

    async def all_keys(self, *, limit: int, after: str = "") -> Sequence[StoredKey]:
        """Return idempotency keys in their order. after: the last one seen."""

    async def identity(self) -> str:
        """Return the id of this database: made at random by the first call of all, the same for ever."""

    async def put_record(self, record: Record) -> None:
        """Insert it durably, or replace what has its name."""

    async def insert_record(self, record: Record) -> Record:
        """Insert it durably unless something has its name; return what stands under it then, the first one's."""

    async def delete_records(self, kind: str, *ids: str) -> None:
        """Remove what is kept under these names; those that are not there do not matter."""

    async def records(self, kind: str, *, limit: int, after: tuple[datetime, str] | None = None) -> Sequence[Record]:
        """Return what is kept of a kind, oldest first (at, then id). after: (at, id) of the last one seen."""

    async def newest_records(
        self, kind: str, *, limit: int, after: tuple[datetime, str] | None = None
    ) -> Sequence[Record]:
        """Return what is kept of a kind, newest first (at, then id, both descending). after: as in `kept`."""

    async def records_of(
        self, user_id: str, asset_id: str | None = None, *, kinds: Collection[str] = ()
    ) -> Sequence[Record]:
        """Return up to a thousand of what is kept about the user, or about one asset of the user, of these kinds or of
        all. One that is damaged is among them, without its data.
        """

    async def find_record(self, kind: str, id: str) -> Record | None:
        """Return what is kept under this name."""

    async def all_records(self, *, limit: int, after: tuple[str, str] = ("", "")) -> Sequence[Record]:
        """Return what is kept of all kinds, by kind, then id. after: (kind, id) of the last one seen."""

    async def purge_records(self, kind: str, before: datetime) -> int:
        """Remove what is kept of a kind since before that instant; return how many."""


def when_finished(asset: Asset) -> tuple[datetime, str]:
    """Return the place of a finished asset among all of them."""
    return asset.finished_at or asset.updated_at, asset.id
