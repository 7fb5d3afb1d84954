"""Wiring: builds the parts, lists the routes, starts and stops in order. The only file that knows everything.

Runs on the event loop; what must happen before it (the embedded Redis, the generated secret) is done by cli.py.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
import tornado.netutil
import tornado.web

from pipeline.assets.asset import CATEGORIES, Asset, utc_now
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.assets.store import AssetStore
from pipeline.auth import TokenVerifier
from pipeline.disk import Disk
from pipeline.errors import ConfigurationError, DependencyUnavailable
from pipeline.handlers import assets, base, ops, queue, upload
from pipeline.handlers.server import HttpServer
from pipeline.handlers.socket import SocketHandler, drain_sockets
from pipeline.hooks import JobEvent
from pipeline.hooks.manager import build_plugins
from pipeline.metrics import Metrics
from pipeline.queue.attempt import RetryPolicy
from pipeline.queue.job import Finish
from pipeline.queue.queue import JobQueue
from pipeline.queue.worker import Worker, cancel
from pipeline.rooms.fanout import RoomFanout
from pipeline.rooms.rooms import Rooms
from pipeline.settings import Fairness, Role, Settings
from pipeline.texts import cause_of
from pipeline.tracing import build_tracing
from pipeline.usecases import notifying
from pipeline.usecases.dead_letters import DeadLetters
from pipeline.usecases.processing import Processing, job_event
from pipeline.usecases.reconciler import Reconciler
from pipeline.usecases.replay import Replay
from pipeline.usecases.submission import Submission, SubmissionPolicy
from pipeline.watchdog import Watchdog

log = structlog.get_logger(__name__)

QUEUE_NAME = "ai-processing"
STORE_AGAIN_SECONDS = 2.0
# What was delivered is kept so long as the same event may come again: a crash may repeat it.
KEEP_DELIVERED_SECONDS = 3600
LONGEST_NOTIFIER_DELAY_SECONDS = 7200
GOODBYE_SECONDS = 2.0


class App:
    """One process of the service. `settings` names a Redis and a way to check tokens; cli.py fills in what is
    embedded.
    """

    def __init__(self, settings: Settings, *, owns_redis: bool = False) -> None:
        """owns_redis: no other process uses this Redis, so whatever it holds as leased is ours to take back at once."""
        self._owns_redis = owns_redis
        self._sockets = _bind(settings)
        port = self._sockets[0].getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.address = f"http://{host}:{port}"
        self.settings = settings.model_copy(
            update={"port": port, "public_url": (settings.public_url or self.address).rstrip("/")}
        )
        self._build()

    def _build(self) -> None:
        settings, redis_url = self.settings, self.settings.redis_url.get_secret_value()
        self.metrics = Metrics()
        self.tracing = build_tracing(settings)
        self.rooms = Rooms(max_frames=settings.outbox_frames, max_bytes=settings.outbox_bytes, metrics=self.metrics)
        self.fanout = RoomFanout(self.rooms, redis_url, metrics=self.metrics)
        self.plugins = build_plugins(settings, self.metrics, self.fanout, CATEGORIES, self.tracing)
        self.store = build_store(settings)
        self.metrics.of_queue(QUEUE_NAME, settings.all_providers)
        self.metrics.of_queue(notifying.QUEUE_NAME, self.plugins.durable)
        self.replay = Replay(
            self.store,
            self.rooms,
            self.metrics,
            max_events=settings.max_replay_events,
            max_bytes=settings.outbox_bytes,
            lease_seconds=settings.lease_seconds,
        )
        self.fanout.on_gap = self.replay.request
        self.queue = JobQueue(
            redis_url,
            name=QUEUE_NAME,
            lease_seconds=settings.lease_seconds,
            keep_completed_seconds=settings.keep_completed_seconds,
            keep_failed_seconds=settings.keep_failed_seconds,
            max_age_seconds=settings.job_max_age_seconds,
            lanes=self.plugins.provider_holds.lanes,
        )
        is_fair = settings.queue_fairness is Fairness.USER
        self.reconciler = Reconciler(
            self.store,
            self.queue,
            self.metrics,
            every_seconds=settings.reconcile_seconds,
            age_seconds=settings.reconcile_age_seconds,
            keep_keys_seconds=settings.idempotency_seconds,
            is_fair=is_fair,
        )
        self._pool = ThreadPoolExecutor(settings.pool_threads, thread_name_prefix="image")
        self.submission = Submission(
            self.store,
            self.plugins,
            self.queue,
            self.metrics,
            SubmissionPolicy(is_fair, settings.max_backlog, settings.max_backlog_per_user, settings.dedupe_uploads),
            pool=self._pool,
            on_deferred=self.reconciler.request,
            on_enqueued=self._observe_enqueued,
            tracing=self.tracing,
        )
        self.dead_letters = DeadLetters(self.store, self.queue, self.submission)
        self.notifications = JobQueue(
            redis_url,
            name=notifying.QUEUE_NAME,
            lease_seconds=settings.lease_seconds,
            keep_completed_seconds=KEEP_DELIVERED_SECONDS,
            keep_failed_seconds=settings.keep_failed_seconds,
            longest_delay_seconds=LONGEST_NOTIFIER_DELAY_SECONDS,
            max_age_seconds=settings.job_max_age_seconds,
            lanes=self.plugins.notifier_holds.lanes,
        )
        self.notifying = notifying.Notifying(self.plugins, self.notifications, self.metrics, self.tracing)
        self.worker = Worker(
            self.queue,
            Processing(
                self.store,
                self.plugins,
                self.notifying,
                self.metrics,
                provider_timeout_seconds=settings.provider_timeout_seconds,
                max_starts=settings.job_attempts + settings.max_stalls,
                tracing=self.tracing,
            ),
            RetryPolicy(
                attempts=settings.job_attempts,
                backoff_ms=settings.backoff_ms,
                timeout_seconds=settings.job_timeout_seconds,
                max_stalls=settings.max_stalls,
                max_age_seconds=settings.job_max_age_seconds,
            ),
            self.metrics,
            holds=self.plugins.provider_holds,
            concurrency=settings.concurrency if settings.role is not Role.WEB else 0,
            lease_seconds=settings.lease_seconds,
            renew_seconds=settings.renew_seconds,
            on_reconnect=self.reconciler.request,
            on_start=lambda job: self.plugins.observe("job_started", job_event(job)),
            on_finish=self._observe_finish,
            tracing=self.tracing,
        )
        self._workers = [self.worker]
        if self.plugins.durable:
            self._workers.append(self._make_notifier_worker())
        self.watchdog = Watchdog(self.metrics, block_seconds=settings.loop_block_ms / 1000)
        self._background: list[asyncio.Task[None]] = []
        common = {
            "verifier": TokenVerifier(settings),
            "metrics": self.metrics,
            "allowed_origins": settings.allowed_origins,
        }
        self._server = HttpServer(
            tornado.web.Application(
                self._routes(common),
                default_handler_class=base.NotFoundHandler,
                default_handler_args=common,
                log_function=base.log_request,
            ),
            xheaders=False,
            no_keep_alive=False,
            idle_connection_timeout=120,
            chunk_size=upload.PIECE_BYTES,
            metrics=self.metrics,
        )

    def _make_notifier_worker(self) -> Worker:
        settings = self.settings
        return Worker(
            self.notifications,
            self.notifying,
            RetryPolicy(
                attempts=settings.notifier_attempts,
                backoff_ms=settings.notifier_backoff_ms,
                timeout_seconds=settings.notifier_timeout_seconds + 1,
                max_stalls=settings.max_stalls,
                max_age_seconds=settings.job_max_age_seconds,
            ),
            self.metrics,
            holds=self.plugins.notifier_holds,
            concurrency=settings.notifier_slots if settings.role is not Role.WEB else 0,
            lease_seconds=settings.lease_seconds,
            renew_seconds=settings.renew_seconds,
            tracing=self.tracing,
        )

    def _observe_enqueued(self, asset: Asset, request_id: str) -> None:
        self.plugins.observe(
            "job_enqueued",
            JobEvent(asset.processing_job_id, asset.id, asset.user_id, asset.category, request_id, utc_now()),
        )

    def _observe_finish(self, finish: Finish, seconds: float) -> None:
        event = job_event(finish.job, finish, seconds)
        self.plugins.observe("job_finished" if event.outcome else "job_retrying", event)

    def _routes(self, common: dict[str, Any]) -> list[Any]:
        settings = self.settings
        checks: dict[str, Callable[[], Awaitable[None]]] = {
            "store": self.store.check,
            "queue": self.queue.ping if settings.role is Role.WEB else self.worker.check,
            "storage": self.plugins.check_storage,
            "disk": Disk(settings.data_dir, settings.max_upload_bytes).check,
        }
        routes: list[Any] = [
            ("/metrics", ops.MetricsHandler, common | {"queues": [self.queue, self.notifications]}),
            ("/livez", ops.LiveHandler, common),
            (
                "/readyz",
                ops.ReadyHandler,
                common
                | {
                    "checks": checks,
                    "plugins": self.plugins.all,
                    "queues": [self.queue, *([self.notifications] if self.plugins.durable else [])],
                },
            ),
        ]
        if settings.role is Role.WORKER:
            return routes
        with_assets = common | {"store": self.store, "submission": self.submission, "tracing": self.tracing}
        with_queues = common | {
            "tracing": self.tracing,
            "queues": {
                QUEUE_NAME: queue.Administered(self.queue, self.dead_letters, "Asset queued for AI analysis"),
                notifying.QUEUE_NAME: queue.Administered(self.notifications, self.notifying, "Notification queued"),
            }
        }
        routes += [
            (
                "/api/assets/analyze-queue",
                upload.UploadHandler,
                common
                | {
                    "submission": self.submission,
                    "settings": settings,
                    "pool": self._pool,
                    "turns": upload.Turns(),
                    "tracing": self.tracing,
                },
            ),
            ("/api/assets/queue-status", queue.QueueStatusHandler, common | {"queue": self.queue}),
            ("/api/assets", assets.AssetsHandler, with_assets),
            ("/api/assets/([^/]+)", assets.AssetHandler, with_assets),
            ("/api/assets/([^/]+)/retry", assets.RetryHandler, with_assets),
            ("/api/queue/failed", queue.FailedJobsHandler, with_queues),
            ("/api/queue/failed/retry", queue.RetryAllFailedHandler, with_queues),
            ("/api/queue/failed/([^/]+)", queue.FailedJobHandler, with_queues),
            ("/api/queue/failed/([^/]+)/retry", queue.RetryFailedHandler, with_queues),
            ("/api/queue/pause", queue.PauseHandler, with_queues),
            ("/api/queue/resume", queue.ResumeHandler, with_queues),
            (
                "/ws",
                SocketHandler,
                common | {"rooms": self.rooms, "replay": self.replay, "settings": settings},
            ),
            ("/openapi.json", ops.OpenApiHandler, common),
            ("/", ops.IndexHandler, common | {"settings": settings}),
        ]
        if media_root := self.plugins.media_root:
            routes.append(("/media/(.*)", ops.MediaHandler, common | {"path": str(media_root)}))
        return routes

    async def start(self) -> None:
        """Open what we lean on, take back our jobs, begin to work and only then to listen."""
        self.watchdog.start()
        # Large uploads lie there until they are stored.
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        await self._open_store()
        await self.fanout.start()
        self._background.append(asyncio.create_task(self.replay.run(), name="replay"))
        if self._owns_redis:
            if recovered := await self.queue.recover(everything=True):
                log.warning("jobs_recovered", jobIds=recovered)
            await self.notifications.recover(everything=True)
        self._background.append(asyncio.create_task(self.reconciler.run(), name="reconciler"))
        if self.settings.role is not Role.WEB:
            for worker in self._workers:
                worker.start()
        self._server.add_sockets(self._sockets)
        log.info(
            "service_started",
            address=self.address,
            role=self.settings.role.value,
            providers=self.settings.all_providers,
            storage=self.settings.storage_name,
            store="mongodb" if self.settings.mongodb_uri.get_secret_value() else "sqlite",
        )

    async def stop(self) -> None:
        """Refuse uploads, stop claiming, let uploads and slots finish, hand back the rest, say goodbye, close."""
        log.info("service_stopping")
        self._server.stop()
        drains = [self.submission.drain(self.settings.shutdown_seconds)]
        if self.settings.role is not Role.WEB:
            drains += [worker.drain(self.settings.shutdown_seconds) for worker in self._workers]
        await asyncio.gather(*drains)
        await cancel([*self._background, *self.submission.unsettled])
        await drain_sockets(self.rooms, GOODBYE_SECONDS)
        await self._server.close_all_connections()
        await self.fanout.stop()
        await self.plugins.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        await self.queue.close()
        await self.notifications.close()
        self.watchdog.stop()
        await self.store.close()
        await self.tracing.close()
        log.info("service_stopped")

    async def _open_store(self) -> None:
        """Open the asset store; while it is away the service runs, says so in /readyz and refuses uploads with 503."""
        try:
            await self.store.open()
        except DependencyUnavailable as error:
            log.warning("store_unreachable", error=cause_of(error))
            self._background.append(asyncio.create_task(self._open_store_later(), name="open_store"))

    async def _open_store_later(self) -> None:
        while True:
            await asyncio.sleep(STORE_AGAIN_SECONDS)
            try:
                await self.store.open()
                log.info("store_reconnected")
                self.reconciler.request()
                return
            except DependencyUnavailable:
                continue


def _bind(settings: Settings) -> list[socket.socket]:
    try:
        return tornado.netutil.bind_sockets(settings.port, settings.host)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no host name"
        raise ConfigurationError(
            f"Cannot listen on {settings.host}:{settings.port} ({reason}); set HOST or PORT"
        ) from None


def build_store(settings: Settings) -> AssetStore:
    """Return the store of assets that the settings name, not open yet."""
    if uri := settings.mongodb_uri.get_secret_value():
        from pipeline.assets.mongo import MongoAssetStore

        return MongoAssetStore(uri)
    return SqliteAssetStore(settings.data_dir / "assets.sqlite")
