"""The list of commands: the module of each command also defines or imports its subcommands."""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module

import click
import pytest

from pipeline import commands
from pipeline.cli import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_module_of_a_command_has_its_subcommands(name: str) -> None:
    """A subcommand is defined in the module that the list names, or in a module that it imports."""
    for module in pkgutil.iter_modules(commands.__path__):
        import_module(f"{commands.__name__}.{module.name}")
    command = main.get_command(click.Context(main), name)
    assert command is not None and command.name == name
    named = sys.modules[f"pipeline.{COMMANDS[name].partition(':')[0]}"]
    found = {id(each) for each in vars(named).values()}
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        is_in_same_module = getattr(each.callback, "__module__", "") == getattr(command.callback, "__module__", None)
        assert id(each) in found or is_in_same_module, f"{name} {each.name}: {COMMANDS[name]} does not import it"


def test_unknown_command_is_wrong_use() -> None:
    """A name that is not on the list is an error of use and imports no module."""
    with pytest.raises(click.UsageError, match="No such command 'verifying'"):
        main.main(["verifying"], standalone_mode=False)
