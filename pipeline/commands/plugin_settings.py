"""The settings of plugins, as commands show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.errors import ConfigurationError
from pipeline.hooks.catalogue import Catalogue
from pipeline.settings import PluginSettings, Settings, plugin_variable


@dataclass(frozen=True, slots=True)
class OwnSetting:
    """One setting of a plugin.

    value: the one in force; None when the plugin's settings are invalid.
    why: its description.
    """

    variable: str
    value: Any
    default: Any
    why: str


def own_settings(settings: Settings) -> tuple[list[OwnSetting], list[str]]:
    """Return the settings of all installed plugins, sorted by plugin, and their faults."""
    return _own_settings(Catalogue(settings).own_settings(), settings)


def built_in_settings() -> list[OwnSetting]:
    """Return the settings of the plugins that come with the service, without the environment's values."""
    settings = Settings.model_construct(plugins_safe_mode=True)
    return _own_settings(Catalogue(settings).own_settings(), settings)[0]


def _own_settings(kinds: Mapping[str, type[PluginSettings]], settings: Settings) -> tuple[list[OwnSetting], list[str]]:
    listed, faults = [], []
    for name, kind in sorted(kinds.items()):
        try:
            in_force = settings.plugin(name, kind)
        except ConfigurationError as error:
            in_force = None
            if any(variable.startswith(plugin_variable(name, "")) for variable in settings.plugin_variables):
                faults.append(f"{name}: {error.message}")  # only where a variable of this plugin is set
        for field, info in kind.model_fields.items():
            value = getattr(in_force, field, None)
            listed.append(OwnSetting(plugin_variable(name, field), value, _default(info), info.description or ""))
    return listed, faults


def _default(info: FieldInfo) -> Any:
    default = info.get_default(call_default_factory=True, validated_data={})
    return None if default is PydanticUndefined else default
