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
from pipeline.parts import Parts
from pipeline.parts.queues import QUEUE_NAME
from pipeline.proxies import TrustedProxies
from pipeline.settings import Role
from pipeline.usecases import notifying
from pipeline.usecases.pause import Pause

# What every handler gets.
Common = dict[str, Any]


def build_server(parts: Parts) -> HttpServer:
    """Return the server with all routes of this process's role, not listening yet."""
    settings, metrics = parts.base.settings, parts.base.metrics
    common = {
        "verifier": TokenVerifier(settings),
        "metrics": metrics,
        "allowed_origins": settings.page_origins,
        "record": parts.records.audit.record,
        "limits": parts.records.limits,
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
        metrics=metrics,
        proxies=TrustedProxies(settings.trusted_proxies),
    )


def routes(parts: Parts, common: Common) -> list[Any]:
    """Return the routes of this process's role.

    common: arguments of every handler.
    """
    probes = _probe_routes(parts, common)
    if parts.base.settings.role is Role.WORKER:
        return probes
    return [
        *probes,
        *_asset_routes(parts, common),
        *_event_routes(parts, common),
        *_job_routes(parts, common),
        *_dead_letter_routes(parts, common),
        *_record_routes(parts, common),
        *_operation_routes(parts, common),
        *_page_routes(parts, common),
        *_plugin_routes(parts, common),
    ]


def _probe_routes(parts: Parts, common: Common) -> list[Any]:
    queues, storages = parts.queues, parts.assets.plugins.storages
    with_queues = {"queues": [queues.photos, queues.notifications], "processes": parts.operation.processes}
    readiness = {
        "dependencies": parts.operation.dependencies,
        "plugins": parts.assets.plugins.all,
        "missing_storages": lambda: storages.missing,
        "queues": queues.shown,
    }
    return [
        ("/metrics", ops.MetricsHandler, common | with_queues),
        ("/livez", ops.LiveHandler, common),
        ("/runbooks", pages.RunbooksHandler, common),
        ("/readyz", ops.ReadyHandler, common | readiness),
    ]


def _asset_routes(parts: Parts, common: Common) -> list[Any]:
    settings, changes = parts.base.settings, parts.changes
    with_assets = common | {
        "store": parts.assets.store,
        "submission": parts.work.submission,
        "admission": parts.live.admission,
        "tracing": parts.base.tracing,
    }
    with_progress = with_assets | {"progress": parts.live.progress}
    for_upload = {"settings": settings, "pool": parts.base.pool, "urls": parts.assets.image_urls}
    one_asset = {"removing": changes.removing, "corrections": changes.corrections}
    images = {
        "folders": parts.assets.plugins.storages.media_folders,
        "store": parts.assets.store,
        "urls": parts.assets.image_urls,
    }
    return [
        ("/api/assets/analyze-queue", upload.UploadHandler, with_assets | for_upload),
        ("/api/assets/queue-status", queue.QueueStatusHandler, common | {"queue": parts.queues.photos}),
        ("/api/assets", assets.AssetsHandler, with_progress | {"categories": settings.categories}),
        ("/api/assets/([^/]+)", assets.AssetHandler, with_progress | one_asset),
        ("/api/assets/([^/]+)/retry", assets.RetryHandler, with_progress),
        ("/api/assets/([^/]+)/cancel", assets.CancelHandler, with_progress | {"cancelling": changes.cancelling}),
        ("/media/(.*)", media.MediaHandler, common | images),
    ]


def _event_routes(parts: Parts, common: Common) -> list[Any]:
    for_members = common | {"admission": parts.live.admission, "settings": parts.base.settings}
    tickets = {"tickets": parts.rooms.tickets}
    return [
        ("/ws", SocketHandler, for_members),
        ("/api/events", events.EventsHandler, for_members | tickets),
        ("/api/events/ticket", events.TicketHandler, common | tickets),
    ]


def _job_routes(parts: Parts, common: Common) -> list[Any]:
    changes = parts.changes
    with_lists = common | {"lists": changes.job_lists}
    with_bulk = with_lists | {"bulk": changes.bulk, "tracing": parts.base.tracing}
    with_cancelling = with_lists | {"cancelling": changes.cancelling, "reanalysis": changes.reanalysis}
    return [
        ("/api/queue/jobs", jobs.JobsHandler, with_lists),
        ("/api/queue/jobs/count", jobs.CountHandler, with_lists),
        ("/api/queue/jobs/bulk", jobs.BulkHandler, with_bulk),
        ("/api/queue/jobs/([^/]+)", jobs.JobHandler, with_lists),
        ("/api/queue/jobs/([^/]+)/retry", jobs.RetryJobHandler, with_bulk),
        ("/api/queue/jobs/([^/]+)/cancel", jobs.CancelJobHandler, with_cancelling),
        ("/api/queue/failures", jobs.FailuresHandler, with_lists),
    ]


def _dead_letter_routes(parts: Parts, common: Common) -> list[Any]:
    queues, work, store = parts.queues, parts.work, parts.assets.store
    photos = queue.AdministeredQueue(
        queues.photos, work.dead_letters, Pause(store, queues.photos), "Asset queued for AI analysis"
    )
    notifications = queue.AdministeredQueue(
        queues.notifications, work.undelivered, Pause(store, queues.notifications), "Notification queued"
    )
    with_queues = common | {
        "tracing": parts.base.tracing,
        "queues": {QUEUE_NAME: photos, notifying.QUEUE_NAME: notifications},
    }
    return [
        ("/api/queue/failed", queue.FailedJobsHandler, with_queues),
        ("/api/queue/failed/retry", queue.RetryAllFailedHandler, with_queues),
        ("/api/queue/failed/([^/]+)", queue.FailedJobHandler, with_queues),
        ("/api/queue/failed/([^/]+)/retry", queue.RetryFailedHandler, with_queues),
        ("/api/queue/pause", queue.PauseHandler, with_queues),
        ("/api/queue/resume", queue.ResumeHandler, with_queues),
    ]


def _record_routes(parts: Parts, common: Common) -> list[Any]:
    records = parts.records
    repeating = common | {"undelivered": parts.work.undelivered, "tracing": parts.base.tracing}
    return [
        ("/api/queue/charts", charts.ChartsHandler, common | {"job_statistics": records.job_statistics}),
        ("/api/queue/users", charts.BusiestUsersHandler, common | {"busiest": parts.operation.busiest}),
        ("/api/queue/audit", audit.AuditHandler, common | {"audit": records.audit}),
        ("/api/queue/deliveries", deliveries.DeliveriesHandler, common | {"deliveries": records.deliveries}),
        ("/api/queue/deliveries/([^/]+)/retry", deliveries.RepeatDeliveryHandler, repeating),
    ]


def _operation_routes(parts: Parts, common: Common) -> list[Any]:
    settings, operation = parts.base.settings, parts.operation
    chains = {name: settings.chain(name) for name in settings.categories}
    with_processes = common | {"processes": operation.processes}
    with_plugins = common | {
        "plugins": parts.assets.plugins,
        "usage": parts.records.ai_usage,
        "categories": {
            each: [name for name, chain in chains.items() if each in chain] for each in settings.all_providers
        },
    }
    with_users = common | {
        "users": operation.users,
        "erasing": parts.changes.erasing,
        "rooms": parts.rooms.rooms,
    }
    return [
        ("/api/queue/overview", overview.OverviewHandler, common | {"overview": operation.overview}),
        ("/api/processes", overview.ProcessesHandler, with_processes),
        ("/api/processes/([^/]+)/drain", overview.DrainHandler, with_processes),
        ("/api/processes/([^/]+)/resume", overview.ResumeHandler, with_processes),
        ("/api/plugins", plugins.PluginsHandler, with_plugins),
        ("/api/users/([^/]+)", users.UserHandler, with_users),
    ]


def _page_routes(parts: Parts, common: Common) -> list[Any]:
    settings = parts.base.settings
    with_images = common | {"images": origin_of(settings.public_url)}
    with_settings = common | {"settings": settings}
    for_contracts = common | {"categories": settings.categories, "public_url": settings.served_at}
    return [
        ("/", pages.PageHandler, with_images),
        ("/console(?:/.*)?", pages.ConsoleHandler, with_images),
        ("/pages/([^/]+)/(.+)", pages.PageFileHandler, common),
        ("/api/about", pages.AboutHandler, with_settings | {"sees": lambda: parts.assets.plugins.sees}),
        ("/api/session", pages.SessionHandler, with_settings),
        ("/openapi.json", ops.OpenApiHandler, for_contracts),
        ("/asyncapi.json", ops.AsyncApiHandler, for_contracts),
    ]


def _plugin_routes(parts: Parts, common: Common) -> list[Any]:
    arguments = {
        "plugin_routes": lambda: parts.assets.plugins.routes,
        "seconds": route_seconds(parts.base.settings),
    }
    return [("/plugins/.*", plugin_routes.PluginRouteHandler, common | arguments)]
