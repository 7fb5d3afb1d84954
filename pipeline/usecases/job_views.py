"""Use case: what operators see of jobs. job_lists.py finds the jobs.

The asset store says whether a job has ended, and how. Redis says where an unfinished job is. While Redis is away the
views show what the store knows. Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from pipeline.assets.asset import CAUSE, Asset, AssetStatus, to_timestamp
from pipeline.assets.job_search import FailureGroup
from pipeline.assets.store import AssetStore, Record
from pipeline.errors import DependencyUnavailable
from pipeline.logs import ThrottledLog
from pipeline.queue.job import JobState
from pipeline.queue.queue import JobQueue
from pipeline.queue.snapshot import JobInfo, Snapshot
from pipeline.texts import cause_of
from pipeline.usecases.deliveries import Deliveries
from pipeline.usecases.deliveries import shown as shown_delivery
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.job_records import PROMISE
from pipeline.usecases.progress import Progress, Subject

log = structlog.get_logger(__name__)

UNFINISHED = (JobState.WAITING, JobState.DELAYED, JobState.ACTIVE)
PREVIEW = "320"


class JobViews:
    """Makes the JSON of jobs."""

    def __init__(self, store: AssetStore, queue: JobQueue, progress: Progress, urls: ImageUrls) -> None:
        self._deliveries = Deliveries(store)
        self._queue = queue
        self._progress = progress
        self._urls = urls
        self._throttled_log = ThrottledLog()

    async def shown(self, assets: Sequence[Asset], records: Mapping[str, Record] = {}) -> list[dict[str, Any]]:
        """Return the jobs of the assets: schema Job in contracts/analyze-queue.openapi.json.

        records: of reanalyses, see FoundJobs
        """
        job_infos, progress = await self._progress_of(assets)
        jobs = await self._composed(assets, job_infos, progress)
        return await self._as_reanalyses(jobs, records) if records else jobs

    async def _as_reanalyses(self, jobs: list[dict[str, Any]], records: Mapping[str, Record]) -> list[dict[str, Any]]:
        """Return the jobs of finished assets as their reanalyses."""
        job_infos: Mapping[str, JobInfo] = {}
        try:
            job_infos = await self._queue.job_infos([record.id for record in records.values()])
        except DependencyUnavailable as error:
            self._throttled_log.write(log.warning, "places_unknown", cause=cause_of(error))
        return [job | _reanalysis_json(records[job["assetId"]], job_infos, job["provider"]) for job in jobs]

    async def _composed(
        self, assets: Sequence[Asset], job_infos: Mapping[str, JobInfo], progress: Mapping[str, Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        urls = await self._urls.of_images(asset.previews[PREVIEW] for asset in assets if PREVIEW in asset.previews)
        return [_job_json(asset, job_infos.get(asset.id), progress.get(asset.id), urls) for asset in assets]

    async def describe(self, asset: Asset) -> dict[str, Any]:
        """Return one job with all its details: schema JobDetails in contracts/analyze-queue.openapi.json."""
        job_infos, progress = await self._progress_of([asset])
        (job,) = await self._composed([asset], job_infos, progress)
        fields = await self.fields(asset.processing_job_id)
        request_id, trace_id = _text(fields.get("requestId")), _trace_id(_text(fields.get("trace")))
        search = [f"jobId={asset.processing_job_id}", *([f"requestId={request_id}"] if request_id else [])]
        return {
            "job": job,
            "asset": asset.to_json(await self._urls.of([asset]), progress.get(asset.id)),
            "causes": [each.get(CAUSE) for each in asset.attempts],
            "history": [*map(dict, asset.history)],
            "deliveries": [*map(shown_delivery, await self._deliveries.of_asset(asset.user_id, asset.id))],
            "requestId": request_id,
            "traceId": trace_id,
            "searchFor": search,
        }

    async def _progress_of(self, assets: Sequence[Asset]) -> tuple[dict[str, JobInfo], dict[str, dict[str, Any]]]:
        """Return, of unfinished assets and by asset id: the job's info in the queue, and the progress."""
        subjects = [Subject.of(asset) for asset in assets if asset.status is AssetStatus.PROCESSING]
        job_infos: dict[str, JobInfo] = {}
        snapshot: Snapshot | None = None
        try:
            job_infos = await self._queue.job_infos([each.job_id for each in subjects])
            if subjects and (recent := await self._progress.recent()):
                # The snapshot may be a second old; the infos of these jobs are newer.
                snapshot = replace(recent, others=job_infos)
        except DependencyUnavailable as error:
            self._throttled_log.write(log.warning, "places_unknown", cause=cause_of(error))
        progress = {each.asset_id: self._progress.describe(each, snapshot) for each in subjects}
        return {each.asset_id: job_infos[each.job_id] for each in subjects if each.job_id in job_infos}, progress

    async def fields(self, job_id: str) -> dict[str, Any]:
        """Return the fields of the job in Redis, none while Redis is away."""
        try:
            return await self._queue.fields(job_id)
        except DependencyUnavailable:
            return {}


def _job_json(
    asset: Asset, info: JobInfo | None, progress: Mapping[str, Any] | None, urls: Mapping[Any, str]
) -> dict[str, Any]:
    progress = progress or {}
    last: Mapping[str, Any] = asset.attempts[-1] if asset.attempts else {}
    known, preview = asset.corrected_metadata, asset.previews.get(PREVIEW)
    return {
        "jobId": asset.processing_job_id,
        "assetId": asset.id,
        "userId": asset.user_id,
        "category": asset.category,
        "state": _state(asset, info).value,
        "status": asset.status.value,
        "position": progress.get("position"),
        "attempt": progress.get("attempt") or last.get("attempt"),
        "provider": progress.get("provider") or (asset.provenance or {}).get("provider") or last.get("provider"),
        "reason": known.error if asset.status is AssetStatus.FAILED else progress.get("reason"),
        "failure": asset.failure,
        "nextAt": progress.get("nextAt"),
        "createdAt": to_timestamp(asset.created_at),
        "updatedAt": to_timestamp(asset.updated_at),
        "finishedAt": to_timestamp(asset.finished_at),
        "brand": (known.brand or {}).get("value"),
        "model": (known.model or {}).get("value"),
        "preview": preview.url_among(urls) if preview else None,
    }


def _reanalysis_json(record: Record, job_infos: Mapping[str, JobInfo], provider: str | None) -> dict[str, Any]:
    """Return the members that differ from those of the asset's last job.

    provider: the provider of that job
    """
    info = job_infos.get(record.id)
    return {
        "jobId": record.id,
        "state": unfinished_state(info).value,
        "position": None,
        "attempt": (info and info.attempt) or None,
        "provider": record.data[PROMISE].get("provider") or provider,
        "reason": (info and info.error) or None,
        "nextAt": to_timestamp(info.due_at) if info else None,
    }


def failure_json(group: FailureGroup) -> dict[str, Any]:
    """Return a group of failed jobs: schema FailureGroup in contracts/analyze-queue.openapi.json."""
    return {
        "failure": group.failure,
        "reason": group.reason,
        "count": group.count.count,
        "isExact": group.count.is_exact,
        "firstAt": to_timestamp(group.first_at),
        "lastAt": to_timestamp(group.last_at),
    }


def _state(asset: Asset, info: JobInfo | None) -> JobState:
    if asset.status is AssetStatus.FAILED:
        return JobState.FAILED
    if asset.status is not AssetStatus.PROCESSING:
        return JobState.COMPLETED
    if info is None and asset.starts:
        # Redis is away: the job has started and not ended.
        return JobState.ACTIVE
    return unfinished_state(info)


def unfinished_state(info: JobInfo | None) -> JobState:
    """Return the state of an unfinished job; a job that Redis does not know will be enqueued again."""
    return info.state if info is not None and info.state in UNFINISHED else JobState.WAITING


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _trace_id(trace_context: str | None) -> str | None:
    """Return the trace id of a traceparent."""
    parts = (trace_context or "").split("-")
    return parts[1] if len(parts) == 4 else None
