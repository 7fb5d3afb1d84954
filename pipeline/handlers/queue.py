"""GET /api/assets/queue-status: how much work there is, for any user with a token."""

from __future__ import annotations

from typing import Any, Protocol

from pipeline.handlers.base import BaseHandler
from pipeline.queue.queue import QueueStats


class StatsSource(Protocol):
    """What is asked here: the JobQueue."""

    async def stats(self) -> QueueStats:
        """Return the counts as they are now; DependencyUnavailable when Redis does not answer."""


class QueueStatusHandler(BaseHandler):
    """Replies with the number of jobs in each state and whether the queue is paused."""

    route = "/api/assets/queue-status"

    def initialize(self, *, queue: StatsSource, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self.queue = queue

    async def get(self) -> None:
        await self.authenticate()
        stats = await self.queue.stats()
        self.reply(
            {
                "waiting": stats.waiting,
                "active": stats.active,
                "completed": stats.completed,
                "failed": stats.failed,
                "delayed": stats.delayed,
                "paused": stats.is_paused,
            }
        )
