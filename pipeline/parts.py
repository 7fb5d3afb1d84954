"""The parts of one process, made from its settings and handed to each other; none is started here.

What is reached over HTTP comes on top of them: routes.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.assets.asset import Asset
from pipeline.assets.movable import MovableStore
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import AssetStore
from pipeline.clock import CLOCK, utc_now
from pipeline.disk import Disk
from pipeline.hooks import JobEvent
from pipeline.hooks.manager import build_plugins
from pipeline.metrics import Metrics
from pipeline.queue.attempt import MAX_STALLS, RetryPolicy
from pipeline.queue.job import Finish, Job
from pipeline.queue.queue import LONGEST_DELAY_SECONDS, UNKNOWN_OWNER, JobQueue
from pipeline.queue.worker import Worker
from pipeline.rooms.fanout import RoomFanout
from pipeline.rooms.rooms import Rooms
from pipeline.rooms.tickets import Tickets
from pipeline.settings import CLOUDINARY, Fairness, MongoDriver, Role, Settings
from pipeline.supervision import Supervisor
from pipeline.otel import build_tracing
from pipeline.usecases import notifying
from pipeline.usecases.admission import Admission
from pipeline.usecases.ai_usage import AiUsage
from pipeline.usecases.audit import Audit
from pipeline.usecases.budgets import Budgets
from pipeline.usecases.backlog import Backlog
from pipeline.usecases.bulk import Bulk
from pipeline.usecases.busiest import Busiest
from pipeline.usecases.cancelling import Cancelling
from pipeline.usecases.console_frames import ConsoleFrames
from pipeline.usecases.corrections import Corrections
from pipeline.usecases.cleaning import Cleaning
from pipeline.usecases.dead_letters import DeadLetters
from pipeline.usecases.deliveries import Deliveries
from pipeline.usecases.job_events import cancel_event, job_event
from pipeline.usecases.job_lists import JobLists
from pipeline.usecases.dependencies import Dependencies
from pipeline.usecases.erasing import Erasing
from pipeline.usecases.expiry import Expiry
from pipeline.usecases.identity import IDEMPOTENCY_SECONDS
from pipeline.usecases.new_assets import NewAssets
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.job_records import JobRecords, UnfinishedAssets
from pipeline.usecases.orphaned_images import OrphanedImages
from pipeline.usecases.limits import Limit, limits_of
from pipeline.usecases.storage_choice import StorageChoice
from pipeline.usecases.overview import Overview
from pipeline.usecases.picture_check import PictureCheck
from pipeline.usecases.permits import Permits
from pipeline.usecases.plugin_values import PluginValues
from pipeline.usecases.previews import LONGEST_SECONDS, PATIENCE_SECONDS, Previews
from pipeline.usecases.processes import Processes
from pipeline.usecases.processing import Processing
from pipeline.usecases.progress import Progress
from pipeline.usecases.progress_frames import ProgressFrames
from pipeline.usecases.progress_reports import Reports
from pipeline.usecases.quota import Quota
from pipeline.usecases.reanalysis import Reanalysis, Reanalyzing
from pipeline.usecases.reconciler import RECONCILE_AGE_SECONDS, Reconciler, Source
from pipeline.usecases.removing import Jobs, Removing
from pipeline.usecases.replay import Replay
from pipeline.usecases.result_cache import ResultCache
from pipeline.usecases.retention import Sweeper
from pipeline.usecases.submission import Submission, SubmissionPolicy
from pipeline.usecases.storages_in_use import StoragesInUse
from pipeline.usecases.job_statistics import JobStatistics
from pipeline.usecases.undelivered import Undelivered
from pipeline.usecases.upgrade import Upgrade
from pipeline.usecases.users import Users
from pipeline.watchdog import Watchdog

QUEUE_NAME = "ai-processing"
# How the address of an embedded asset store begins; its path follows.
SQLITE = "sqlite:"
# What was delivered is kept so long as the same event may come again: a crash may repeat it.
KEEP_DELIVERED_SECONDS = 3600
LONGEST_NOTIFIER_DELAY_SECONDS = 7200


class Parts:
    """All parts, one attribute each."""

    def __init__(self, settings: Settings, *, owns_redis: bool, on_fatal: Callable[[str], None]) -> None:
        """owns_redis, on_fatal: see App."""
        redis_url = settings.redis_url.get_secret_value()
        self.settings = settings
        self._owns_redis = owns_redis
        self._on_fatal = on_fatal
        self.metrics = Metrics()
        self.metrics.show_build(settings.public_url)
        self.metrics.clock_skew_seconds.set_function(lambda: CLOCK.skew_seconds)
        self.supervisor = Supervisor(
            on_restart=lambda kind: self.metrics.task_restarts.labels(kind).inc(), on_fatal=self._on_fatal
        )
        self.tracing = build_tracing(settings)
        self.rooms = Rooms(max_bytes=settings.outbox_bytes, metrics=self.metrics)
        self.fanout = RoomFanout(
            self.rooms, redis_url, metrics=self.metrics, prefix=settings.queue_prefix, supervisor=self.supervisor
        )
        self.pool = ThreadPoolExecutor(settings.pool_threads, thread_name_prefix="image")
        inspect = PictureCheck(settings, self.pool)
        self.movable_store = build_store(settings, self.supervisor, self.metrics.damaged_assets.inc)
        self.store = self.movable_store.as_asset_store()
        values = partial(PluginValues, self.store)
        self.plugins = build_plugins(settings, self.metrics, self.fanout, self.tracing, inspect, values)
        self.metrics.of_queue(QUEUE_NAME, settings.all_providers)
        self.metrics.of_queue(notifying.QUEUE_NAME, self.plugins.notifiers.durable)
        self.storage_choice = StorageChoice(self.store, self.plugins, settings.storage_name)
        self.image_urls = ImageUrls(self.plugins, settings.media_url_seconds)
        self.replay = Replay(
            self.store,
            self.rooms,
            self.metrics,
            urls=self.image_urls,
            max_bytes=settings.outbox_bytes,
            lease_seconds=settings.lease_seconds,
        )
        self.fanout.on_gap = self.replay.request
        self.admission = Admission(self.rooms, self.replay, settings)
        self.tickets = Tickets(redis_url, prefix=settings.queue_prefix)
        self.audit = Audit(self.store)
        self.deliveries = Deliveries(self.store)
        self._build_queues()
        self.limits = limits_of(settings, self.queue, self.metrics)
        self.job_statistics = JobStatistics(self.store, self.queue)
        self.result_cache = ResultCache(self.store)
        self.budgets = Budgets(
            self.store,
            self.queue,
            per_day=settings.ai_budget_per_day,
            per_user_per_day=settings.ai_budget_per_user_per_day,
            currency=settings.ai_budget_currency,
        )
        self.ai_usage = AiUsage(
            self.queue,
            self.plugins.usage,
            self.budgets,
            currency=settings.ai_budget_currency,
            free=self.plugins.free_providers,
        )
        self.sweeper = Sweeper(self.store, self.plugins, self.queue, self.metrics)
        self.storages_in_use = StoragesInUse(self.store, self.plugins)
        self.upgrade = Upgrade(self.store, self.queue, self.storages_in_use, _unknown_backend(settings))
        self.orphaned_images = OrphanedImages(self.store, self.plugins)
        self.progress = Progress(self.queue, self.plugins.provider_holds.lanes, self.image_urls, self._running)
        self.progress_frames = ProgressFrames(self.store, self.rooms, self.fanout, self.progress)
        self.reports = Reports(self.queue, self.progress_frames.tell, LONGEST_DELAY_SECONDS)
        self.new_assets = NewAssets() if settings.role is not Role.WEB else NewAssets(most=0)
        self.submission = self._make_submission()
        self.dead_letters = DeadLetters(self.store, self.queue, self._job_records, self.submission)
        self.notifying = notifying.Notifying(
            self.plugins.notifiers,
            self.notifications,
            self._notification_records,
            self.metrics,
            self.tracing,
            store=self.store,
            urls=self.image_urls,
            deliveries=self.deliveries,
        )
        self.undelivered = Undelivered(
            self.notifications,
            self._notification_records,
            self.notifying,
            self.deliveries,
            durable=self.plugins.notifiers.durable,
        )
        self.worker = self._make_photo_worker()
        self.workers = [self.worker]
        self.cancelling = self._make_cancelling()
        if self.plugins.notifiers.durable:
            self.workers.append(self._make_notifier_worker())
        self.removing = self._make_removing()
        self.job_lists = JobLists(self.store, self.queue, self.progress, self.image_urls)
        self.reanalysis = Reanalysis(
            self.store,
            self.queue,
            self._job_records,
            providers=settings.all_providers,
            settle=self.dead_letters.remove_failed,
            end_running=self.worker.cancel,
            on_deferred=self.reconciler.request,
        )
        self.bulk = Bulk(
            self.job_lists,
            self.queue,
            self.submission,
            self.dead_letters,
            cancelling=self.cancelling,
            removing=self.removing,
            reanalysis=self.reanalysis,
        )
        self.corrections = Corrections(self.store, self.progress_frames.corrected)
        self.erasing = Erasing(
            self.store,
            self.removing,
            [self.queue, self.notifications],
            audit=self.audit,
            forget_history=self._forget_history,
        )
        kinds = [self._job_records.kind, self._notification_records.kind]
        max_bytes = settings.max_stored_bytes_per_user
        self.users = Users(self.store, self.queue, self.erasing, kinds=kinds, max_bytes=max_bytes)
        self.busiest = Busiest(self.store, self.queue, is_fair=self._is_fair)
        self.expiry = Expiry(
            self.store,
            self.queue,
            self.removing,
            self.orphaned_images,
            self.metrics,
            keep_assets_days=settings.keep_assets_days,
            keep_originals_days=settings.keep_originals_days,
        )
        self.dependencies = self._make_dependencies()
        self.processes = self._make_processes()
        self.overview = self._make_overview()
        self.console_frames = ConsoleFrames(self.rooms, self.overview)
        self.watchdog = Watchdog(self.metrics)

    def _make_dependencies(self) -> Dependencies:
        settings, disk = self.settings, Disk(self.settings.data_dir, self.settings.max_upload_bytes)
        self.metrics.disk_free_bytes.set_function(lambda: disk.free_bytes)
        self.metrics.disk_size_bytes.set_function(lambda: disk.size_bytes)
        has_jobs = settings.role is not Role.WEB
        return Dependencies(
            {
                "store": self.store.check,
                "redis": self.queue.ping,
                **({"queue": self.worker.check} if has_jobs else {}),
                "storage": self.plugins.storages.check,
                "sandbox": self.plugins.check_sandbox,
                "disk": disk.check,
                "clock": CLOCK.check,
                "tasks": self.supervisor.check,
                "rooms": self.fanout.check,
                "process": self.admission.check,
            },
            # The current storage has its place above.
            lambda: [each for each in self.plugins.all if each is not self.plugins.storages.current.storage],
            self.metrics,
            asks_providers=has_jobs,
        )

    def _make_processes(self) -> Processes:
        settings = self.settings
        has_jobs = settings.role is not Role.WEB
        names = (QUEUE_NAME, notifying.QUEUE_NAME)
        return Processes(
            self.queue,
            dict(zip(names, self.workers, strict=False)) if has_jobs else {},
            role=settings.role.value,
            concurrency=settings.concurrency if has_jobs else 0,
            sockets=lambda: len(self.rooms.connections),
            running=self._running,
        )

    def _make_overview(self) -> Overview:
        return Overview(
            queues=[self.queue, *([self.notifications] if self.plugins.notifiers.durable else [])],
            processes=self.processes,
            plugins=self.plugins,
            dependencies=self.dependencies,
            # Asked each time: assets may be moved to a store of the other kind.
            store_kind=lambda: "sqlite" if self.movable_store.uri.startswith(SQLITE) else "mongodb",
            supervisor=self.supervisor,
            owns_redis=self._owns_redis,
            grafana_url=self.settings.grafana_url,
        )

    def _make_submission(self) -> Submission:
        settings = self.settings
        return Submission(
            self.store,
            self.plugins,
            self.queue,
            self.metrics,
            SubmissionPolicy(self._is_fair, settings.dedupe_uploads),
            backlog=Backlog(
                self.store,
                self.queue,
                most=settings.max_backlog,
                most_of_user=settings.max_backlog_per_user,
                on_refused=partial(self.limits.refused, Limit.BACKLOG),
            ),
            quota=Quota(
                self.store,
                most_bytes=settings.max_stored_bytes_per_user,
                on_refused=partial(self.limits.refused, Limit.STORED_BYTES),
            ),
            orphaned_images=self.orphaned_images,
            urls=self.image_urls,
            pool=self.pool,
            on_deferred=self._enqueue_later,
            on_inserted=self.new_assets.add,
            on_enqueued=self._observe_enqueued,
            tracing=self.tracing,
        )

    def _make_cancelling(self) -> Cancelling:
        return Cancelling(
            self.store,
            self.queue,
            self.notifying,
            self._job_records,
            self.metrics,
            submission=self.submission,
            is_published=lambda asset_id: self.fanout.unpublished(asset_id) is None,
            end_running=self._end_run,
            on_ended=lambda asset, request_id: self.plugins.observe("job_finished", cancel_event(asset, request_id)),
        )

    def _make_removing(self) -> Removing:
        end_delivery = self.workers[-1].cancel if self.plugins.notifiers.durable else lambda job_id: None
        return Removing(
            self.store,
            self.orphaned_images,
            Jobs(self.queue, self._job_records, self._end_run),
            Jobs(self.notifications, self._notification_records, end_delivery),
            on_deleted=self.progress_frames.deleted,
        )

    def _end_run(self, job_id: str) -> None:
        self.new_assets.drop(job_id)
        self.worker.cancel(job_id)

    def _redis_is_back(self) -> None:
        # What was cancelled or deleted meanwhile may still be in line.
        self.new_assets.clear()
        self.reconciler.request()

    async def _forget_history(self) -> None:
        if self._owns_redis:
            await self.queue.forget_history()

    def _make_photo_worker(self) -> Worker:
        settings = self.settings
        processing = Processing(
            self.store,
            self.plugins,
            self.notifying,
            self._job_records,
            self.metrics,
            orphaned_images=self.orphaned_images,
            urls=self.image_urls,
            previews=Previews(
                self.plugins,
                self.plugins.sandbox if settings.preview_processes else None,
                self.metrics,
                # A part of the job's time: a job must not fail over its previews.
                seconds=min(LONGEST_SECONDS, settings.job_timeout_seconds / 6),
                patience_seconds=min(PATIENCE_SECONDS, settings.job_timeout_seconds / 24),
            ),
            cleaning=Cleaning(self.pool, keeps_metadata=settings.keep_metadata),
            new_assets=self.new_assets,
            provider_timeout_seconds=settings.provider_timeout_seconds,
            max_starts=settings.job_attempts + MAX_STALLS,
            listener=self.reports.analysis,
            permit=self._make_permits().of,
            on_end=self.job_statistics.count_end,
            tracing=self.tracing,
        )
        reanalyzing = Reanalyzing(
            self.store,
            processing,
            self._job_records,
            self.metrics,
            orphaned_images=self.orphaned_images,
            settle=self.dead_letters.remove_failed,
        )
        return Worker(
            self.queue,
            reanalyzing,
            RetryPolicy(
                attempts=settings.job_attempts,
                backoff_ms=settings.backoff_ms,
                timeout_seconds=settings.job_timeout_seconds,
                max_age_seconds=settings.job_max_age_seconds,
            ),
            self.metrics,
            supervisor=self.supervisor,
            holds=self.plugins.provider_holds,
            concurrency=settings.concurrency if settings.role is not Role.WEB else 0,
            lease_seconds=settings.lease_seconds,
            on_reconnect=self._redis_is_back,
            on_unowned=self.reconciler.request,
            on_start=self._observe_start,
            on_finish=self._observe_finish,
            unpublished=lambda job: self.fanout.unpublished(str(job.data.get("assetId", ""))),
            tracing=self.tracing,
        )

    def _make_permits(self) -> Permits:
        budgets = self.budgets if self.budgets.is_set else None
        asked_later = {name for names in self.plugins.provider_behind.values() for name in names}
        return Permits(
            self.queue,
            self.plugins.provider_paces,
            budgets,
            self.plugins.free_providers,
            self.result_cache if self.settings.ai_cache else None,
            self.plugins.provider_versions,
            self.result_cache if asked_later & set(self.plugins.provider_paces) else None,
        )

    def _build_queues(self) -> None:
        settings = self.settings
        self._is_fair = settings.queue_fairness is Fairness.USER
        self.queue = self._make_queue(
            QUEUE_NAME,
            keep_completed_seconds=settings.keep_completed_seconds,
            lanes=self.plugins.provider_holds.lanes,
            paces=self.plugins.provider_paces,
            behind=self.plugins.provider_behind,
        )
        self.notifications = self._make_queue(
            notifying.QUEUE_NAME,
            keep_completed_seconds=KEEP_DELIVERED_SECONDS,
            longest_delay_seconds=LONGEST_NOTIFIER_DELAY_SECONDS,
            lanes=self.plugins.notifiers.holds.lanes,
        )
        self._job_records, self._notification_records = map(self._make_job_records, (self.queue, self.notifications))
        unfinished = UnfinishedAssets(
            self.store, self.queue, self.image_urls, age_seconds=RECONCILE_AGE_SECONDS, is_fair=self._is_fair
        )
        self.reconciler = self._make_reconciler(self.queue, [unfinished, self._job_records], self._purge)
        self.notification_reconciler = self._make_reconciler(
            self.notifications, [self._notification_records], self._notification_records.purge, after=self.queue
        )

    def _make_queue(self, name: str, **options: Any) -> JobQueue:
        settings = self.settings
        return JobQueue(
            settings.redis_url.get_secret_value(),
            name=name,
            prefix=settings.queue_prefix,
            lease_seconds=settings.lease_seconds,
            keep_failed_seconds=settings.keep_failed_seconds,
            max_age_seconds=settings.job_max_age_seconds,
            # Until the reconciler has asked the store for its id, nothing is claimed.
            owner=UNKNOWN_OWNER,
            **options,
        )

    def _make_job_records(self, queue: JobQueue) -> JobRecords:
        return JobRecords(
            self.store,
            queue,
            keep_failed_seconds=self.settings.keep_failed_seconds,
            max_age_seconds=self.settings.job_max_age_seconds,
        )

    def _make_reconciler(
        self,
        queue: JobQueue,
        sources: Sequence[Source],
        purge: Callable[[], Awaitable[None]],
        after: JobQueue | None = None,
    ) -> Reconciler:
        return Reconciler(
            self.store,
            queue,
            sources,
            self.metrics,
            purge=purge,
            owns_redis=self._owns_redis,
            on_foreign=self._on_fatal,
            after=after,
        )

    async def _purge(self) -> None:
        await self.store.purge_keys(utc_now() - timedelta(seconds=IDEMPOTENCY_SECONDS))
        await self._job_records.purge()
        for records in (self.job_statistics, self.audit, self.deliveries, self.budgets, self.result_cache):
            await records.purge()

    def _make_notifier_worker(self) -> Worker:
        settings = self.settings
        return Worker(
            self.notifications,
            self.notifying,
            RetryPolicy(
                attempts=notifying.ATTEMPTS,
                backoff_ms=notifying.BACKOFF_MS,
                timeout_seconds=self.plugins.notifiers.longest_seconds + 1,
                max_age_seconds=settings.job_max_age_seconds,
            ),
            self.metrics,
            supervisor=self.supervisor,
            on_reconnect=self.notification_reconciler.request,
            on_unowned=self.notification_reconciler.request,
            holds=self.plugins.notifiers.holds,
            concurrency=self.plugins.notifiers.slots if settings.role is not Role.WEB else 0,
            lease_seconds=settings.lease_seconds,
            tracing=self.tracing,
        )

    def _running(self, job_id: str) -> Mapping[str, Any] | None:
        return self.reports.running(job_id)

    def _enqueue_later(self) -> None:
        self.job_statistics.count_enqueued()
        self.reconciler.request()

    def _observe_start(self, job: Job) -> None:
        self.job_statistics.count_start(job)
        self.plugins.observe("job_started", job_event(job))

    def _observe_enqueued(self, asset: Asset, request_id: str) -> None:
        self.job_statistics.count_enqueued()
        self.progress_frames.queued(asset, elsewhere=self.queue.is_watched)
        self.plugins.observe(
            "job_enqueued",
            JobEvent(asset.processing_job_id, asset.id, asset.user_id, asset.category, request_id, utc_now()),
        )

    def _observe_finish(self, finish: Finish, seconds: float) -> None:
        self.job_statistics.count_attempt(finish, seconds)
        self.reports.retrying(finish)
        event = job_event(finish.job, finish, seconds)
        self.plugins.observe("job_finished" if event.outcome else "job_retrying", event)


def _unknown_backend(settings: Settings) -> str:
    """Return which storage a version 0.1 kept images in whose URL tells nothing: one of the few it could have."""
    built_in = {*CLOUDINARY, "local", "object"}
    is_object = settings.is_given("object", "url") or settings.storage_name in built_in
    return "object" if is_object else settings.storage_name


def build_store(
    settings: Settings, supervisor: Supervisor | None = None, on_damaged: Callable[[], None] = lambda: None
) -> MovableStore:
    """Return the store of assets that the settings name, not open yet. on_damaged: see pipeline/assets/reading.py."""

    def opener(uri: str) -> AssetStore:
        return open_store(uri, supervisor, on_damaged, driver=settings.mongodb_driver)

    uri = settings.mongodb_uri.get_secret_value() or embedded_store(settings)
    return MovableStore(opener(uri), uri, opener)


def embedded_store(settings: Settings) -> str:
    """Return the address of the embedded asset store."""
    return f"{SQLITE}{settings.data_dir.resolve() / 'assets.sqlite'}"


def open_store(
    uri: str,
    supervisor: Supervisor | None = None,
    on_damaged: Callable[[], None] = lambda: None,
    *,
    driver: str = MongoDriver.PYMONGO,
) -> AssetStore:
    """Return the store of that address, sqlite:PATH or one of MongoDB's, not open yet."""
    if uri.startswith(SQLITE):
        return SqliteAssetStore(Path(uri.removeprefix(SQLITE)), supervisor, on_damaged)
    from pipeline.assets.mongo import MongoAssetStore

    return MongoAssetStore(uri, on_damaged=on_damaged, driver=driver)
