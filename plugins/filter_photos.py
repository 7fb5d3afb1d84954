"""The filters `photos`: refuse photos too small to tell anything from, and drop what the AI is not sure of.

Off unless one of PLUGIN_PHOTOS_MIN_SIDE_PIXELS and PLUGIN_PHOTOS_MIN_CONFIDENCE is set. Runs on the event loop: both
are a comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.errors import ValidationError
from pipeline.hooks import UNKNOWN, Analysis, Attribute, PluginSettings, UploadFacts, hookimpl

if TYPE_CHECKING:
    from pipeline.settings import Settings


class PhotosSettings(PluginSettings):
    """What is asked of photos and results."""

    min_side_pixels: int = Field(
        0, ge=0, description="Photos whose shorter side has fewer pixels are refused; 0 takes every photo."
    )
    min_confidence: float = Field(
        0, ge=0, le=1, description="What the AI is less sure of counts as unknown; 0 keeps everything."
    )

    @property
    def is_active(self) -> bool:
        return bool(self.min_side_pixels or self.min_confidence)


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    """Name our settings."""
    yield "photos", PhotosSettings


@hookimpl
async def validate_upload(upload: UploadFacts, settings: Settings) -> None:
    """Refuse a photo that is too small."""
    least = settings.plugin("photos", PhotosSettings).min_side_pixels
    if min(upload.width, upload.height) < least:
        detail = f"Must be at least {least} pixels wide and high, this one is {upload.width} x {upload.height}"
        raise ValidationError.of("image", detail, "The photo is too small")


@hookimpl
async def transform_analysis(analysis: Analysis, settings: Settings) -> Analysis | None:
    """Return the analysis without what the AI is not sure of; a photo it then tells nothing of is `partial`."""
    least = settings.plugin("photos", PhotosSettings).min_confidence

    def sure(attribute: Attribute) -> Attribute:
        return attribute if attribute.confidence >= least else UNKNOWN

    colorway = analysis.colorway and sure(analysis.colorway)
    return replace(analysis, brand=sure(analysis.brand), model=sure(analysis.model), colorway=colorway)
