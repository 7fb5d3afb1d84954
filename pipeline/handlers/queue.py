"""The queue as a whole: how much work there is, for any user; dead letters, pause and resume, for admins."""

from __future__ import annotations

import re
from typing import Any, Protocol

import structlog

from pipeline.assets.asset import ASSET_ID, CATEGORIES, to_timestamp
from pipeline.auth import USER_ID, Principal
from pipeline.errors import Forbidden, NotFound, ValidationError
from pipeline.handlers.base import BaseHandler
from pipeline.handlers.query import Position, Query, encode_cursor
from pipeline.queue.job import FailedJob
from pipeline.queue.queue import JobQueue, QueueStats
from pipeline.submission import Submission

log = structlog.get_logger(__name__)

JOB_ID = re.compile(r"ai-processing:[0-9a-fA-F]{24}")
# Whatever got into the dead letters is listed, so the cursor may name it.
ANY_ID = re.compile(r".+", re.DOTALL)
REMOVE_AT_MOST = 1000


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


class _AdminHandler(BaseHandler):
    def initialize(self, *, queue: JobQueue, submission: Submission, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self.queue = queue
        self.submission = submission

    async def authenticate(self) -> Principal:
        principal = await super().authenticate()
        if not principal.is_admin:
            raise Forbidden("Only for admins")
        # Every line about what an operator did says who it was.
        structlog.contextvars.bind_contextvars(operator=principal.user_id)
        return principal

    def query(self) -> Query:
        return Query({name: self.get_query_argument(name) for name in self.request.query_arguments})


class FailedJobsHandler(_AdminHandler):
    """GET and DELETE /api/queue/failed: the dead letters, newest first."""

    route = "/api/queue/failed"

    async def get(self) -> None:
        await self.authenticate()
        query = self.query()
        limit, after = query.limit(), query.cursor(ANY_ID)
        query.check()
        page = await self.queue.failed_jobs(limit, after)
        self.reply({"items": [_shown(job) for job in page.jobs], "nextCursor": _cursor(page.next_after)})

    async def delete(self) -> None:
        await self.authenticate()
        page = await self.queue.failed_jobs(REMOVE_AT_MOST)
        removed = await self.queue.remove_failed(*(job.id for job in page.jobs))
        log.info("dead_letters_removed", count=removed)
        self.reply({"removed": removed, "remaining": page.older})


class RetryAllFailedHandler(_AdminHandler):
    """POST /api/queue/failed/retry: every dead letter runs again, so many per call."""

    route = "/api/queue/failed/retry"

    async def post(self) -> None:
        await self.authenticate()
        query = self.query()
        after = query.cursor(ANY_ID)
        query.check()
        page = await self.submission.retry_all_failed(self.request_id, after)
        counts = {"retried": page.retried, "skipped": page.skipped, "remaining": page.remaining}
        self.reply(counts | {"nextCursor": _cursor(page.next_after)}, status=202)


class FailedJobHandler(_AdminHandler):
    """DELETE /api/queue/failed/{jobId}."""

    route = "/api/queue/failed/{jobId}"

    async def delete(self, job_id: str) -> None:
        await self.authenticate()
        job_id = _job_id(job_id)
        if not await self.queue.remove_failed(job_id):
            raise NotFound("There is no dead letter of that id")
        log.info("dead_letter_removed", jobId=job_id)
        self.set_status(204)


class RetryFailedHandler(_AdminHandler):
    """POST /api/queue/failed/{jobId}/retry: the dead letter's asset gets a new job."""

    route = "/api/queue/failed/{jobId}/retry"

    async def post(self, job_id: str) -> None:
        await self.authenticate()
        receipt = await self.submission.retry_failed(_job_id(job_id), self.request_id)
        answer = {"assetId": receipt.asset_id, "jobId": receipt.job_id}
        self.reply(answer | {"status": "processing", "message": "Asset queued for AI analysis"}, status=202)


class PauseHandler(_AdminHandler):
    """POST /api/queue/pause: no process claims jobs any more; running ones finish."""

    route = "/api/queue/pause"

    async def post(self) -> None:
        await self.authenticate()
        await self.queue.pause()
        log.info("queue_paused")
        self.reply({"paused": True})


class ResumeHandler(_AdminHandler):
    """POST /api/queue/resume: jobs are claimed again."""

    route = "/api/queue/resume"

    async def post(self) -> None:
        await self.authenticate()
        await self.queue.resume()
        log.info("queue_resumed")
        self.reply({"paused": False})


def _shown(job: FailedJob) -> dict[str, Any]:
    """Return the dead letter as operators see it; what its record does not tell, or tells wrongly, is null."""
    asset_id, user_id, category = (job.data.get(name) for name in ("assetId", "userId", "category"))
    return {
        "jobId": job.id,
        "assetId": asset_id if isinstance(asset_id, str) and ASSET_ID.fullmatch(asset_id) else None,
        "userId": user_id if isinstance(user_id, str) and USER_ID.fullmatch(user_id) else None,
        "category": category if category in CATEGORIES else None,
        "reason": job.error or "Unknown",
        "attempts": job.attempts,
        "stalls": job.stalls,
        "requestId": job.request_id or None,
        "enqueuedAt": to_timestamp(job.enqueued_at),
        "failedAt": to_timestamp(job.failed_at),
    }


def _cursor(after: Position | None) -> str | None:
    return encode_cursor(*after) if after else None


def _job_id(text: str) -> str:
    if not JOB_ID.fullmatch(text):
        raise ValidationError.of("jobId", "Must be ai-processing: and 24 hex digits")
    return text.lower()
