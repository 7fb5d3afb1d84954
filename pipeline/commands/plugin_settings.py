"""The settings that plugins want to know, as commands show them."""

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
    """A setting of a plugin's own. value: in force, None when the plugin's settings are not in order."""

    variable: str
    value: Any
    default: Any
    why: str


def own_settings(settings: Settings) -> tuple[list[OwnSetting], list[str]]:
    """Return the settings of all plugins there are, by name, and what is wrong with them."""
    return _own_settings(Catalogue(settings).own_settings(), settings)


def built_in_settings() -> list[OwnSetting]:
    """Return the settings of the plugins that come with the service, whatever the environment says."""
    settings = Settings.model_construct(plugins_safe_mode=True)
    return _own_settings(Catalogue(settings).own_settings(), settings)[0]


def _own_settings(kinds: Mapping[str, type[PluginSettings]], settings: Settings) -> tuple[list[OwnSetting], list[str]]:
    found, faults = [], []
    for name, kind in sorted(kinds.items()):
        try:
            in_force = settings.plugin(name, kind)
        except ConfigurationError as error:
            in_force = None
            if any(variable.startswith(plugin_variable(name, "")) for variable in settings.plugin_variables):
                faults.append(f"{name}: {error.message}")  # of a plugin nobody has set up nothing need be in order
        for field, info in kind.model_fields.items():
            value = getattr(in_force, field, None)
            found.append(OwnSetting(plugin_variable(name, field), value, _default(info), info.description or ""))
    return found, faults


def _default(info: FieldInfo) -> Any:
    default = info.get_default(call_default_factory=True, validated_data={})
    return None if default is PydanticUndefined else default
