"""Every route of the service, and what its handler needs. The only list of them."""

from __future__ import annotations

from typing import Any

import tornado.web

from pipeline.auth import TokenVerifier
from pipeline.handlers import (
    access_log,
    assets,
    audit,
    base,
    charts,
    deliveries,
    events,
    jobs,
    media,
    ops,
    overview,
    pages,
    plugin_routes,
    plugins,
    queue,
    upload,
    users,
)
from pipeline.handlers.server import HttpServer
from pipeline.handlers.socket import SocketHandler
from pipeline.hooks.kinds import route_seconds
from pipeline.origins import origin_of
from pipeline.parts import QUEUE_NAME, Parts
from pipeline.proxies import TrustedProxies
from pipeline.settings import Role
from pipeline.usecases import notifying
from pipeline.usecases.pause import Pause


def build_server(parts: Parts) -> HttpServer:
    """Return the server with all routes of this process's role, not listening yet."""
    common = {
        "verifier": TokenVerifier(parts.settings),
        "metrics": parts.metrics,
        "allowed_origins": parts.settings.page_origins,
        "record": parts.audit.record,
        "limits": parts.limits,
    }
    return HttpServer(
        tornado.web.Application(
            routes(parts, common),
            default_handler_class=base.NotFoundHandler,
            default_handler_args=common,
            log_function=access_log.log_request,
        ),
        xheaders=False,
        no_keep_alive=False,
        idle_connection_timeout=120,
        metrics=parts.metrics,
        proxies=TrustedProxies(parts.settings.trusted_proxies),
    )


def routes(parts: Parts, common: dict[str, Any]) -> list[Any]:
    """Return the routes. common: what every handler gets."""
    settings = parts.settings
    served = _probes(parts, common)
    if settings.role is Role.WORKER:
        return served
    with_assets = common | {
        "store": parts.store,
        "submission": parts.submission,
        "admission": parts.admission,
        "tracing": parts.tracing,
    }
    with_progress = with_assets | {"progress": parts.progress}
    filed = {"categories": settings.categories}
    of_members = common | {"admission": parts.admission, "settings": settings}
    served += [
        (
            "/api/assets/analyze-queue",
            upload.UploadHandler,
            with_assets
            | {
                "settings": settings,
                "pool": parts.pool,
                "urls": parts.image_urls,
            },
        ),
        ("/api/assets/queue-status", queue.QueueStatusHandler, common | {"queue": parts.queue}),
        ("/api/assets", assets.AssetsHandler, with_progress | filed),
        (
            "/api/assets/([^/]+)",
            assets.AssetHandler,
            with_progress | {"removing": parts.removing, "corrections": parts.corrections},
        ),
        ("/api/assets/([^/]+)/retry", assets.RetryHandler, with_progress),
        ("/api/assets/([^/]+)/cancel", assets.CancelHandler, with_progress | {"cancelling": parts.cancelling}),
        *_operators_routes(parts, common),
        *_jobs_routes(parts, common),
        (
            "/api/users/([^/]+)",
            users.UserHandler,
            common | {"users": parts.users, "erasing": parts.erasing, "rooms": parts.rooms},
        ),
        ("/ws", SocketHandler, of_members),
        ("/api/events", events.EventsHandler, of_members | {"tickets": parts.tickets}),
        ("/api/events/ticket", events.TicketHandler, common | {"tickets": parts.tickets}),
        ("/openapi.json", ops.OpenApiHandler, common | filed | {"public_url": settings.served_at}),
        ("/asyncapi.json", ops.AsyncApiHandler, common | filed | {"public_url": settings.served_at}),
        *_pages_routes(parts, common),
        (
            "/plugins/.*",
            plugin_routes.PluginRouteHandler,
            common | {"plugin_routes": lambda: parts.plugins.routes, "seconds": route_seconds(settings)},
        ),
        (
            "/media/(.*)",
            media.MediaHandler,
            common | {"folders": parts.plugins.storages.media_folders, "store": parts.store, "urls": parts.image_urls},
        ),
    ]
    return served


def _pages_routes(parts: Parts, common: dict[str, Any]) -> list[Any]:
    with_images = common | {"images": origin_of(parts.settings.public_url)}
    return [
        ("/", pages.PageHandler, with_images),
        ("/console(?:/.*)?", pages.ConsoleHandler, with_images),
        ("/pages/([^/]+)/(.+)", pages.PageFileHandler, common),
        ("/api/about", pages.AboutHandler, common | {"settings": parts.settings, "sees": lambda: parts.plugins.sees}),
        ("/api/session", pages.SessionHandler, common | {"settings": parts.settings}),
    ]


def _probes(parts: Parts, common: dict[str, Any]) -> list[Any]:
    of_metrics = {"queues": [parts.queue, parts.notifications], "processes": parts.processes}
    return [
        ("/metrics", ops.MetricsHandler, common | of_metrics),
        ("/livez", ops.LiveHandler, common),
        ("/runbooks", pages.RunbooksHandler, common),
        (
            "/readyz",
            ops.ReadyHandler,
            common
            | {
                "dependencies": parts.dependencies,
                "plugins": parts.plugins.all,
                "missing_storages": lambda: parts.plugins.storages.missing,
                "queues": [parts.queue, *([parts.notifications] if parts.plugins.notifiers.durable else [])],
            },
        ),
    ]


def _operators_routes(parts: Parts, common: dict[str, Any]) -> list[Any]:
    with_queues = common | {
        "tracing": parts.tracing,
        "queues": {
            QUEUE_NAME: queue.AdministeredQueue(
                parts.queue, parts.dead_letters, Pause(parts.store, parts.queue), "Asset queued for AI analysis"
            ),
            notifying.QUEUE_NAME: queue.AdministeredQueue(
                parts.notifications, parts.undelivered, Pause(parts.store, parts.notifications), "Notification queued"
            ),
        }
    }
    return [
        ("/api/queue/failed", queue.FailedJobsHandler, with_queues),
        ("/api/queue/failed/retry", queue.RetryAllFailedHandler, with_queues),
        ("/api/queue/failed/([^/]+)", queue.FailedJobHandler, with_queues),
        ("/api/queue/failed/([^/]+)/retry", queue.RetryFailedHandler, with_queues),
        ("/api/queue/pause", queue.PauseHandler, with_queues),
        ("/api/queue/resume", queue.ResumeHandler, with_queues),
        *_records_routes(parts, common),
        *_overview_routes(parts, common),
    ]


def _records_routes(parts: Parts, common: dict[str, Any]) -> list[Any]:
    return [
        ("/api/queue/charts", charts.ChartsHandler, common | {"job_statistics": parts.job_statistics}),
        ("/api/queue/users", charts.BusiestUsersHandler, common | {"busiest": parts.busiest}),
        ("/api/queue/audit", audit.AuditHandler, common | {"audit": parts.audit}),
        ("/api/queue/deliveries", deliveries.DeliveriesHandler, common | {"deliveries": parts.deliveries}),
        (
            "/api/queue/deliveries/([^/]+)/retry",
            deliveries.RepeatDeliveryHandler,
            common | {"undelivered": parts.undelivered, "tracing": parts.tracing},
        ),
    ]


def _jobs_routes(parts: Parts, common: dict[str, Any]) -> list[Any]:
    with_lists = common | {"lists": parts.job_lists}
    cancelling = {"cancelling": parts.cancelling, "reanalysis": parts.reanalysis}
    return [
        ("/api/queue/jobs", jobs.JobsHandler, with_lists),
        ("/api/queue/jobs/count", jobs.CountHandler, with_lists),
        ("/api/queue/jobs/bulk", jobs.BulkHandler, with_lists | {"bulk": parts.bulk, "tracing": parts.tracing}),
        ("/api/queue/jobs/([^/]+)", jobs.JobHandler, with_lists),
        (
            "/api/queue/jobs/([^/]+)/retry",
            jobs.RetryJobHandler,
            with_lists | {"bulk": parts.bulk, "tracing": parts.tracing},
        ),
        ("/api/queue/jobs/([^/]+)/cancel", jobs.CancelJobHandler, with_lists | cancelling),
        ("/api/queue/failures", jobs.FailuresHandler, with_lists),
    ]


def _overview_routes(parts: Parts, common: dict[str, Any]) -> list[Any]:
    settings, with_processes = parts.settings, common | {"processes": parts.processes}
    asked = {name: settings.chain(name) for name in settings.categories}
    of_plugins = {
        "plugins": parts.plugins,
        "usage": parts.ai_usage,
        "categories": {
            each: [name for name, chain in asked.items() if each in chain] for each in settings.all_providers
        },
    }
    return [
        ("/api/queue/overview", overview.OverviewHandler, common | {"overview": parts.overview}),
        ("/api/processes", overview.ProcessesHandler, with_processes),
        ("/api/processes/([^/]+)/drain", overview.DrainHandler, with_processes),
        ("/api/processes/([^/]+)/resume", overview.ResumeHandler, with_processes),
        ("/api/plugins", plugins.PluginsHandler, common | of_plugins),
    ]
