"""The command line. `serve` is the service itself; the other commands call a running service or print settings.

Results go to standard output, logs and progress to standard error. Exit codes: commands/exit_codes.py. Only the command
that was typed is imported: importing all takes a second of CPU time, and `health` runs every half a minute.
"""

from __future__ import annotations

import errno
import sys
from importlib import import_module
from typing import Any

import click

from pipeline.commands.exit_codes import EPILOG, ExitCode, Unfinished
from pipeline.commands.output import complain, note, use_any_encoding
from pipeline.errors import ConfigurationError

# The module of each command and, where it differs from the command's name, the attribute.
COMMANDS = {
    "assets": "commands.assets",
    "audit": "commands.operating",
    "backup": "commands.backups",
    "check": "commands.checking",
    "demo": "commands.demonstrating",
    "eval": "commands.evaluating:evaluate",
    "failed": "commands.operating",
    "health": "commands.health",
    "jobs": "commands.jobs",
    "link": "commands.demonstrating",
    "move": "commands.moving",
    "plugins": "commands.authoring",
    "processes": "commands.overview",
    # Adds `top` to what commands.operating has.
    "queue": "commands.overview",
    "reanalyze": "commands.jobs",
    "restore": "commands.backups",
    "serve": "serving",
    "settings": "commands.settings_list",
    "submit": "commands.submitting",
    "token": "commands.signing",
    "users": "commands.assets",
    "verify": "commands.backups",
    "watch": "commands.watching",
}


class Commands(click.Group):
    """Imports the command that was typed, and turns expected errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _load(cmd_name) if cmd_name in COMMANDS else None

    def invoke(self, ctx: click.Context) -> Any:
        use_any_encoding()
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            complain(error.message)
            ctx.exit(ExitCode.WRONG_USE)
        except Unfinished as error:
            complain(error, "Not finished")
            ctx.exit(ExitCode.UNFINISHED)
        except OSError as error:
            # A file, or standard output, cannot be written. For `serve` the trace helps. A closed pipe is no error.
            if ctx.invoked_subcommand in (None, "serve") or error.errno == errno.EPIPE:
                raise
            complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
            ctx.exit(ExitCode.FAILED)
        except KeyboardInterrupt:
            note("Interrupted")
            ctx.exit(ExitCode.INTERRUPTED)
        except Exception as error:
            # A command that raises ClientError has imported the client; other commands do not need it.
            client = sys.modules.get("pipeline.client")
            if client is None or not isinstance(error, client.ClientError):
                raise
            complain(error)
            ctx.exit(ExitCode.FAILED)


@click.group(cls=Commands, invoke_without_command=True, epilog=EPILOG)
@click.version_option(package_name="ai-queue-pipeline")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Upload a photo, get an answer at once, see the AI's result arrive. Without a command: serve."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(_load("serve"))


def _load(name: str) -> click.Command:
    module, _, attribute = COMMANDS[name].partition(":")
    command: click.Command = getattr(import_module(f"pipeline.{module}"), attribute or name)
    return command
