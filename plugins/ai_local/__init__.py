"""AI provider `local`: reads the product's lettering and colours on this machine, without any network.

The embedded default where no AI service is configured. It names only what it can see: the brand and model written on
the product (OCR against a lexicon) and the colours of what stands in front of the background. What it cannot see is
UNKNOWN, and the asset becomes `partial`. Nothing heavy is imported until the factory runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pipeline.errors import ConfigurationError
from pipeline.hooks import AIProvider, hookimpl

if TYPE_CHECKING:
    from pipeline.settings import Settings


@hookimpl
def register_ai_providers(settings: Settings) -> Iterator[tuple[str, Callable[[], AIProvider]]]:
    """Offer the provider `local`."""
    yield "local", lambda: _build(settings.max_image_pixels)


def _build(max_image_pixels: int) -> AIProvider:
    try:
        from plugins.ai_local.provider import LocalProvider

        return LocalProvider(max_image_pixels)
    except ImportError as error:
        raise ConfigurationError(
            f"the offline AI provider needs packages that are not installed ({error}): run pip install "
            "'ai-queue-pipeline[local]' (in a checkout: pip install -e '.[local]'), or set AI_SERVICE_URL"
        ) from error
