"""Reads the settings from the environment, `.env` and the files that NAME_FILE variables name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr
from pydantic import ValidationError as PydanticValidationError

from pipeline import environment
from pipeline.errors import ConfigurationError
from pipeline.settings.faults import field_faults
from pipeline.settings.plugin_settings import FILE_SUFFIX, PLUGIN_PREFIX
from pipeline.settings.removed import REMOVED, find_removed
from pipeline.settings.settings import Settings

# The settings whose value may be in a file that NAME_FILE names: secrets and keys.
FROM_FILES = tuple(
    name.upper() for name, field in Settings.model_fields.items() if field.annotation is SecretStr or "key" in name
)


def load(**overrides: Any) -> Settings:
    """Return the settings of the environment and `.env`; ConfigurationError lists every fault at once."""
    variables, in_file = environment.read()
    names = [*(name.upper() for name in Settings.model_fields), *(name + FILE_SUFFIX for name in FROM_FILES)]
    found = environment.find_unknown(variables, in_file, names, PLUGIN_PREFIX)
    unknown = tuple(each for each in found if each.variable.upper() not in REMOVED)
    faults = [f"there is no setting {each.variable} (did you mean {each.meant}?)" for each in unknown if each.is_slip]
    given, unread = _given_in_files(in_file | variables)
    faults += unread
    values: dict[str, Any] = {**given, **overrides}
    try:
        settings = Settings(_env_file=environment.FILE, **values)
    except PydanticValidationError as error:
        faults += field_faults(error)
    if faults:
        raise ConfigurationError("Invalid settings: " + "; ".join(faults))
    of_plugins = {name: value for name, value in (in_file | variables).items() if name.startswith(PLUGIN_PREFIX)}
    removed = tuple(find_removed(in_file, variables))
    return settings.with_plugin_variables(of_plugins).with_odd_variables(unknown, removed)


def _given_in_files(variables: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the values that stand in files, by field; and the faults of NAME_FILE variables that give none."""
    given, faults = {}, []
    by_name = {name.upper(): value for name, value in variables.items()}
    for name in FROM_FILES:
        if (path := by_name.get(name + FILE_SUFFIX)) is None:
            continue
        if name in by_name:
            faults.append(f"{name} and {name + FILE_SUFFIX} are both set: remove one")
            continue
        try:
            given[name.lower()] = environment.read_value(path)
        except ValueError as error:
            faults.append(f"{name + FILE_SUFFIX}: {error}")
    return given, faults
