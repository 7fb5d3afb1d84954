"""Use case: whether each dependency of this process can be used, for readiness, the overview and the metrics.

A dependency is what the process needs to do its work: Redis, the asset store, the storage, the disk, and every plugin
that has a `check`. Readiness probes all at the moment it is asked. The metrics show the last result of each probe; what
nobody has asked for lately is probed every few seconds, so that an alert needs neither traffic nor a load balancer. A
result that is too old is not shown. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import nan
from time import monotonic
from typing import Any

import structlog

from pipeline.errors import DependencyUnavailable
from pipeline.hooks.calls import CHECK, CHECK_SECONDS, BoundPlugin
from pipeline.hooks.kinds import PROVIDER
from pipeline.logs import ThrottledLog
from pipeline.metrics import Metrics
from pipeline.usecases.probing import Check, probe

log = structlog.get_logger(__name__)

# A probe of a storage is a request to the storage of others, so not more often than a load balancer would ask.
LOOK_SECONDS = 10.0
# A result that readiness or the overview has just brought is not asked for once more.
FRESH_SECONDS = 5.0
# Older results are not shown. A look takes 5 s at most, so only a process that stands still has such.
STALE_SECONDS = 60.0
# A plugin that has done work within this time is not probed: a busy one may have no thread or child free for the check.
WORKED_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Found:
    """The result of one probe. fault: None when the dependency can be used. begun_at: monotonic seconds."""

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
        """checks: of what the process is not ready without, by name.

        plugins: returns all in use. One that cannot be used does not make the process unready.
        asks_providers: False in a process that never asks the AI.
        """
        self._checks = checks
        self._plugins = plugins
        self._metrics = metrics
        self._asks_providers = asks_providers
        self._found: dict[str, Found] = {}
        # Those of which the last line in the log says that they cannot be used.
        self._logged: set[str] = set()
        self._throttled_log = ThrottledLog(monotonic)

    async def run(self) -> None:
        """Probe what nobody has asked for lately, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Probe what nobody has asked for lately."""
        looks = [self.ask(name, FRESH_SECONDS) for name in self._checks]
        await asyncio.gather(*looks, *map(self._look_at, self._checked_plugins()))

    async def read(self, only: Collection[str] | None = None) -> list[dict[str, Any]]:
        """Return how each dependency is at this moment that the process is not ready without, as /readyz shows it.

        only: the names of those that are asked for; None: all.
        """
        names = [name for name in self._checks if only is None or name in only]
        found = await asyncio.gather(*map(self.ask, names))
        return [
            {"name": name, "ok": each.fault is None, "tookMs": each.took_ms}
            | ({"error": each.fault} if each.fault else {})
            for name, each in zip(names, found, strict=True)
        ]

    async def ask(self, name: str, age_seconds: float = 0.0) -> Found:
        """Return how the dependency of that name is. age_seconds: so old may the result be."""
        last = self._found.get(name)
        if last is not None and monotonic() - last.begun_at < age_seconds:
            return last
        return await self._probe(name, self._checks[name])

    def _checked_plugins(self) -> Iterable[BoundPlugin]:
        for plugin in self._plugins():
            if CHECK in plugin.methods and (self._asks_providers or plugin.kind != PROVIDER.name):
                yield plugin

    async def _look_at(self, plugin: BoundPlugin) -> None:
        async def check() -> None:
            if monotonic() - plugin.worked_at < WORKED_SECONDS:
                return
            if not plugin.is_started and plugin.held_seconds > 0:
                # It has said when it may be started; its check would start it now.
                raise DependencyUnavailable(plugin.reason)
            if fault := await plugin.health():
                raise DependencyUnavailable(fault)

        # The check has a time limit of its own, which ends first.
        await self._probe(f"{plugin.kind}:{plugin.name}", check, CHECK_SECONDS + 1)

    async def _probe(self, name: str, check: Check, *seconds: float) -> Found:
        begun_at = monotonic()
        found = Found(*await probe(check, *seconds), begun_at)
        last = self._found.get(name)
        if last is None:
            self._metrics.dependency_up.labels(name).set_function(lambda: self._shown(name))
        # Two who ask at the same time may get their answers in the other order.
        if last is None or last.begun_at <= begun_at:
            self._found[name] = found
            self._log(name, found.fault)
        return found

    def _log(self, name: str, fault: str | None) -> None:
        """Log when a dependency cannot be used any more, and when it can again: not with every probe of an outage, and
        each once a minute when it flaps, for anybody may have it probed. What was left out is logged a minute later, if
        it is still so.
        """
        if fault and name not in self._logged:
            if self._throttled_log.write(log.warning, "check_failed", name, dependency=name, error=fault):
                self._logged.add(name)
        elif name in self._logged and not fault:
            if self._throttled_log.write(log.info, "check_passed", name, dependency=name):
                self._logged.remove(name)

    def _shown(self, name: str) -> float:
        found = self._found[name]
        return nan if monotonic() - found.begun_at > STALE_SECONDS else float(found.fault is None)
