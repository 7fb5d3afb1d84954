"""From an upload to a result and its event: submission, processing, notifying, and the workers that run the jobs."""

from __future__ import annotations

from functools import partial

from pipeline.assets.asset import Asset
from pipeline.clock import utc_now
from pipeline.hooks import JobEvent
from pipeline.parts.assets import AssetParts
from pipeline.parts.base import BaseParts
from pipeline.parts.live import LiveParts
from pipeline.parts.queues import QueueParts
from pipeline.parts.records import RecordParts
from pipeline.parts.rooms import RoomParts
from pipeline.queue.attempt import MAX_STALLS, RetryPolicy
from pipeline.queue.job import Finish, Job
from pipeline.queue.worker import Worker
from pipeline.usecases import notifying
from pipeline.usecases.analysis import PhotoAnalysis
from pipeline.usecases.bounds import Backlog, Quota
from pipeline.usecases.cleaning import Cleaning
from pipeline.usecases.dead_letters import DeadLetters
from pipeline.usecases.job_events import job_event
from pipeline.usecases.limits import Limit
from pipeline.usecases.new_assets import NewAssets
from pipeline.usecases.permits import Permits
from pipeline.usecases.previews import LONGEST_SECONDS, MAX_WAIT_SECONDS, Previews
from pipeline.usecases.processing import Processing
from pipeline.usecases.reanalysis import Reanalyzing
from pipeline.usecases.submission import Submission, SubmissionPolicy
from pipeline.usecases.undelivered import Undelivered


class WorkParts:
    """The parts of the two stories, an upload and a job.

    worker: runs the jobs of photos.
    workers: that one and, with durable notifiers, the one that delivers events.
    """

    def __init__(
        self,
        base: BaseParts,
        rooms: RoomParts,
        assets: AssetParts,
        queues: QueueParts,
        records: RecordParts,
        live: LiveParts,
    ) -> None:
        self._base, self._rooms, self._assets = base, rooms, assets
        self._queues, self._records, self._live = queues, records, live
        notifiers = assets.plugins.notifiers
        self.new_assets = NewAssets() if base.has_jobs else NewAssets(most=0)
        self.submission = self._make_submission()
        self.dead_letters = DeadLetters(assets.store, queues.photos, queues.job_records, self.submission)
        self.notifying = notifying.Notifying(
            notifiers,
            queues.notifications,
            queues.notification_records,
            base.metrics,
            base.tracing,
            store=assets.store,
            urls=assets.image_urls,
            deliveries=records.deliveries,
        )
        self.undelivered = Undelivered(
            queues.notifications,
            queues.notification_records,
            self.notifying,
            records.deliveries,
            durable=notifiers.durable,
        )
        self.worker = self._make_photo_worker(self._make_processing())
        self.workers = [self.worker, *([self._make_notifier_worker()] if notifiers.durable else [])]

    def _make_submission(self) -> Submission:
        settings, store, queue = self._base.settings, self._assets.store, self._queues.photos
        refused = self._records.limits.count_refusal
        return Submission(
            store,
            self._assets.plugins,
            queue,
            self._base.metrics,
            SubmissionPolicy(self._base.is_fair, settings.dedupe_uploads),
            backlog=Backlog(
                store,
                queue,
                most=settings.max_backlog,
                most_of_user=settings.max_backlog_per_user,
                on_refused=partial(refused, Limit.BACKLOG),
            ),
            quota=Quota(
                store,
                most_bytes=settings.max_stored_bytes_per_user,
                on_refused=partial(refused, Limit.STORED_BYTES),
            ),
            orphaned_images=self._assets.orphaned_images,
            urls=self._assets.image_urls,
            pool=self._base.pool,
            on_deferred=self._enqueue_later,
            on_inserted=self.new_assets.add,
            on_enqueued=self._observe_enqueued,
            tracing=self._base.tracing,
        )

    def _make_analysis(self) -> PhotoAnalysis:
        settings, assets = self._base.settings, self._assets
        return PhotoAnalysis(
            assets.store,
            assets.plugins,
            urls=assets.image_urls,
            previews=Previews(
                assets.plugins,
                assets.plugins.sandbox if settings.preview_processes else None,
                self._base.metrics,
                # A fraction of the job's time: previews must not make a job fail.
                seconds=min(LONGEST_SECONDS, settings.job_timeout_seconds / 6),
                wait_seconds=min(MAX_WAIT_SECONDS, settings.job_timeout_seconds / 24),
            ),
            cleaning=Cleaning(self._base.pool, keeps_metadata=settings.keep_metadata),
            provider_timeout_seconds=settings.provider_timeout_seconds,
            listener=self._live.reports.analysis,
            permit=self._make_permits().of,
        )

    def _make_processing(self) -> Processing:
        return Processing(
            self._assets.store,
            self._make_analysis(),
            self.notifying,
            self._queues.job_records,
            self._base.metrics,
            orphaned_images=self._assets.orphaned_images,
            urls=self._assets.image_urls,
            new_assets=self.new_assets,
            max_starts=self._base.settings.job_attempts + MAX_STALLS,
            on_end=self._records.job_statistics.count_end,
            tracing=self._base.tracing,
        )

    def _make_permits(self) -> Permits:
        plugins, records = self._assets.plugins, self._records
        asked_later = {name for names in plugins.later_providers.values() for name in names}
        return Permits(
            self._queues.photos,
            plugins.provider_paces,
            records.budgets if records.budgets.is_set else None,
            plugins.free_providers,
            records.result_cache if self._base.settings.ai_cache else None,
            plugins.provider_versions,
            records.result_cache if asked_later & set(plugins.provider_paces) else None,
        )

    def _make_photo_worker(self, processing: Processing) -> Worker:
        settings, fanout = self._base.settings, self._rooms.fanout
        reanalyzing = Reanalyzing(
            self._assets.store,
            processing,
            self._queues.job_records,
            self._base.metrics,
            orphaned_images=self._assets.orphaned_images,
            settle=self.dead_letters.remove_failed,
        )
        return Worker(
            self._queues.photos,
            reanalyzing,
            RetryPolicy(
                attempts=settings.job_attempts,
                backoff_ms=settings.backoff_ms,
                timeout_seconds=settings.job_timeout_seconds,
                max_age_seconds=settings.job_max_age_seconds,
            ),
            self._base.metrics,
            supervisor=self._base.supervisor,
            holds=self._assets.plugins.provider_holds,
            concurrency=settings.concurrency if self._base.has_jobs else 0,
            lease_seconds=settings.lease_seconds,
            on_reconnect=self._redis_is_back,
            on_unowned=self._queues.reconciler.request,
            on_start=self._observe_start,
            on_finish=self._observe_finish,
            unpublished=lambda job: fanout.unpublished(str(job.data.get("assetId", ""))),
            tracing=self._base.tracing,
        )

    def _make_notifier_worker(self) -> Worker:
        settings, notifiers = self._base.settings, self._assets.plugins.notifiers
        return Worker(
            self._queues.notifications,
            self.notifying,
            RetryPolicy(
                attempts=notifying.ATTEMPTS,
                backoff_ms=notifying.BACKOFF_MS,
                timeout_seconds=notifiers.longest_seconds + 1,
                max_age_seconds=settings.job_max_age_seconds,
            ),
            self._base.metrics,
            supervisor=self._base.supervisor,
            on_reconnect=self._queues.notification_reconciler.request,
            on_unowned=self._queues.notification_reconciler.request,
            holds=notifiers.holds,
            concurrency=notifiers.slots if self._base.has_jobs else 0,
            lease_seconds=settings.lease_seconds,
            tracing=self._base.tracing,
        )

    def end_run(self, job_id: str) -> None:
        """End the attempt of a job of a photo, if it runs in this process."""
        self.new_assets.drop(job_id)
        self.worker.cancel(job_id)

    def _redis_is_back(self) -> None:
        # Assets in memory may have been cancelled or deleted meanwhile.
        self.new_assets.clear()
        self._queues.reconciler.request()

    def _enqueue_later(self) -> None:
        self._records.job_statistics.count_enqueued()
        self._queues.reconciler.request()

    def _observe_enqueued(self, asset: Asset, request_id: str) -> None:
        self._records.job_statistics.count_enqueued()
        self._live.progress_frames.queued(asset, elsewhere=self._queues.photos.is_watched)
        self._assets.plugins.observe(
            "job_enqueued",
            JobEvent(asset.processing_job_id, asset.id, asset.user_id, asset.category, request_id, utc_now()),
        )

    def _observe_start(self, job: Job) -> None:
        self._records.job_statistics.count_start(job)
        self._assets.plugins.observe("job_started", job_event(job))

    def _observe_finish(self, finish: Finish, seconds: float) -> None:
        self._records.job_statistics.count_attempt(finish, seconds)
        self._live.reports.retrying(finish)
        event = job_event(finish.job, finish, seconds)
        self._assets.plugins.observe("job_finished" if event.outcome else "job_retrying", event)
