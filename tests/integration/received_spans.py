"""Spans that a fake collector received from the service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from tests.fake_collector import Received

FAST = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_EXPORTER_OTLP_TIMEOUT": "0.5", "BACKOFF_MS": "50"}
UPLOAD, RETRY = "POST /api/assets/analyze-queue", "POST /api/assets/{id}/retry"
ATTEMPT = "process ai-processing"


def has(*names: str) -> Callable[[list[Received]], bool]:
    """Return a condition: spans of these names have arrived, each as often as it is named."""
    return lambda spans: Counter(names) <= Counter(span.name for span in spans)


def only(spans: list[Received], name: str) -> Received:
    """Return the only span of this name."""
    (found,) = (span for span in spans if span.name == name)
    return found
