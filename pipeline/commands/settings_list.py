"""The command `settings`, and the lists of settings in the README and in `.env.example`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from pipeline import settings as settings_module
from pipeline.commands import plugin_settings
from pipeline.commands.shown import note, say, say_table
from pipeline.settings import Settings
from pipeline.texts import mask_address


@click.command()
@click.option("--format", "format_", type=click.Choice(["table", "env", "markdown"]), default="table")
def settings(format_: str) -> None:
    """Print every setting, those of plugins too: its name, the value in force or the default, and why.

    The other formats know only the plugins that come with the service.
    """
    if format_ == "table":
        in_force = settings_module.load()
        rows = [
            (name.upper(), mask_address(_as_text(getattr(in_force, name))), _as_text(field.default), field.description)
            for name, field in Settings.model_fields.items()
        ]
        own, faults = plugin_settings.own_settings(in_force)
        rows += [(each.variable, mask_address(_as_text(each.value)), _as_text(each.default), each.why) for each in own]
        say_table(("setting", "value", "default", "why"), rows)
        for text in (*map(str, in_force.removed_variables), *faults):
            note(text)
        return
    for line in settings_lines(format_):
        say(line)


def settings_lines(format_: str) -> list[str]:
    """Return all settings as lines of `.env.example` ("env") or of the README's table ("markdown")."""
    ours = Settings.model_fields.items()
    fields = [(name.upper(), _as_text(field.default), field.description) for name, field in ours]
    fields += [(own.variable, _as_text(own.default), own.why) for own in plugin_settings.built_in_settings()]
    if format_ == "env":
        return [line for name, default, why in fields for line in (f"# {why}", f"#{name}={default}")]
    rows = [f"| `{name}` | {f'`{default}`' if default else ''} | {why} |" for name, default, why in fields]
    return ["| setting | default | what it is, and why |", "|---|---|---|", *rows]


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{name}={'+'.join(names)}" for name, names in value.items())
    if value is None:
        return ""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list, set, frozenset)) else str(value)
