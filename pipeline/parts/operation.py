"""What operators see of the service, and what checks this process: readiness, processes, overview, watchdog."""

from __future__ import annotations

from pipeline.clock import CLOCK
from pipeline.disk import Disk
from pipeline.parts.assets import AssetParts
from pipeline.parts.base import BaseParts
from pipeline.parts.changes import ChangeParts
from pipeline.parts.live import LiveParts
from pipeline.parts.queues import QUEUE_NAME, QueueParts
from pipeline.parts.rooms import RoomParts
from pipeline.parts.work import WorkParts
from pipeline.settings import CLOUDINARY, Settings
from pipeline.stores import SQLITE
from pipeline.usecases import notifying
from pipeline.usecases.busiest import BusiestUsers
from pipeline.usecases.console_frames import ConsoleFrames
from pipeline.usecases.dependencies import Dependencies
from pipeline.usecases.overview import Overview
from pipeline.usecases.processes import Processes
from pipeline.usecases.upgrade import Upgrade
from pipeline.usecases.users import Users
from pipeline.watchdog import Watchdog


class OperationParts:
    """The parts behind probes, the console and the lists of processes and users."""

    def __init__(
        self,
        base: BaseParts,
        rooms: RoomParts,
        assets: AssetParts,
        queues: QueueParts,
        live: LiveParts,
        work: WorkParts,
        changes: ChangeParts,
    ) -> None:
        settings, store = base.settings, assets.store
        self._base, self._rooms, self._assets = base, rooms, assets
        self._queues, self._live, self._work = queues, live, work
        self.upgrade = Upgrade(store, queues.photos, assets.storages_in_use, _unknown_backend(settings))
        self.users = Users(
            store,
            queues.photos,
            changes.erasing,
            kinds=[queues.job_records.kind, queues.notification_records.kind],
            max_bytes=settings.max_stored_bytes_per_user,
        )
        self.busiest = BusiestUsers(store, queues.photos, is_fair=base.is_fair)
        self.dependencies = self._make_dependencies()
        self.processes = self._make_processes()
        self.overview = self._make_overview()
        self.console_frames = ConsoleFrames(rooms.rooms, self.overview)
        self.watchdog = Watchdog(base.metrics)

    def _make_dependencies(self) -> Dependencies:
        base, plugins = self._base, self._assets.plugins
        disk = Disk(base.settings.data_dir, base.settings.max_upload_bytes)
        base.metrics.disk_free_bytes.set_function(lambda: disk.free_bytes)
        base.metrics.disk_size_bytes.set_function(lambda: disk.size_bytes)
        return Dependencies(
            {
                "store": self._assets.store.check,
                "redis": self._queues.photos.ping,
                **({"queue": self._work.worker.check} if base.has_jobs else {}),
                "storage": plugins.storages.check,
                "sandbox": plugins.check_sandbox,
                "disk": disk.check,
                "clock": CLOCK.check,
                "tasks": base.supervisor.check,
                "rooms": self._rooms.fanout.check,
                "process": self._live.admission.check,
            },
            # The current storage is checked as "storage".
            lambda: [each for each in plugins.all if each is not plugins.storages.current.storage],
            base.metrics,
            asks_providers=base.has_jobs,
        )

    def _make_processes(self) -> Processes:
        settings, has_jobs = self._base.settings, self._base.has_jobs
        names = (QUEUE_NAME, notifying.QUEUE_NAME)
        return Processes(
            self._queues.photos,
            dict(zip(names, self._work.workers, strict=False)) if has_jobs else {},
            role=settings.role.value,
            concurrency=settings.concurrency if has_jobs else 0,
            sockets=lambda: len(self._rooms.rooms.connections),
            running=self._live.running,
        )

    def _make_overview(self) -> Overview:
        movable_store = self._assets.movable_store
        return Overview(
            queues=self._queues.shown,
            processes=self.processes,
            plugins=self._assets.plugins,
            dependencies=self.dependencies,
            # Read each time, because assets may be moved to a store of the other kind.
            store_kind=lambda: "sqlite" if movable_store.uri.startswith(SQLITE) else "mongodb",
            supervisor=self._base.supervisor,
            owns_redis=self._base.owns_redis,
            grafana_url=self._base.settings.grafana_url,
        )


def _unknown_backend(settings: Settings) -> str:
    """Return the storage of images of version 0.1 whose URL does not name it: one of the few that it could have."""
    built_in = {*CLOUDINARY, "local", "object"}
    is_object = settings.is_given("object", "url") or settings.storage_name in built_in
    return "object" if is_object else settings.storage_name
