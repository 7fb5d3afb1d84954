"""The commands `assets` (with the token of a user or an admin) and `users` (with an admin's). They call the service."""

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

ERASE_POLL_SECONDS = 1.0
# `users erase` gives up when nothing more was removed for this long.
PATIENCE_SECONDS = 180.0
USER_COLUMNS = ("assets", "bytes", "oldest", "newest", "waitingJobs", "deadLetters", "undelivered", "socketsHere")


@click.group()
def assets() -> None:
    """List assets, show one, run them again, remove them. With PIPELINE_ADMIN_TOKEN, or --token of an owner."""


@assets.command("ls")
@click.option("--user", help="The assets of this user; default: of the token's user.")
@click.option("--status", type=click.Choice([status.value for status in AssetStatus]), help="Only this status.")
@click.option("--category", help="Only this category.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="At most this many.")
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
            rows.append((asset["id"], asset["status"], asset["category"], created_at, _result(asset)))
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
    """Delete assets with their images and records; exit code 1 when one does not exist."""
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
            say(f"erase: {_deleted(user['erase'])}")
        if not user["isComplete"]:
            note("There are more assets than were counted")

    run(work, url, token)


@users.command("erase")
@click.argument("sub")
@click.option("--yes", is_flag=True, help="Do not ask before.")
@with_url
@with_token
def erase_user(sub: str, yes: bool, url: str | None, token: str | None) -> None:
    """Delete everything of a user, and wait until it is done. After Ctrl-C the service continues.

    Exit codes: 0 everything is deleted; 1 the service refused; 3 nothing more was deleted within three minutes, for
    example because a storage is down: the service continues, and `users show SUB` shows how far it is; 130 Ctrl-C.
    """
    if not yes:
        click.confirm(f"Erase everything of {sub!r}?", abort=True)

    async def work(client: Operator) -> None:
        deleted, changed_at = "", time.monotonic()
        while (erase := await client.erase_user(sub))["state"] != "done":
            if (now := _deleted(erase)) != deleted:
                deleted, changed_at = now, time.monotonic()
                note(f"So far {deleted}")
            elif time.monotonic() - changed_at > PATIENCE_SECONDS:
                raise Unfinished(f"So far {deleted}. The service continues; see: users show {sub}")
            await asyncio.sleep(ERASE_POLL_SECONDS)
        say(f"Erased: {_deleted(erase)}")

    run(work, url, token)


def _result(asset: dict[str, Any]) -> str:
    """Return brand and model, or the error."""
    meta = asset["aiMetadata"]
    values = [meta[name]["value"] for name in ("brand", "model") if meta[name]]
    return " ".join(values) or meta["error"] or ""


def _counts(statuses: dict[str, int]) -> str:
    parts = [f"{count} {status}" for status, count in statuses.items() if count and status != "total"]
    return f"{statuses['total']} ({', '.join(parts)})" if parts else "0"


def _deleted(erase: dict[str, Any]) -> str:
    deleted = f"{erase['assets']} assets, {erase['images']} images, {erase['jobs']} jobs without an asset"
    return f"{deleted}; it waits: {erase['reason']}" if erase["reason"] else deleted
