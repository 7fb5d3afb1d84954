"""Changes that users and operators make: cancel, delete, reanalyze, correct, erase; and what retention deletes."""

from __future__ import annotations

from pipeline.parts.assets import AssetParts
from pipeline.parts.base import BaseParts
from pipeline.parts.live import LiveParts
from pipeline.parts.queues import QueueParts
from pipeline.parts.records import RecordParts
from pipeline.parts.rooms import RoomParts
from pipeline.parts.work import WorkParts
from pipeline.usecases.bulk import Bulk
from pipeline.usecases.cancelling import Cancelling
from pipeline.usecases.corrections import Corrections
from pipeline.usecases.erasing import Erasing
from pipeline.usecases.expiry import Expiry
from pipeline.usecases.job_events import cancel_event
from pipeline.usecases.job_lists import JobLists
from pipeline.usecases.reanalysis import Reanalysis
from pipeline.usecases.removing import QueueJobs, Removing
from pipeline.usecases.retention import Sweeper


class ChangeParts:
    """The parts behind the actions on assets and jobs."""

    def __init__(
        self,
        base: BaseParts,
        rooms: RoomParts,
        assets: AssetParts,
        queues: QueueParts,
        records: RecordParts,
        live: LiveParts,
        work: WorkParts,
    ) -> None:
        self._base, self._rooms, self._assets = base, rooms, assets
        self._queues, self._records, self._live, self._work = queues, records, live, work
        self.job_lists = JobLists(assets.store, queues.photos, live.progress, assets.image_urls)
        self.corrections = Corrections(assets.store, live.progress_frames.corrected)
        self.cancelling = self._make_cancelling()
        self.removing = self._make_removing()
        self.reanalysis = Reanalysis(
            assets.store,
            queues.photos,
            queues.job_records,
            providers=base.settings.all_providers,
            settle=work.dead_letters.remove_failed,
            end_running=work.worker.cancel,
            on_deferred=queues.reconciler.request,
        )
        self.bulk = Bulk(
            self.job_lists,
            queues.photos,
            work.submission,
            work.dead_letters,
            cancelling=self.cancelling,
            removing=self.removing,
            reanalysis=self.reanalysis,
        )
        self._make_deletions()

    def _make_cancelling(self) -> Cancelling:
        plugins, fanout = self._assets.plugins, self._rooms.fanout
        return Cancelling(
            self._assets.store,
            self._queues.photos,
            self._work.notifying,
            self._queues.job_records,
            self._base.metrics,
            submission=self._work.submission,
            is_published=lambda asset_id: fanout.unpublished(asset_id) is None,
            end_running=self._work.end_run,
            on_ended=lambda asset, request_id: plugins.observe("job_finished", cancel_event(asset, request_id)),
        )

    def _make_removing(self) -> Removing:
        has_deliveries = self._assets.plugins.notifiers.durable
        end_delivery = self._work.workers[-1].cancel if has_deliveries else lambda job_id: None
        return Removing(
            self._assets.store,
            self._assets.orphaned_images,
            QueueJobs(self._queues.photos, self._queues.job_records, self._work.end_run),
            QueueJobs(self._queues.notifications, self._queues.notification_records, end_delivery),
            on_deleted=self._live.progress_frames.deleted,
        )

    def _make_deletions(self) -> None:
        settings, store, queues = self._base.settings, self._assets.store, self._queues
        self.erasing = Erasing(
            store,
            self.removing,
            [queues.photos, queues.notifications],
            audit=self._records.audit,
            forget_history=self._forget_history,
        )
        self.expiry = Expiry(
            store,
            queues.photos,
            self.removing,
            self._assets.orphaned_images,
            self._base.metrics,
            keep_assets_days=settings.keep_assets_days,
            keep_originals_days=settings.keep_originals_days,
        )
        self.sweeper = Sweeper(store, self._assets.plugins, queues.photos, self._base.metrics)

    async def _forget_history(self) -> None:
        if self._base.owns_redis:
            await self._queues.photos.forget_history()
