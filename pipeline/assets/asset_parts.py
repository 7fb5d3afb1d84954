"""The types an asset is made of, and how the stores write them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from pipeline.assets.failures import fingerprint
from pipeline.images import ImageName


class AssetStatus(StrEnum):
    """Where an asset is in its life; `partial` is finished, with brand or model missing."""

    DRAFT = "draft"
    PROCESSING = "processing"
    PARTIAL = "partial"
    ACTIVE = "active"
    ARCHIVED = "archived"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image: where it is and what it is.

    backend: name of the storage that has it, "" when no storage of ours has it and only its url is known.
    url: its address when it was stored, for storages that make none when asked, and for processes of version 0.1.
    sha256: hex, "" when not known.
    bytes, width, height, content_type: as its content says; 0 and "" when not known.
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
        """The name of the image in a storage of ours, None when none has it."""
        return ImageName(self.backend, self.public_id) if self.public_id else None

    def url_among(self, urls: Mapping[ImageName, str]) -> str | None:
        """Return its URL, None when it has none now. urls: those of the images in our storages."""
        return urls.get(self.name) if self.name else self.url or None

    def is_held_as(self, name: ImageName) -> bool:
        """Return whether that is this image. Without a hash, its storage was only guessed (upgrade.py)."""
        return name == self.name or (not self.sha256 and bool(self.public_id) and name.public_id == self.public_id)


@dataclass(frozen=True, slots=True)
class AiMetadata:
    """The result of the AI.

    brand, model, colorway: {"value": str, "confidence": 0..1}.
    error: why it failed, for people.
    extra: further results of the provider, JSON values by name.
    """

    brand: Mapping[str, Any] | None = None
    model: Mapping[str, Any] | None = None
    colorway: Mapping[str, Any] | None = None
    processed_at: datetime | None = None
    error: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def failure_of(status: AssetStatus, meta: AiMetadata) -> str | None:
    """Return the fingerprint of the failure, None when the status is another."""
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


def ai_metadata_json(meta: AiMetadata) -> dict[str, Any]:
    """Return aiMetadata as clients see it."""
    return ai_metadata_document(meta) | {"processedAt": to_timestamp(meta.processed_at)}


def ai_metadata_of(document: Mapping[str, Any]) -> AiMetadata:
    """Return the metadata of its stored form; the counterpart of ai_metadata_document."""
    return AiMetadata(
        brand=document.get("brand"),
        model=document.get("model"),
        colorway=document.get("colorway"),
        processed_at=document.get("processedAt"),
        error=document.get("error"),
        extra=document.get("extra") or {},
    )


def image_document(image: ImageRef | None) -> dict[str, Any] | None:
    """Return the stored form of an image."""
    if image is None:
        return None
    return {
        "backend": image.backend,
        # Version 0.1 recognizes an image in no storage of ours by this being null.
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


def to_timestamp(instant: datetime | None) -> str | None:
    """Return an instant as `2026-01-31T12:00:00.123Z`, the one spelling used on the wire."""
    if instant is None:
        return None
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def guess_backend(public_id: str, url: str) -> str:
    """Return which storage has an image of which version 0.1 wrote only name and address."""
    if not public_id:
        return ""
    parts = urlsplit(url)
    if (parts.hostname or "").endswith("cloudinary.com"):
        return "cloudinary"
    return "local" if f"/media/{public_id}." in parts.path else "object"
