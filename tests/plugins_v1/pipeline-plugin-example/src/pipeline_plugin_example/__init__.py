"""The AI provider `example`: names the colorway of a photo by its average colour, offline.

The module has also an observer that logs each finished job under a pseudonym of its user.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import structlog
from PIL import Image, ImageStat
from pydantic import Field, SecretStr

from pipeline.errors import PermanentJobError
from pipeline.hooks import (
    AIProvider,
    Analysis,
    AnalyzeRequest,
    Attribute,
    JobEvent,
    PluginSettings,
    hookimpl,
)

if TYPE_CHECKING:
    from pipeline.settings import Settings

API_VERSION = 1  # the version of pipeline.hooks that this plugin was written for
NAME = "example"
COLORS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "red": (200, 30, 30),
    "orange": (240, 140, 20),
    "yellow": (240, 220, 40),
    "green": (40, 140, 60),
    "blue": (40, 90, 200),
    "navy": (0, 0, 128),
    "purple": (120, 40, 140),
    "pink": (240, 150, 180),
    "brown": (110, 70, 40),
    "beige": (225, 205, 170),
}
SIDE_PIXELS = 64
log = structlog.get_logger(__name__)


class ExampleSettings(PluginSettings):
    """PLUGIN_EXAMPLE_..."""

    center_percent: int = Field(
        60,
        ge=1,
        le=100,
        description="How much of the photo's width and height counts, from the middle, where the product is.",
    )
    pseudonym_key: SecretStr = Field(
        SecretStr(""),
        description="Key of the pseudonyms that users have in the log; empty: finished jobs are not logged.",
    )

    @property
    def is_active(self) -> bool:
        """Whether the observer below is called; the provider is in use when AI_PROVIDER names it."""
        return bool(self.pseudonym_key.get_secret_value())


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    """Offer the settings of `example`."""
    yield NAME, ExampleSettings


@hookimpl
def register_ai_providers(settings: Settings) -> Iterator[tuple[str, Callable[[], AIProvider]]]:
    """Offer `example`. The factory reads the settings: they must be valid only when the provider is used."""
    yield NAME, lambda: ExampleProvider(settings.plugin(NAME, ExampleSettings).center_percent)


@hookimpl
async def job_finished(event: JobEvent, settings: Settings) -> None:
    """Log the finished job with a pseudonym of its user."""
    key = settings.plugin(NAME, ExampleSettings).pseudonym_key.get_secret_value()
    user = hmac.new(key.encode(), event.user_id.encode(), hashlib.sha256).hexdigest()[:12]
    log.info("example_job_finished", user=user, outcome=event.outcome, category=event.category)


class ExampleProvider:
    """Knows colours and nothing else: brand and model stay unknown, so its assets are `partial`."""

    needs_image = True

    def __init__(self, center_percent: int) -> None:
        self._center_percent = center_percent

    def analyze(self, request: AnalyzeRequest) -> Analysis:
        """Return the nearest colour with a name. A plain `def`: it computes, so it runs in a thread."""
        assert request.image is not None  # because of needs_image
        try:
            with Image.open(io.BytesIO(request.image)) as image:
                image.draft("RGB", (SIDE_PIXELS, SIDE_PIXELS))  # a JPEG need not be decoded in full size
                small = image.convert("RGB").resize((SIDE_PIXELS, SIDE_PIXELS))
        except (OSError, Image.DecompressionBombError) as error:
            raise PermanentJobError("The image cannot be read") from error
        edge = SIDE_PIXELS * (100 - self._center_percent) // 200
        average = ImageStat.Stat(small.crop((edge, edge, SIDE_PIXELS - edge, SIDE_PIXELS - edge))).mean
        distances = {name: math.dist(average, color) for name, color in COLORS.items()}
        nearest = min(distances, key=distances.__getitem__)
        return Analysis(colorway=Attribute(nearest, round(1 - distances[nearest] / math.dist((0,) * 3, (255,) * 3), 2)))
