"""Starts plugins when the service does: one that is not ready is held, and started by the first call that tries it."""

from __future__ import annotations

import structlog

from pipeline.errors import ConfigurationError, NotReady, plugin_error_text
from pipeline.hooks.calls import BoundPlugin
from pipeline.hooks.faults import NOT_READY
from pipeline.hooks.kinds import HOOK, KINDS

log = structlog.get_logger(__name__)


async def start(plugin: BoundPlugin) -> ConfigurationError | None:
    """Start the plugin; return why the service cannot start with it, if that is so."""
    try:
        await plugin.start()
    except NotReady as error:
        log.warning("plugin_not_ready", kind=plugin.kind, plugin=plugin.name, cause=plugin_error_text(error))
        plugin.hold(NOT_READY, error)
    except Exception as error:
        if plugin.kind == HOOK:
            # Nobody has asked for it by its name: it must not stop the service.
            log.error("plugin_not_started", kind=plugin.kind, plugin=plugin.name, exc_info=True)
            plugin.hold(NOT_READY, NotReady(plugin_error_text(error)))
            return None
        setting = next(kind.setting for kind in KINDS if kind.name == plugin.kind)
        return ConfigurationError(f"{setting}: {plugin.kind} {plugin.name!r} cannot start: {error}")
    return None
