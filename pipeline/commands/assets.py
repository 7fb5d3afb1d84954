"""The commands `assets`, with a user's token or an admin's, and `users`, with an admin's. They ask the service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import click

from pipeline.assets.asset import AssetStatus
from pipeline.client import Operator
from pipeline.commands.exit_codes import Unfinished
from pipeline.commands.operating import each, run, second_of, with_token
from pipeline.commands.service_target import with_url
from pipeline.commands.output import note, say, say_json, say_table

AGAIN_SECONDS = 1.0
# Without anything more that is gone.
PATIENCE_SECONDS = 180.0
USER_COLUMNS = ("assets", "bytes", "oldest", "newest", "waitingJobs", "deadLetters", "undelivered", "socketsHere")


@click.group()
def assets() -> None:
    """List assets, show one, run them again, remove them. With PIPELINE_ADMIN_TOKEN, or --token of an owner."""


@assets.command("ls")
@click.option("--user", help="Whose; default: those of the token's user.")
@click.option("--status", type=click.Choice([status.value for status in AssetStatus]), help="Only those.")
@click.option("--category", help="Only those.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line each.")
@with_url
@with_token
def list_assets(
    user: str | None,
    status: str | None,
    category: str | None,
    limit: int,
    as_json: bool,
    url: str | None,
    token: str | None,
) -> None:
    """List assets, newest first."""
    if user is None and token is None:
        raise click.UsageError("Name a user with --user, or give the token of one with --token")

    async def work(client: Operator) -> None:
        rows = []
        async for asset in client.assets_of(user, status=status, category=category, limit=limit):
            if as_json:
                say_json(asset)
                continue
            created_at = second_of(asset["createdAt"])
            rows.append((asset["id"], asset["status"], asset["category"], created_at, _found(asset)))
        if as_json:
            return
        names = ("asset", "status", "category", "created at", "found")
        if say_table(names, rows, "There are no such assets.") == limit:
            note("There may be more; --limit shows more")

    run(work, url, token)


@assets.command("show")
@click.argument("asset_id")
@with_url
@with_token
def show_asset(asset_id: str, url: str | None, token: str | None) -> None:
    """Print one asset as JSON."""

    async def work(client: Operator) -> None:
        say_json(await client.asset(asset_id), indent=2)

    run(work, url, token)


@assets.command("retry")
@click.argument("asset_id")
@with_url
@with_token
def retry_asset(asset_id: str, url: str | None, token: str | None) -> None:
    """Run a failed or partial asset again."""

    async def work(client: Operator) -> None:
        job_id = (await client.retry(asset_id))["jobId"]
        say(f"{asset_id}: runs again as {job_id}")

    run(work, url, token)


@assets.command("rm")
@click.argument("asset_ids", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask before.")
@with_url
@with_token
def remove_assets(asset_ids: Sequence[str], yes: bool, url: str | None, token: str | None) -> None:
    """Remove assets with all that is kept of them; exit code 1 when one is not there."""
    if not yes:
        click.confirm(f"Remove {len(asset_ids)} asset(s) for good?", abort=True)

    async def remove(client: Operator, asset_id: str) -> str:
        await client.delete(asset_id)
        return "removed"

    run(lambda client: each(client, asset_ids, remove), url, token)


@click.group()
def users() -> None:
    """Show what one user has, or erase a user."""


@users.command("show")
@click.argument("sub")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@with_url
@with_token
def show_user(sub: str, as_json: bool, url: str | None, token: str | None) -> None:
    """Print what one user has."""

    async def work(client: Operator) -> None:
        user = await client.user(sub)
        if as_json:
            say_json(user)
            return
        for name in USER_COLUMNS:
            value = _counts(user[name]) if name == "assets" else user[name]
            if name == "bytes" and user["maxBytes"]:
                value = f"{value} of {user['maxBytes']}"
            say(f"{name}: {'unknown' if value is None else value}")
        if user["erase"]:
            say(f"erase: {_gone(user['erase'])}")
        if not user["isComplete"]:
            note("There are more assets than were counted")

    run(work, url, token)


@users.command("erase")
@click.argument("sub")
@click.option("--yes", is_flag=True, help="Do not ask before.")
@with_url
@with_token
def erase_user(sub: str, yes: bool, url: str | None, token: str | None) -> None:
    """Remove all that there is of a user, and wait for its end. Interrupted, the service goes on by itself.

    Exit codes: 0 all is gone; 1 the service refuses; 3 nothing more went within three minutes, as while a storage is
    away: the service goes on by itself, and `users show SUB` says how far it is; 130 Ctrl-C.
    """
    if not yes:
        click.confirm(f"Erase all that there is of {sub!r}?", abort=True)

    async def work(client: Operator) -> None:
        gone, moved_at = "", time.monotonic()
        while (erase := await client.erase_user(sub))["state"] != "done":
            if (now := _gone(erase)) != gone:
                gone, moved_at = now, time.monotonic()
                note(f"So far {gone}")
            elif time.monotonic() - moved_at > PATIENCE_SECONDS:
                raise Unfinished(f"So far {gone}. The service goes on by itself; see: users show {sub}")
            await asyncio.sleep(AGAIN_SECONDS)
        say(f"Erased: {_gone(erase)}")

    run(work, url, token)


def _found(asset: dict[str, Any]) -> str:
    meta = asset["aiMetadata"]
    values = [meta[name]["value"] for name in ("brand", "model") if meta[name]]
    return " ".join(values) or meta["error"] or ""


def _counts(statuses: dict[str, int]) -> str:
    parts = [f"{count} {status}" for status, count in statuses.items() if count and status != "total"]
    return f"{statuses['total']} ({', '.join(parts)})" if parts else "0"


def _gone(erase: dict[str, Any]) -> str:
    gone = f"{erase['assets']} assets, {erase['images']} images, {erase['jobs']} jobs without an asset"
    return f"{gone}; it waits: {erase['reason']}" if erase["reason"] else gone
