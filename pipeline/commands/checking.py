"""The command `check`: tries what the settings name, before a deploy, and says what is wrong and how to mend it.

Works on the same stores and services that `serve` will use, through the same code: it opens the asset store (which
makes or updates tables and indexes), and writes, reads and removes a probe of its own. It starts no Redis and no jobs.
What is tried: checks/. Runs on an event loop of its own.
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
from pipeline.commands.checks.here import HereChecks
from pipeline.commands.checks.plugins import PluginChecks
from pipeline.commands.checks.redis import RedisChecks
from pipeline.commands.checks.store import check_store
from pipeline.commands.shown import BAD, GOOD, WARNING, say, say_json
from pipeline.hooks.threads import LoopThreads
from pipeline.metrics import Metrics
from pipeline.settings import Settings

COLORS = {Mark.OK: GOOD, Mark.WARNING: WARNING, Mark.FAILED: BAD}


@click.command()
@click.option("--analyze", is_flag=True, help="Also let each AI provider analyze a demo picture; may cost money.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line for each finding.")
def check(analyze: bool, as_json: bool) -> None:
    """Try everything the settings name, and print a line for each finding: what is wrong, and what to set.

    Exit codes: 0 nothing fails, though there may be warnings; 1 something fails; 2 the settings are wrong, and nothing
    was tried.
    """
    settings = settings_module.load()
    # Nothing else could be tried without it.
    data_dir.prepare_data_dir(settings.data_dir)
    logs.configure(settings.log_format, "ERROR")
    loop = asyncio.new_event_loop()
    loop.set_default_executor(LoopThreads())
    has_failed = loop.run_until_complete(_run(settings, analyze, _tell_json if as_json else _tell))
    sys.stdout.flush()
    if asyncio.all_tasks(loop):
        os._exit(int(has_failed))  # a plugin that ignores cancellation would keep us for ever
    loop.close()
    sys.exit(int(has_failed))


async def _run(settings: Settings, analyze: bool, tell: Callable[[Finding], None]) -> bool:
    """Make every check in order, whatever becomes of those before it; return whether any has failed."""
    has_failed = False
    masker = Masker(settings)
    checks = Checks(settings, masker)
    for each in checks.all(analyze):
        try:
            async with asyncio.timeout(each.seconds):
                async for finding in each.run():
                    has_failed = has_failed or finding.mark is Mark.FAILED
                    tell(masker.masked(finding))
        # At this border anything may come: drivers and plugins raise what they like.
        except (Exception, SystemExit) as error:
            has_failed = True
            is_late = isinstance(error, TimeoutError) and not isinstance(error.__cause__, OSError)
            detail = f"no answer within {each.seconds:g} s" if is_late else reason(error)
            tell(masker.masked(Finding(Mark.FAILED, each.what, detail, each.remedy)))
    await checks.close()
    return has_failed


class Checks:
    """All there is to try for these settings."""

    def __init__(self, settings: Settings, masker: Masker) -> None:
        metrics = Metrics()
        self._settings = settings
        self._here = HereChecks(settings)
        self._redis = RedisChecks(settings, metrics)
        self._plugins = PluginChecks(settings, metrics, masker)

    def all(self, analyze: bool) -> list[Check]:
        """Return the checks in the order they are to be made."""
        settings = self._settings
        store_setting = "MONGODB_URI" if settings.mongodb_uri.get_secret_value() else "DATA_DIR"
        checks = [
            Check("settings", self._here.variables, "see the README"),
            Check("data folder", self._here.data_folder, "make room there or set DATA_DIR"),
            Check("address", self._here.address, "set HOST and PORT"),
            Check("open files", self._here.files, "see ulimit -n"),
            Check("tokens", self._here.tokens, "set JWT_SECRET, JWT_PUBLIC_KEY or JWT_JWKS_URL"),
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
            Check("redis", self._redis.given, "see REDIS_URL"),
            Check("clock", self._redis.clock, remedy),
            Check("queue", self._redis.owner, "set QUEUE_PREFIX"),
        ]

    async def close(self) -> None:
        """Close what several checks share."""
        await self._plugins.close()


def _tell(finding: Finding) -> None:
    say(finding.line, COLORS[finding.mark], label=f"{finding.mark:8} ")


def _tell_json(finding: Finding) -> None:
    say_json(finding.as_json())
