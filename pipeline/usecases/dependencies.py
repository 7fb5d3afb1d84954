"""Use case: whether each dependency of this process can be used, for readiness, the overview and the metrics.

The dependencies are Redis, the asset store, the storage, the disk, and every plugin that has a `check`. A readiness
request probes all of them. The metrics show the last result of each probe, unless it is too old. A dependency without a
recent result is probed every few seconds, so that alerts need neither traffic nor a load balancer. Runs on the event
loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import nan
from time import monotonic, perf_counter
from typing import Any

import structlog

from pipeline.errors import DependencyUnavailable, PipelineError
from pipeline.hooks.bound_plugin import CHECK, BoundPlugin
from pipeline.hooks.bound_plugin import CHECK_SECONDS as PLUGIN_CHECK_SECONDS
from pipeline.hooks.kinds import PROVIDER
from pipeline.logs import ThrottledLog
from pipeline.metrics import Metrics
from pipeline.texts import cause_of, clean

log = structlog.get_logger(__name__)

# A probe of a storage is a request to an outside service, so not more often than a load balancer would ask.
LOOK_SECONDS = 10.0
# A dependency with a result younger than this is not probed.
FRESH_SECONDS = 5.0
# Older results are not shown. Probing takes 5 s at most, so only a blocked process has such results.
STALE_SECONDS = 60.0
# A plugin that has done work within this time is not probed: a busy one may have no thread or child free for the check.
WORKED_SECONDS = 15.0
CHECK_SECONDS = 2.0
Check = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of one probe.

    fault: why the dependency cannot be used, None when it can
    begun_at: monotonic seconds
    """

    fault: str | None
    took_ms: float
    begun_at: float


class Dependencies:
    """The dependencies of this process and the last result of each."""

    def __init__(
        self,
        checks: Mapping[str, Check],
        plugins: Callable[[], Iterable[BoundPlugin]],
        metrics: Metrics,
        *,
        asks_providers: bool = True,
    ) -> None:
        """checks: of the dependencies without which the process is not ready, by name
        plugins: returns the plugins in use; a failing plugin does not make the process unready
        asks_providers: False in a process that never asks the AI service
        """
        self._checks = checks
        self._plugins = plugins
        self._metrics = metrics
        self._asks_providers = asks_providers
        self._results: dict[str, ProbeResult] = {}
        # Dependencies whose last log line says that they cannot be used.
        self._logged: set[str] = set()
        self._throttled_log = ThrottledLog(monotonic)

    async def run(self) -> None:
        """Probe the dependencies without a recent result, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Probe the dependencies without a recent result."""
        probes = [self.ask(name, FRESH_SECONDS) for name in self._checks]
        await asyncio.gather(*probes, *map(self._probe_plugin, self._checked_plugins()))

    async def read(self, only: Collection[str] | None = None) -> list[dict[str, Any]]:
        """Probe the dependencies without which the process is not ready, and return the results as /readyz shows them.

        only: the names of the dependencies to probe; None: all
        """
        names = [name for name in self._checks if only is None or name in only]
        results = await asyncio.gather(*map(self.ask, names))
        return [
            {"name": name, "ok": each.fault is None, "tookMs": each.took_ms}
            | ({"error": each.fault} if each.fault else {})
            for name, each in zip(names, results, strict=True)
        ]

    async def ask(self, name: str, age_seconds: float = 0.0) -> ProbeResult:
        """Return the result of a dependency.

        age_seconds: a result that is younger is returned without a probe
        """
        last = self._results.get(name)
        if last is not None and monotonic() - last.begun_at < age_seconds:
            return last
        return await self._probe(name, self._checks[name])

    def _checked_plugins(self) -> Iterable[BoundPlugin]:
        for plugin in self._plugins():
            if CHECK in plugin.methods and (self._asks_providers or plugin.kind != PROVIDER.name):
                yield plugin

    async def _probe_plugin(self, plugin: BoundPlugin) -> None:
        async def check() -> None:
            if monotonic() - plugin.worked_at < WORKED_SECONDS:
                return
            if not plugin.is_started and plugin.status.held_seconds > 0:
                # The plugin is held and may not be started yet; its check would start it.
                raise DependencyUnavailable(plugin.status.reason)
            if fault := await plugin.health():
                raise DependencyUnavailable(fault)

        # The check has a shorter time limit of its own.
        await self._probe(f"{plugin.kind}:{plugin.name}", check, PLUGIN_CHECK_SECONDS + 1)

    async def _probe(self, name: str, check: Check, *seconds: float) -> ProbeResult:
        begun_at = monotonic()
        result = ProbeResult(*await probe(check, *seconds), begun_at)
        last = self._results.get(name)
        if last is None:
            self._metrics.dependency_up.labels(name).set_function(lambda: self._shown(name))
        # Two probes that run at the same time may end in the other order.
        if last is None or last.begun_at <= begun_at:
            self._results[name] = result
            self._log(name, result.fault)
        return result

    def _log(self, name: str, fault: str | None) -> None:
        """Log when a dependency fails, and when it works again.

        Only changes are logged, each at most once a minute: clients may request probes as often as they like. A change
        that was not logged for this reason is logged by a later probe, if it lasts.
        """
        if fault and name not in self._logged:
            if self._throttled_log.write(log.warning, "check_failed", name, dependency=name, error=fault):
                self._logged.add(name)
        elif name in self._logged and not fault:
            if self._throttled_log.write(log.info, "check_passed", name, dependency=name):
                self._logged.remove(name)

    def _shown(self, name: str) -> float:
        result = self._results[name]
        return nan if monotonic() - result.begun_at > STALE_SECONDS else float(result.fault is None)


async def probe(check: Check, seconds: float = CHECK_SECONDS) -> tuple[str | None, float]:
    """Return why a dependency cannot be used, or None, and how many milliseconds the check took.

    check: returns when the dependency can be used and raises otherwise
    The reason contains no secret.
    """
    started = perf_counter()
    fault = await _fault(check, seconds)
    return fault, round((perf_counter() - started) * 1000, 1)


async def _fault(check: Check, seconds: float) -> str | None:
    try:
        async with asyncio.timeout(seconds):
            await check()
    except PipelineError as error:
        message = clean(error.message)
        return message if error.__cause__ is None else f"{message} ({cause_of(error)})"
    except TimeoutError:
        return f"No answer within {seconds:g} s"
    except Exception as error:  # a plugin's check may raise anything, with anything in its text
        return f"Check failed ({cause_of(error)})"
    return None
