"""Use case: an asset is removed, with everything that belongs to it.

That is its document, its images in all storages, its Idempotency-Keys, its jobs and dead letters of both queues in
Redis and in the asset store, and its events that are not delivered yet. When the owner deletes the asset, its document
is removed first: without it nothing of the asset is shown. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from pipeline.assets.asset import Asset
from pipeline.assets.store import AssetStore, Record
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, NotFound
from pipeline.queue.job import JobState
from pipeline.queue.queue import JobQueue
from pipeline.texts import cause_of
from pipeline.usecases.deliveries import Deliveries, delivery_ids
from pipeline.usecases.job_records import JobRecords
from pipeline.usecases.orphaned_images import OrphanedImages

log = structlog.get_logger(__name__)

# A delete that removed nothing, although the asset is there, is repeated so often; the delay grows by this.
DELETE_AT_MOST = 5
DELETE_RETRY_SECONDS = 0.05
# A delete is answered within two seconds even while Redis hangs.
QUEUE_SECONDS = 1.0
# The kind of records of jobs that could not be removed while Redis was away. Their id is the asset's id.
KIND = "jobs of a deleted asset"


@dataclass(frozen=True, slots=True)
class QueueJobs:
    """A queue, the records of its jobs, and the function that ends a job if it runs on this process."""

    queue: JobQueue
    records: JobRecords
    end_running: Callable[[str], None] = lambda job_id: None


class Removing:
    """Removes assets."""

    def __init__(
        self,
        store: AssetStore,
        orphaned_images: OrphanedImages,
        photos: QueueJobs,
        notifications: QueueJobs,
        on_deleted: Callable[[Asset], None] = lambda asset: None,
    ) -> None:
        """on_deleted: called with each deleted asset"""
        self._deliveries = Deliveries(store)
        self._store = store
        self._orphaned_images = orphaned_images
        self._photos = photos
        self._queues = (photos, notifications)
        self._on_deleted = on_deleted

    async def delete(self, asset_id: str, user_id: str | None) -> None:
        """Remove the asset and end its job; what cannot be removed now, except the document, is removed later.

        user_id: of its owner; None: any owner
        NotFound: the user has no such asset. DependencyUnavailable: the asset may still be there.
        """
        asset = await self._store.get(asset_id)
        if asset is None or user_id not in (None, asset.user_id):
            raise NotFound("Asset not found")
        # Before the document is removed: after that, an upload that has begun may use its id again.
        stored = await self._orphaned_images.images_of(asset.id, asset.image_names)
        records = await self._store.records_of(asset.user_id, asset.id)
        try:
            removed = await self._remove(asset)
        except DependencyUnavailable:
            # The asset may be removed, and only the answer lost.
            self._orphaned_images.discard_later(stored)
            raise
        await self._forget(removed, records)
        await self._orphaned_images.discard(stored.union(removed.image_names))
        log.info("asset_deleted", assetId=asset_id)

    async def expire(self, asset: Asset, before: datetime) -> bool:
        """Remove the asset if it was finished before that instant and has no new job; return whether it was removed.

        DependencyUnavailable when its document could not be removed.
        """
        stored = await self._orphaned_images.images_of(asset.id, asset.image_names)
        records = await self._store.records_of(asset.user_id, asset.id)
        removed = await self._store.delete(asset.id, asset.user_id, finished_before=before)
        if removed is None:
            return False
        await self._forget(removed, records)
        await self._orphaned_images.discard(stored.union(removed.image_names))
        return True

    async def erase(self, asset: Asset) -> tuple[int, Collection[str]]:
        """Remove the asset, its images first; return how many images, and which of its jobs still run.

        DependencyUnavailable: something could not be removed; the document stays, so that the call can be repeated.
        """
        stored = await self._orphaned_images.images_of(asset.id, asset.image_names, insists=True)
        await self._orphaned_images.remove(stored)
        records = await self._store.records_of(asset.user_id, asset.id)
        running = await self.forget_jobs(records, self._first_jobs(asset.id, asset.processing_job_id))
        await self._deliveries.forget(*delivery_ids(records))
        removed = await self._remove(asset)
        await self._store.discard_keys(asset.id)
        self._on_deleted(removed)
        # A run may have added an image meanwhile.
        await self._orphaned_images.discard(set(removed.image_names) - stored)
        return len(stored), running

    async def erase_damaged(self, asset_id: str, user_id: str) -> int:
        """Remove an asset whose document cannot be read, and its images; return how many images."""
        stored = await self._orphaned_images.images_of(asset_id, insists=True)
        await self._orphaned_images.remove(stored)
        await self.forget_jobs([], self._first_jobs(asset_id))
        await self._store.delete(asset_id, user_id)
        await self._store.discard_keys(asset_id)
        return len(stored)

    async def records_of(self, user_id: str) -> Sequence[Record]:
        """Return the records about the user, those without a user_id included."""
        records = [*await self._store.records_of(user_id)]
        for jobs in self._queues:
            records += await jobs.records.unnamed_of(user_id)
        return records

    async def forget_jobs(self, records: Sequence[Record], job_ids: Iterable[str] = ()) -> Collection[str]:
        """Remove the jobs and dead letters of these records, and those of the photos' queue with these ids.

        Returns the ids of the running jobs: their workers end them within seconds.
        """
        running = set()
        for jobs in self._queues:
            ids = {*jobs.records.ids_in(records), *(job_ids if jobs is self._photos else ())}
            if not ids:
                continue
            # The store first: a job that is still in the store would be restored.
            await jobs.records.forget(*ids)
            await jobs.queue.remove_failed(*ids)
            for job_id in ids:
                if await jobs.queue.cancel(job_id) is JobState.ACTIVE:
                    jobs.end_running(job_id)
                    running.add(job_id)
        return running

    async def retry(self) -> None:
        """Remove the jobs of deleted assets that could not be removed while Redis was away."""
        for record in await self._store.records(KIND, limit=1000):
            await self.forget_jobs([], record.data.get("photos", ()))
            notifications = record.data.get("notifications", ())
            await self._queues[1].queue.remove_failed(*notifications)
            for job_id in notifications:
                await self._queues[1].queue.cancel(job_id)
            await self._store.delete_records(KIND, record.id)

    async def _remove(self, asset: Asset) -> Asset:
        """Remove the document until it is certainly gone; return the asset as it was last."""
        for attempt in range(DELETE_AT_MOST):
            await asyncio.sleep(DELETE_RETRY_SECONDS * attempt)
            removed = await self._store.delete(asset.id, asset.user_id)
            # DocumentDB misses a document that is changed at the same moment, so its answer alone is no proof.
            current = None if removed else await self._store.get(asset.id)
            if current is None or current.user_id != asset.user_id:
                return removed or asset
            asset = current
        raise DependencyUnavailable("The asset could not be removed", retry_after_seconds=1)

    async def _forget(self, asset: Asset, records: Sequence[Record]) -> None:
        """Remove keys and jobs of a deleted asset; those that cannot be removed now are removed later."""
        self._on_deleted(asset)
        photos = self._first_jobs(asset.id, asset.processing_job_id)
        try:
            await self._store.discard_keys(asset.id)
            # A run may have ended, and sent its event, before the document was removed.
            records = [*records, *await self._store.records_of(asset.user_id, asset.id)]
            await self._deliveries.forget(*delivery_ids(records))
            async with asyncio.timeout(QUEUE_SECONDS):
                await self.forget_jobs(records, photos)
        except (DependencyUnavailable, TimeoutError) as error:
            log.warning("jobs_left_behind", assetId=asset.id, cause=cause_of(error))
            photos |= {*self._photos.records.ids_in(records)}
            data = {"photos": sorted(photos), "notifications": self._queues[1].records.ids_in(records)}
            try:
                await self._store.put_record(Record(KIND, asset.id, utc_now(), data))
            except DependencyUnavailable:
                log.warning("jobs_not_noted", assetId=asset.id)

    def _first_jobs(self, asset_id: str, *others: str) -> set[str]:
        # The id of an asset's first job contains the asset's id.
        return {self._photos.queue.job_id(asset_id), *others}
