"""One process of the service: starts its parts in order, listens, and stops them in order.

Runs on the event loop. serving.py has started the embedded Redis and made the signing secret before.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog
import tornado.netutil

from pipeline.clock import CLOCK
from pipeline.errors import ConfigurationError, DependencyUnavailable
from pipeline.parts import Parts
from pipeline.queue.calls import ForeignQueue
from pipeline.routes import build_server
from pipeline.settings import Role, Settings
from pipeline.supervision import SupervisedTask, cancel
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

STORE_RETRY_SECONDS = 2.0
CLOSE_SOCKETS_SECONDS = 2.0
# The longest time for one step of the shutdown, and the time that remains when the shutdown is late.
CLOSE_SECONDS, LEAST_CLOSE_SECONDS = 1.0, 0.25


class App:
    """One process of the service.

    Its settings name a Redis and a way to check tokens; serving.py fills in the address of the embedded Redis.
    """

    def __init__(
        self, settings: Settings, *, owns_redis: bool = False, on_fatal: Callable[[str], None] = lambda reason: None
    ) -> None:
        """Build the parts and bind the port; nothing runs yet.

        owns_redis: no other process uses this Redis, so this process may recover every leased job at once.
        on_fatal: called with the reason when this process has to end.
        """
        self._owns_redis = owns_redis
        self._on_fatal = on_fatal
        self._sockets = _bind(settings)
        settings = settings.model_copy(update={"port": self._sockets[0].getsockname()[1]})
        self.address = settings.address
        self.settings = settings.model_copy(update={"public_url": settings.served_at})
        self.parts = Parts(self.settings, owns_redis=owns_redis, on_fatal=on_fatal)
        self._server = build_server(self.parts)
        self._watched: list[SupervisedTask] = []

    async def start(self) -> None:
        """Open the store, plugins and rooms, recover the jobs, start the workers, and listen last."""
        parts, settings = self.parts, self.settings
        self._watch("watchdog", parts.operation.watchdog.run)
        # Large uploads are written there until the storage has them.
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        await self._open_store()
        await parts.assets.plugins.start(asks_providers=settings.role is not Role.WEB)
        await parts.rooms.fanout.start()
        self._watch("replay", parts.live.replay.run)
        self._watch("progress frames", parts.live.progress_frames.run, "progress")
        self._watch("progress reports", parts.live.reports.run, "progress")
        if self._owns_redis:
            if recovered := await parts.queues.photos.recover(everything=True):
                log.warning("jobs_recovered", jobIds=recovered)
            await parts.queues.notifications.recover(everything=True)
        await self._own_queues()
        self._watch("limits", parts.records.limits.run)
        self._watch("clock", lambda: CLOCK.follow(parts.queues.photos.time))
        self._watch("processes", parts.operation.processes.run)
        self._watch("dependencies", parts.operation.dependencies.run)
        self._watch("console frames", parts.operation.console_frames.run, "console")
        self._watch("ai usage", parts.records.ai_usage.run, "console")
        self._watch_store()
        if settings.role is not Role.WEB:
            for worker in parts.work.workers:
                worker.start()
        self._server.add_sockets(self._sockets)
        log.info(
            "service_started",
            address=self.address,
            host=socket.gethostname(),
            pid=os.getpid(),
            role=settings.role.value,
            providers=settings.all_providers,
            storage=settings.storage_name,
            store="mongodb" if settings.mongodb_uri.get_secret_value() else "sqlite",
            **_offline_ai_note(settings),
        )

    def _watch_store(self) -> None:
        """Run the tasks that repair, clean up, move and record what the asset store holds."""
        parts = self.parts
        self._watch("reconciler", parts.queues.reconciler.run)
        self._watch("notification reconciler", parts.queues.notification_reconciler.run, "reconciler")
        self._watch("sweeper", parts.changes.sweeper.run)
        self._watch("expiry", parts.changes.expiry.run)
        self._watch("erasing", parts.changes.erasing.run)
        self._watch("storages in use", parts.assets.storages_in_use.run, "store")
        self._watch("storage choice", parts.assets.storage_choice.run, "store")
        self._watch("store move", parts.assets.movable_store.run, "store")
        self._watch("upgrade", parts.operation.upgrade.run, "store")
        self._watch("job statistics", parts.records.job_statistics.run, "store")
        self._watch("audit", parts.records.audit.run, "store")

    async def stop(self, lame_duck_seconds: float = 0) -> None:
        """Stop in this order: claiming, requests, slots, tasks, sockets, plugins, queues, store.

        Jobs that are not finished in time go back to the queue.
        lame_duck_seconds: how long the process serves requests but claims no job, see LAME_DUCK_SECONDS.
        """
        log.info("service_stopping", lameDuckSeconds=lame_duck_seconds)
        # A worker process serves no requests.
        lame_duck_seconds = 0 if self.settings.role is Role.WORKER else lame_duck_seconds
        seconds = lame_duck_seconds + self.settings.shutdown_seconds
        now = asyncio.get_running_loop().time
        ends_at = now() + seconds + 1

        def close_seconds() -> float:
            return max(LEAST_CLOSE_SECONDS, min(CLOSE_SECONDS, ends_at - now()))

        await self._drain(lame_duck_seconds, seconds)
        await _settled(self.parts.base.supervisor.stop(self._watched))
        await self._close_clients(close_seconds)
        await self._close_dependencies(close_seconds)
        log.info("service_stopped")

    async def _drain(self, lame_duck_seconds: float, seconds: float) -> None:
        """Let requests and jobs finish.

        seconds: how long jobs may take.
        """
        work = self.parts.work
        drains = [self._stop_serving(lame_duck_seconds)]
        if self.settings.role is not Role.WEB:
            drains += [worker.drain(seconds) for worker in work.workers]
        await _settled(asyncio.gather(*drains))
        images, erasing = self.parts.assets.orphaned_images, self.parts.changes.erasing
        await _settled(cancel([*work.submission.unsettled.tasks, *images.tasks, *erasing.tasks]))

    async def _close_clients(self, close_seconds: Callable[[], float]) -> None:
        """Close sockets, connections and plugins."""
        parts = self.parts
        await _settled(parts.live.admission.drain(CLOSE_SOCKETS_SECONDS))
        await _settled(self._server.close_all_connections(), close_seconds())
        await _settled(parts.rooms.fanout.stop(), close_seconds())
        await _settled(parts.assets.plugins.close())
        parts.base.pool.shutdown(wait=False, cancel_futures=True)
        await parts.rooms.tickets.close()

    async def _close_dependencies(self, close_seconds: Callable[[], float]) -> None:
        """Write what is only in memory, and close the queues and the store."""
        parts, records = self.parts, self.parts.records
        # Without an answer of Redis the process will be shown as lost; do not wait longer for that.
        await _settled(parts.operation.processes.leave(), LEAST_CLOSE_SECONDS)
        await _settled(records.ai_usage.close(), LEAST_CLOSE_SECONDS)
        await parts.queues.photos.close()
        await parts.queues.notifications.close()
        closing = asyncio.gather(records.job_statistics.close(close_seconds()), records.audit.close(close_seconds()))
        await _settled(closing)
        await _settled(parts.assets.store.close(), close_seconds())
        await _settled(parts.base.supervisor.stop())
        await _settled(parts.base.tracing.close())

    async def _stop_serving(self, lame_duck_seconds: float) -> None:
        self.parts.live.admission.is_leaving = True
        self._server.disable_keep_alive()
        await asyncio.sleep(lame_duck_seconds)
        self._server.stop()
        self.parts.live.admission.end_polls()
        seconds, loop = self.settings.shutdown_seconds, asyncio.get_running_loop()
        ends_at = loop.time() + seconds
        await self._server.drain(seconds)
        # Uploads of clients that did not wait for the answer.
        await self.parts.work.submission.drain(ends_at - loop.time())

    def _watch(self, name: str, run: Callable[[], Coroutine[Any, Any, None]], kind: str = "") -> None:
        self._watched.append(self.parts.base.supervisor.start(name, run, kind=kind))

    async def _own_queues(self) -> None:
        """Raise ConfigurationError for the queue of another asset store.

        While Redis or the store is away the reconcilers check this later.
        """
        for reconciler in (self.parts.queues.reconciler, self.parts.queues.notification_reconciler):
            try:
                await reconciler.look()
            except ForeignQueue as error:
                raise ConfigurationError(error.message) from None
            except DependencyUnavailable:
                return

    async def _open_store(self) -> None:
        """Open the asset store. While it is away the process runs, is not ready, and refuses uploads with 503."""
        try:
            await self.parts.assets.store.open()
            # Before the first upload: it must go to the storage that the images were moved to.
            await self.parts.assets.storage_choice.look()
        except DependencyUnavailable as error:
            log.warning("store_unreachable", error=cause_of(error))
            self._watch("store opening", self._open_store_later, "store")

    async def _open_store_later(self) -> None:
        while True:
            await asyncio.sleep(STORE_RETRY_SECONDS)
            try:
                await self.parts.assets.store.open()
                log.info("store_reconnected")
                return
            except DependencyUnavailable:
                continue
            except ConfigurationError as error:
                self._on_fatal(error.message)
                return


async def _settled(step: Awaitable[Any], seconds: float | None = None) -> None:
    """Wait for one step of the shutdown; an error is logged, so that the next steps still happen.

    seconds: the longest wait; None waits until the step ends.
    """
    task = asyncio.ensure_future(step)
    await asyncio.wait([task], timeout=seconds)
    if task.done() and (error := task.exception()):
        log.error("stopping_failed", exc_info=error)


def _offline_ai_note(settings: Settings) -> dict[str, str]:
    """Return a field of the start line: the offline AI reads fewer photos at a time than there are slots."""
    if "local" not in settings.all_providers or settings.role is Role.WEB:
        return {}
    return {"reading": f"{settings.sandbox_processes} at a time, 1 to 2 s a photo; SANDBOX_PROCESSES adds children"}


def _bind(settings: Settings) -> list[socket.socket]:
    try:
        return tornado.netutil.bind_sockets(settings.port, settings.host, reuse_port=settings.reuse_port)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no host name"
        raise ConfigurationError(
            f"Cannot listen on {settings.host}:{settings.port} ({reason}); set HOST or PORT"
        ) from None
