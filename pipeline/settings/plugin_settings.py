"""The settings of plugins: their variables PLUGIN_<NAME>_<FIELD>, and the PluginSettings that are made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast, get_origin

from pydantic import BaseModel, ConfigDict, SecretStr, model_validator
from pydantic import ValidationError as PydanticValidationError

from pipeline import environment
from pipeline.errors import ConfigurationError
from pipeline.settings.faults import field_faults
from pipeline.settings.kinds import split

PLUGIN_PREFIX = "PLUGIN_"
# NAME_FILE names a file that holds the value of NAME: containers and services get their secrets as files.
FILE_SUFFIX = "_FILE"


class PluginSettings(BaseModel):
    """The settings of one plugin, to be subclassed: a field `api_key` of the plugin `acme` is PLUGIN_ACME_API_KEY.

    Values come as text and are converted; a tuple, list or set takes them comma-separated. A secret is a SecretStr: it
    shows in no log, list or error. Each field has a description that says what it is and why its default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True)

    @property
    def is_active(self) -> bool:
        """Whether hooks of the plugin that have settings like these are called at all."""
        return True

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name, field in cls.model_fields.items():
            if isinstance(values.get(name), str) and get_origin(field.annotation) in (tuple, list, set, frozenset):
                values[name] = split(values[name])
        return values


Own = TypeVar("Own", bound=PluginSettings)


class PluginVariables:
    """The variables of all plugins. Values are hidden wherever an object is printed."""

    def __init__(self, variables: Mapping[str, str] = {}) -> None:
        self._variables = {name: SecretStr(value) for name, value in variables.items() if value}
        self._made: dict[tuple[str, type[PluginSettings]], PluginSettings] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all variables."""
        return tuple(self._variables)

    def changed(self, changed: Mapping[str, str]) -> PluginVariables:
        """Return a copy in which these variables replace those of the same name, and the files for them."""
        files = {name + FILE_SUFFIX for name in changed}
        left = {name: each.get_secret_value() for name, each in self._variables.items() if name not in files}
        return PluginVariables(left | dict(changed))

    def settings_of(self, name: str, kind: type[Own]) -> Own:
        """Return the settings of that plugin; ConfigurationError lists every fault at once, and no value."""
        if (name, kind) not in self._made:
            values, unread = self._given_to(name, kind)
            faults = [*unread.values()]
            try:
                own = kind.model_validate(values)
            except PydanticValidationError as error:
                wrong = field_faults(error, plugin_variable(name, ""))
                faults += [each for each in wrong if each.partition(":")[0] not in unread]
            if faults:
                raise ConfigurationError("; ".join(faults)) from None
            self._made[name, kind] = own
        return cast(Own, self._made[name, kind])

    def is_given(self, name: str, field: str) -> bool:
        """Return whether that setting of the plugin is set, by itself or by a file."""
        variable = plugin_variable(name, field)
        return variable in self._variables or variable + FILE_SUFFIX in self._variables

    def _given_to(self, name: str, kind: type[PluginSettings]) -> tuple[dict[str, str], dict[str, str]]:
        """Return field -> value, from the plugin's variables and the files they name; and variable -> fault, for those
        whose file gives no value.
        """
        values, faults = {}, {}
        own = {plugin_variable(name, field): field for field in kind.model_fields}
        for variable, field in own.items():
            in_file = variable + FILE_SUFFIX
            if variable in self._variables:
                values[field] = self._variables[variable].get_secret_value()
            if in_file not in self._variables or in_file in own:
                continue
            if field in values:
                faults[variable] = f"{variable} and {in_file} are both set: remove one"
                continue
            try:
                values[field] = environment.read_value(self._variables[in_file].get_secret_value())
            except ValueError as error:
                faults[variable] = f"{in_file}: {error}"
        return values, faults


def plugin_variable(name: str, field: str) -> str:
    """Return the environment variable of a plugin's setting; with "" as field, the beginning of all its variables."""
    return PLUGIN_PREFIX + re.sub(r"[^A-Z0-9]", "_", name.upper()) + "_" + field.upper()
