"""For those who run the service: numbers, health and the contract.

No token is asked for. Nothing here may hang: whatever is asked elsewhere has a time limit. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.errors import DependencyUnavailable
from pipeline.handlers import contracts
from pipeline.handlers.base import BaseHandler
from pipeline.handlers.queue import StatsSource
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.metrics import QUEUE_STATES
from pipeline.texts import clean, mask
from pipeline.usecases.dependencies import CHECK_SECONDS, Dependencies
from pipeline.usecases.processes import Processes

# What each process has for itself. Not the clock: when that of Redis is wrong, all processes say so.
LOCAL = ("process", "disk", "sandbox", "tasks")
SCRAPE_SECONDS = 1.0  # Prometheus gives up after 10; what we know without Redis must arrive anyway


class MetricsHandler(BaseHandler):
    """GET /metrics: this process's counts, and the queues as Redis has them at this moment."""

    route = "/metrics"

    def initialize(  # type: ignore[override]
        self, *, queues: Sequence[StatsSource], processes: Processes, **common: Any
    ) -> None:
        super().initialize(**common)
        self.queues = queues
        self.processes = processes

    async def get(self) -> None:
        await asyncio.gather(self._show_processes(), *map(self._show, self.queues))
        body, content_type = self.metrics.render()
        self.set_header("Content-Type", content_type)
        self.finish(body)

    async def _show_processes(self) -> None:
        try:
            async with asyncio.timeout(SCRAPE_SECONDS):
                self.metrics.show_processes(await self.processes.count())
        except (DependencyUnavailable, TimeoutError):
            self.metrics.show_processes(None)

    async def _show(self, queue: StatsSource) -> None:
        shown = self.metrics.of_queue(queue.name)
        try:
            async with asyncio.timeout(SCRAPE_SECONDS):
                stats = await queue.stats()
        except (DependencyUnavailable, TimeoutError):
            shown.show_unknown()
            return
        shown.show(
            {state: getattr(stats, state) for state in QUEUE_STATES},
            oldest_ready_seconds=stats.oldest_ready_seconds or 0,
            is_paused=stats.is_paused,
            held_seconds={
                hold.provider: hold.left_seconds or hold.wait_seconds for hold in stats.holds if not hold.is_paced
            },
        )


class LiveHandler(BaseHandler):
    """GET /livez: the process answers. Touches nothing, so that no outage elsewhere gets it restarted."""

    route = "/livez"

    def get(self) -> None:
        self.reply({"status": "ok"})

    head = get


class ReadyHandler(BaseHandler):
    """GET /readyz: asks everything the process leans on, all at once; 503 names what does not answer.

    With ?local it asks only what another process may have while this one lacks it: a proxy that took all processes out
    because they share what is away would refuse uploads that they still accept.
    With ?verbose also how long each took, the plugins and the queues; these never make the process unready.
    """

    route = "/readyz"

    def initialize(  # type: ignore[override]
        self,
        *,
        dependencies: Dependencies,
        plugins: Sequence[BoundPlugin],
        queues: Sequence[StatsSource],
        missing_storages: Callable[[], Mapping[str, str]] = dict,
        **common: Any,
    ) -> None:
        super().initialize(**common)
        self.missing_storages = missing_storages
        self.dependencies = dependencies
        self.plugins = plugins
        self.queues = queues

    async def get(self) -> None:
        is_verbose = self.get_query_argument("verbose", None) is not None
        is_local = self.get_query_argument("local", None) is not None
        checking = asyncio.ensure_future(self.dependencies.read(LOCAL if is_local else None))
        # At the same time, so that a silent Redis costs its time limit once.
        queues = await asyncio.gather(*map(_queue_state, self.queues)) if is_verbose else []
        dependencies = await checking
        data: dict[str, Any] = {"dependencies": dependencies}
        faults = {found["name"]: found["error"] for found in dependencies if not found["ok"]}
        if is_verbose:
            data["plugins"] = await asyncio.gather(*map(_plugin_state, self.plugins))
            # They hold images of ours, so somebody has taken their settings away too early.
            data["plugins"] += [
                {"name": name, "kind": "storage", "state": "missing", "reason": clean(reason)}
                for name, reason in self.missing_storages().items()
            ]
            data["queues"] = queues
        else:
            for found in dependencies:
                del found["tookMs"]
        if not faults:
            self.reply(data)
            return
        error = {
            "code": DependencyUnavailable.code,
            "message": f"Not ready: {', '.join(faults)}",
            "details": [{"field": name, "message": fault} for name, fault in faults.items()],
        }
        self.set_status(503)
        self.finish({"success": False, "error": error, "data": data})

    head = get


class _ContractHandler(BaseHandler):
    def initialize(  # type: ignore[override]
        self, *, categories: tuple[str, ...], public_url: str, **common: Any
    ) -> None:
        super().initialize(**common)
        self.kept = categories, public_url


class OpenApiHandler(_ContractHandler):
    """GET /openapi.json: the contract itself, outside the envelope."""

    route = "/openapi.json"

    def get(self) -> None:
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(contracts.openapi(*self.kept))


class AsyncApiHandler(_ContractHandler):
    """GET /asyncapi.json: what sockets and streams carry, outside the envelope, the event's schema within it."""

    route = "/asyncapi.json"

    def get(self) -> None:
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(contracts.asyncapi(*self.kept))


async def _plugin_state(plugin: BoundPlugin) -> dict[str, str]:
    fault = clean(mask(await plugin.health()))
    state = "failing" if fault and plugin.status.state == "ok" else plugin.status.state
    reason = plugin.status.reason or fault
    return {"name": plugin.name, "kind": plugin.kind, "state": state} | ({"reason": reason} if reason else {})


async def _queue_state(queue: StatsSource) -> dict[str, str]:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            stats = await queue.stats()
    except (DependencyUnavailable, TimeoutError):
        return {"name": queue.name, "state": "unknown"}
    return {"name": queue.name, "state": "paused" if stats.is_paused else "running"}
