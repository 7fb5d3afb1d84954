"""The command line. `serve` is the service itself; the other commands talk to a running one or print what there is.

Results go to standard output, logs and progress to standard error. Exit codes: 0 well, 1 it failed, 2 wrong use or
configuration.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import click
import structlog
from pydantic import SecretStr
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from pipeline import demo as demo_pictures
from pipeline import data_dir, embedded, logs
from pipeline import settings as settings_module
from pipeline.app import App
from pipeline.auth import ROLES, make_token
from pipeline.client import Client, ClientError, Operator
from pipeline.commands import (
    assets,
    authoring,
    checking,
    evaluating,
    health,
    jobs,
    moving,
    operating,
    overview,
    plugin_settings,
    running,
    saving,
)
from pipeline.commands.shown import cleaned, shown, stderr, stdout
from pipeline.embedded_files import FolderInUse
from pipeline.errors import ConfigurationError
from pipeline.exit import Exit
from pipeline.handlers.server import raise_file_limit
from pipeline.hooks.threads import LoopThreads
from pipeline.settings import Settings
from pipeline.supervision import cancel
from pipeline.texts import cause_of, mask_address

log = structlog.get_logger(__name__)

START_SECONDS = 60.0
EVENT_SECONDS = 180.0
# After which who waits for an event is told what it may be waiting for.
PATIENCE_SECONDS = 10.0
WHAT_LOCAL_SEES = (
    "\nThe AI was the offline one: it reads the lettering on a product and sees its colours. A photo without lettering "
    "is `partial`: brand and model stay unknown. AI_PROVIDER or AI_SERVICE_URL names an AI that knows products by "
    "sight."
)
# How long what is left of plugins' tasks may take to heed its cancellation.
LEFT_SECONDS = 0.3


class Commands(click.Group):
    """Turns the errors that a person can mend into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            stderr.print(f"[red]Error:[/] {shown(error.message)}", highlight=False, soft_wrap=True)
            ctx.exit(2)
        except ClientError as error:
            stderr.print(f"[red]Error:[/] {shown(str(error))}", highlight=False, soft_wrap=True)
            ctx.exit(1)


@click.group(cls=Commands, invoke_without_command=True)
@click.version_option(package_name="ai-queue-pipeline")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Upload a photo, get an answer at once, see the AI's result arrive. Without a command: serve."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(serve)


main.add_command(operating.failed)
main.add_command(operating.queue)
main.add_command(overview.processes)
main.add_command(operating.audit)
main.add_command(jobs.jobs)
main.add_command(jobs.reanalyze)
main.add_command(assets.assets)
main.add_command(assets.users)
main.add_command(checking.check)
main.add_command(health.health)
main.add_command(evaluating.evaluate)
main.add_command(authoring.plugins)
for command in (saving.backup, saving.restore, saving.verify, moving.move):
    main.add_command(command)


@main.command()
def serve() -> None:
    """Run the service until SIGTERM or Ctrl-C."""
    settings = running.load()
    logs.configure(settings.log_format, settings.log_level)
    for unknown in settings.unknown_variables:
        log.warning("setting_unknown", variable=unknown.variable, meant=unknown.meant or None)
    data_dir.try_data_dir(settings.data_dir)
    data_dir.tighten(settings.data_dir)
    raise_file_limit()
    # Not asyncio.run: at its end that waits for every task, and a plugin that ignores cancellation would keep us for
    # ever.
    loop = asyncio.new_event_loop()
    loop.set_default_executor(LoopThreads())
    exit_ = Exit(loop, settings.lame_duck_seconds + settings.shutdown_seconds)
    try:
        loop.run_until_complete(_serve(settings, exit_))
    except BaseException as error:
        exit_.give_up(2 if isinstance(error, ConfigurationError) else 1)
        raise
    exit_.finish()


async def _serve(settings: Settings, exit_: Exit) -> None:
    """Run until the process is asked to end, also while it starts; close what was opened, in reverse order."""
    async with AsyncExitStack() as opened:
        start = asyncio.create_task(_start(settings, exit_, opened), name="start")
        await asyncio.wait({start, exit_.asked}, return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            log.info("start_cancelled")
            await cancel([start])
        else:
            start.result()
            await asyncio.wait({exit_.asked})
    if left := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=LEFT_SECONDS)


async def _start(settings: Settings, exit_: Exit, opened: AsyncExitStack) -> None:
    if not settings.redis_url.get_secret_value():
        redis = embedded.EmbeddedRedis(settings.data_dir / "redis")
        opened.callback(redis.stop)
        try:
            await redis.start()
        except FolderInUse:
            if (service := running.find_service(settings)) is None:
                raise
            raise ConfigurationError(_what_runs(service)) from None
        settings = settings.model_copy(update={"redis_url": SecretStr(redis.url)})
        app = App(settings, owns_redis=True, on_fatal=exit_.fail)
        redis.on_restart = app.parts.metrics.task_restarts.labels("embedded").inc
        # Without it the process must not go on.
        app.parts.supervisor.start("embedded redis", redis.watch, kind="embedded", restarts=False)
        opened.push_async_callback(app.parts.supervisor.stop)
    else:
        app = App(settings, on_fatal=exit_.fail)
    # What is there by now stays; to look through all of it again and again would stop the loop for 100 ms each time.
    gc.collect()
    gc.freeze()
    await app.start()
    service_file = settings.data_dir / "service.json"
    try:
        service_file.write_text(json.dumps({"pid": os.getpid(), "address": app.address}))
    except OSError as error:  # only the other commands miss it
        log.warning("service_file_not_written", error=cause_of(error))
    opened.callback(_remove, service_file)
    # Only for a person: in a file, or a journal, they would be a token in a log.
    if settings.gives_links and sys.stdout.isatty():
        _print_links(settings, app.address)
    # A process that must not go on ends at once.
    opened.push_async_callback(lambda: app.stop(0 if exit_.code else settings.lame_duck_seconds))


def _what_runs(service: dict[str, Any]) -> str:
    """Return which service has DATA_DIR, and how to stop it."""
    this = _this_command()
    return (
        f"A service, such as a demo leaves running, is at {service['address']} already (process {service['pid']}): "
        f"stop it with {this} demo --exit, or give this one its own DATA_DIR, or give both the same REDIS_URL"
    )


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


@main.command()
@click.option("--exit", "exit_", is_flag=True, help="Stop the service: the one a demo left running, else this demo's.")
def demo(exit_: bool) -> None:
    """Start the service with everything embedded, submit three photos, print each event; the service stays."""
    settings = running.load()
    found = running.find_service(settings)
    if found and exit_:
        _stop(found["pid"])
        stdout.print("The service has stopped.")
        return
    service = found or _start_service(settings)
    token = make_token(settings, running.DEMO_USER, None, running.TOKEN_SECONDS)
    try:
        pictures = demo_pictures.shown(settings.categories)
        is_good = asyncio.run(_submit(service["address"], token, pictures, watch=True))
        if settings.all_providers == ("local",):
            stdout.print(WHAT_LOCAL_SEES, soft_wrap=True)
    finally:
        if exit_:
            _stop(service["pid"])
    if not exit_:
        stdout.print(f"\nThe service runs at [bold]{service['address']}[/] (its log: {settings.data_dir}/service.log)")
        if settings.gives_links:
            _print_links(settings, service["address"])
        else:
            admin = f"{_this_command()} token --sub me --role admin"
            stdout.print(f"To sign in, paste the token below on / (for /console: what {admin} prints)", highlight=False)
        stdout.print("For curl and programs:")
        stdout.print(f"export PIPELINE_URL={service['address']}", highlight=False)
        stdout.print(f"export PIPELINE_TOKEN={token}", highlight=False, soft_wrap=True)
        stdout.print(f"Stop it with: {_this_command()} demo --exit", highlight=False)
    sys.exit(0 if is_good else 1)


def _print_links(settings: Settings, address: str) -> None:
    stdout.print(f"Open these within ten minutes (new ones: {_this_command()} link)", highlight=False)
    links = {"photos": running.page_link(settings, address), "console": running.console_link(settings, address)}
    for name, link in links.items():
        stdout.print(f"{name:>8}: {link}", highlight=False, soft_wrap=True)


@main.command()
@click.option("--console", is_flag=True, help="Only the link to the console.")
@click.option("--photos", is_flag=True, help="Only the link to the page for photos.")
def link(console: bool, photos: bool) -> None:
    """Print links to the two pages of the service that runs here; each signs in whoever opens it within ten minutes."""
    settings = running.load()
    if not settings.gives_links:
        raise ConfigurationError(
            "links are printed only where HOST, and PUBLIC_URL if set, are loopback, and JWT_SECRET signs; "
            f"elsewhere set LOGIN_URL, or paste a token, as {_this_command()} token --sub me prints it"
        )
    service = running.find_service(settings)
    if service is None:
        raise ClientError(f"No service runs on {settings.data_dir}; start it with {_this_command()}")
    if console == photos:
        _print_links(settings, service["address"])
        return
    print((running.console_link if console else running.page_link)(settings, service["address"]))


def _categories(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return what the shell offers: the categories of the settings in force here."""
    try:
        return [name for name in settings_module.load().categories if name.startswith(incomplete)]
    except ConfigurationError:
        return []


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--category",
    required=True,
    shell_complete=_categories,
    help="What to file them under; the service says which categories it takes.",
)
@click.option("--watch", is_flag=True, help="Wait for the results and print them.")
@click.option("--url", envvar="PIPELINE_URL", help="Address of the service; default: the one running here.")
@click.option("--token", envvar="PIPELINE_TOKEN", help="Token of the user; default: one for the demo user.")
def submit(files: tuple[Path, ...], category: str, watch: bool, url: str | None, token: str | None) -> None:
    """Upload photos; exit code 1 when one is refused or, with --watch, fails."""
    # A service elsewhere may have other categories; it says so itself.
    if url is None and category not in (known := settings_module.load().categories):
        raise click.BadParameter(f"{category!r}: must be one of: {', '.join(known)}", param_hint="--category")
    pictures = [(path, category) for path in files]
    sys.exit(0 if asyncio.run(_submit(*running.target(url, token, running.DEMO_USER), pictures, watch=watch)) else 1)


@main.command()
@click.option("--url", envvar="PIPELINE_URL", help="Address of the service; default: the one running here.")
@click.option("--token", envvar="PIPELINE_TOKEN", help="Token of the user; default: one for the demo user.")
def watch(url: str | None, token: str | None) -> None:
    """Print the user's events, one JSON line each, until Ctrl-C; goes on after a restart of the service."""

    async def run() -> None:
        usual = "socket"

        def tell_transport(transport: str) -> None:
            nonlocal usual
            if transport != usual:
                usual = transport
                _tell(f"Events come by {transport} now")

        target = running.target(url, token, running.DEMO_USER)
        async with Client(*target, on_notice=_tell, on_transport=tell_transport) as client:
            stderr.print(f"Listening in {shown(await client.listen())}")
            async for event in client.events():
                print(json.dumps(event), flush=True)

    _until_interrupted(run())


@main.command()
@click.option("--sub", default=running.DEMO_USER, show_default=True, help="User id.")
@click.option("--role", type=click.Choice(ROLES), help="Role claim.")
@click.option("--hours", default=24.0, show_default=True, help="How long it is valid.")
def token(sub: str, role: str | None, hours: float) -> None:
    """Print a token signed with JWT_SECRET, or with the secret generated into DATA_DIR."""
    print(make_token(running.load(), sub, role, hours * 3600))


@main.command()
@click.option("--format", "format_", type=click.Choice(["table", "env", "markdown"]), default="table")
def settings(format_: str) -> None:
    """Print every setting, those of plugins too: its name, the value in force or the default, and why.

    The other formats know only the plugins that come with the service.
    """
    if format_ == "table":
        in_force = settings_module.load()
        table = Table("setting", "value", "default", "why")
        for name, field in Settings.model_fields.items():
            values = mask_address(_as_text(getattr(in_force, name))), _as_text(field.default), field.description or ""
            table.add_row(name.upper(), *map(shown, values))
        own, faults = plugin_settings.own_settings(in_force)
        for each in own:
            values = mask_address(_as_text(each.value)), _as_text(each.default), each.why
            table.add_row(shown(each.variable), *map(shown, values))
        stdout.print(table)
        for fault in faults:
            stderr.print(shown(fault), highlight=False, soft_wrap=True)
        return
    for line in settings_lines(format_):
        print(line)


def settings_lines(format_: str) -> list[str]:
    """Return all settings as lines of `.env.example` ("env") or of the README's table ("markdown")."""
    ours = Settings.model_fields.items()
    fields = [(name.upper(), _as_text(field.default), field.description) for name, field in ours]
    fields += [(own.variable, _as_text(own.default), own.why) for own in plugin_settings.built_in_settings()]
    if format_ == "env":
        return [line for name, default, why in fields for line in (f"# {why}", f"#{name}={default}")]
    rows = [f"| `{name}` | {f'`{default}`' if default else ''} | {why} |" for name, default, why in fields]
    return ["| setting | default | what it is, and why |", "|---|---|---|", *rows]


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{name}={'+'.join(names)}" for name, names in value.items())
    if value is None:
        return ""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list, set, frozenset)) else str(value)


def _this_command() -> str:
    """Return what to type to run this program again."""
    program = Path(sys.argv[0])
    return f"{os.path.relpath(sys.executable)} {program}" if program.suffix == ".py" else program.name


def _start_service(settings: Settings) -> dict[str, Any]:
    """Start `serve` in the background, logging to DATA_DIR/service.log, and wait until it answers."""
    data_dir.try_data_dir(settings.data_dir)
    log_path = settings.data_dir / "service.log"
    environment = os.environ | ({"PORT": "0"} if running.address_fault(settings) else {})
    with data_dir.usable(log_path):
        log_file = log_path.open("ab")
    with log_file:
        process = subprocess.Popen(
            [sys.executable, sys.argv[0], "serve"],
            stdout=log_file,
            stderr=log_file,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if (service := running.find_service(settings)) is not None:
            return service
        if process.poll() is not None:
            lines = log_path.read_text().strip().splitlines() or ["it printed nothing"]
            raise ConfigurationError(f"The service did not start: {lines[-1].removeprefix('Error: ')}")
        time.sleep(0.05)
    process.terminate()
    raise ConfigurationError(f"The service did not answer within {START_SECONDS:g} s; see {log_path}")


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            os.waitpid(pid, os.WNOHANG)  # when it is a child of this very command
        except ChildProcessError:
            pass
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise ClientError(f"Process {pid} does not stop")


async def _submit(url: str, token: str, pictures: list[tuple[Path, str]], *, watch: bool) -> bool:
    """Upload the pictures with a progress bar each and, if asked, print their events; True when all went well."""
    names: dict[str, str] = {}
    is_good = True
    started_at = time.monotonic()
    async with Operator(url, token, on_notice=_tell) as client:
        if watch:
            await client.listen()
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=stderr) as progress:
            for path, category in pictures:
                bar = progress.add_task(shown(path.name), total=path.stat().st_size)
                try:
                    reply = await client.upload(path, category, on_progress=lambda sent: progress.advance(bar, sent))
                except ClientError as error:
                    told = f"[red]{shown(path.name)}:[/] {shown(str(error))}"
                    stderr.print(told, highlight=False, soft_wrap=True)
                    is_good = False
                    continue
                names[reply["assetId"]] = path.name
        for asset_id, name in names.items():
            stdout.print(f"{shown(name)}: accepted as {shown(asset_id)}", highlight=False)
        if watch and names:
            is_good = await _print_events(client, names, started_at) and is_good
    return is_good


async def _print_events(client: Operator, names: dict[str, str], started_at: float) -> bool:
    is_good = True
    waiting_for = dict(names)
    telling = asyncio.create_task(_tell_what_is_held(client))
    try:
        async with asyncio.timeout(EVENT_SECONDS):
            async for event in client.events():
                name = waiting_for.pop(event["assetId"], None)
                if name is None:
                    continue
                seconds = time.monotonic() - started_at
                status = shown(event["status"])
                stdout.print(f"\n[bold]{shown(name)}[/] is {status} after {seconds:.1f} s", highlight=False)
                stdout.print_json(data=cleaned(event))
                is_good = is_good and event["status"] != "failed"
                if not waiting_for:
                    return is_good
    except TimeoutError:
        raise ClientError(f"No event for {', '.join(waiting_for.values())} within {EVENT_SECONDS:g} s") from None
    finally:
        telling.cancel()
    return is_good


async def _tell_what_is_held(client: Operator) -> None:
    """Tell once, while events are waited for, which plugins are not called and why."""
    while True:
        await asyncio.sleep(PATIENCE_SECONDS)
        with suppress(ClientError):
            if held := await client.held_plugins():
                _tell("Still waiting: " + "; ".join(held))
                return


def _tell(words: str) -> None:
    stderr.print(shown(words), highlight=False, soft_wrap=True)


def _until_interrupted(work: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        sys.exit(0)
