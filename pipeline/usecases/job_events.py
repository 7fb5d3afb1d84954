"""The events of a job that observers get."""

from __future__ import annotations

from pipeline.assets.asset import CANCELLED, Asset
from pipeline.clock import utc_now
from pipeline.hooks import JobEvent
from pipeline.queue.job import ENDS, Finish, Job, Outcome


def job_event(job: Job, finish: Finish | None = None, seconds: float = 0) -> JobEvent:
    """Return the event of an attempt that has started, or ended with `finish`."""
    data = {name: str(job.data.get(name, "")) for name in ("assetId", "userId", "category")}
    is_last = finish is not None and finish.outcome in ENDS
    return JobEvent(
        job_id=job.id,
        asset_id=data["assetId"],
        user_id=data["userId"],
        category=data["category"],
        request_id=job.request_id,
        at=utc_now(),
        attempt=job.attempt,
        outcome=finish.outcome.value if finish and is_last else "",
        error=finish.error if finish else "",
        delay_ms=finish.delay_ms if finish else 0,
        seconds=seconds,
    )


def cancel_event(asset: Asset, request_id: str) -> JobEvent:
    """Return the event of a job that was cancelled while it did not run."""
    return JobEvent(
        job_id=asset.processing_job_id,
        asset_id=asset.id,
        user_id=asset.user_id,
        category=asset.category,
        request_id=request_id,
        at=utc_now(),
        outcome=Outcome.CANCELLED.value,
        error=CANCELLED,
    )
