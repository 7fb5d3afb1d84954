"""One method of a plugin with its series in the metrics and its breaker."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from pipeline.hooks.breaker import Breaker

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

    from pipeline.metrics import Metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a plugin, its series, and its breaker."""

    function: Callable[..., Any]
    is_async: bool
    seconds: Histogram
    errors: Counter
    overruns: Counter
    skipped: Counter
    breaker: Breaker


def bound_method(
    kind: str, name: str, method: str, function: Callable[..., Any], metrics: Metrics, breaker: Breaker
) -> Method:
    """Return the method; its series exist from the start. kind, name: of the plugin."""
    labels = (kind, name, method)
    breaker.on_change = partial(_log_change, breaker, {"kind": kind, "plugin": name, "method": method})
    metrics.plugin_held.labels(*labels).set_function(partial(_is_held, breaker))
    return Method(
        function,
        inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function),
        metrics.plugin_seconds.labels(*labels),
        metrics.plugin_errors.labels(*labels),
        metrics.plugin_overruns.labels(*labels),
        metrics.plugin_skipped.labels(*labels),
        breaker,
    )


def _log_change(breaker: Breaker, names: dict[str, str], is_held: bool) -> None:
    if is_held:
        left_ms = round(breaker.left_seconds * 1000)
        log.warning("plugin_held", leftMs=left_ms, reason=breaker.reason, cause=breaker.cause, **names)
    else:
        log.warning("plugin_released", **names)


def _is_held(breaker: Breaker) -> float:
    return float(breaker.is_held)
