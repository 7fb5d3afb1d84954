"""The command `serve`: one process of the service, from its settings to its exit code."""

from __future__ import annotations

import asyncio
import gc
import sys
from contextlib import AsyncExitStack

import click
import structlog
from pydantic import SecretStr

from pipeline import data_dir, embedded, logs, systemd
from pipeline.app import App
from pipeline.commands import demonstrating, service_target
from pipeline.commands.service_target import this_command
from pipeline.embedded_files import FolderInUse
from pipeline.errors import ConfigurationError
from pipeline.exit import Exit
from pipeline.handlers.server import raise_file_limit
from pipeline.hooks.threads import LoopThreads
from pipeline.services import Service, ServiceFile
from pipeline.settings import REMOVED_IN, Settings
from pipeline.supervision import cancel
from pipeline.texts import cause_of

log = structlog.get_logger(__name__)

# How long tasks of plugins that still run may take to end after their cancellation.
LEFT_SECONDS = 0.3


@click.command()
def serve() -> None:
    """Run the service until SIGTERM or Ctrl-C."""
    settings = service_target.load()
    logs.configure(settings.log_format, settings.log_level)
    for removed in settings.removed_variables:
        log.warning("setting_removed", variable=removed.variable, since=REMOVED_IN, fixed=removed.fixed)
    for unknown in settings.unknown_variables:
        log.warning("setting_unknown", variable=unknown.variable, meant=unknown.meant or None)
    data_dir.prepare_data_dir(settings.data_dir)
    data_dir.close_to_others(settings.data_dir)
    raise_file_limit()
    # Not asyncio.run: it waits for every task at its end, and a plugin's task may ignore its cancellation.
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
    """Run until the process is asked to end, which may be during the start; then close in reverse order."""
    async with AsyncExitStack() as opened:
        start = asyncio.create_task(_start(settings, exit_, opened), name="start")
        await asyncio.wait({start, exit_.requested}, return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            log.info("start_cancelled")
            await cancel([start])
        else:
            start.result()
            await asyncio.wait({exit_.requested})
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
            if (service := service_target.find_service(settings)) is None:
                raise
            raise ConfigurationError(_already_running(service)) from None
        settings = settings.model_copy(update={"redis_url": SecretStr(redis.url)})
        app = App(settings, owns_redis=True, on_fatal=exit_.fail)
        redis.on_restart = app.parts.base.metrics.task_restarts.labels("embedded").inc
        # The process ends when the embedded Redis cannot be started again.
        app.parts.base.supervisor.start("embedded redis", redis.watch, kind="embedded", restarts=False)
        opened.push_async_callback(app.parts.base.supervisor.stop)
    else:
        app = App(settings, on_fatal=exit_.fail)
    # Objects made so far live as long as the process; collecting them would stop the loop for 100 ms each time.
    gc.collect()
    gc.freeze()
    await app.start()
    try:
        opened.callback(ServiceFile(settings.data_dir, app.address, settings.role.value).remove)
    except OSError as error:  # the service works; other commands do not find it by themselves
        log.warning("service_file_not_written", error=cause_of(error))
    # After a fatal error there is no lame-duck time.
    opened.push_async_callback(lambda: app.stop(0 if exit_.code else settings.lame_duck_seconds))
    # Only on a terminal: in a file or a journal the links would be tokens in a log.
    if settings.gives_links and sys.stdout.isatty():
        demonstrating.print_links(settings, app.address)
    if systemd.watchdog_seconds():
        app.parts.base.supervisor.start("systemd", systemd.keep_alive, kind="watchdog")
    opened.callback(systemd.notify, "STOPPING=1")
    systemd.notify("READY=1")


def _already_running(service: Service) -> str:
    """Return an error text: which service uses DATA_DIR, and how to stop it."""
    return (
        f"A service, such as a demo leaves running, is at {service.address} already (process {service.pid}): stop it "
        f"with {this_command()} demo --exit, or give this one its own DATA_DIR, or give both the same REDIS_URL"
    )
