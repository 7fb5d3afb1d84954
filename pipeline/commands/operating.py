"""The operators' commands: `failed` (dead letters), `queue` (pause, resume, status) and `audit` (operators' changes).
They call a running service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import click

from pipeline.auth import ADMIN_ROLE
from pipeline.client import ClientError, Operator
from pipeline.commands.service_target import OPERATOR, target, with_url
from pipeline.commands.output import complain, note, say, say_json, say_table

TOKEN_SECONDS = 3600
Work = Callable[[Operator], Awaitable[Any]]

# PIPELINE_TOKEN is not read: it is the token of a user.
with_token = click.option("--token", envvar="PIPELINE_ADMIN_TOKEN", help="Token of an admin; default: one made here.")
with_queue = click.option(
    "--queue",
    "queue_name",
    default="ai-processing",
    show_default=True,
    type=click.Choice(["ai-processing", "notifications"]),
    help="notifications: events that webhook and apprise have not delivered yet.",
)


@click.group()
def failed() -> None:
    """List dead letters (jobs that failed for good), retry them, delete them."""


@failed.command("ls")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="At most this many.")
@click.option("--all", "all_", is_flag=True, help="All of them.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line each.")
@with_queue
@with_url
@with_token
def list_failed(limit: int, all_: bool, as_json: bool, queue_name: str, url: str | None, token: str | None) -> None:
    """List dead letters, newest first."""

    async def work(client: Operator) -> None:
        rows = []
        async for job in client.failed_jobs(None if all_ else limit, queue=queue_name):
            if as_json:
                say_json(job)
                continue
            reason = f"{job['notifier']}: {job['reason']}" if job["notifier"] else job["reason"]
            ids = (job["jobId"], job["assetId"] or "unknown")
            rows.append((*ids, job["attempts"], second_of(job["failedAt"]), reason))
        if as_json:
            return
        names = ("job", "asset", "attempts", "failed at", "reason")
        if say_table(names, rows, "There are no dead letters.") == limit and not all_:
            note("There may be more; --all shows all")

    run(work, url, token)


@failed.command("retry")
@click.argument("job_ids", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="All, except those whose asset is no longer failed.")
@with_queue
@with_url
@with_token
def retry_failed(job_ids: Sequence[str], all_: bool, queue_name: str, url: str | None, token: str | None) -> None:
    """Run dead letters again; exit code 1 when a named one cannot be retried."""
    _check_choice(job_ids, all_)

    async def retry(client: Operator, job_id: str) -> str:
        return f"runs again as {(await client.retry_failed(job_id))['jobId']}"

    async def retry_all(client: Operator) -> None:
        counts = await client.retry_all_failed(queue=queue_name)
        say(f"{counts['retried']} run again, {counts['skipped']} skipped")

    run(retry_all if all_ else lambda client: each(client, job_ids, retry), url, token)


@failed.command("rm")
@click.argument("job_ids", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask before removing all.")
@with_queue
@with_url
@with_token
def remove_failed(
    job_ids: Sequence[str], all_: bool, yes: bool, queue_name: str, url: str | None, token: str | None
) -> None:
    """Delete dead letters; exit code 1 when a named one does not exist. Their assets stay."""
    _check_choice(job_ids, all_)
    if all_ and not yes:
        click.confirm("Remove all dead letters?", abort=True)

    async def remove(client: Operator, job_id: str) -> str:
        await client.remove_failed(job_id)
        return "removed"

    async def remove_all(client: Operator) -> None:
        say(f"{await client.remove_all_failed(queue=queue_name)} removed")

    run(remove_all if all_ else lambda client: each(client, job_ids, remove), url, token)


@click.group()
def queue() -> None:
    """Pause and resume the queue on every process, or show how much work there is."""


@queue.command()
@with_queue
@with_url
@with_token
def pause(queue_name: str, url: str | None, token: str | None) -> None:
    """Start no more jobs. Running jobs finish; uploads are still accepted."""
    run(lambda client: client.pause(queue=queue_name), url, token)
    say("The queue is paused.")


@queue.command()
@with_queue
@with_url
@with_token
def resume(queue_name: str, url: str | None, token: str | None) -> None:
    """Start jobs again."""
    run(lambda client: client.resume(queue=queue_name), url, token)
    say("The queue is running.")


@queue.command()
@with_url
@with_token
def status(url: str | None, token: str | None) -> None:
    """Print the number of jobs in each state, and whether the queue is paused, as one JSON line."""

    async def work(client: Operator) -> None:
        say_json(await client.queue_status())

    run(work, url, token)


@queue.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@with_url
@with_token
def users(as_json: bool, url: str | None, token: str | None) -> None:
    """Print the ten users with the most unfinished jobs."""

    async def work(client: Operator) -> None:
        busiest = await client.busiest_users()
        if as_json:
            say_json(busiest)
            return
        rows = [(user["userId"], user["waiting"], user["active"], f"{user['share']:.0%}") for user in busiest["items"]]
        say_table(("user", "waiting", "active", "share"), rows, "There are no unfinished jobs.")

    run(work, url, token)


@click.command()
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="At most this many.")
@click.option("--who", help="Only what this operator did.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line each.")
@with_url
@with_token
def audit(limit: int, who: str | None, as_json: bool, url: str | None, token: str | None) -> None:
    """List what operators have changed, newest first."""

    async def work(client: Operator) -> None:
        rows = []
        fields = ("who", "action", "target", "count", "outcome")
        async for entry in client.audit(limit, who=who):
            if as_json:
                say_json(entry)
            else:
                rows.append((second_of(entry["at"]), *(entry[name] for name in fields)))
        if not as_json and say_table(("at", *fields), rows, "Nothing was changed in the last 90 days.") == limit:
            note("There may be more; --limit shows more")

    run(work, url, token)


def _check_choice(job_ids: Sequence[str], all_: bool) -> None:
    if bool(job_ids) == all_:
        raise click.UsageError("Name dead letters by their job id, or use --all")


def second_of(timestamp: str) -> str:
    """Return the timestamp of a reply as text for people, to the second."""
    return f"{timestamp[:19].replace('T', ' ')}Z"


def run(work: Work, url: str | None, token: str | None) -> None:
    """Do the work with a client of the service. token: None for a new one of an admin."""

    async def work_on() -> None:
        async with Operator(*target(url, token, OPERATOR, role=ADMIN_ROLE, expires_in=TOKEN_SECONDS)) as client:
            await work(client)

    asyncio.run(work_on())


async def each(client: Operator, job_ids: Sequence[str], work: Callable[[Operator, str], Awaitable[str]]) -> None:
    """Do the work for each job and print its result; ClientError at the end when any was refused."""
    refused = 0
    for job_id in job_ids:
        try:
            say(f"{job_id}: {await work(client, job_id)}")
        except ClientError as error:
            complain(error, job_id)
            refused += 1
    if refused:
        raise ClientError(f"{refused} of {len(job_ids)} refused")
