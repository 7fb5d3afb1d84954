"""The plugin authors' commands: `plugins` lists what there is, verifies one, prints the reference. Nothing here talks
to a running service.
"""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from pipeline import settings as settings_module
from pipeline.commands.making import new
from pipeline.commands.reference import reference_lines
from pipeline.commands.shown import shown
from pipeline.commands.verifying import verify
from pipeline.hooks.catalogue import list_plugins

stdout = Console(emoji=False)


@click.group(invoke_without_command=True)
@click.pass_context
def plugins(ctx: click.Context) -> None:
    """Print every plugin: its name, kind, package, version and state; or do what a command says."""
    if ctx.invoked_subcommand is not None:
        return
    table = Table("name", "kind", "package", "version", "state", "reason")
    for info in list_plugins(settings_module.load()):
        table.add_row(*map(shown, (info.name, info.kind, info.package, info.version, info.state, info.reason)))
    stdout.print(table)


plugins.add_command(new)
plugins.add_command(verify)


@plugins.command()
def reference() -> None:
    """Print what docs/plugins.md has of hooks, Protocols and settings, as Markdown."""
    print("\n".join(reference_lines()))
