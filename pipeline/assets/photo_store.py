"""What an asset store promises about assets: the runs of their jobs, reads and searches, and their end. Pure.

A part of AssetStore; store.py has the rules for all methods.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from pipeline.assets.asset import AiMetadata, Asset, AssetStatus, ImageRef
from pipeline.assets.job_search import Count, Cursor, FailureGroup, JobFilter, JobPage
from pipeline.assets.upgrade import BackendOf
from pipeline.images import ImageName


class AssetRuns(Protocol):
    """Changes of an asset by the runs of its job."""

    async def create(self, asset: Asset) -> bool:
        """Insert the asset durably. False when its id is there already (nothing is changed then).

        OutcomeUnknown when it may have been inserted all the same; any other DependencyUnavailable: it was not.
        """

    async def begin(self, asset_id: str, user_id: str, job_id: str, *, is_reanalysis: bool = False) -> Asset | None:
        """Acquire the fence for one start of the job: add 1 to it in one atomic step, return the asset with that fence.

        Only if the asset belongs to user_id and is `processing` by job_id; None otherwise.
        is_reanalysis: only if job_id, its last job, has finished it: it keeps its status, and the start is refunded.
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
        is_reanalysis: bool = False,
        seen: Asset | None = None,
    ) -> Asset | None:
        """Commit a result (active or partial) under the fence; return the asset as committed.

        previews: None leaves the previews that there are.
        attempt: added to the asset's attempts, as add_attempt does.
        seen: the asset as the run knows it; while it is unchanged, the answer needs no read.
        None when the asset is not `processing` by job_id with exactly this fence: a newer run exists, or it is gone.
        is_reanalysis: None when it is not finished by job_id with exactly this fence.
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
        """Add an attempt that had no result, while job and fence are these; the last ATTEMPTS_AT_MOST stay."""

    async def correct(self, seen: Asset, corrected: Asset) -> Asset | None:
        """Commit corrections, history and status of `corrected`, a changed copy of `seen`.

        None when the asset's corrections, status or fence have changed since `seen`, or it is gone.
        """

    async def cancel(self, asset_id: str, job_id: str, *, finished_at: datetime) -> Asset | None:
        """Commit `failed` with the error CANCELLED, whatever run of the job is under way, and add 1 to the fence: a
        later commit of that run matches nothing. None when the asset is not `processing` by job_id.
        """

    async def refund_start(self, asset_id: str, job_id: str) -> None:
        """Add 1 to `excused`: a start ended without the job being at fault. Only while `processing` by job_id."""

    async def requeue(self, asset_id: str, user_id: str, job_id: str) -> Asset | None:
        """Make a failed or partial asset `processing` under a new job id; clear result, error and finishedAt; keep the
        fence, refund all starts so far.

        None when it is not that user's, in no such status, or its original was removed.
        """

    async def replace_image(self, asset_id: str, old: ImageName, new: ImageRef) -> Asset | None:
        """Replace an image by another one and return the asset; None when the asset does not name the old one."""

    async def upgrade(self, after: str, *, limit: int, backend_of: BackendOf) -> tuple[int, str | None]:
        """Bring one page of the assets that version 0.1 wrote to the form of today, in order of their ids.

        after: the last id of the page before, "" for the first page.
        backend_of: returns in which storage their images are.
        Returns how many were changed, and the last id of a full page, None at the end. A document that changes at the
        same time, or is damaged, stays as it is; no other field is touched.
        """


class FailByFinish:
    """The `fail` of both stores: a failed asset is a result without values."""

    async def fail(
        self: AssetRuns,
        asset_id: str,
        job_id: str,
        fence: int,
        *,
        error: str,
        finished_at: datetime,
        previews: Mapping[str, ImageRef] | None = None,
    ) -> Asset | None:
        return await self.finish(
            asset_id,
            job_id,
            fence,
            status=AssetStatus.FAILED,
            ai_metadata=AiMetadata(error=error),
            processed=None,
            finished_at=finished_at,
            previews=previews,
        )


class AssetReads(Protocol):
    """Reads of assets, one by one, in pages and by their jobs."""

    async def get(self, asset_id: str) -> Asset | None:
        """Return the asset of any user; None also for a damaged one."""

    async def get_many(self, asset_ids: Collection[str]) -> Sequence[Asset]:
        """Return those of the assets that there are, in any order."""

    async def existing_ids(self, asset_ids: Collection[str]) -> Collection[str]:
        """Return those of the ids that a document has, also a damaged one."""

    async def all_ids(self, *, limit: int, after: str = "") -> Sequence[str]:
        """Return the ids of all documents in their order, those of damaged ones too. after: the last one read.

        For backup, move and verify.
        """

    async def page(
        self,
        user_id: str,
        *,
        status: AssetStatus | None = None,
        category: str | None = None,
        limit: int = 20,
        after: Cursor | None = None,
    ) -> Sequence[Asset]:
        """Return the user's assets, newest first (createdAt, then id, both descending)."""

    async def finished_since(
        self, user_id: str, since: datetime, *, limit: int, after: Cursor | None = None
    ) -> Sequence[Asset]:
        """Return the user's assets with finishedAt >= since, oldest first (finishedAt, then id)."""

    async def unfinished_before(self, before: datetime, *, limit: int, after: Cursor | None = None) -> Sequence[Asset]:
        """Return assets of all users in `processing` with createdAt < before, oldest first (createdAt, then id)."""

    async def unfinished_jobs(self, *, limit: int) -> Sequence[tuple[str, str]]:
        """Return (user_id, job_id) of assets of all users in `processing`, oldest first."""

    async def count_unfinished(self, user_id: str) -> int:
        """Return how many of the user's assets are `processing`."""

    async def jobs(self, wanted: JobFilter, *, limit: int, after: Cursor | None = None) -> JobPage:
        """Return assets of all users, newest first (createdAt, then id, both descending), as far as one call reads.

        after: `next_after` of the page before. A page may hold fewer than limit, or none, and have a next one.
        """

    async def count_jobs(self, wanted: JobFilter) -> Count:
        """Return how many assets are wanted, as far as one call reads."""

    async def failures(self, since: datetime | None = None, until: datetime | None = None) -> Sequence[FailureGroup]:
        """Return the failed assets by kind, the most frequent kind first. since, until: first and last createdAt."""

    async def find_by_job(self, job_id: str) -> Asset | None:
        """Return the asset whose last job that is."""


class AssetRetention(Protocol):
    """The end of assets and of their originals, and how much a user has stored."""

    async def delete(self, asset_id: str, user_id: str, *, finished_before: datetime | None = None) -> Asset | None:
        """Remove the user's asset and return what it was; None when the user has none of that id. A damaged document is
        removed too, and None returned.

        finished_before: only an asset that was finished before that instant and has not run since.
        """

    async def damaged_of(self, user_id: str) -> Sequence[str]:
        """Return the ids of those of the user's documents that cannot be read. Reads a thousand of them at most: for
        a user who has no readable documents any more.
        """

    async def stored_bytes(self, user_id: str) -> int:
        """Return how many bytes of the user's images our storages hold, as far as that is known.

        Reads a few numbers of each of the user's documents.
        """

    async def expired(self, before: datetime, *, limit: int, after: Cursor | None = None) -> Sequence[Asset]:
        """Return finished assets of all users with finishedAt < before, oldest first (finishedAt, then id); archived
        ones are not among them.
        """

    async def originals_before(self, before: datetime, *, limit: int, after: Cursor | None = None) -> Sequence[Asset]:
        """Return those of `expired` that still have their original."""

    async def drop_original(self, asset_id: str, job_id: str) -> Asset | None:
        """Remove the original's name from the asset, not its size and type; return the asset as it is then.

        None when it is not finished by that job, or its original is gone already.
        """

    async def scrub(self) -> None:
        """Remove deleted data from the database's files, as far as this service can."""
