"""What a photo is to this service. Pure: no database, no network, no framework.

Inside, names are snake_case; `to_json` is what clients see and `to_document`/`from_document` what the stores keep,
both camelCase.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from pipeline.assets.failures import fingerprint
from pipeline.clock import utc_now
from pipeline.images import ImageName
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
# Long sides of previews, in pixels.
PREVIEW_SIDES = (320, 1280)
# Of an attempt that failed: what was behind its reason. For operators; its owner does not see it.
CAUSE = "cause"
# What a person may correct.
CORRECTABLE = ("brand", "model", "colorway")
# So many of the last attempts and corrections are kept of each asset.
ATTEMPTS_AT_MOST, HISTORY_AT_MOST = 10, 20
# Of stored documents; those of version 0.1 have none.
SCHEMA = 2


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image: where it is and what it is.

    backend: name of the storage that holds it, "" when somebody else keeps it and only its url is known. url: the
    address it had when it was stored, for storages that make none when asked, and for processes of version 0.1.
    sha256: hex, "" when not known. size and content type are what its bytes say; 0 and "" when not known.
    """

    backend: str
    public_id: str
    url: str = ""
    sha256: str = ""
    bytes: int = 0
    width: int = 0
    height: int = 0
    content_type: str = ""

    @property
    def name(self) -> ImageName | None:
        """Under which name a storage of ours holds it, None when none does."""
        return ImageName(self.backend, self.public_id) if self.public_id else None

    def url_among(self, urls: Mapping[ImageName, str]) -> str | None:
        """Return its URL, None when there is none now. urls: of the images that our storages hold."""
        return urls.get(self.name) if self.name else self.url or None

    def is_held_as(self, name: ImageName) -> bool:
        """Return whether that is this image. The storage of one without a hash was only guessed (upgrade.py)."""
        return name == self.name or (not self.sha256 and bool(self.public_id) and name.public_id == self.public_id)


@dataclass(frozen=True, slots=True)
class AiMetadata:
    """What the AI said.

    brand, model, colorway: {"value": str, "confidence": 0..1}.
    error: why it failed, for people.
    extra: what else the provider has to say, JSON values by name.
    """

    brand: Mapping[str, Any] | None = None
    model: Mapping[str, Any] | None = None
    colorway: Mapping[str, Any] | None = None
    processed_at: datetime | None = None
    error: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asset:
    """One uploaded photo and what became of it. Instants are UTC with whole milliseconds.

    previews: by their long side in pixels, as text. fence: how often a job has started on it; a result is committed
    only under the newest. excused: how many of these starts are not held against the job. attempts, history: the last
    ones of each, oldest first. corrections: what a person set, by field. claims: what the token of the upload said of
    the user, which clients never see. All of these hold JSON values.
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
        """Of which kind its failure is, None when it has not failed."""
        return failure_of(self.status, self.ai_metadata)

    @property
    def corrected_metadata(self) -> AiMetadata:
        """What is known of the photo: what the AI said, and over it what a person said."""
        said: dict[str, Any] = {
            name: {"value": each["value"], "confidence": 1} for name, each in self.corrections.items()
        }
        if not said:
            return self.ai_metadata
        # What a person has put right is no failure any more.
        error = self.ai_metadata.error if self.status is AssetStatus.FAILED else None
        return replace(self.ai_metadata, **said, error=error)

    def status_by_metadata(self) -> AssetStatus:
        """Return which status it has by what is known of it, once its work has ended."""
        meta = self.corrected_metadata
        if meta.brand and meta.model:
            return AssetStatus.ACTIVE
        is_failed = self.ai_metadata.error is not None and not self.corrections
        return AssetStatus.FAILED if is_failed else AssetStatus.PARTIAL

    @property
    def starts(self) -> int:
        """How often its job has started and is to blame if nothing came of it."""
        return self.fence - self.excused

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """Its images, those that others keep among them."""
        return (self.original, *([self.processed] if self.processed else []), *self.previews.values())

    @property
    def image_names(self) -> tuple[ImageName, ...]:
        """The names of its images in our storages."""
        return tuple(image.name for image in self.images if image.name)

    @property
    def has_original(self) -> bool:
        """False once the original is no longer kept."""
        return bool(self.original.public_id)

    @property
    def image_paths(self) -> Mapping[tuple[str, ...], ImageRef]:
        """Its images by where they stand in the document's `images`."""
        paths: dict[tuple[str, ...], ImageRef] = {("original",): self.original}
        if self.processed:
            paths["processed",] = self.processed
        return paths | {("previews", side): image for side, image in self.previews.items()}

    def image_path(self, name: ImageName) -> tuple[str, ...] | None:
        """Return where the document names that image; None when it does not."""
        return next((path for path, image in self.image_paths.items() if image.name == name), None)

    def refers_to(self, name: ImageName) -> bool:
        """Return whether the image is one it has, or one that its current run may have saved and not yet named."""
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
        updated_at: datetime,
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
            updated_at=updated_at,
            previews=self.previews if previews is None else previews,
            attempts=(*self.attempts, attempt)[-ATTEMPTS_AT_MOST:] if attempt else self.attempts,
            provenance=provenance,
        )

    def to_json(
        self, urls: Mapping[ImageName, str], progress: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the asset as clients see it (schema Asset in contracts/analyze-queue.openapi.json).

        urls: of its images, where our storages hold them; image_urls.py makes them.
        """
        meta = self.corrected_metadata
        return {
            "id": self.id,
            "userId": self.user_id,
            "category": self.category,
            "status": self.status.value,
            "images": {
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
            },
            "aiMetadata": {
                "brand": meta.brand,
                "model": meta.model,
                "colorway": meta.colorway,
                "processedAt": to_timestamp(meta.processed_at),
                "error": meta.error,
                "extra": dict(meta.extra),
            },
            "corrections": {name: dict(each) for name, each in self.corrections.items()},
            "attempts": [{name: each[name] for name in each if name != CAUSE} for each in self.attempts],
            "provenance": dict(self.provenance) if self.provenance else None,
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
                "original": image_document(self.original),
                "processed": image_document(self.processed),
                "previews": previews_document(self.previews),
            },
            "processingJobId": self.processing_job_id,
            "fence": self.fence,
            "excused": self.excused,
            "aiMetadata": ai_metadata_document(meta),
            "attempts": [*map(dict, self.attempts)],
            "provenance": dict(self.provenance) if self.provenance else None,
            "corrections": {name: dict(each) for name, each in self.corrections.items()},
            "history": [*map(dict, self.history)],
            # None where there are none, as in documents of before, which have no such field.
            "claims": dict(self.claims) or None,
            "finishedAt": self.finished_at,
            "createdAt": self.created_at,
            "updatedAt": self.updated_at,
            # Beside the image's own name, because an index has it. Absent in documents of before, which had one.
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
        meta = document.get("aiMetadata") or {}
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
            ai_metadata=AiMetadata(
                brand=meta.get("brand"),
                model=meta.get("model"),
                colorway=meta.get("colorway"),
                processed_at=meta.get("processedAt"),
                error=meta.get("error"),
                extra=meta.get("extra") or {},
            ),
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


def failure_of(status: AssetStatus, meta: AiMetadata) -> str | None:
    """Return of which kind the failure is, None when it is none."""
    return fingerprint(meta.error) if status is AssetStatus.FAILED else None


def ai_metadata_document(meta: AiMetadata) -> dict[str, Any]:
    """Return the stored form of aiMetadata."""
    return {
        "brand": dict(meta.brand) if meta.brand else None,
        "model": dict(meta.model) if meta.model else None,
        "colorway": dict(meta.colorway) if meta.colorway else None,
        "processedAt": meta.processed_at,
        "error": meta.error,
        "extra": dict(meta.extra),
    }


def image_document(image: ImageRef | None) -> dict[str, Any] | None:
    """Return the stored form of an image."""
    if image is None:
        return None
    return {
        "backend": image.backend,
        # Version 0.1 knows an image that others keep by this being null.
        "publicId": image.public_id or None,
        "url": image.url,
        "sha256": image.sha256,
        "bytes": image.bytes,
        "width": image.width,
        "height": image.height,
        "contentType": image.content_type,
    }


def previews_document(previews: Mapping[str, ImageRef]) -> dict[str, Any]:
    """Return the stored form of images.previews."""
    return {side: image_document(image) for side, image in previews.items()}


def image_of(document: Mapping[str, Any]) -> ImageRef:
    """Return the image of a stored document; the counterpart of image_document."""
    public_id, url = document.get("publicId") or "", document.get("url") or ""
    backend = document.get("backend")
    return ImageRef(
        backend=guess_backend(public_id, url) if backend is None else backend,
        public_id=public_id,
        url=url,
        sha256=document.get("sha256") or "",
        bytes=document.get("bytes") or 0,
        width=document.get("width") or 0,
        height=document.get("height") or 0,
        content_type=document.get("contentType") or "",
    )


def guess_backend(public_id: str, url: str) -> str:
    """Return which storage holds an image of which version 0.1 wrote only name and address."""
    if not public_id:
        return ""
    parts = urlsplit(url)
    if (parts.hostname or "").endswith("cloudinary.com"):
        return "cloudinary"
    return "local" if f"/media/{public_id}." in parts.path else "object"


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


def job_data(asset: Asset, image_url: str | None = None) -> dict[str, Any]:
    """Return the job's payload, exactly as contracts/ai-job.schema.json has it.

    image_url: of the original; None: the one it had when it was stored. Who runs the job asks for a fresh one.
    """
    return {
        "assetId": asset.id,
        "userId": asset.user_id,
        "imageUrl": image_url or asset.original.url,
        "category": asset.category,
        "createdAt": to_timestamp(asset.created_at),
    }


def processed_public_id(asset_id: str, fence: int) -> str:
    """Return where a run keeps its processed image; each fence has its own, so a stale run overwrites nothing."""
    return f"{asset_id}/processed-{fence}"


def preview_public_id(asset_id: str, side: int) -> str:
    """Return where the preview of that long side is kept. Each run makes the same of the same original.

    In a folder of its own: the sweeper of version 0.1, beside us or after a return to it, takes what is named
    `<asset_id>/<name>` for an image that no asset names, but looks at nothing deeper.
    """
    return f"{asset_id}/preview/{side}"
