"""AI provider `local`: reads the product's lettering and colours on this machine, without any network.

The embedded default where no AI service is configured. It names only what it can see: the brand and model written on
the product (OCR against a lexicon) and the colours of what stands in front of the background. What it cannot see is
UNKNOWN, and the asset becomes `partial`. All work is done in the sandbox; the service imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pipeline.errors import ConfigurationError
from pipeline.hooks import AIProvider, Sandbox, hookimpl

if TYPE_CHECKING:
    from pipeline.settings import Settings

EXTRA = "local"
# What the children import.
PACKAGES = ("cv2", "numpy", "onnxruntime", "rapidfuzz", "rapidocr")


@hookimpl
def register_ai_providers(settings: Settings, sandbox: Sandbox) -> Iterator[tuple[str, Callable[[], AIProvider]]]:
    """Offer the provider `local`."""
    yield "local", lambda: _build(sandbox, settings.sandbox_processes)


def _build(sandbox: Sandbox, processes: int) -> AIProvider:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"the offline AI provider needs packages that are not installed ({', '.join(missing)}): run pip install "
            "'ai-queue-pipeline[local]' (in a checkout: pip install -e '.[local]'), or set AI_SERVICE_URL"
        )
    from .provider import LocalProvider

    return LocalProvider(sandbox, processes)
