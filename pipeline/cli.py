"""The command line. `serve` is the service itself; the other commands talk to a running one or print what there is.

Results go to standard output, logs and progress to standard error. Exit codes: commands/exit_codes.py.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import click
import structlog
from pydantic import SecretStr

from pipeline import data_dir, embedded, logs, systemd
from pipeline import settings as settings_module
from pipeline.app import App
from pipeline.auth import ROLES, make_token
from pipeline.client import ClientError
from pipeline.commands import (
    assets,
    authoring,
    checking,
    demonstrating,
    evaluating,
    health,
    jobs,
    moving,
    operating,
    overview,
    plugin_settings,
    running,
    saving,
    submitting,
)
from pipeline.commands.exit_codes import EPILOG, ExitCode, Unfinished
from pipeline.commands.running import this_command
from pipeline.commands.shown import complain, note, say, say_table, use_any_encoding
from pipeline.embedded_files import FolderInUse
from pipeline.errors import ConfigurationError
from pipeline.exit import Exit
from pipeline.handlers.server import raise_file_limit
from pipeline.hooks.threads import LoopThreads
from pipeline.services import Entry, Service
from pipeline.settings import Settings
from pipeline.supervision import cancel
from pipeline.texts import cause_of, mask_address

log = structlog.get_logger(__name__)

# How long what is left of plugins' tasks may take to heed its cancellation.
LEFT_SECONDS = 0.3


class Commands(click.Group):
    """Turns the errors that a person can mend into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        use_any_encoding()
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            complain(error.message)
            ctx.exit(ExitCode.WRONG_USE)
        except ClientError as error:
            complain(error)
            ctx.exit(ExitCode.FAILED)
        except Unfinished as error:
            complain(error, "Not finished")
            ctx.exit(ExitCode.UNFINISHED)
        except KeyboardInterrupt:
            note("Interrupted")
            ctx.exit(ExitCode.INTERRUPTED)


@click.group(cls=Commands, invoke_without_command=True, epilog=EPILOG)
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
for command in (submitting.submit, submitting.watch, demonstrating.demo, demonstrating.link):
    main.add_command(command)
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
    try:
        opened.callback(Entry(settings.data_dir, app.address, settings.role.value).remove)
    except OSError as error:  # only the other commands miss it
        log.warning("service_file_not_written", error=cause_of(error))
    # Only for a person: in a file, or a journal, they would be a token in a log.
    if settings.gives_links and sys.stdout.isatty():
        demonstrating.print_links(settings, app.address)
    if systemd.watchdog_seconds():
        app.parts.supervisor.start("systemd", systemd.keep_alive, kind="watchdog")
    # A process that must not go on ends at once.
    opened.push_async_callback(lambda: app.stop(0 if exit_.code else settings.lame_duck_seconds))
    opened.callback(systemd.notify, "STOPPING=1")
    systemd.notify("READY=1")


def _what_runs(service: Service) -> str:
    """Return which service has DATA_DIR, and how to stop it."""
    return (
        f"A service, such as a demo leaves running, is at {service.address} already (process {service.pid}): stop it "
        f"with {this_command()} demo --exit, or give this one its own DATA_DIR, or give both the same REDIS_URL"
    )


@main.command()
@click.option("--sub", default=running.DEMO_USER, show_default=True, help="User id.")
@click.option("--role", type=click.Choice(ROLES), help="Role claim.")
@click.option(
    "--hours",
    default=24.0,
    show_default=True,
    type=running.Number(min=0, max=running.MOST_HOURS, min_open=True),
    help="How long it is valid.",
)
def token(sub: str, role: str | None, hours: float) -> None:
    """Print a token signed with JWT_SECRET, or with the secret generated into DATA_DIR."""
    say(make_token(running.load(), sub, role, hours * 3600))


@main.command()
@click.option("--format", "format_", type=click.Choice(["table", "env", "markdown"]), default="table")
def settings(format_: str) -> None:
    """Print every setting, those of plugins too: its name, the value in force or the default, and why.

    The other formats know only the plugins that come with the service.
    """
    if format_ == "table":
        in_force = settings_module.load()
        rows = [
            (name.upper(), mask_address(_as_text(getattr(in_force, name))), _as_text(field.default), field.description)
            for name, field in Settings.model_fields.items()
        ]
        own, faults = plugin_settings.own_settings(in_force)
        rows += [(each.variable, mask_address(_as_text(each.value)), _as_text(each.default), each.why) for each in own]
        say_table(("setting", "value", "default", "why"), rows)
        for fault in faults:
            note(fault)
        return
    for line in settings_lines(format_):
        say(line)


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
