"""Jobs for operators: lists with filters, one job, failures by kind, and actions on one job or on many."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from pipeline.assets.asset import Asset, to_timestamp
from pipeline.assets.asset_ids import ASSET_ID
from pipeline.assets.job_search import Cursor
from pipeline.clock import utc_now
from pipeline.errors import ValidationError
from pipeline.handlers.base import MAX_TARGET_LENGTH, OperatorHandler
from pipeline.handlers.job_filters import (
    MAX_BODY_BYTES,
    bulk_faults,
    query_texts,
    read_filter,
    read_object,
    shown_filter,
)
from pipeline.handlers.query import Query, encode_cursor
from pipeline.tracing import OFF, Tracing
from pipeline.usecases.bulk import CHUNK, REFUSED_AT_MOST, Action, Bulk
from pipeline.usecases.cancelling import Cancelling
from pipeline.usecases.job_lists import JobLists, JobQuery
from pipeline.usecases.reanalysis import Reanalysis

STORED_ID = re.compile(r"[0-9a-f]{24}")
JOB_ID = re.compile(r"ai-processing:[0-9a-fA-F]{24}")


class _JobsHandler(OperatorHandler):
    def initialize(self, *, lists: JobLists, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self.lists = lists

    async def find(self, job_id: str) -> Asset:
        """Return the asset of a job; NotFound or ValidationError when there is none."""
        asset = await self.lists.find(_job_id(job_id))
        self.add_log_fields(assetId=asset.id, jobId=asset.processing_job_id)
        return asset


class JobsHandler(_JobsHandler):
    """GET /api/queue/jobs: the jobs that match a filter, newest first."""

    route = "/api/queue/jobs"

    async def get(self) -> None:
        await self.authenticate()
        query = self.query()
        wanted, limit, after = read_filter(query), query.limit(), query.cursor(STORED_ID)
        query.check()
        page = await self.lists.search(wanted, limit=limit, after=after)
        self.reply({"items": await self.lists.views.shown(page.assets, page.records), **_next_page(page.next_after)})


class CountHandler(_JobsHandler):
    """GET /api/queue/jobs/count: how many jobs match the same filter."""

    route = "/api/queue/jobs/count"

    async def get(self) -> None:
        await self.authenticate()
        query = self.query()
        wanted = read_filter(query)
        query.check()
        count = await self.lists.count(wanted)
        self.reply({"count": count.count, "isExact": count.is_exact})


class FailuresHandler(_JobsHandler):
    """GET /api/queue/failures: failed jobs, grouped by kind of failure."""

    route = "/api/queue/failures"

    async def get(self) -> None:
        await self.authenticate()
        query = self.query()
        since, until = query.instant("from"), query.instant("to")
        query.check()
        self.reply({"items": await self.lists.failures(since, until)})


class JobHandler(_JobsHandler):
    """GET /api/queue/jobs/{jobId}."""

    route = "/api/queue/jobs/{jobId}"

    async def get(self, job_id: str) -> None:
        await self.authenticate()
        self.reply(await self.lists.views.describe(await self.find(job_id)))


class RetryJobHandler(_JobsHandler):
    """POST /api/queue/jobs/{jobId}/retry: a failed or partial asset gets a new job; 409 for other assets."""

    route = "/api/queue/jobs/{jobId}/retry"
    actions = {"POST": "retry job"}

    def initialize(  # type: ignore[override]
        self, *, bulk: Bulk, tracing: Tracing = OFF, **common: Any
    ) -> None:
        super().initialize(**common)
        self.bulk = bulk
        self.tracing = tracing

    async def post(self, job_id: str) -> None:
        await self.authenticate()
        asset = await self.find(job_id)
        with self.tracing.request(self):
            receipt = await self.bulk.retry(asset, self.request_id)
            answer = {"assetId": receipt.asset_id, "jobId": receipt.job_id}
            self.reply(answer | {"status": "processing", "message": "Asset queued for AI analysis"}, status=202)


class CancelJobHandler(_JobsHandler):
    """POST /api/queue/jobs/{jobId}/cancel: ends the analysis, after which the asset is failed, or the reanalysis.

    409 when the asset has neither.
    """

    route = "/api/queue/jobs/{jobId}/cancel"
    actions = {"POST": "cancel job"}

    def initialize(  # type: ignore[override]
        self, *, cancelling: Cancelling, reanalysis: Reanalysis, **common: Any
    ) -> None:
        super().initialize(**common)
        self.cancelling = cancelling
        self.reanalysis = reanalysis

    async def post(self, job_id: str) -> None:
        await self.authenticate()
        asset = await self.find(job_id)
        if asset.is_finished and await self.reanalysis.withdraw(asset):
            self.reply((await self.lists.views.shown([asset]))[0])
            return
        cancelled = await self.cancelling.cancel(asset.id, None, self.request_id)
        self.reply((await self.lists.views.shown([cancelled]))[0])


class BulkHandler(_JobsHandler):
    """POST /api/queue/jobs/bulk: an action on all jobs that match a filter, a limited number per call."""

    route = "/api/queue/jobs/bulk"
    actions = {"POST": "bulk"}

    def initialize(self, *, bulk: Bulk, tracing: Tracing = OFF, **common: Any) -> None:  # type: ignore[override]
        super().initialize(**common)
        self.bulk = bulk
        self.tracing = tracing
        self._body = b""

    def data_received(self, chunk: bytes) -> None:
        super().data_received(chunk)
        # One byte over the limit is stored, so that read_object sees that the body is too long.
        self._body += chunk[: MAX_BODY_BYTES + 1 - len(self._body)]

    async def post(self) -> None:
        await self.authenticate()
        body = read_object(self._body)
        query = Query(query_texts(body))
        wanted, after, until = read_filter(query), query.cursor(STORED_ID), query.instant("until")
        for field, message in bulk_faults(body):
            query.fault(field, message)
        if wanted == JobQuery() and body.get("all") is not True:
            query.fault("filter", 'Is empty: all jobs are meant only with "all": true')
        query.check()
        # Jobs created after the dry run are not included.
        now = utc_now()
        wanted = replace(wanted, until=min(each for each in (wanted.until, until or now) if each))
        action = Action(body["action"])
        self.change_act(action=f"{action.value} jobs", target=shown_filter(body)[:MAX_TARGET_LENGTH])
        provider = body.get("provider") or ""
        if body.get("dryRun") is True:
            self.drop_act()
            count, sample = await self.bulk.preview(action, wanted, provider)
            preview = {"count": count.count, "isExact": count.is_exact, "sample": sample}
            self.reply(preview | {"until": to_timestamp(wanted.until)})
            return
        with self.tracing.request(self):
            chunk = await self.bulk.run(
                action,
                wanted,
                after=after,
                seconds=body.get("seconds", 0),
                request_id=self.request_id,
                provider=provider,
                replaces=body.get("replace") is True,
                limit=body.get("limit") or CHUNK,
            )
            refused = [{"jobId": job_id, "message": message} for job_id, message in chunk.refused[:REFUSED_AT_MOST]]
            self.change_act(count=chunk.done)
            counts = {"done": chunk.done, "skipped": chunk.skipped, "refused": refused}
            self.reply(counts | _next_page(chunk.next_after))


def _next_page(next_after: Cursor | None) -> dict[str, str | None]:
    """Return the cursor of the next page, and the creation time of the last job that was read."""
    if next_after is None:
        return {"nextCursor": None, "searchedTo": None}
    return {"nextCursor": encode_cursor(*next_after), "searchedTo": to_timestamp(next_after[0])}


def _job_id(text: str) -> str:
    if not JOB_ID.fullmatch(text) and not ASSET_ID.fullmatch(text):
        raise ValidationError.of("jobId", "Must be 24 hex digits, as such or behind ai-processing:")
    return text.lower()
