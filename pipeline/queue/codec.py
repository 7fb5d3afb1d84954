"""Jobs, and the texts in which Redis stores them: the one from the other. Pure.

A text may be damaged: fields that cannot be read are left out, the handler refuses such a payload, and the queue goes
on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from time import monotonic
from typing import Any

import orjson

from pipeline.hold import ProviderReport, Hold, Pace, Reservation
from pipeline.instants import EPOCH, instant_of
from pipeline.queue.job import FailedJob, Job


def to_json(value: object) -> str:
    """Return the value as JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def as_job(fields: list[Any], now_ms: int) -> Job:
    """Return a job that a step has claimed. fields: as lua/claims.lua lists them."""
    job_id, record_text, attempt, stalls, lease, error, tries, turn_of, turn_in_ms, is_first = fields
    record = as_object(record_text)
    enqueued_at_ms = _positive(record.get("enqueuedAt")) or now_ms
    return Job(
        id=job_id,
        data=_payload(record),
        attempt=attempt,
        stalls=stalls,
        lease=lease,
        enqueued_at_ms=enqueued_at_ms,
        claimed_at_ms=now_ms,
        request_id=_text(record.get("requestId")),
        trace_context=_text(record.get("trace")),
        error=error,
        group=_text(record.get("group")),
        submitted_at_ms=_positive(record.get("submittedAt")) or enqueued_at_ms,
        tries=tries,
        reservation=Reservation(turn_of, monotonic() + turn_in_ms / 1000) if turn_of else None,
        # A job that Redis has lost may have been started before.
        is_first=bool(is_first) and not _positive(record.get("submittedAt")),
    )


def as_limits(
    paces: Mapping[str, Pace], lanes: Mapping[str, Sequence[str]], behind: Mapping[str, Sequence[str]]
) -> str:
    """Return the limits for lua/reservations.lua, "{}" when there are none."""
    if not paces:
        return "{}"
    providers = {
        name: {"every": round(pace.apart_seconds * 1000, 1), "most": pace.at_once or 0} for name, pace in paces.items()
    }
    return to_json({"providers": providers, "behind": {lane: [*behind.get(lane, ())] for lane in lanes}})


def as_texts(report: ProviderReport) -> tuple[str, str, int, str, str]:
    """Return a report for lua/lanes.lua."""
    return report.provider, report.state, round(report.seconds * 1000), report.reason, report.cause


def as_holds(text: str, now_ms: int) -> list[Hold]:
    """Return the holds in a script's reply. text: JSON, "" when there are none."""
    # Nearly always there are none, and to parse "" would cost each step an exception.
    if not text:
        return []
    return [
        Hold(
            name,
            max(0, each["until"] - now_ms) / 1000,
            each["wait"] / 1000,
            each["reason"],
            each["cause"],
            bool(each.get("paced")),
        )
        for name, each in as_object(text).items()
    ]


def as_failed_job(job_id: str, failed_at: str, record_text: str, state_text: str) -> FailedJob:
    """Return a dead letter. failed_at: milliseconds since 1970."""
    record, state = as_object(record_text), as_object(state_text)
    return FailedJob(
        id=job_id,
        failed_at=as_instant(failed_at) or EPOCH,
        data=_payload(record),
        error=_text(state.get("error")),
        attempts=_positive(state.get("attempt")),
        stalls=_positive(state.get("stalls")),
        enqueued_at=as_instant(_positive(record.get("enqueuedAt"))),
        request_id=_text(record.get("requestId")),
    )


def as_object(text: str) -> dict[str, Any]:
    """Return the object in a JSON text, {} when there is none."""
    try:
        value = orjson.loads(text)
    except ValueError:
        try:
            # Accepts half surrogate pairs, which a user id may hold.
            value = json.loads(text)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def _payload(record: Mapping[str, Any]) -> Mapping[str, Any]:
    data = record.get("data")
    return data if isinstance(data, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _positive(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def as_instant(milliseconds: int | str) -> datetime | None:
    """Return the instant so long after 1970, None for 0, "" and numbers that are out of all bounds."""
    try:
        return instant_of(int(milliseconds)) if milliseconds else None
    except (ValueError, OverflowError):
        return None
