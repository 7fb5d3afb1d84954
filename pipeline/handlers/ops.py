"""Metrics, probes and contracts, without a token.

No request may hang: every call to another service has a time limit. Runs on the event loop.
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
from pipeline.queue_metrics import QUEUE_STATES
from pipeline.texts import clean, mask
from pipeline.usecases.dependencies import CHECK_SECONDS, Dependencies
from pipeline.usecases.processes import Processes

# The dependencies that belong to one process. Not the clock: a wrong clock of Redis affects all processes.
LOCAL = ("process", "disk", "sandbox", "tasks")
SCRAPE_SECONDS = 1.0  # Prometheus gives up after 10; without Redis the other metrics must still arrive


class MetricsHandler(BaseHandler):
    """GET /metrics: the counts of this process, and the state of the queues in Redis."""

    route = "/metrics"

    def initialize(  # type: ignore[override]
        self, *, queues: Sequence[StatsSource], processes: Processes, **common: Any
    ) -> None:
        super().initialize(**common)
        self.queues = queues
        self.processes = processes

    async def get(self) -> None:
        await asyncio.gather(self._show_processes(), *map(self._show_queue, self.queues))
        body, content_type = self.metrics.render()
        self.set_header("Content-Type", content_type)
        self.finish(body)

    async def _show_processes(self) -> None:
        try:
            async with asyncio.timeout(SCRAPE_SECONDS):
                self.metrics.show_processes(await self.processes.count())
        except (DependencyUnavailable, TimeoutError):
            self.metrics.show_processes(None)

    async def _show_queue(self, queue: StatsSource) -> None:
        series = self.metrics.of_queue(queue.name)
        try:
            async with asyncio.timeout(SCRAPE_SECONDS):
                stats = await queue.stats()
        except (DependencyUnavailable, TimeoutError):
            series.show_unknown()
            return
        series.show(
            {state: getattr(stats, state) for state in QUEUE_STATES},
            oldest_ready_seconds=stats.oldest_ready_seconds or 0,
            is_paused=stats.is_paused,
            held_seconds={
                hold.provider: hold.left_seconds or hold.wait_seconds for hold in stats.holds if not hold.is_paced
            },
        )


class LiveHandler(BaseHandler):
    """GET /livez: the process answers. Checks nothing else: an outage elsewhere is no reason to restart it."""

    route = "/livez"

    def get(self) -> None:
        self.reply({"status": "ok"})

    head = get


class ReadyHandler(BaseHandler):
    """GET /readyz: checks all dependencies at the same time; 503 names those that fail.

    ?local: check only the dependencies that belong to this process. A proxy needs this: if it removed all processes
        because a shared dependency is away, it would refuse uploads that they still accept.
    ?verbose: return the duration of each check, the plugins and the queues too; these never make the process unready.
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
        # At the same time, so that the time limit of a Redis that does not answer counts once.
        queues = await asyncio.gather(*map(_queue_state, self.queues)) if is_verbose else []
        dependencies = await checking
        data: dict[str, Any] = {"dependencies": dependencies}
        faults = {found["name"]: found["error"] for found in dependencies if not found["ok"]}
        if is_verbose:
            data["plugins"] = await asyncio.gather(*map(_plugin_state, self.plugins))
            # Storages with images of this service, whose settings were removed too early.
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
        self.contract_arguments = categories, public_url


class OpenApiHandler(_ContractHandler):
    """GET /openapi.json: the contract of the HTTP API, without the envelope."""

    route = "/openapi.json"

    def get(self) -> None:
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(contracts.openapi(*self.contract_arguments))


class AsyncApiHandler(_ContractHandler):
    """GET /asyncapi.json: the contract of sockets and streams, without the envelope."""

    route = "/asyncapi.json"

    def get(self) -> None:
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(contracts.asyncapi(*self.contract_arguments))


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
