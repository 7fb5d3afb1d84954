"""Statistics of the jobs of the last hour, day or week, and the users with most jobs in the queue; for operators."""

from __future__ import annotations

from typing import Any

from pipeline.handlers.base import OperatorHandler
from pipeline.usecases.busiest import BusiestUsers
from pipeline.usecases.job_statistics import WINDOWS, JobStatistics


class ChartsHandler(OperatorHandler):
    """GET /api/queue/charts."""

    route = "/api/queue/charts"

    def initialize(self, *, job_statistics: JobStatistics, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self.job_statistics = job_statistics

    async def get(self) -> None:
        await self.authenticate()
        query = self.query()
        window = query.choice("window", tuple(WINDOWS)) or next(iter(WINDOWS))
        query.check()
        self.reply(await self.job_statistics.chart(window))


class BusiestUsersHandler(OperatorHandler):
    """GET /api/queue/users."""

    route = "/api/queue/users"

    def initialize(self, *, busiest: BusiestUsers, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self.busiest = busiest

    async def get(self) -> None:
        await self.authenticate()
        self.reply(await self.busiest.list())
