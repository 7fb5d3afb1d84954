"""Use case: an answer that was paid for once serves for the same photo, category, provider, AI model and prompt again.

Kept are complete answers without an image, in the asset store; nothing of them tells whose photo it was. A job that was
given back in the middle of a cascade finds what it was answered first. Runs on the event loop.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import timedelta

import structlog

from pipeline.assets.store import AssetStore, Record
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.hooks import Analysis, Attribute, Usage
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

KIND = "result"
# How long an answer is reused for AI_CACHE: long enough for photos sent twice, short enough for better models.
REUSE_DAYS = 30.0
TEXTS = ("ai_model", "prompt_version", "confidence_kind")


class ResultCache:
    """The answers of before."""

    def __init__(self, store: AssetStore, *, days: float = REUSE_DAYS) -> None:
        self._store = store
        self._age = timedelta(days=days)

    async def find(self, key: str) -> Analysis | None:
        """Return the answer that was kept under the key, None when there is none or the store is away."""
        try:
            record = await self._store.find_record(KIND, key)
            return None if record is None or record.at < utc_now() - self._age else _analysis(record)
        except (DependencyUnavailable, ValueError, TypeError, KeyError) as error:
            log.warning("result_not_read", cause=cause_of(error))
            return None

    async def keep(self, key: str, analysis: Analysis, *, is_partial: bool = False) -> None:
        """Keep the answer if it is without an image, and complete or meant to be partial."""
        is_complete = analysis.brand.value and analysis.model.value
        has_image = analysis.processed_image or analysis.processed_image_url
        if analysis.is_cached or has_image or not (is_complete or is_partial):
            return
        colorway = asdict(analysis.colorway) if analysis.colorway else None
        data = {"brand": asdict(analysis.brand), "model": asdict(analysis.model), "colorway": colorway}
        data |= {"extra": dict(analysis.extra)} | {name: getattr(analysis, name) for name in TEXTS}
        try:
            # As text: a store may not take each name that a JSON object may have.
            await self._store.put_record(Record(KIND, key, utc_now(), {"analysis": json.dumps(data)}))
        except DependencyUnavailable as error:
            log.warning("result_not_kept", cause=cause_of(error))

    async def purge(self) -> None:
        """Remove what is too old."""
        await self._store.purge_records(KIND, utc_now() - self._age)


def key_of(sha256: str, category: str, provider: str, model: str, prompt_version: str, job_id: str = "") -> str:
    """Return under what an answer is kept. sha256: of the original; model, prompt_version: as the provider declares.

    job_id: of the only job that it is for, "" for all.
    """
    parts = [sha256, category, provider, model, prompt_version, *([job_id] if job_id else [])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _analysis(record: Record) -> Analysis:
    data = json.loads(record.data["analysis"])
    return Analysis(
        brand=Attribute(**data["brand"]),
        model=Attribute(**data["model"]),
        colorway=Attribute(**data["colorway"]) if data["colorway"] else None,
        extra=data["extra"],
        usage=Usage(cost=0),
        is_cached=True,
        **{name: data[name] for name in TEXTS},
    )
