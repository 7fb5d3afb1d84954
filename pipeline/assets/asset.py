"""What a photo is to this service. Pure: no database, no network, no framework.

Inside, names are snake_case; `to_json` is the form for clients, `to_document` and `from_document` that of the stores,
both camelCase. Many methods because each answers one question about the same fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from pipeline.assets.asset_ids import preview_public_id, processed_public_id
from pipeline.assets.asset_parts import (
    AiMetadata,
    AssetStatus,
    ImageRef,
    ai_metadata_document,
    ai_metadata_json,
    ai_metadata_of,
    failure_of,
    image_document,
    image_of,
    previews_document,
    to_timestamp,
)
from pipeline.images import ImageName

__all__ = ["AiMetadata", "Asset", "AssetStatus", "ImageRef", "job_data", "to_timestamp"]

FINISHED = frozenset({AssetStatus.PARTIAL, AssetStatus.ACTIVE, AssetStatus.FAILED})
# The error of an asset whose owner did not want to wait for it.
CANCELLED = "Cancelled"
PREVIEW_SIDES = (320, 1280)  # the long sides, in pixels
# The field of a failed attempt that says what was behind its reason. For operators; its owner does not see it.
CAUSE = "cause"
# The fields that a person may correct.
CORRECTABLE = ("brand", "model", "colorway")
# An asset has at most so many attempts and corrections: the last ones.
ATTEMPTS_AT_MOST, HISTORY_AT_MOST = 10, 20
# The version of stored documents; those of version 0.1 have none.
SCHEMA = 2


@dataclass(frozen=True, slots=True)
class Asset:
    """One uploaded photo and its result. Instants are UTC with whole milliseconds.

    previews: by their long side in pixels, as text.
    fence: how often a job has started on it; a result is committed only under the newest fence.
    excused: how many of these starts were refunded.
    attempts, history: the last attempts and corrections, oldest first; JSON values.
    corrections: the values that a person set, by field; JSON values.
    claims: those of the upload's token; clients never see them; JSON values.
    """

    id: str
    user_id: str
    category: str
    status: AssetStatus
    original: ImageRef
    processing_job_id: str
    created_at: datetime
    updated_at: datetime
    processed: ImageRef | None = None
    previews: Mapping[str, ImageRef] = field(default_factory=dict)
    fence: int = 0
    excused: int = 0
    ai_metadata: AiMetadata = field(default_factory=AiMetadata)
    finished_at: datetime | None = None
    attempts: Sequence[Mapping[str, Any]] = ()
    provenance: Mapping[str, Any] | None = None
    corrections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_finished(self) -> bool:
        """True once the AI's work on it has ended, well or badly."""
        return self.status in FINISHED

    @property
    def is_cancelled(self) -> bool:
        """True when its work was ended on request."""
        return self.status is AssetStatus.FAILED and self.ai_metadata.error == CANCELLED

    @property
    def failure(self) -> str | None:
        """The fingerprint of its failure, None when it has not failed."""
        return failure_of(self.status, self.ai_metadata)

    @property
    def corrected_metadata(self) -> AiMetadata:
        """The result of the AI, overwritten by the corrections of a person."""
        values: dict[str, Any] = {
            name: {"value": each["value"], "confidence": 1} for name, each in self.corrections.items()
        }
        if not values:
            return self.ai_metadata
        # A corrected asset has no error any more.
        error = self.ai_metadata.error if self.status is AssetStatus.FAILED else None
        return replace(self.ai_metadata, **values, error=error)

    def status_by_metadata(self) -> AssetStatus:
        """Return the status that follows from its corrected metadata, once its work has ended."""
        meta = self.corrected_metadata
        if meta.brand and meta.model:
            return AssetStatus.ACTIVE
        is_failed = self.ai_metadata.error is not None and not self.corrections
        return AssetStatus.FAILED if is_failed else AssetStatus.PARTIAL

    @property
    def starts(self) -> int:
        """How often its job has started, without the starts that were refunded."""
        return self.fence - self.excused

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """Its images, also those that are in no storage of ours."""
        return (self.original, *([self.processed] if self.processed else []), *self.previews.values())

    @property
    def image_names(self) -> tuple[ImageName, ...]:
        """The names of its images in our storages."""
        return tuple(image.name for image in self.images if image.name)

    @property
    def has_original(self) -> bool:
        """False once the original was removed."""
        return bool(self.original.public_id)

    @property
    def image_paths(self) -> Mapping[tuple[str, ...], ImageRef]:
        """Its images by their path in the document's `images`."""
        paths: dict[tuple[str, ...], ImageRef] = {("original",): self.original}
        if self.processed:
            paths["processed",] = self.processed
        return paths | {("previews", side): image for side, image in self.previews.items()}

    def image_path(self, name: ImageName) -> tuple[str, ...] | None:
        """Return where the document names that image; None when it does not."""
        return next((path for path, image in self.image_paths.items() if image.name == name), None)

    def refers_to(self, name: ImageName) -> bool:
        """Return whether the image is one of its own, or one that its current run may have saved and not yet named."""
        return self._is_of_run(name.public_id) or any(image.is_held_as(name) for image in self.images)

    def _is_of_run(self, public_id: str) -> bool:
        made = (processed_public_id(self.id, self.fence), *(preview_public_id(self.id, side) for side in PREVIEW_SIDES))
        return self.status is AssetStatus.PROCESSING and public_id in made

    def finished(
        self,
        status: AssetStatus,
        ai_metadata: AiMetadata,
        processed: ImageRef | None,
        finished_at: datetime,
        now: datetime,
        previews: Mapping[str, ImageRef] | None = None,
        attempt: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Asset:
        """Return the asset with that result, as AssetStore.finish commits it."""
        return replace(
            self,
            status=status,
            ai_metadata=ai_metadata,
            processed=processed,
            finished_at=finished_at,
            updated_at=self.changed_at(now),
            previews=self.previews if previews is None else previews,
            attempts=(*self.attempts, attempt)[-ATTEMPTS_AT_MOST:] if attempt else self.attempts,
            provenance=provenance,
        )

    def changed_at(self, now: datetime) -> datetime:
        """Return the instant of a change: later than the last one, also in the same millisecond."""
        return max(now, self.updated_at + timedelta(milliseconds=1))

    def to_json(self, urls: Mapping[ImageName, str], progress: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the asset as clients see it (schema Asset in contracts/analyze-queue.openapi.json).

        urls: of its images, where our storages hold them; image_urls.py makes them.
        """
        return {
            "id": self.id,
            "userId": self.user_id,
            "category": self.category,
            "status": self.status.value,
            "images": self._images_json(urls),
            "aiMetadata": ai_metadata_json(self.corrected_metadata),
            "corrections": {name: dict(each) for name, each in self.corrections.items()},
            "attempts": [{name: each[name] for name in each if name != CAUSE} for each in self.attempts],
            "provenance": dict(self.provenance) if self.provenance else None,
            "progress": progress,
            "processingJobId": self.processing_job_id,
            "createdAt": to_timestamp(self.created_at),
            "updatedAt": to_timestamp(self.updated_at),
            "finishedAt": to_timestamp(self.finished_at),
        }

    def _images_json(self, urls: Mapping[ImageName, str]) -> dict[str, Any]:
        return {
            "original": {
                "url": self.original.url_among(urls),
                "bytes": self.original.bytes,
                "width": self.original.width,
                "height": self.original.height,
                "contentType": self.original.content_type,
            },
            "processed": {"url": self.processed.url_among(urls)} if self.processed else None,
            "previews": {
                side: {"url": image.url_among(urls), "width": image.width, "height": image.height}
                for side, image in self.previews.items()
            }
            or None,
        }

    def to_document(self) -> dict[str, Any]:
        """Return the asset as stored: JSON types, but datetimes stay datetimes; `_id` is the 24-hex string."""
        return {
            "_id": self.id,
            "userId": self.user_id,
            "category": self.category,
            "status": self.status.value,
            "images": {
                "original": image_document(self.original),
                "processed": image_document(self.processed),
                "previews": previews_document(self.previews),
            },
            "processingJobId": self.processing_job_id,
            "fence": self.fence,
            "excused": self.excused,
            "aiMetadata": ai_metadata_document(self.ai_metadata),
            "attempts": [*map(dict, self.attempts)],
            "provenance": dict(self.provenance) if self.provenance else None,
            "corrections": {name: dict(each) for name, each in self.corrections.items()},
            "history": [*map(dict, self.history)],
            # None when empty, as in older documents, which have no such field.
            "claims": dict(self.claims) or None,
            "finishedAt": self.finished_at,
            "createdAt": self.created_at,
            "updatedAt": self.updated_at,
            # Beside the image's own name, for an index. Older documents lack it; they have their original.
            "originalGone": None if self.has_original else True,
            "failure": self.failure,
            "schema": SCHEMA,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Asset:
        """Return the asset of a stored document, also of one that version 0.1 wrote; the counterpart of to_document.

        LookupError, TypeError, ValueError or AttributeError for one that is damaged.
        """
        images = document["images"]
        previews = images.get("previews") or {}
        processed = images.get("processed")
        return cls(
            id=str(document["_id"]),
            user_id=_checked(document["userId"], str),
            category=_checked(document["category"], str),
            status=AssetStatus(document["status"]),
            original=image_of(images["original"]),
            processed=image_of(processed) if processed else None,
            previews={side: image_of(image) for side, image in previews.items()},
            processing_job_id=_checked(document["processingJobId"], str),
            fence=_checked(document["fence"], int),
            excused=document.get("excused", 0),
            ai_metadata=ai_metadata_of(document.get("aiMetadata") or {}),
            attempts=tuple(document.get("attempts") or ()),
            provenance=document.get("provenance"),
            corrections=document.get("corrections") or {},
            history=tuple(document.get("history") or ()),
            claims=document.get("claims") or {},
            finished_at=_checked(document.get("finishedAt"), datetime, type(None)),
            created_at=_checked(document["createdAt"], datetime),
            updated_at=_checked(document["updatedAt"], datetime),
        )


def _checked(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(f"a {type(value).__name__} where a {kinds[0].__name__} should be")
    return value


def job_data(asset: Asset, image_url: str | None = None) -> dict[str, Any]:
    """Return the job's payload, exactly as contracts/ai-job.schema.json has it.

    image_url: the address of the original; None: the address it had when it was stored. Each run asks for a new one.
    """
    return {
        "assetId": asset.id,
        "userId": asset.user_id,
        "imageUrl": image_url or asset.original.url,
        "category": asset.category,
        "createdAt": to_timestamp(asset.created_at),
    }
