"""Starts plugins with the service. A plugin that is not ready is held, and the first call that tries it starts it."""

from __future__ import annotations

import structlog

from pipeline.errors import ConfigurationError, NotReady, plugin_error_text
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.faults import NOT_READY
from pipeline.hooks.kinds import HOOK, KINDS

log = structlog.get_logger(__name__)


async def start(plugin: BoundPlugin) -> ConfigurationError | None:
    """Start the plugin; return the error if the service cannot start with it."""
    try:
        await plugin.start()
    except NotReady as error:
        log.warning("plugin_not_ready", kind=plugin.kind, plugin=plugin.name, cause=plugin_error_text(error))
        hold(plugin, NOT_READY, error)
    except Exception as error:
        if plugin.kind == HOOK:
            # No setting names an observer or filter: it must not stop the service.
            log.error("plugin_not_started", kind=plugin.kind, plugin=plugin.name, exc_info=True)
            hold(plugin, NOT_READY, NotReady(plugin_error_text(error)))
            return None
        setting = next(kind.setting for kind in KINDS if kind.name == plugin.kind)
        return ConfigurationError(f"{setting}: {plugin.kind} {plugin.name!r} cannot start: {error}")
    return None


def hold(plugin: BoundPlugin, reason: str, error: NotReady) -> None:
    """Let no call of the plugin through, except those that try it after the time that the error says."""
    for method in plugin.methods:
        plugin.breaker(method).unreachable(reason, plugin_error_text(error), error.retry_after_seconds)
