"""The plugin authors' commands: `plugins` lists what there is, verifies one, prints the reference. Nothing here talks
to a running service.
"""

from __future__ import annotations

import click

from pipeline import settings as settings_module
from pipeline.commands.making import new
from pipeline.commands.reference import reference_lines
from pipeline.commands.shown import say_json, say_table
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
    """Print what docs/plugins.md has of hooks, Protocols and settings, as Markdown."""
    print("\n".join(reference_lines()))
