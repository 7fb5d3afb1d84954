"""The queues: counts, for every user; dead letters, pause and resume, for operators."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import structlog

from pipeline.assets.asset import to_timestamp
from pipeline.assets.asset_ids import ASSET_ID
from pipeline.auth import USER_ID
from pipeline.errors import NotFound, ValidationError
from pipeline.handlers.base import BaseHandler, OperatorHandler
from pipeline.handlers.query import Query, next_cursor
from pipeline.queue.job import FailedJob
from pipeline.queue.job_lookup import QueueStats
from pipeline.queue.queue import JobQueue
from pipeline.settings import CATEGORY
from pipeline.tracing import OFF, Tracing
from pipeline.usecases.dead_letters import RetriedPage
from pipeline.usecases.pause import Pause
from pipeline.usecases.submission import Receipt

log = structlog.get_logger(__name__)

JOB_ID = re.compile(r"([a-z-]+):[0-9a-fA-F]{24}")
# The list has every dead letter, also one with a malformed id, so a cursor may contain any id.
ANY_ID = re.compile(r".+", re.DOTALL)
REMOVE_AT_MOST = 1000


class StatsSource(Protocol):
    """A queue with counts: the JobQueue."""

    name: str

    async def stats(self) -> QueueStats:
        """Return the counts as they are now; DependencyUnavailable when Redis does not answer."""


class Reruns(Protocol):
    """Retries and removes the dead letters of a queue: DeadLetters or Undelivered."""

    async def remove_failed(self, *job_ids: str) -> int:
        """Remove dead letters; return how many of the ids were dead letters."""

    async def retry_failed(self, job_id: str, request_id: str) -> Receipt:
        """Retry one; NotFound or Conflict when that is not possible."""

    async def retry_all_failed(self, request_id: str, after: tuple[datetime, str] | None = None) -> RetriedPage:
        """Retry many; skip those that cannot be retried."""


@dataclass(frozen=True, slots=True)
class AdministeredQueue:
    """A queue with its dead letters and its pause.

    message: of the reply to a retry.
    """

    queue: JobQueue
    reruns: Reruns
    pause: Pause
    message: str


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


class _QueueHandler(OperatorHandler):
    def initialize(  # type: ignore[override]
        self, *, queues: Mapping[str, AdministeredQueue], tracing: Tracing = OFF, **common: Any
    ) -> None:
        """queues: by name; the first one is the default."""
        super().initialize(**common)
        self.queues = queues
        self.tracing = tracing

    def requested_queue(self, query: Query) -> AdministeredQueue:
        """Return the queue that the parameter `queue` names; ValidationError with all faults of the query."""
        name = query.choice("queue", tuple(self.queues)) or next(iter(self.queues))
        query.check()
        self.change_act(target=name)
        return self.queues[name]

    def queue_of(self, job_id: str) -> tuple[AdministeredQueue, str]:
        """Return the queue of a job id, and the id in lower case; ValidationError for a malformed id."""
        matched = JOB_ID.fullmatch(job_id)
        if matched is None or matched[1] not in self.queues:
            raise ValidationError.of("jobId", f"Must be {' or '.join(self.queues)}, a colon and 24 hex digits")
        self.add_log_fields(jobId=job_id.lower())
        return self.queues[matched[1]], job_id.lower()


class FailedJobsHandler(_QueueHandler):
    """GET and DELETE /api/queue/failed: the dead letters, newest first."""

    route = "/api/queue/failed"
    actions = {"DELETE": "remove dead letters"}

    async def get(self) -> None:
        await self.authenticate()
        query = self.query()
        limit, after = query.limit(), query.cursor(ANY_ID)
        page = await self.requested_queue(query).queue.failed_jobs(limit, after)
        self.reply({"items": [_shown(job) for job in page.jobs], "nextCursor": next_cursor(page.next_after)})

    async def delete(self) -> None:
        await self.authenticate()
        queue = self.requested_queue(self.query())
        page = await queue.queue.failed_jobs(REMOVE_AT_MOST)
        removed = await queue.reruns.remove_failed(*(job.id for job in page.jobs))
        log.info("dead_letters_removed", count=removed)
        self.change_act(count=removed)
        self.reply({"removed": removed, "remaining": page.older})


class RetryAllFailedHandler(_QueueHandler):
    """POST /api/queue/failed/retry: retries all dead letters, a limited number per call."""

    route = "/api/queue/failed/retry"
    actions = {"POST": "retry dead letters"}

    async def post(self) -> None:
        await self.authenticate()
        query = self.query()
        after = query.cursor(ANY_ID)
        reruns = self.requested_queue(query).reruns
        with self.tracing.request(self):
            page = await reruns.retry_all_failed(self.request_id, after)
            self.change_act(count=page.retried)
            counts = {"retried": page.retried, "skipped": page.skipped, "remaining": page.remaining}
            self.reply(counts | {"nextCursor": next_cursor(page.next_after)}, status=202)


class FailedJobHandler(_QueueHandler):
    """DELETE /api/queue/failed/{jobId}."""

    route = "/api/queue/failed/{jobId}"
    actions = {"DELETE": "remove dead letter"}

    async def delete(self, job_id: str) -> None:
        await self.authenticate()
        queue, job_id = self.queue_of(job_id)
        if not await queue.reruns.remove_failed(job_id):
            raise NotFound("There is no dead letter of that id")
        log.info("dead_letter_removed", jobId=job_id)
        self.set_status(204)


class RetryFailedHandler(_QueueHandler):
    """POST /api/queue/failed/{jobId}/retry: the asset, or the event, of the dead letter gets a new job."""

    route = "/api/queue/failed/{jobId}/retry"
    actions = {"POST": "retry dead letter"}

    async def post(self, job_id: str) -> None:
        await self.authenticate()
        queue, job_id = self.queue_of(job_id)
        with self.tracing.request(self):
            receipt = await queue.reruns.retry_failed(job_id, self.request_id)
            answer = {"assetId": receipt.asset_id, "jobId": receipt.job_id}
            self.reply(answer | {"status": "processing", "message": queue.message}, status=202)


class PauseHandler(_QueueHandler):
    """POST /api/queue/pause: no process claims jobs any more; running jobs finish."""

    route = "/api/queue/pause"
    actions = {"POST": "pause queue"}

    async def post(self) -> None:
        await self.authenticate()
        queue = self.requested_queue(self.query())
        await queue.pause.set()
        log.info("queue_paused", queue=queue.queue.name)
        self.reply({"paused": True})


class ResumeHandler(_QueueHandler):
    """POST /api/queue/resume: jobs are claimed again."""

    route = "/api/queue/resume"
    actions = {"POST": "resume queue"}

    async def post(self) -> None:
        await self.authenticate()
        queue = self.requested_queue(self.query())
        await queue.pause.lift()
        log.info("queue_resumed", queue=queue.queue.name)
        self.reply({"paused": False})


def _shown(job: FailedJob) -> dict[str, Any]:
    """Return a dead letter as JSON; values that are missing or malformed in its record are null."""
    asset_id, user_id, category, notifier = map(job.data.get, ("assetId", "userId", "category", "notifier"))
    return {
        "jobId": job.id,
        "assetId": asset_id if isinstance(asset_id, str) and ASSET_ID.fullmatch(asset_id) else None,
        "userId": user_id if isinstance(user_id, str) and USER_ID.fullmatch(user_id) else None,
        "category": category if isinstance(category, str) and CATEGORY.fullmatch(category) else None,
        "notifier": notifier if isinstance(notifier, str) else None,
        "reason": job.error or "Unknown",
        "attempts": job.attempts,
        "stalls": job.stalls,
        "requestId": job.request_id or None,
        "enqueuedAt": to_timestamp(job.enqueued_at),
        "failedAt": to_timestamp(job.failed_at),
    }
