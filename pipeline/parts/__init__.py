"""The parts of one process, made from its settings and passed to each other. Nothing is started here: see app.py.

Each group of parts is a module of this package. A group gets the groups before it. The HTTP server comes on top of all:
routes.py.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.parts.assets import AssetParts
from pipeline.parts.base import BaseParts
from pipeline.parts.changes import ChangeParts
from pipeline.parts.live import LiveParts
from pipeline.parts.operation import OperationParts
from pipeline.parts.queues import QueueParts
from pipeline.parts.records import RecordParts
from pipeline.parts.rooms import RoomParts
from pipeline.parts.work import WorkParts
from pipeline.settings import Settings


class Parts:
    """All parts, by group."""

    def __init__(self, settings: Settings, *, owns_redis: bool, on_fatal: Callable[[str], None]) -> None:
        """owns_redis: see App.

        on_fatal: see App.
        """
        # Metrics, the supervisor of tasks, tracing, the thread pool.
        self.base = base = BaseParts(settings, owns_redis, on_fatal)
        # The clients of this process, and the events from other processes.
        self.rooms = rooms = RoomParts(base)
        # The asset store, the plugins, the stored images.
        self.assets = assets = AssetParts(base, rooms)
        # The two queues in Redis, the records of their jobs, the repair of lost jobs.
        self.queues = queues = QueueParts(base, assets, purge=lambda: self.records.purge())
        # The audit list, deliveries, statistics, AI budgets and rate limits.
        self.records = records = RecordParts(base, assets, queues)
        # What clients see while it happens: replay of missed events, progress.
        self.live = live = LiveParts(base, rooms, assets, queues)
        # From an upload to a result and its event: submission, processing, notifying, the workers.
        self.work = work = WorkParts(base, rooms, assets, queues, records, live)
        # Changes that users and operators make: cancel, delete, reanalyze, correct, erase.
        self.changes = changes = ChangeParts(base, rooms, assets, queues, records, live, work)
        # What operators see and what checks the process: readiness, processes, the overview, the watchdog.
        self.operation = OperationParts(base, rooms, assets, queues, live, work, changes)
