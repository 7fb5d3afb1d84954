"""What a photo is to this service. Pure: no database, no network, no framework.

Inside, names are snake_case; `to_json` is what clients see and `to_document`/`from_document` what the stores keep,
both camelCase.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pipeline.clock import utc_now
from pipeline.instants import milliseconds_of


class AssetStatus(StrEnum):
    """Where an asset is in its life; `partial` is finished, with brand or model missing."""

    DRAFT = "draft"
    PROCESSING = "processing"
    PARTIAL = "partial"
    ACTIVE = "active"
    ARCHIVED = "archived"
    FAILED = "failed"


FINISHED = frozenset({AssetStatus.PARTIAL, AssetStatus.ACTIVE, AssetStatus.FAILED})
ASSET_ID = re.compile(r"[0-9a-fA-F]{24}")
# The error of an asset whose owner did not want to wait for it.
CANCELLED = "Cancelled"


@dataclass(frozen=True, slots=True)
class OriginalImage:
    """The photo as it was uploaded; size is what its bytes say, not what the client said."""

    url: str
    public_id: str
    bytes: int
    width: int
    height: int
    content_type: str


@dataclass(frozen=True, slots=True)
class ProcessedImageRef:
    """The processed image; public_id is None where the AI service keeps it, not we."""

    url: str
    public_id: str | None = None


@dataclass(frozen=True, slots=True)
class AiMetadata:
    """What the AI said. brand, model, colorway: {"value": str, "confidence": 0..1}; error: why it failed, for
    people.
    """

    brand: Mapping[str, Any] | None = None
    model: Mapping[str, Any] | None = None
    colorway: Mapping[str, Any] | None = None
    processed_at: datetime | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Asset:
    """One uploaded photo and what became of it. Instants are UTC with whole milliseconds.

    fence: how often a job has started on it; a result is committed only under the newest. excused: how many of these
    starts are not held against the job.
    """

    id: str
    user_id: str
    category: str
    status: AssetStatus
    original: OriginalImage
    processing_job_id: str
    created_at: datetime
    updated_at: datetime
    processed: ProcessedImageRef | None = None
    fence: int = 0
    excused: int = 0
    ai_metadata: AiMetadata = field(default_factory=AiMetadata)
    finished_at: datetime | None = None

    @property
    def is_finished(self) -> bool:
        """True once the AI's work on it has ended, well or badly."""
        return self.status in FINISHED

    @property
    def is_cancelled(self) -> bool:
        """True when its work was ended on request."""
        return self.status is AssetStatus.FAILED and self.ai_metadata.error == CANCELLED

    @property
    def starts(self) -> int:
        """How often its job has started and is to blame if nothing came of it."""
        return self.fence - self.excused

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The public ids of the images it has, in our storage."""
        processed = self.processed.public_id if self.processed else None
        return (self.original.public_id, *([processed] if processed else []))

    def names(self, public_id: str) -> bool:
        """Return whether the image is one it has, or the one that its current run may have saved and not yet named."""
        is_of_run = self.status is AssetStatus.PROCESSING and public_id == processed_public_id(self.id, self.fence)
        return is_of_run or public_id in self.image_ids

    def to_json(self, progress: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the asset as clients see it (schema Asset in contracts/analyze-queue.openapi.json)."""
        meta = self.ai_metadata
        return {
            "id": self.id,
            "userId": self.user_id,
            "category": self.category,
            "status": self.status.value,
            "images": {
                "original": {
                    "url": self.original.url,
                    "bytes": self.original.bytes,
                    "width": self.original.width,
                    "height": self.original.height,
                    "contentType": self.original.content_type,
                },
                "processed": {"url": self.processed.url} if self.processed else None,
            },
            "aiMetadata": {
                "brand": meta.brand,
                "model": meta.model,
                "colorway": meta.colorway,
                "processedAt": to_timestamp(meta.processed_at),
                "error": meta.error,
            },
            "progress": progress,
            "processingJobId": self.processing_job_id,
            "createdAt": to_timestamp(self.created_at),
            "updatedAt": to_timestamp(self.updated_at),
            "finishedAt": to_timestamp(self.finished_at),
        }

    def to_document(self) -> dict[str, Any]:
        """Return the asset as the stores keep it: JSON types, but datetimes stay datetimes; `_id` is the 24-hex
        string.
        """
        meta = self.ai_metadata
        return {
            "_id": self.id,
            "userId": self.user_id,
            "category": self.category,
            "status": self.status.value,
            "images": {
                "original": {
                    "url": self.original.url,
                    "publicId": self.original.public_id,
                    "bytes": self.original.bytes,
                    "width": self.original.width,
                    "height": self.original.height,
                    "contentType": self.original.content_type,
                },
                "processed": processed_document(self.processed),
            },
            "processingJobId": self.processing_job_id,
            "fence": self.fence,
            "excused": self.excused,
            "aiMetadata": ai_metadata_document(meta),
            "finishedAt": self.finished_at,
            "createdAt": self.created_at,
            "updatedAt": self.updated_at,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Asset:
        """Return the asset of a stored document; the counterpart of to_document."""
        original = document["images"]["original"]
        processed = document["images"].get("processed")
        meta = document.get("aiMetadata") or {}
        return cls(
            id=str(document["_id"]),
            user_id=document["userId"],
            category=document["category"],
            status=AssetStatus(document["status"]),
            original=OriginalImage(
                url=original["url"],
                public_id=original["publicId"],
                bytes=original["bytes"],
                width=original["width"],
                height=original["height"],
                content_type=original["contentType"],
            ),
            processed=ProcessedImageRef(processed["url"], processed.get("publicId")) if processed else None,
            processing_job_id=document["processingJobId"],
            fence=document["fence"],
            excused=document.get("excused", 0),
            ai_metadata=AiMetadata(
                brand=meta.get("brand"),
                model=meta.get("model"),
                colorway=meta.get("colorway"),
                processed_at=meta.get("processedAt"),
                error=meta.get("error"),
            ),
            finished_at=document.get("finishedAt"),
            created_at=document["createdAt"],
            updated_at=document["updatedAt"],
        )


def ai_metadata_document(meta: AiMetadata) -> dict[str, Any]:
    """Return the stored form of aiMetadata."""
    return {
        "brand": dict(meta.brand) if meta.brand else None,
        "model": dict(meta.model) if meta.model else None,
        "colorway": dict(meta.colorway) if meta.colorway else None,
        "processedAt": meta.processed_at,
        "error": meta.error,
    }


def processed_document(processed: ProcessedImageRef | None) -> dict[str, Any] | None:
    """Return the stored form of images.processed."""
    return {"url": processed.url, "publicId": processed.public_id} if processed else None


def to_timestamp(instant: datetime | None) -> str | None:
    """Return an instant as `2026-01-31T12:00:00.123Z`, the one spelling used on the wire."""
    if instant is None:
        return None
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_last_id = 0


def new_asset_id() -> str:
    """Return a new id of 24 hex digits that sorts after every earlier one of this process.

    Laid out like an ObjectId's (4 bytes of seconds first), then 10 bits of milliseconds and 54 random bits, so ids of
    different processes sort by time too and none can be guessed.
    """
    global _last_id
    milliseconds = milliseconds_of(utc_now())
    candidate = (milliseconds // 1000) << 64 | (milliseconds % 1000) << 54 | secrets.randbits(54)
    _last_id = candidate if candidate > _last_id else _last_id + 1 + secrets.randbits(32)
    return f"{_last_id:024x}"


def made_at_ms(name: str) -> int:
    """Return when the id that a name ends with was made, in milliseconds since 1970; 0 where it ends otherwise."""
    digits = name[-24:]
    return int(digits[:8], 16) * 1000 + (int(digits[8:11], 16) >> 2) if ASSET_ID.fullmatch(digits) else 0


def job_data(asset: Asset) -> dict[str, Any]:
    """Return the job's payload, exactly as contracts/ai-job.schema.json has it."""
    return {
        "assetId": asset.id,
        "userId": asset.user_id,
        "imageUrl": asset.original.url,
        "category": asset.category,
        "createdAt": to_timestamp(asset.created_at),
    }


def processed_public_id(asset_id: str, fence: int) -> str:
    """Return where a run keeps its processed image; each fence has its own, so a stale run overwrites nothing."""
    return f"{asset_id}/processed-{fence}"
