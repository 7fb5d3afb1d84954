"""What operators see of the service as a whole: the overview, its processes, its plugins. Runs on the event loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar

import structlog

from pipeline.assets.asset import to_timestamp
from pipeline.clock import utc_now
from pipeline.handlers.base import OperatorHandler
from pipeline.hooks.calls import BoundPlugin
from pipeline.texts import clean
from pipeline.usecases.overview import Overview
from pipeline.usecases.processes import Processes

log = structlog.get_logger(__name__)


class OverviewHandler(OperatorHandler):
    """GET /api/queue/overview: always 200, also when all else is away."""

    route = "/api/queue/overview"

    def initialize(self, *, overview: Overview, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self.overview = overview

    async def get(self) -> None:
        await self.authenticate()
        self.reply(await self.overview.read())


class _ProcessesHandler(OperatorHandler):
    def initialize(self, *, processes: Processes, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self.processes = processes


class ProcessesHandler(_ProcessesHandler):
    """GET /api/processes."""

    route = "/api/processes"

    async def get(self) -> None:
        await self.authenticate()
        self.reply({"items": await self.processes.read()})


class DrainHandler(_ProcessesHandler):
    """POST /api/processes/{id}/drain: it claims no jobs; those that run finish."""

    route = "/api/processes/{id}/drain"
    actions = {"POST": "drain process"}
    is_wanted: ClassVar[bool] = True

    async def post(self, process_id: str) -> None:
        await self.authenticate()
        process = await self.processes.drain(process_id, self.is_wanted)
        log.info("process_drain_asked" if self.is_wanted else "process_resume_asked", process=process["id"])
        self.reply(process)


class ResumeHandler(DrainHandler):
    """POST /api/processes/{id}/resume: it claims jobs again."""

    route = "/api/processes/{id}/resume"
    actions = {"POST": "resume process"}
    is_wanted = False


class PluginsHandler(OperatorHandler):
    """GET /api/plugins: those in use in this process."""

    route = "/api/plugins"

    def initialize(  # type: ignore[override]
        self,
        *,
        plugins: Callable[[], Sequence[BoundPlugin]],
        missing_storages: Callable[[], Mapping[str, str]],
        categories: Mapping[str, Sequence[str]],
        **common: Any,
    ) -> None:
        """categories: for each AI provider those whose photos it may be asked about."""
        super().initialize(**common)
        self.plugins = plugins
        self.missing_storages = missing_storages
        self.categories = categories

    async def get(self) -> None:
        await self.authenticate()
        items = [_plugin(plugin, self.categories) for plugin in self.plugins()]
        items += [_missing(name, reason) for name, reason in self.missing_storages().items()]
        self.reply({"items": items})


def _plugin(plugin: BoundPlugin, categories: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    left_seconds, is_provider = plugin.held_seconds, plugin.kind == "provider"
    return {
        "name": plugin.name,
        "kind": plugin.kind,
        "state": plugin.state,
        "reason": clean(plugin.reason) or None,
        "sees": plugin.sees or None,
        "categories": list(categories.get(plugin.name, ())) if is_provider else None,
        "maxInFlight": plugin.max_in_flight,
        "calls": plugin.calls,
        "errors": plugin.errors,
        "quarantinedUntil": to_timestamp(utc_now() + timedelta(seconds=left_seconds)) if left_seconds else None,
        "isDurable": bool(getattr(plugin.plugin, "durable", False)) if plugin.kind == "notifier" else None,
    }


def _missing(name: str, reason: str) -> dict[str, Any]:
    """Return a storage that holds images of ours and cannot be had, so somebody took its settings away too early."""
    nothing = dict.fromkeys(("sees", "categories", "maxInFlight", "quarantinedUntil", "isDurable"))
    about = {"name": name, "kind": "storage", "state": "missing", "reason": clean(reason)}
    return about | nothing | {"calls": 0, "errors": 0}
