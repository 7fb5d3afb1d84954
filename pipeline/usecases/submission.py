"""Use case: one upload becomes one stored image, one asset and one job.

The insert of the asset is the promise. A failure before it leaves nothing behind, and the client gets an error. A
failure after it is repaired by the reconciler. All ids are made before anything is written, so that every step can be
repeated.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass

import structlog

from pipeline.assets.asset import Asset, AssetStatus, ImageRef, job_data
from pipeline.assets.asset_ids import new_asset_id
from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from pipeline.errors import Conflict, DependencyUnavailable, Forbidden, NotFound, OutcomeUnknown
from pipeline.logs import ThrottledLog
from pipeline.metrics import Metrics
from pipeline.queue.queue import JobQueue
from pipeline.texts import cause_of
from pipeline.tracing import OFF, Tracing
from pipeline.usecases.bounds import Backlog, Quota
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.orphaned_images import OrphanedImages, UnsettledUploads
from pipeline.usecases.storage import ImageStorage
from pipeline.usecases.upload import Identities, Upload

log = structlog.get_logger(__name__)

# An upload is answered within two seconds even while Redis hangs; the reconciler does the rest.
ENQUEUE_SECONDS = 1.3
ORIGINAL_GONE = "Its original is no longer kept"


@dataclass(frozen=True, slots=True)
class SubmissionPolicy:
    """The settings QUEUE_FAIRNESS and DEDUPE_UPLOADS."""

    is_fair: bool = False
    dedupes: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """The client's receipt: which asset, which job."""

    asset_id: str
    job_id: str


class RequestsInFlight:
    """Counts the requests in flight, so that a process that ends can wait for them."""

    def __init__(self) -> None:
        self._is_stopped = False
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count a request while it runs; DependencyUnavailable once `drain` was called."""
        if self._is_stopped:
            raise DependencyUnavailable("The service is shutting down", retry_after_seconds=1)
        self._count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._idle.set()

    async def drain(self, seconds: float) -> None:
        """Refuse new requests; return when none is in flight, at the latest after so many seconds."""
        self._is_stopped = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()


class Submission:
    """Accepts uploads, and gives finished assets a new job."""

    def __init__(
        self,
        store: AssetStore,
        storage: ImageStorage,
        queue: JobQueue,
        metrics: Metrics,
        policy: SubmissionPolicy = SubmissionPolicy(),
        *,
        backlog: Backlog | None = None,
        quota: Quota | None = None,
        orphaned_images: OrphanedImages,
        urls: ImageUrls,
        pool: Executor,
        on_inserted: Callable[[Asset], None] = lambda asset: None,
        on_deferred: Callable[[], None] = lambda: None,
        on_enqueued: Callable[[Asset, str], None] = lambda asset, request_id: None,
        tracing: Tracing = OFF,
    ) -> None:
        """pool: threads in which no plugin runs
        on_inserted: called with a new asset, before it has a job
        on_deferred: called when a job could not be enqueued, so that the reconciler has to enqueue it
        on_enqueued: called with the asset and the request id when its job was enqueued
        """
        self._store = store
        self._storage = storage
        self._queue = queue
        self._metrics = metrics
        self._is_fair = policy.is_fair
        self._orphaned_images = orphaned_images
        self._urls = urls
        self._identities = Identities(store, pool, dedupes=policy.dedupes)
        self._backlog = backlog or Backlog(store, queue, most=0, most_of_user=0)
        self.quota = quota or Quota(store, most_bytes=0)
        self._on_inserted = on_inserted
        self._on_deferred = on_deferred
        self._on_enqueued = on_enqueued
        self._tracing = tracing
        self._throttled_log = ThrottledLog()
        self.unsettled = UnsettledUploads(store, orphaned_images, on_deferred)
        self._requests = RequestsInFlight()

    async def drain(self, seconds: float) -> None:
        """Refuse new requests; return when those in flight are finished, at the latest after so many seconds."""
        await self._requests.drain(seconds)

    async def admit(self, user_id: str, idempotency_key: str | None) -> None:
        """Return when the user may store another photo, or has sent this one before; Forbidden otherwise."""
        try:
            await self.quota.check(user_id)
        except Forbidden:
            if not await self._identities.is_known(user_id, idempotency_key):
                raise

    async def submit(self, upload: Upload) -> Receipt:
        """Store the image, insert the asset as processing, enqueue its job.

        The same Idempotency-Key with the same payload gives the first receipt, also in parallel.
        IdempotencyKeyReused: the key was used with another payload.
        DependencyUnavailable: nothing was accepted, and nothing is left behind.
        """
        with self.in_flight():
            return await self._submit(upload)

    async def _submit(self, upload: Upload) -> Receipt:
        identity = await self._identities.identify(upload)
        while True:
            asset_id = await self._identities.find(identity)
            first = await self._store.get(asset_id) if asset_id else None
            if first is not None:
                self._metrics.uploads.labels("replayed").inc()
                log.info("upload_replayed", assetId=first.id)
                return Receipt(first.id, first.processing_job_id)
            asset = await self._store_image(upload, asset_id or new_asset_id())
            try:
                # Only now: a refused upload must not use up its key, so that the client can correct it and retry.
                claimed_id = await self._identities.claim(identity, asset.id)
            except Exception:
                await self._orphaned_images.discard(asset.image_names)
                raise
            if claimed_id == asset.id:
                return await self._insert(asset, upload.request_id)
            # The same upload came a second time, and that one was faster.
            await self._orphaned_images.discard(asset.image_names)

    async def _store_image(self, upload: Upload, asset_id: str) -> Asset:
        """Store the image and return the asset of the upload. A refused upload raises, and leaves no image."""
        await self._backlog.check(upload.user_id)
        if self._storage.has_upload_filters:
            with upload.facts() as facts:
                await self._storage.validate_upload(facts)
        # Random: of two requests with one key, neither may remove the image of the other.
        public_id = f"{asset_id}/original-{secrets.token_hex(4)}"
        saved = await self._storage.save(public_id, upload.file, upload.image.content_type)
        now = utc_now()
        return Asset(
            id=asset_id,
            user_id=upload.user_id,
            category=upload.category,
            status=AssetStatus.PROCESSING,
            original=ImageRef(
                backend=saved.backend,
                public_id=public_id,
                url=saved.url,
                sha256=upload.sha256,
                bytes=upload.image.bytes,
                width=upload.image.width,
                height=upload.image.height,
                content_type=upload.image.content_type,
            ),
            processing_job_id=self._queue.job_id(asset_id),
            created_at=now,
            updated_at=now,
            claims=upload.claims,
        )

    async def _insert(self, asset: Asset, request_id: str) -> Receipt:
        """Insert the asset: from here on it will be processed."""
        try:
            is_new = await self._store.create(asset)
        except OutcomeUnknown:
            self.unsettled.settle_later(asset)
            raise
        except Exception:
            await self._orphaned_images.discard(asset.image_names)
            raise
        if is_new:
            self._backlog.add(asset.user_id)
            self.quota.add(asset.user_id, asset.original.bytes)
            self._on_inserted(asset)
            # The id may be that of a deleted asset, whose job is completed in Redis.
            await self.enqueue(asset, request_id, revive=True)
        else:
            await self._orphaned_images.discard(asset.image_names)
        self._metrics.uploads.labels("accepted" if is_new else "replayed").inc()
        self._metrics.upload_bytes.inc(asset.original.bytes if is_new else 0)
        log.info("asset_submitted", assetId=asset.id, jobId=asset.processing_job_id, bytes=asset.original.bytes)
        return Receipt(asset.id, asset.processing_job_id)

    async def retry(self, asset_id: str, user_id: str | None, request_id: str) -> Receipt:
        """Give a failed or partial asset a new job; NotFound or Conflict otherwise.

        user_id: of its owner; None: any owner
        """
        with self.in_flight():
            job_id = self._queue.job_id(new_asset_id())
            before = await self._store.get(asset_id)
            if before is None or user_id not in (None, before.user_id):
                raise NotFound("Asset not found")
            if user_id is not None:
                await self._backlog.check(user_id)
            asset = await self._store.requeue(asset_id, before.user_id, job_id)
            if asset is None:
                raise await self._retry_refusal(asset_id)
            self._backlog.add(asset.user_id)
            await self.enqueue(asset, request_id)
            log.info("asset_requeued", assetId=asset.id, jobId=job_id)
            if before.processed is not None:
                self._orphaned_images.discard_later(set(before.image_names) - set(asset.image_names))
            return Receipt(asset.id, job_id)

    async def _retry_refusal(self, asset_id: str) -> NotFound | Conflict:
        """Return why the asset cannot get a new job."""
        current = await self._store.get(asset_id)
        if current is None:
            return NotFound("Asset not found")
        if not current.has_original:
            return Conflict(ORIGINAL_GONE)
        return Conflict(f"Only failed or partial assets can be retried, this one is {current.status.value}")

    def in_flight(self) -> AbstractContextManager[None]:
        """Return a context that `drain` waits for; DependencyUnavailable once `drain` was called."""
        return self._requests.one()

    async def enqueue(self, asset: Asset, request_id: str, *, revive: bool = False) -> None:
        """Enqueue the asset's job, or leave that to the reconciler.

        revive: see JobQueue.enqueue
        """
        job_id, data = asset.processing_job_id, job_data(asset, await self._urls.of_image(asset.original))
        try:
            with self._tracing.enqueue(self._queue.name, job_id, data) as span:
                async with asyncio.timeout(ENQUEUE_SECONDS):
                    await self._queue.enqueue(
                        job_id,
                        data,
                        request_id=request_id,
                        trace_context=span.trace_context,
                        group=asset.user_id if self._is_fair else "",
                        lane=asset.category,
                        revive=revive,
                    )
            self._metrics.of_queue(self._queue.name).jobs_enqueued.inc()
            self._on_enqueued(asset, request_id)
        except (DependencyUnavailable, TimeoutError) as error:
            cause, names = cause_of(error), {"assetId": asset.id, "jobId": asset.processing_job_id}
            self._throttled_log.write(log.warning, "enqueue_deferred", cause, **names, cause=cause)
            self._on_deferred()
