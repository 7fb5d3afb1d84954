"""The command `token`."""

from __future__ import annotations

import click

from pipeline.auth import ROLES, make_token
from pipeline.commands import service_target
from pipeline.commands.output import say


@click.command()
@click.option("--sub", default=service_target.DEMO_USER, show_default=True, help="User id.")
@click.option("--role", type=click.Choice(ROLES), help="The role in the token.")
@click.option(
    "--hours",
    default=24.0,
    show_default=True,
    type=service_target.Number(min=0, max=service_target.MOST_HOURS, min_open=True),
    help="Hours that it is valid.",
)
def token(sub: str, role: str | None, hours: float) -> None:
    """Print a token signed with JWT_SECRET, or with the secret generated into DATA_DIR."""
    say(make_token(service_target.load(), sub, role, hours * 3600))
