"""The commands `jobs` (list by a filter, show one, retry or cancel many) and `reanalyze`. They call the service."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import click

from pipeline.client import ClientError, Operator
from pipeline.commands.operating import each, run, second_of, with_token
from pipeline.commands.service_target import with_url
from pipeline.commands.output import complain, note, say, say_json, say_table
from pipeline.usecases.bulk import REFUSED_AT_MOST

WHERE = "--where"
FILTERS = ("state", "user", "category", "provider", "failure", "q", "from", "to")
# A value with blanks stands in quotes.
PART = re.compile(r"""(\w+)=("[^"]*"|'[^']*'|\S*)\s*""")
COLUMNS = ("job", "created at", "state", "attempt", "user", "category", "what")


def read_where(text: str) -> dict[str, str]:
    """Return the filter of a text like `state=failed q="timed out"`; BadParameter when it is none."""
    where: dict[str, str] = {}
    text, position = text.strip(), 0
    while position < len(text):
        part = PART.match(text, position)
        if part is None or part[1] not in FILTERS:
            raise click.BadParameter(f"must be parts like state=failed, with {', '.join(FILTERS)}", param_hint=WHERE)
        name, value = part[1], part[2].strip("\"'") if part[2][:1] in "\"'" else part[2]
        # An empty part, perhaps from an empty variable of a script, would match more jobs than intended.
        if not value.strip():
            raise click.BadParameter(f"{name} is empty", param_hint=WHERE)
        if name in where:
            raise click.BadParameter(f"{name} stands there twice", param_hint=WHERE)
        where[name] = value
        position = part.end()
    return where


with_where = click.option(
    WHERE,
    default="",
    help=f'A filter like "state=failed q=\'timed out\'"; all parts must match. Parts: {", ".join(FILTERS)} (instants).',
)


def with_change(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of commands that change many jobs: dry_run, yes, as_json, url and token."""
    for option in (
        with_token,
        with_url,
        click.option("--json", "as_json", is_flag=True, help="As JSON: first the dry run, then a line for each chunk."),
        click.option("--yes", is_flag=True, help="Do not ask before."),
        click.option("--dry-run", is_flag=True, help="Only show how many jobs it would change."),
    ):
        command = option(command)
    return command


@click.group()
def jobs() -> None:
    """List jobs by any filter, show one, retry many, cancel many."""


@jobs.command("ls")
@with_where
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="At most this many.")
@click.option("--count", "is_count", is_flag=True, help="Only their number.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line each.")
@with_url
@with_token
def list_jobs(where: str, limit: int, is_count: bool, as_json: bool, url: str | None, token: str | None) -> None:
    """List jobs, newest first."""
    wanted = read_where(where)

    async def work(client: Operator) -> None:
        if is_count:
            counted = await client.count_jobs(wanted)
            if as_json:
                say_json(counted)
            else:
                say(_count(counted))
            return
        listed = client.jobs(wanted, limit)
        if as_json:
            async for job in listed:
                say_json(job)
            return
        if say_table(COLUMNS, [_row(job) async for job in listed], "There are no such jobs.") == limit:
            note("There may be more; --limit shows more")

    run(work, url, token)


@jobs.command("show")
@click.argument("job_id")
@with_url
@with_token
def show_job(job_id: str, url: str | None, token: str | None) -> None:
    """Print one job with all its details as JSON."""

    async def work(client: Operator) -> None:
        say_json(await client.job(job_id), indent=2)

    run(work, url, token)


def changes(name: str, description: str) -> click.Command:
    """Return the command that does one action with named jobs, or with all jobs that a filter finds."""

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
    preview = await client.preview_jobs(action, where, is_all=is_all, provider=provider)
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
        say_json(preview)
        return
    if preview["sample"]:
        say_table(COLUMNS, map(_row, preview["sample"]))
    say(f"{_count(preview)} to {action}")


async def _show_changes(chunks: AsyncIterator[dict[str, Any]], *, as_json: bool) -> None:
    """Print the results chunk by chunk; ClientError when some jobs were refused."""
    done = skipped = refused = 0
    is_cut = False
    async for chunk in chunks:
        done, skipped, refused = done + chunk["done"], skipped + chunk["skipped"], refused + len(chunk["refused"])
        is_cut = is_cut or len(chunk["refused"]) >= REFUSED_AT_MOST
        if as_json:
            say_json(chunk)
            continue
        for refusal in chunk["refused"]:
            complain(refusal["message"], refusal["jobId"])
        note(f"{done} so far")
    if not as_json:
        say(f"{done} done, {skipped} had moved on")
    if refused:
        raise ClientError(f"{'at least ' if is_cut else ''}{refused} refused")


def _row(job: dict[str, Any]) -> tuple[object, ...]:
    what = job["reason"] or " ".join(each for each in (job["brand"], job["model"]) if each)
    ids = (job["jobId"], second_of(job["createdAt"]))
    return (*ids, job["state"], job["attempt"], job["userId"], job["category"], what)


def _count(counted: Mapping[str, Any]) -> str:
    jobs_ = "job" if counted["count"] == 1 else "jobs"
    return f"{counted['count']:,} {jobs_}" if counted["isExact"] else f"at least {counted['count']:,} {jobs_}"


jobs.add_command(changes("retry", "Run failed or partial jobs again: the named ones, or all that match --where."))
jobs.add_command(changes("cancel", "Cancel unfinished jobs: the named ones, or all that match --where."))


@click.command()
@with_where
@click.option("--all", "is_all", is_flag=True, help="All finished assets, instead of --where.")
@click.option("--provider", help="The AI provider to use, one of the configured ones; default: those of each category.")
@click.option("--replace", "replaces", is_flag=True, help="Store the new result even if it has fewer values.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many, the newest.")
@click.option("--stop", is_flag=True, help="Cancel it for assets that still wait for it.")
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
    """Analyze finished assets again, while no upload waits. An asset keeps its result until a new one is as complete.

    The command does not wait for the results; `jobs ls --where state=background` lists the jobs that wait. Exit codes:
    0 success; 1 some were refused; 2 wrong use; 130 Ctrl-C: run the same command again to continue with the rest.
    """
    wanted = read_where(where)
    if bool(wanted) == is_all:
        raise click.UsageError("Use either --where or --all")
    if stop and (provider or replaces):
        raise click.UsageError("--provider and --replace are not for --stop")
    options: dict[str, Any] = {"is_dry": dry_run, "is_sure": yes, "as_json": as_json, "is_all": is_all}
    action = "keep" if stop else "reanalyze"
    options |= {"provider": provider, "replaces": replaces, "limit": limit}
    run(lambda client: _change(client, action, wanted, **options), url, token)
