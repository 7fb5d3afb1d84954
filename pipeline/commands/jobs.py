"""The commands `jobs` (find jobs by a filter, look at one, run many again or cancel them) and `reanalyze`. They ask the
service.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import click
from rich.table import Table

from pipeline.client import ClientError, Operator
from pipeline.commands.operating import each, run, with_token, with_url
from pipeline.commands.shown import cleaned, shown, stderr, stdout
from pipeline.usecases.bulk import REFUSED_AT_MOST

FILTERS = ("state", "user", "category", "provider", "failure", "q", "from", "to")
# A filter's value with blanks in it stands in quotes.
PART = re.compile(r"""(\w+)=("[^"]*"|'[^']*'|\S*)\s*""")
COLUMNS = ("state, attempt", "user, category, what")


def read_where(text: str) -> dict[str, str]:
    """Return the filter of a text like `state=failed q="timed out"`; BadParameter when it is none."""
    where: dict[str, str] = {}
    text, place = text.strip(), 0
    while place < len(text):
        found = PART.match(text, place)
        if found is None or found[1] not in FILTERS:
            raise click.BadParameter(f"must be parts like state=failed, with {', '.join(FILTERS)}")
        name, value = found[1], found[2].strip("\"'") if found[2][:1] in "\"'" else found[2]
        # Such a part would let in more jobs than was meant: the variable of a script may be empty.
        if not value.strip():
            raise click.BadParameter(f"{name} is empty")
        if name in where:
            raise click.BadParameter(f"{name} stands there twice")
        where[name] = value
        place = found.end()
    return where


with_where = click.option(
    "--where",
    default="",
    help=f'Which, like "state=failed q=\'timed out\'"; all parts must hold. Parts: {", ".join(FILTERS)} (instants).',
)


def with_change(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of all that changes many jobs: dry_run, yes, as_json, url and token."""
    for option in (
        with_token,
        with_url,
        click.option("--json", "as_json", is_flag=True, help="As JSON: first the dry run, then a line for each chunk."),
        click.option("--yes", is_flag=True, help="Do not ask before."),
        click.option("--dry-run", is_flag=True, help="Only show how many it would be."),
    ):
        command = option(command)
    return command


@click.group()
def jobs() -> None:
    """List jobs by any filter, show one, run many again, cancel many."""


@jobs.command("ls")
@with_where
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="At most so many.")
@click.option("--count", "is_count", is_flag=True, help="Only how many there are.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line each.")
@with_url
@with_token
def list_jobs(where: str, limit: int, is_count: bool, as_json: bool, url: str | None, token: str | None) -> None:
    """List jobs, newest first."""
    wanted = read_where(where)

    async def work(client: Operator) -> None:
        if is_count:
            counted = await client.count_jobs(wanted)
            print(json.dumps(counted) if as_json else _count(counted))
            return
        found = client.jobs(wanted, limit)
        if as_json:
            async for job in found:
                print(json.dumps(job), flush=True)
            return
        table = _table([job async for job in found])
        stdout.print(table if table.rows else "There are no such jobs.")
        if len(table.rows) == limit:
            stderr.print("There may be more; --limit shows more", highlight=False)

    run(work, url, token)


@jobs.command("show")
@click.argument("job_id")
@with_url
@with_token
def show_job(job_id: str, url: str | None, token: str | None) -> None:
    """Print all that is known of one job as JSON."""

    async def work(client: Operator) -> None:
        stdout.print_json(data=cleaned(await client.job(job_id)))

    run(work, url, token)


def changes(name: str, description: str) -> click.Command:
    """Return the command that does one thing with named jobs, or with all that a filter finds."""

    @click.argument("job_ids", nargs=-1)
    @with_where
    @with_change
    def command(
        job_ids: Sequence[str],
        where: str,
        dry_run: bool,
        yes: bool,
        as_json: bool,
        url: str | None,
        token: str | None,
    ) -> None:
        wanted = read_where(where)
        if bool(job_ids) == bool(wanted):
            raise click.UsageError("Name jobs by their ids, or all that match by --where")
        if job_ids and (dry_run or as_json):
            raise click.UsageError("--dry-run and --json are for --where")
        if job_ids:
            run(lambda client: each(client, job_ids, _single(name)), url, token)
        else:
            run(lambda client: _change(client, name, wanted, is_dry=dry_run, is_sure=yes, as_json=as_json), url, token)

    return click.command(name, help=description)(command)


def _single(name: str) -> Any:
    async def do(client: Operator, job_id: str) -> str:
        if name == "cancel":
            await client.cancel_job(job_id)
            return "cancelled"
        return f"runs again as {(await client.retry_job(job_id))['jobId']}"

    return do


async def _change(
    client: Operator,
    action: str,
    where: Mapping[str, str],
    *,
    is_dry: bool,
    is_sure: bool,
    as_json: bool,
    is_all: bool = False,
    provider: str | None = None,
    replaces: bool = False,
    limit: int | None = None,
) -> None:
    preview = cleaned(await client.preview_jobs(action, where, is_all=is_all, provider=provider))
    if limit is not None and preview["count"] > limit:
        preview |= {"count": limit, "isExact": True}
    _show_preview(preview, action, as_json=as_json)
    if is_dry or not preview["count"] and preview["isExact"]:
        return
    if not is_sure:
        click.confirm(f"{action.capitalize()} {_count(preview)}?", abort=True, err=True)
    changed = client.change_jobs(
        action,
        where,
        until=preview["until"],
        is_all=is_all,
        provider=provider,
        replace=replaces or None,
        limit=limit,
    )
    await _show_changes(changed, as_json=as_json)


def _show_preview(preview: dict[str, Any], action: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(preview), flush=True)
        return
    if preview["sample"]:
        stdout.print(_table(preview["sample"]))
    stdout.print(f"{_count(preview)} to {action}", highlight=False)


async def _show_changes(chunks: AsyncIterator[dict[str, Any]], *, as_json: bool) -> None:
    """Print what becomes of the jobs, chunk by chunk; ClientError when some were refused."""
    done = skipped = refused = 0
    is_cut = False
    async for chunk in chunks:
        chunk = cleaned(chunk)
        done, skipped, refused = done + chunk["done"], skipped + chunk["skipped"], refused + len(chunk["refused"])
        is_cut = is_cut or len(chunk["refused"]) >= REFUSED_AT_MOST
        if as_json:
            print(json.dumps(chunk), flush=True)
            continue
        for each_ in chunk["refused"]:
            stderr.print(f"[red]{shown(each_['jobId'])}:[/] {shown(each_['message'])}", highlight=False, soft_wrap=True)
        stderr.print(f"{done} so far", highlight=False)
    if not as_json:
        stdout.print(f"{done} done, {skipped} had moved on", highlight=False)
    if refused:
        raise ClientError(f"{'at least ' if is_cut else ''}{refused} refused")


def _table(found: Sequence[dict[str, Any]]) -> Table:
    table = Table()
    # Ids in one piece also in a narrow window: they are what other commands are given. The rest shares columns, or
    # a window of 80 characters would have room for four letters of each.
    table.add_column("job, created at", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for job in found:
        created_at = job["createdAt"][:19].replace("T", " ") + "Z"
        what = job["reason"] or " ".join(each for each in (job["brand"], job["model"]) if each)
        attempt = "" if job["attempt"] is None else f"\nattempt {job['attempt']}"
        about = f"{job['userId']}, {job['category']}\n{what}".rstrip("\n")
        table.add_row(*map(shown, (f"{job['jobId']}\n{created_at}", job["state"] + attempt, about)))
    return table


def _count(counted: Mapping[str, Any]) -> str:
    jobs_ = "job" if counted["count"] == 1 else "jobs"
    return f"{counted['count']:,} {jobs_}" if counted["isExact"] else f"at least {counted['count']:,} {jobs_}"


jobs.add_command(changes("retry", "Run failed or partial jobs again: those named, or all that match --where."))
jobs.add_command(changes("cancel", "End jobs that have not ended: those named, or all that match --where."))


@click.command()
@with_where
@click.option("--all", "is_all", is_flag=True, help="All finished assets, instead of --where.")
@click.option("--provider", help="The AI provider to ask, one of those in use; default: those of each category.")
@click.option("--replace", "replaces", is_flag=True, help="A new result counts also when it tells less than the old.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many, the newest.")
@click.option("--stop", is_flag=True, help="Take it back for those that have yet to be analyzed again.")
@with_change
def reanalyze(
    where: str,
    is_all: bool,
    provider: str | None,
    replaces: bool,
    limit: int | None,
    stop: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    url: str | None,
    token: str | None,
) -> None:
    """Analyze finished assets again, when no upload waits. Each keeps its result until there is one that tells as much.

    Those that wait: jobs ls --where state=background.
    """
    wanted = read_where(where)
    if bool(wanted) == is_all:
        raise click.UsageError("Say which by --where, or --all")
    if stop and (provider or replaces):
        raise click.UsageError("--provider and --replace are not for --stop")
    options: dict[str, Any] = {"is_dry": dry_run, "is_sure": yes, "as_json": as_json, "is_all": is_all}
    action = "keep" if stop else "reanalyze"
    options |= {"provider": provider, "replaces": replaces, "limit": limit}
    run(lambda client: _change(client, action, wanted, **options), url, token)
