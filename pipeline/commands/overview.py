"""The commands `queue top` and `processes`: the console's overview of the service, in a terminal."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click
from rich.live import Live
from rich.text import Text

from pipeline.client import Operator, Unavailable
from pipeline.commands.operating import each, queue, run, second_of, with_token
from pipeline.commands.service_target import Number, with_url
from pipeline.commands.output import BAD, BOLD, WARNING, is_terminal, say, say_json, say_table, shown, stdout

EVERY_SECONDS = 2.0
STATES = ("waiting", "delayed", "active", "completed", "failed")
MEGABYTE = 1_000_000
COLUMNS = ("id", "host", "pid", "role", "state", "slots", "sockets", "memory", "runs")
# Address and token that were given to `processes` itself, before the name of its subcommand.
Target = tuple[str | None, str | None]


@queue.command()
@click.option("--once", is_flag=True, help="Show it only once.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line each time.")
@click.option(
    "--every", "seconds", default=EVERY_SECONDS, show_default=True, type=Number(min=0.2, max=86_400), help="Seconds."
)
@with_url
@with_token
def top(once: bool, as_json: bool, seconds: float, url: str | None, token: str | None) -> None:
    """Show the queues, the processes and all faults, and refresh them. The token of a reader suffices."""

    async def work(client: Operator) -> None:
        if once or as_json or not is_terminal(sys.stdout):
            await _follow(client, seconds, say_json if as_json else _print, once=once)
            return
        with Live(console=stdout, auto_refresh=False, screen=True) as live:

            def show(overview: Mapping[str, Any]) -> None:
                texts = [Text(shown(text), color, no_wrap=True) for text, color in lines(overview)]
                live.update(Text("\n").join(texts), refresh=True)

            await _follow(client, seconds, show, once=False)

    try:
        run(work, url, token)
    except KeyboardInterrupt:
        pass  # Ctrl-C is the usual end


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON line each.")
@with_url
@with_token
@click.pass_context
def processes(ctx: click.Context, as_json: bool, url: str | None, token: str | None) -> None:
    """List the processes of the service and their jobs, or drain a process."""
    if ctx.invoked_subcommand is not None:
        ctx.obj = (url, token)
        return

    async def work(client: Operator) -> None:
        listed = await client.processes()
        if as_json:
            for process in listed:
                say_json(process)
        else:
            say_table(COLUMNS, map(_row, listed), "No process has reported.")

    run(work, url, token)


@processes.command()
@click.argument("process_ids", nargs=-1, required=True)
@with_url
@with_token
@click.pass_obj
def drain(given: Target, process_ids: Sequence[str], url: str | None, token: str | None) -> None:
    """Let these processes claim no more jobs; running jobs finish. `resume` or a restart ends the drain."""
    run(lambda client: each(client, process_ids, _drain), url or given[0], token or given[1])


@processes.command("resume")
@click.argument("process_ids", nargs=-1, required=True)
@with_url
@with_token
@click.pass_obj
def resume_process(given: Target, process_ids: Sequence[str], url: str | None, token: str | None) -> None:
    """Let these processes claim jobs again."""
    run(lambda client: each(client, process_ids, _resume), url or given[0], token or given[1])


async def _drain(client: Operator, process_id: str) -> str:
    process = await client.drain_process(process_id)
    return f"claims no more jobs, {process['busy']} still run" if process["busy"] else "claims no more jobs"


async def _resume(client: Operator, process_id: str) -> str:
    await client.resume_process(process_id)
    return "claims jobs again"


async def _follow(client: Operator, seconds: float, show: Callable[[Mapping[str, Any]], None], *, once: bool) -> None:
    """Show the overview repeatedly, and continue after an outage of the service."""
    while True:
        try:
            show(await client.overview())
        except Unavailable as error:
            if once:
                raise
            show({"error": str(error)})
        if once:
            return
        await asyncio.sleep(seconds)


def _print(overview: Mapping[str, Any]) -> None:
    for text, color in lines(overview):
        say(text, color)


def lines(overview: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the lines that show an overview, each with its colour or ""."""
    if "error" in overview:
        yield overview["error"], BAD
        return
    slots = overview["slots"]
    alive = f"processes {_known(overview['processesAlive'])}  slots {_known(slots['used'])}/{_known(slots['all'])}"
    yield f"{second_of(overview['serverTime'])}  version {overview['version']}  {alive}", ""
    for each_queue in overview["queues"]:
        yield from _queue_lines(each_queue)
    yield from ((trouble, BAD) for trouble in _troubles(overview))


def _queue_lines(shown_queue: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name = shown_queue["name"]
    if "error" in shown_queue:
        yield f"{name}  {shown_queue['error']}", BAD
        return
    counts = "  ".join(f"{state} {shown_queue[state]:,}" for state in STATES)
    yield f"{name}  {counts}  a minute {shown_queue['endedInLastMinute']:,}", BOLD
    if (oldest := shown_queue["oldestReadySeconds"]) is not None:
        yield f"  the oldest job that could start has waited {oldest:,.0f} s", ""
    if shown_queue["paused"]:
        yield "  paused: no job starts", WARNING
    for hold in shown_queue["holds"]:
        next_try = f"is not asked, next try in {hold['nextTryInSeconds']:.0f} s:"
        yield f"  {hold['provider']} {next_try} {hold['cause'] or hold['reason']}", WARNING


def _troubles(overview: Mapping[str, Any]) -> Iterator[str]:
    redis, store, storage = overview["redis"], overview["store"], overview["storage"]
    if overview["workersAlive"] == 0:
        yield "No process that runs jobs is alive"
    if redis["error"]:
        yield f"Redis: {redis['error']}"
    if redis["isEvictionSafe"] is False:
        yield f"Redis drops jobs when it is full: maxmemory-policy is {redis['evictionPolicy']}, not noeviction"
    if store["error"]:
        yield f"Asset store {store['kind']}: {store['error']}"
    if storage["error"]:
        yield f"Storage {storage['name']}: {storage['error']}"
    if quarantined := overview["plugins"]["quarantined"]:
        yield f"Not called for now: {', '.join(quarantined)}"
    if overview["tasks"]:
        yield f"Being started again: {', '.join(overview['tasks'])}"


def _known(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _row(process: Mapping[str, Any]) -> tuple[object, ...]:
    runs = [f"{slot['assetId'] or slot['jobId']} {slot['provider'] or ''}".rstrip() for slot in process["slots"]]
    memory = process["memoryBytes"]
    return (
        process["id"],
        process["host"],
        process["pid"],
        process["role"],
        _state(process),
        f"{process['busy']}/{process['concurrency']}",
        process["sockets"],
        "?" if memory is None else f"{memory / MEGABYTE:,.0f} MB",
        ", ".join(runs),
    )


def _state(process: Mapping[str, Any]) -> str:
    if not process["isAlive"]:
        return f"gone, last seen {process['seenAt'][11:19]}Z"
    return "draining" if process["isDraining"] else "running"
