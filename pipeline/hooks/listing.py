"""The info about each plugin for `run.py plugins`, `check` and the suites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.hooks.limits import FORMATS, Limits
from pipeline.hooks.sources import Source

BROKEN, NOT_INSTALLED = "broken", "not installed"


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One line of `run.py plugins`.

    kind: provider | storage | notifier | hook (observers and filters), or "" for a plugin that could not be loaded.
    package: the distribution, "built-in" or "PLUGINS_DIR".
    state: selected | available | not installed (it needs packages, the warning names them) | disabled | broken.
    reason: its faults in one text, "" unless it is broken.
    faults: why it is broken, one by one.
    warnings: harmless faults; for a plugin that is not selected also why its factory fails with the present settings.
    source: its file, "" when unknown.
    import_ms: how long its import took.
    methods: the methods and hooks that the service calls.
    limits: as a provider declares them, by the attribute's name, as JSON.
    routes: "METHOD path (role)" of each route.
    """

    name: str
    kind: str
    package: str
    version: str
    state: str
    reason: str = ""
    faults: tuple[str, ...] = field(default=(), compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)
    source: str = field(default="", compare=False)
    import_ms: int | None = field(default=None, compare=False)
    methods: tuple[str, ...] = field(default=(), compare=False)
    limits: Mapping[str, Any] = field(default_factory=dict, compare=False)
    routes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def wrong(self) -> str:
        """Its faults and warnings in one text; "" when there are none."""
        return "; ".join((*self.faults, *(f"warning: {each}" for each in self.warnings)))

    def as_json(self) -> dict[str, Any]:
        """Return a line of `run.py plugins --json`."""
        return {
            "name": self.name,
            "kind": self.kind or None,
            "package": self.package,
            "version": self.version or None,
            "state": self.state,
            "faults": list(self.faults),
            "warnings": list(self.warnings),
            "source": self.source or None,
            "importMs": self.import_ms,
            "methods": list(self.methods),
            "limits": dict(self.limits),
            "routes": list(self.routes),
        }


def limits_as_json(limits: Limits, extra_fields: object) -> dict[str, Any]:
    """Return the declared limits by the name of the attribute.

    extra_fields: the schemas as the plugin declares them.
    """
    formats = {content_type: name for name, content_type in FORMATS.items()}
    declared: dict[str, Any] = {
        "categories": None if limits.categories is None else sorted(limits.categories),
        "image_formats": None
        if limits.content_types is None
        else sorted(formats[each] for each in limits.content_types),
        "max_in_flight": limits.max_in_flight,
        "rate": None if limits.rate is None else {"n": limits.rate.n, "per_seconds": limits.rate.per_seconds},
        "extra_fields": dict(extra_fields) if isinstance(extra_fields, Mapping) and limits.extra_fields else None,
    }
    return {name: value for name, value in declared.items() if value is not None}


def info_of(source: Source, kind: str, state: str, name: str = "") -> PluginInfo:
    """Return the info of a plugin of that source."""
    info = PluginInfo(name or source.name, kind, source.package, source.version, state)
    return replace(info, source=source.path, import_ms=source.import_ms)


def broken_info(source: Source, kind: str, faults: tuple[str, ...], name: str = "") -> PluginInfo:
    """Return the info of a plugin that cannot be used."""
    return replace(info_of(source, kind, BROKEN, name), reason="; ".join(faults), faults=faults)
