"""What clients see while it happens: admission to the rooms, replay of missed events, progress of jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.parts.assets import AssetParts
from pipeline.parts.base import BaseParts
from pipeline.parts.queues import QueueParts
from pipeline.parts.rooms import RoomParts
from pipeline.queue.queue import LONGEST_DELAY_SECONDS
from pipeline.usecases.admission import Admission
from pipeline.usecases.progress import Progress
from pipeline.usecases.progress_frames import ProgressFrames
from pipeline.usecases.progress_reports import ProgressReports
from pipeline.usecases.replay import Replay


class LiveParts:
    """The parts between the rooms and the clients in them."""

    def __init__(self, base: BaseParts, rooms: RoomParts, assets: AssetParts, queues: QueueParts) -> None:
        settings, store = base.settings, assets.store
        self.replay = Replay(
            store,
            rooms.rooms,
            base.metrics,
            urls=assets.image_urls,
            max_bytes=settings.outbox_bytes,
            lease_seconds=settings.lease_seconds,
        )
        rooms.fanout.on_gap = self.replay.request
        self.admission = Admission(rooms.rooms, self.replay, settings)
        self.progress = Progress(queues.photos, assets.plugins.provider_holds.lanes, assets.image_urls, self.running)
        self.progress_frames = ProgressFrames(store, rooms.rooms, rooms.fanout, self.progress)
        self.reports = ProgressReports(queues.photos, self.progress_frames.send, LONGEST_DELAY_SECONDS)

    def running(self, job_id: str) -> Mapping[str, Any] | None:
        """Return the progress of a job that runs in this process, else None."""
        return self.reports.running(job_id)
