"""The command `check`: before a deploy, tries everything that the settings name, and says what is wrong and how to
repair it.

It uses the same stores and services as `serve`, through the same code: it opens the asset store (which creates or
updates tables and indexes), and writes, reads and deletes a test document. It starts no Redis and no jobs. The checks
are in checks/. Runs on an event loop of its own.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from functools import partial

import click

from pipeline import data_dir, logs
from pipeline import settings as settings_module
from pipeline.commands.checks.findings import LIMIT_SECONDS, Check, Finding, Mark, Masker, reason
from pipeline.commands.checks.machine import MachineChecks
from pipeline.commands.checks.plugins import PluginChecks
from pipeline.commands.checks.redis import RedisChecks
from pipeline.commands.checks.store import check_store
from pipeline.commands.output import BAD, GOOD, WARNING, say, say_json
from pipeline.hooks.threads import LoopThreads
from pipeline.metrics import Metrics
from pipeline.settings import Settings

COLORS = {Mark.OK: GOOD, Mark.WARNING: WARNING, Mark.FAILED: BAD}


@click.command()
@click.option("--analyze", is_flag=True, help="Also let each AI provider analyze a demo picture; may cost money.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line for each finding.")
def check(analyze: bool, as_json: bool) -> None:
    """Try everything that the settings name. Print a line for each finding: what is wrong, and what to set.

    Exit codes: 0 nothing failed, there may be warnings; 1 something failed; 2 the settings are wrong, and nothing was
    tried.
    """
    settings = settings_module.load()
    # Every other check needs it.
    data_dir.prepare_data_dir(settings.data_dir)
    logs.configure(settings.log_format, "ERROR")
    loop = asyncio.new_event_loop()
    loop.set_default_executor(LoopThreads())
    has_failed = loop.run_until_complete(_run(settings, analyze, _print_json if as_json else _print))
    sys.stdout.flush()
    if asyncio.all_tasks(loop):
        os._exit(int(has_failed))  # a plugin that ignores cancellation would keep the command from ending
    loop.close()
    sys.exit(int(has_failed))


async def _run(settings: Settings, analyze: bool, report: Callable[[Finding], None]) -> bool:
    """Run all checks in order, also after one has failed; return whether any has failed."""
    has_failed = False
    masker = Masker(settings)
    checks = Checks(settings, masker)
    for each in checks.all(analyze):
        try:
            async with asyncio.timeout(each.seconds):
                async for finding in each.run():
                    has_failed = has_failed or finding.mark is Mark.FAILED
                    report(masker.masked(finding))
        # A border: drivers and plugins may raise anything.
        except (Exception, SystemExit) as error:
            has_failed = True
            is_late = isinstance(error, TimeoutError) and not isinstance(error.__cause__, OSError)
            detail = f"no answer within {each.seconds:g} s" if is_late else reason(error)
            report(masker.masked(Finding(Mark.FAILED, each.what, detail, each.remedy)))
    await checks.close()
    return has_failed


class Checks:
    """All checks for these settings."""

    def __init__(self, settings: Settings, masker: Masker) -> None:
        metrics = Metrics()
        self._settings = settings
        self._machine = MachineChecks(settings)
        self._redis = RedisChecks(settings, metrics)
        self._plugins = PluginChecks(settings, metrics, masker)

    def all(self, analyze: bool) -> list[Check]:
        """Return the checks in the order in which they run."""
        settings = self._settings
        store_setting = "MONGODB_URI" if settings.mongodb_uri.get_secret_value() else "DATA_DIR"
        checks = [
            Check("settings", self._machine.variables, "see docs/settings.md"),
            Check("data folder", self._machine.data_folder, "make room there or set DATA_DIR"),
            Check("address", self._machine.address, "set HOST and PORT"),
            Check("open files", self._machine.open_files, "see ulimit -n"),
            Check("tokens", self._machine.tokens, "set JWT_SECRET, JWT_PUBLIC_KEY or JWT_JWKS_URL"),
            *self._redis_checks(),
            Check("asset store", partial(check_store, settings), f"see {store_setting}"),
            Check("plugins", self._plugins.plugins, "see PLUGIN_..., PLUGINS_DISABLED and PLUGINS_SAFE_MODE"),
            Check("sandbox", self._plugins.sandbox, "see DECODE_MEMORY_MB and how many processes this user may have"),
            Check("storage", self._plugins.storage, "see STORAGE_BACKEND, PUBLIC_URL and the storage's own settings"),
        ]
        seconds = LIMIT_SECONDS + (settings.provider_timeout_seconds if analyze else 0)
        for name in settings.all_providers:
            remedy = "set AI_SERVICE_URL" if name == "http" else "see AI_PROVIDER and the provider's own settings"
            checks.append(Check(f"provider {name}", self._plugins.provider(name, analyze=analyze), remedy, seconds))
        for name in dict.fromkeys(settings.notifiers):
            remedy = "see NOTIFIERS and the notifier's own settings"
            checks.append(Check(f"notifier {name}", self._plugins.notifier(name), remedy))
        return checks

    def _redis_checks(self) -> list[Check]:
        if not self._settings.redis_url.get_secret_value():
            return [Check("redis", self._redis.embedded, "install redis-server or set REDIS_URL")]
        remedy = "start NTP, for example chrony, on both machines"
        return [
            Check("redis", self._redis.external, "see REDIS_URL"),
            Check("clock", self._redis.clock, remedy),
            Check("queue", self._redis.owner, "set QUEUE_PREFIX"),
        ]

    async def close(self) -> None:
        """Close the plugins that several checks share."""
        await self._plugins.close()


def _print(finding: Finding) -> None:
    say(finding.line, COLORS[finding.mark], label=f"{finding.mark:8} ")


def _print_json(finding: Finding) -> None:
    say_json(finding.as_json())
