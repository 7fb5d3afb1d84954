"""The overview of the service, and its processes; for operators. Runs on the event loop."""

from __future__ import annotations

from typing import Any, ClassVar

import structlog

from pipeline.handlers.base import OperatorHandler
from pipeline.usecases.overview import Overview
from pipeline.usecases.processes import Processes

log = structlog.get_logger(__name__)


class OverviewHandler(OperatorHandler):
    """GET /api/queue/overview: always 200, also during an outage."""

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
    """POST /api/processes/{id}/drain: the process claims no more jobs; running jobs finish."""

    route = "/api/processes/{id}/drain"
    actions = {"POST": "drain process"}
    is_wanted: ClassVar[bool] = True

    async def post(self, process_id: str) -> None:
        await self.authenticate()
        process = await self.processes.drain(process_id, self.is_wanted)
        log.info("process_drain_asked" if self.is_wanted else "process_resume_asked", process=process["id"])
        self.reply(process)


class ResumeHandler(DrainHandler):
    """POST /api/processes/{id}/resume: the process claims jobs again."""

    route = "/api/processes/{id}/resume"
    actions = {"POST": "resume process"}
    is_wanted = False
