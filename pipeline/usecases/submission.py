"""Use case: one upload becomes one stored image, one asset and one job.

The insert of the asset is the promise. Whatever fails before it leaves nothing behind and the client hears of it;
whatever fails after it is made up for by the reconciler. All ids are made before anything is written, so that every
step can be repeated.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import structlog

from pipeline.assets.asset import Asset, AssetStatus, ImageRef, job_data, new_asset_id
from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from pipeline.delays import retry_delays
from pipeline.errors import Conflict, DependencyUnavailable, Forbidden, NotFound, OutcomeUnknown
from pipeline.logs import ThrottledLog
from pipeline.metrics import Metrics
from pipeline.queue.queue import JobQueue
from pipeline.texts import cause_of
from pipeline.tracing import OFF, Tracing
from pipeline.usecases.backlog import Backlog
from pipeline.usecases.identity import Identities
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.quota import Quota
from pipeline.usecases.orphaned_images import OrphanedImages
from pipeline.usecases.storage import ImageStorage
from pipeline.usecases.upload import Upload

log = structlog.get_logger(__name__)

# An upload is answered within two seconds also while Redis hangs; the reconciler does the rest.
ENQUEUE_SECONDS = 1.3
# How many uploads of unknown outcome are looked after at once, and how often each is asked for.
UNSETTLED_AT_MOST = 1000
SETTLE_SECONDS = (1.0, 30.0)
ORIGINAL_GONE = "Its original is no longer kept"


@dataclass(frozen=True, slots=True)
class SubmissionPolicy:
    """What is refused and what is the same: see the settings QUEUE_FAIRNESS and DEDUPE_UPLOADS."""

    is_fair: bool = False
    dedupes: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the client is told: which asset, which job."""

    asset_id: str
    job_id: str


class Submission:
    """Takes uploads in, runs finished assets again."""

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
        """backlog, quota: None: there are no bounds.
        pool: threads of ours, in which no plugin runs.
        on_inserted: called with an asset that is new, before it has a job.
        on_deferred: called when a job could not be enqueued and the reconciler has to.
        on_enqueued: otherwise.
        """
        self._store = store
        self._storage = storage
        self._queue = queue
        self._metrics = metrics
        self._policy = policy
        self._orphaned_images = orphaned_images
        self._urls = urls
        self._pool = pool
        self._identities = Identities(store, pool, dedupes=policy.dedupes)
        self._backlog = backlog or Backlog(store, queue, most=0, most_of_user=0)
        self.quota = quota or Quota(store, most_bytes=0)
        self._on_inserted = on_inserted
        self._on_deferred = on_deferred
        self._on_enqueued = on_enqueued
        self._tracing = tracing
        self._throttled_log = ThrottledLog()
        # Who look after uploads of unknown outcome; to be cancelled at the end.
        self.unsettled: set[asyncio.Task[None]] = set()
        self._is_stopped = False
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def drain(self, seconds: float) -> None:
        """Take nothing new; return when what is under way is finished, at the latest after so many seconds."""
        self._is_stopped = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    async def admit(self, user_id: str, idempotency_key: str | None) -> None:
        """Return when the user may keep another photo, or has sent this one before; Forbidden otherwise."""
        try:
            await self.quota.check(user_id)
        except Forbidden:
            if not await self._identities.is_known(user_id, idempotency_key):
                raise

    async def submit(self, upload: Upload) -> Receipt:
        """Store the image, insert the asset as processing, enqueue its job.

        The same Idempotency-Key with the same payload gives the first receipt, also in parallel; with another payload
        it raises IdempotencyKeyReused. DependencyUnavailable means that nothing was accepted and nothing is left
        behind.
        """
        with self.taken():
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
                # Only now, so that a key stands for nothing that was refused; the client may mend it and use it again.
                claimed_id = await self._identities.claim(identity, asset.id)
            except Exception:
                await self._orphaned_images.discard(asset.image_names)
                raise
            if claimed_id == asset.id:
                return await self._insert(asset, upload.request_id)
            # The same upload came a second time and was faster.
            await self._orphaned_images.discard(asset.image_names)

    async def _store_image(self, upload: Upload, asset_id: str) -> Asset:
        """Return the asset that the upload becomes, its image stored; what is refused raises and leaves nothing."""
        await self._backlog.check(upload.user_id)
        if self._storage.has_upload_filters:
            with upload.facts() as facts:
                await self._storage.validate_upload(facts)
        # Random, so that two requests with one key never share, and so never remove, an image.
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
        """Make the promise: from here on the asset will be processed."""
        try:
            is_new = await self._store.create(asset)
        except OutcomeUnknown:
            self._settle_later(asset)
            raise
        except Exception:
            await self._orphaned_images.discard(asset.image_names)
            raise
        if is_new:
            self._backlog.add(asset.user_id)
            self.quota.add(asset.user_id, asset.original.bytes)
            self._on_inserted(asset)
            # Its id may have been that of an asset deleted since, whose job Redis remembers as completed.
            await self.enqueue(asset, request_id, revive=True)
        else:
            await self._orphaned_images.discard(asset.image_names)
        self._metrics.uploads.labels("accepted" if is_new else "replayed").inc()
        self._metrics.upload_bytes.inc(asset.original.bytes if is_new else 0)
        log.info("asset_submitted", assetId=asset.id, jobId=asset.processing_job_id, bytes=asset.original.bytes)
        return Receipt(asset.id, asset.processing_job_id)

    async def retry(self, asset_id: str, user_id: str | None, request_id: str) -> Receipt:
        """Give a failed or partial asset a new job; NotFound or Conflict otherwise. user_id: None: whosever it is."""
        with self.taken():
            job_id = self._queue.job_id(new_asset_id())
            before = await self._store.get(asset_id)
            if before is None or user_id not in (None, before.user_id):
                raise NotFound("Asset not found")
            if user_id is not None:
                await self._backlog.check(user_id)
            asset = await self._store.requeue(asset_id, before.user_id, job_id)
            if asset is None:
                raise await self._why_not(asset_id)
            self._backlog.add(asset.user_id)
            await self.enqueue(asset, request_id)
            log.info("asset_requeued", assetId=asset.id, jobId=job_id)
            if before.processed is not None:
                self._orphaned_images.discard_later(set(before.image_names) - set(asset.image_names))
            return Receipt(asset.id, job_id)

    async def _why_not(self, asset_id: str) -> NotFound | Conflict:
        """Return why the asset cannot be run again."""
        current = await self._store.get(asset_id)
        if current is None:
            return NotFound("Asset not found")
        if not current.has_original:
            return Conflict(ORIGINAL_GONE)
        return Conflict(f"Only failed or partial assets can be retried, this one is {current.status.value}")

    @contextmanager
    def taken(self) -> Iterator[None]:
        """What is done inside is waited for by drain; DependencyUnavailable once that has begun."""
        if self._is_stopped:
            raise DependencyUnavailable("The service is shutting down", retry_after_seconds=1)
        self._under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    def _group_of(self, user_id: str) -> str:
        return user_id if self._policy.is_fair else ""

    async def enqueue(self, asset: Asset, request_id: str, *, revive: bool = False) -> None:
        """Give the asset's job to the queue, or leave that to the reconciler. revive: as JobQueue.enqueue has it."""
        job_id, data = asset.processing_job_id, job_data(asset, await self._urls.of_image(asset.original))
        try:
            with self._tracing.enqueue(self._queue.name, job_id, data) as span:
                async with asyncio.timeout(ENQUEUE_SECONDS):
                    await self._queue.enqueue(
                        job_id,
                        data,
                        request_id=request_id,
                        trace_context=span.trace_context,
                        group=self._group_of(asset.user_id),
                        lane=asset.category,
                        revive=revive,
                    )
            self._metrics.of_queue(self._queue.name).jobs_enqueued.inc()
            self._on_enqueued(asset, request_id)
        except (DependencyUnavailable, TimeoutError) as error:
            cause, names = cause_of(error), {"assetId": asset.id, "jobId": asset.processing_job_id}
            self._throttled_log.write(log.warning, "enqueue_deferred", cause, **names, cause=cause)
            self._on_deferred()

    def _settle_later(self, asset: Asset) -> None:
        if len(self.unsettled) >= UNSETTLED_AT_MOST:
            log.warning("image_left_behind", publicId=asset.original.public_id)
            return
        task = asyncio.create_task(self._settle(asset), name=f"settle {asset.id}")
        self.unsettled.add(task)
        task.add_done_callback(self.unsettled.discard)

    async def _settle(self, asset: Asset) -> None:
        """Once the store answers: let the asset be processed if it is there, else remove its image.

        It is not taken back: its client may have asked again with its Idempotency-Key and been told that it stands.
        """
        current = None
        for delay in retry_delays(*SETTLE_SECONDS):
            await asyncio.sleep(delay)
            with suppress(DependencyUnavailable):
                current = await self._store.get(asset.id)
                break
        if current is None or current.original.name != asset.original.name:
            await self._orphaned_images.discard(asset.image_names)
        else:
            self._on_deferred()
