"""The filters `photos`: refuse photos that are too small, and drop values with a low confidence.

Off unless PLUGIN_PHOTOS_MIN_SIDE_PIXELS or PLUGIN_PHOTOS_MIN_CONFIDENCE is set. Runs on the event loop: both filters
only compare numbers.
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
    """The limits for photos and results."""

    min_side_pixels: int = Field(
        0, ge=0, description="Photos whose shorter side has fewer pixels are refused; 0 accepts every photo."
    )
    min_confidence: float = Field(
        0, ge=0, le=1, description="Values with a lower confidence count as unknown; 0 accepts every value."
    )

    @property
    def is_active(self) -> bool:
        return bool(self.min_side_pixels or self.min_confidence)


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    """Offer the settings of `photos`."""
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
    """Return the analysis without values of low confidence; without brand or model the asset is `partial`."""
    least = settings.plugin("photos", PhotosSettings).min_confidence

    def sure(attribute: Attribute) -> Attribute:
        return attribute if attribute.confidence >= least else UNKNOWN

    colorway = analysis.colorway and sure(analysis.colorway)
    return replace(analysis, brand=sure(analysis.brand), model=sure(analysis.model), colorway=colorway)
