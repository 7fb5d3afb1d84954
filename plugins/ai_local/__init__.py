"""AI provider `local`: reads the product's lettering and colours on this machine, without any network.

The embedded default if no AI service is configured. It names only visible things: the brand and model written on the
product (OCR and a lexicon) and the colours of the product in front of the background. Everything else is UNKNOWN, and
the asset becomes `partial`. All work is done in the sandbox; the service imports nothing heavy.
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
# The packages that the child processes import.
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
