"""The list of plugins; for operators. Runs on the event loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from pipeline.assets.asset import to_timestamp
from pipeline.clock import utc_now
from pipeline.handlers.base import OperatorHandler
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.limits import Limits, sees_of
from pipeline.hooks.listing import PluginInfo, limits_as_json
from pipeline.hooks.manager import PluginManager
from pipeline.hooks.routes import shown_routes
from pipeline.texts import clean
from pipeline.usecases.ai_usage import AiUsage

PROVIDER, NOTIFIER, STORAGE = "provider", "notifier", "storage"


class PluginsHandler(OperatorHandler):
    """GET /api/plugins: the plugins in use in this process, and those that cannot be used."""

    route = "/api/plugins"

    def initialize(  # type: ignore[override]
        self,
        *,
        plugins: PluginManager,
        categories: Mapping[str, Sequence[str]],
        usage: AiUsage,
        **common: Any,
    ) -> None:
        """categories: the categories that the settings assign to each AI provider."""
        super().initialize(**common)
        self.plugins = plugins
        self.categories = categories
        self.usage = usage

    async def get(self) -> None:
        await self.authenticate()
        today = await self.usage.today(self.categories)
        items = [self._shown(plugin, today.providers or {}) for plugin in self.plugins.all]
        items += [_missing(name, reason) for name, reason in self.plugins.storages.missing.items()]
        items += map(_broken, self.plugins.broken)
        self.reply({"items": items, "aiBudget": today.budget})

    def _shown(self, plugin: BoundPlugin, today: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        left_seconds, kind = plugin.status.held_seconds, plugin.kind
        of_provider = {
            "sees": sees_of(plugin.plugin) or None,
            "categories": [each for each in self.categories.get(plugin.name, ()) if plugin.limits.takes(each)],
            "today": today.get(plugin.name),
            **_limits(plugin.limits),
        }
        return (
            _empty_item(plugin.name, kind, plugin.status.state, plugin.status.reason)
            | (_origin(plugin) if plugin.source else {})
            | (of_provider if kind == PROVIDER else {})
            | {
                "warnings": [clean(each) for each in plugin.warnings],
                "routes": list(shown_routes(plugin.routes)),
                "maxInFlight": plugin.max_in_flight,
                "calls": plugin.calls,
                "errors": plugin.errors,
                "quarantinedUntil": to_timestamp(utc_now() + timedelta(seconds=left_seconds)) if left_seconds else None,
                "isDurable": bool(getattr(plugin.plugin, "durable", False)) if kind == NOTIFIER else None,
            }
        )


def _empty_item(name: str, kind: str | None, state: str, reason: str) -> dict[str, Any]:
    """Return a plugin of which only these four facts are known."""
    unknown = (
        *("package", "version", "apiVersion", "importMs", "sees", "categories", "imageFormats", "rate"),
        *("maxInFlight", "maxInFlightInAll", "quarantinedUntil", "isDurable", "today"),
    )
    facts = {"name": name, "kind": kind, "state": state, "reason": clean(reason) or None}
    return facts | dict.fromkeys(unknown) | {"warnings": [], "routes": [], "calls": 0, "errors": 0}


def _origin(plugin: BoundPlugin) -> dict[str, Any]:
    source = plugin.source
    assert source is not None
    return {
        "package": source.package,
        "version": source.version or None,
        "apiVersion": source.api_version,
        "importMs": source.import_ms,
    }


def _limits(limits: Limits) -> dict[str, Any]:
    """Return the limits that a provider declares for all processes together."""
    declared = limits_as_json(limits, None)
    rate = limits.rate
    return {
        "imageFormats": declared.get("image_formats"),
        "rate": {"calls": rate.n, "perSeconds": rate.per_seconds} if rate else None,
        "maxInFlightInAll": limits.max_in_flight,
    }


def _missing(name: str, reason: str) -> dict[str, Any]:
    """Return a storage that has images of this service, but whose settings were removed too early."""
    return _empty_item(name, STORAGE, "missing", reason)


def _broken(info: PluginInfo) -> dict[str, Any]:
    facts = {"package": info.package, "version": info.version or None, "importMs": info.import_ms}
    return _empty_item(info.name, info.kind or None, "broken", info.reason) | facts
