"""The plugin authors' commands: `plugins` lists what there is, verifies one, prints the reference. Nothing here talks
to a running service.
"""

from __future__ import annotations

import json

import click
from rich.table import Column, Table

from pipeline import settings as settings_module
from pipeline.commands.making import new
from pipeline.commands.reference import reference_lines
from pipeline.commands.shown import cleaned, shown, stdout
from pipeline.commands.verifying import verify
from pipeline.hooks.catalogue import Catalogue


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON line each, with methods, limits and all that is wrong.")
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """Print every plugin: its name, kind, package, version, state and what is wrong with it; or do what a command says.

    Makes those that are selected or do not come with the service, as the settings say, and starts none.
    """
    if ctx.invoked_subcommand is not None:
        return
    catalogue = Catalogue(settings_module.load())
    catalogue.look_into()
    infos = catalogue.infos()
    if as_json:
        for info in infos:
            print(json.dumps(cleaned(info.as_json())), flush=True)
        return
    # Folded, as what is cut off could not be read, nor copied.
    table = Table("name", "kind", "package", "version", "state", Column("what is wrong", overflow="fold"))
    for info in infos:
        wrong = "\n".join(map(shown, (*info.faults, *(f"warning: {each}" for each in info.warnings))))
        table.add_row(*map(shown, (info.name, info.kind, info.package, info.version, info.state)), wrong)
    stdout.print(table)


plugins.add_command(new)
plugins.add_command(verify)


@plugins.command()
def reference() -> None:
    """Print what docs/plugins.md has of hooks, Protocols and settings, as Markdown."""
    print("\n".join(reference_lines()))
