"""The two queues in Redis, of photos and of notifications, with the records of their jobs and their reconcilers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

from pipeline.clock import utc_now
from pipeline.parts.assets import AssetParts
from pipeline.parts.base import BaseParts
from pipeline.queue.queue import UNKNOWN_OWNER, JobQueue
from pipeline.usecases import notifying
from pipeline.usecases.upload import IDEMPOTENCY_SECONDS
from pipeline.usecases.job_records import JobRecords, UnfinishedAssets
from pipeline.usecases.reconciler import RECONCILE_AGE_SECONDS, Reconciler, Source

QUEUE_NAME = "ai-processing"
# How long delivered notifications are known: after a crash the same event may come a second time.
KEEP_DELIVERED_SECONDS = 3600
LONGEST_NOTIFIER_DELAY_SECONDS = 7200


class QueueParts:
    """photos: the queue of photos; notifications: that of events for durable notifiers; and what belongs to them."""

    def __init__(self, base: BaseParts, assets: AssetParts, *, purge: Callable[[], Awaitable[None]]) -> None:
        """purge: deletes other records at the end of their retention."""
        self._base = base
        self._store = assets.store
        self._purge_records = purge
        plugins = assets.plugins
        base.metrics.of_queue(QUEUE_NAME, base.settings.all_providers)
        base.metrics.of_queue(notifying.QUEUE_NAME, plugins.notifiers.durable)
        self.photos = self._make_queue(
            QUEUE_NAME,
            keep_completed_seconds=base.settings.keep_completed_seconds,
            lanes=plugins.provider_holds.lanes,
            paces=plugins.provider_paces,
            behind=plugins.later_providers,
        )
        self.notifications = self._make_queue(
            notifying.QUEUE_NAME,
            keep_completed_seconds=KEEP_DELIVERED_SECONDS,
            longest_delay_seconds=LONGEST_NOTIFIER_DELAY_SECONDS,
            lanes=plugins.notifiers.holds.lanes,
        )
        # The queues that operators see.
        self.shown = [self.photos, *([self.notifications] if plugins.notifiers.durable else [])]
        self.job_records = self._make_records(self.photos)
        self.notification_records = self._make_records(self.notifications)
        unfinished = UnfinishedAssets(
            self._store, self.photos, assets.image_urls, age_seconds=RECONCILE_AGE_SECONDS, is_fair=base.is_fair
        )
        self.reconciler = self._make_reconciler(self.photos, [unfinished, self.job_records], self._purge)
        self.notification_reconciler = self._make_reconciler(
            self.notifications, [self.notification_records], self.notification_records.purge, after=self.photos
        )

    def _make_queue(self, name: str, **options: Any) -> JobQueue:
        settings = self._base.settings
        return JobQueue(
            self._base.redis_url,
            name=name,
            prefix=settings.queue_prefix,
            lease_seconds=settings.lease_seconds,
            keep_failed_seconds=settings.keep_failed_seconds,
            max_age_seconds=settings.job_max_age_seconds,
            # Nothing is claimed before the reconciler has read the id of the asset store.
            owner=UNKNOWN_OWNER,
            **options,
        )

    def _make_records(self, queue: JobQueue) -> JobRecords:
        settings = self._base.settings
        return JobRecords(
            self._store,
            queue,
            keep_failed_seconds=settings.keep_failed_seconds,
            max_age_seconds=settings.job_max_age_seconds,
        )

    def _make_reconciler(
        self,
        queue: JobQueue,
        sources: Sequence[Source],
        purge: Callable[[], Awaitable[None]],
        after: JobQueue | None = None,
    ) -> Reconciler:
        return Reconciler(
            self._store,
            queue,
            sources,
            self._base.metrics,
            purge=purge,
            owns_redis=self._base.owns_redis,
            on_foreign=self._base.on_fatal,
            after=after,
        )

    async def _purge(self) -> None:
        await self._store.purge_keys(utc_now() - timedelta(seconds=IDEMPOTENCY_SECONDS))
        await self.job_records.purge()
        await self._purge_records()
