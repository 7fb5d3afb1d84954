"""The command `watch`: prints the events of a user."""

from __future__ import annotations

import asyncio

import click

from pipeline.client import Client
from pipeline.commands import service_target
from pipeline.commands.service_target import with_url, with_user_token
from pipeline.commands.output import note, say_json


@click.command()
@click.option("--since", help="Print first all events since this `timestamp` of an event.")
@with_url
@with_user_token
def watch(since: str | None, url: str | None, token: str | None) -> None:
    """Print the user's events, one JSON line each, until Ctrl-C. It reconnects after a restart of the service.

    Exit codes: 0 Ctrl-C, the usual end; 1 the service refuses, or cannot be reached at the start.
    """
    target = service_target.target(url, token, service_target.DEMO_USER)
    current = "socket"
    client: Client | None = None

    def note_transport(transport: str) -> None:
        nonlocal current
        if transport != current:
            current = transport
            note(f"Events come by {transport} now")

    async def run() -> None:
        nonlocal client
        client = Client(*target, since=_instant(since), on_notice=note, on_transport=note_transport)
        async with client:
            note(f"Listening in {await client.listen()}")
            async for event in client.events():
                say_json(event)

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        if client is not None and client.since:
            note(f"To continue from here: {service_target.this_command()} watch --since {client.since}")


def _instant(text: str | None) -> str | None:
    if text is not None:
        try:
            Client("http://localhost", "", since=text)
        except ValueError:
            raise click.BadParameter("must look like 2026-01-31T12:00:00.000Z", param_hint="--since") from None
    return text
