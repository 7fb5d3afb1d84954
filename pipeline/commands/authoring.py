"""The command `plugins`, for plugin authors: lists plugins, makes a new one, verifies one, prints the reference. It
needs no running service.
"""

from __future__ import annotations

import click

from pipeline import settings as settings_module
from pipeline.commands.making import new
from pipeline.commands.reference import reference_lines
from pipeline.commands.output import say_json, say_table
from pipeline.commands.verifying import verify
from pipeline.hooks.catalogue import Catalogue


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON line for each plugin, with methods, limits and faults.")
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """List all plugins: name, kind, package, version, state and faults.

    Creates the selected plugins and those that do not come with the service, and starts none.
    """
    if ctx.invoked_subcommand is not None:
        return
    catalogue = Catalogue(settings_module.load())
    catalogue.inspect_plugins()
    infos = catalogue.infos()
    if as_json:
        for info in infos:
            say_json(info.as_json())
        return
    rows = [(info.name, info.kind, info.package, info.version, info.state, info.wrong) for info in infos]
    say_table(("name", "kind", "package", "version", "state", "what is wrong"), rows)


plugins.add_command(new)
plugins.add_command(verify)


@plugins.command()
def reference() -> None:
    """Print the reference of hooks, Protocols and settings in docs/plugins.md, as Markdown."""
    print("\n".join(reference_lines()))
