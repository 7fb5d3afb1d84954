"""Use case: operators see the state of the whole service. It always answers, and says which dependency is away.

Requests at the same time share one reading. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from typing import Any, TypeVar

from pipeline import __version__
from pipeline.assets.asset import to_timestamp
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable
from pipeline.hold import Hold
from pipeline.hooks.manager import PluginManager
from pipeline.queue.queue import JobQueue
from pipeline.supervision import Supervisor
from pipeline.texts import cause_of, clean
from pipeline.usecases.dependencies import CHECK_SECONDS, Dependencies
from pipeline.usecases.processes import Processes, busy_and_all

T = TypeVar("T")
# An answer may be so old.
FRESH_SECONDS = 1.0
# Storages outside are probed less often.
PROBE_SECONDS = 10.0
SAFE_POLICY = "noeviction"


class Overview:
    """Reads the state of the service."""

    def __init__(
        self,
        *,
        queues: Sequence[JobQueue],
        processes: Processes,
        plugins: PluginManager,
        dependencies: Dependencies,
        store_kind: Callable[[], str],
        supervisor: Supervisor,
        owns_redis: bool,
        grafana_url: str,
    ) -> None:
        """queues: that of the photos first
        owns_redis: Redis is embedded
        grafana_url: "" when there is none
        """
        self._queues = queues
        self._processes = processes
        self._plugins = plugins
        self._dependencies = dependencies
        self._store_kind = store_kind
        self._supervisor = supervisor
        self._owns_redis = owns_redis
        self._grafana_url = grafana_url
        self._reading: asyncio.Task[dict[str, Any]] | None = None
        self._read_at = float("-inf")

    async def read(self) -> dict[str, Any]:
        """Return the overview as GET /api/queue/overview shows it, at most a second old."""
        now = asyncio.get_running_loop().time()
        if self._reading is None or (self._reading.done() and now - self._read_at > FRESH_SECONDS):
            self._read_at = now
            # In a context of its own: its log lines do not belong to the request that happens to be first.
            self._reading = asyncio.create_task(self._read(), name="overview", context=Context())
        return await asyncio.shield(self._reading)

    async def _read(self) -> dict[str, Any]:
        queues, redis, processes, (store, storage) = await asyncio.gather(
            asyncio.gather(*map(self._queue, self._queues)),
            self._redis(),
            self._alive(),
            self._store_and_storage(),
        )
        return {
            "serverTime": to_timestamp(utc_now()),
            "version": __version__,
            "queues": queues,
            **processes,
            "plugins": {"quarantined": self._quarantined()},
            "redis": redis,
            "store": store,
            "storage": storage,
            "tasks": self._supervisor.down,
            "grafanaUrl": self._grafana_url or None,
        }

    async def _queue(self, queue: JobQueue) -> dict[str, Any]:
        try:
            stats = await _in_time(queue.stats())
        except DependencyUnavailable as error:
            return {"name": queue.name, "error": _reason(error)}
        return {
            "name": queue.name,
            "waiting": stats.waiting,
            "delayed": stats.delayed,
            "active": stats.active,
            "completed": stats.completed,
            "failed": stats.failed,
            "paused": stats.is_paused,
            "oldestReadySeconds": stats.oldest_ready_seconds and round(stats.oldest_ready_seconds, 1),
            "endedInLastMinute": stats.ended_in_last_minute,
            "holds": list(map(_hold, stats.holds)),
        }

    async def _redis(self) -> dict[str, Any]:
        try:
            info, error = await _in_time(self._queues[0].server()), None
        except DependencyUnavailable as fault:
            info, error = {}, _reason(fault)
        return describe_redis(info, is_embedded=self._owns_redis, error=error)

    async def _alive(self) -> dict[str, Any]:
        try:
            alive = [each for each in await _in_time(self._processes.read()) if each["isAlive"]]
        except DependencyUnavailable:
            return {"workersAlive": None, "processesAlive": None, "slots": {"used": None, "all": None}}
        workers = sum(each["role"] != "web" for each in alive)
        return {"workersAlive": workers, "processesAlive": len(alive), "slots": busy_and_all(alive)}

    async def _store_and_storage(self) -> tuple[dict[str, Any], dict[str, Any]]:
        store, storage = await asyncio.gather(
            *(self._dependencies.ask(name, PROBE_SECONDS) for name in ("store", "storage"))
        )
        return (
            {
                "kind": self._store_kind(),
                "isUp": store.fault is None,
                "tookMs": store.took_ms,
                "error": store.fault,
            },
            {"name": self._plugins.backends[0], "isUp": storage.fault is None, "error": storage.fault},
        )

    def _quarantined(self) -> list[str]:
        return [f"{plugin.kind} {plugin.name}" for plugin in self._plugins.all if plugin.status.state == "held"]


def describe_redis(info: Mapping[str, str], *, is_embedded: bool, error: str | None) -> dict[str, Any]:
    """Return the fields of a server's INFO that operators see.

    error: why INFO could not be read
    """
    policy = info.get("maxmemory_policy")
    name, version = info.get("server_name", "redis"), info.get("valkey_version") or info.get("redis_version")
    return {
        "isUp": error is None,
        "isEmbedded": is_embedded,
        "version": f"{name.capitalize()} {version}" if version else None,
        "role": {"master": "master", "slave": "replica"}.get(info.get("role", "")),
        "usedBytes": _number(info.get("used_memory")),
        # 0: without a limit of its own.
        "maxBytes": _number(info.get("maxmemory")) or None,
        "evictionPolicy": policy,
        "isEvictionSafe": None if policy is None else policy == SAFE_POLICY,
        "persistence": {"1": "aof", "0": "snapshots"}.get(info.get("aof_enabled", "")),
        "error": error or _write_fault(info),
    }


def _write_fault(info: Mapping[str, str]) -> str | None:
    """Return why the server cannot write to its disk, None when it can."""
    if info.get("aof_last_write_status", "ok") != "ok":
        return "Redis cannot write its append-only file"
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        return "Redis cannot write its snapshot"
    return None


def _hold(hold: Hold) -> dict[str, Any]:
    return {
        "provider": hold.provider,
        "reason": clean(hold.reason),
        "cause": clean(hold.cause),
        "nextTryInSeconds": round(hold.left_seconds, 1),
    }


async def _in_time(reply: Awaitable[T]) -> T:
    """Return the reply of Redis; DependencyUnavailable also when it comes too late."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await reply
    except TimeoutError:
        raise DependencyUnavailable(f"No answer within {CHECK_SECONDS:g} s") from None


def _reason(error: DependencyUnavailable) -> str:
    return clean(error.message) if error.__cause__ is None else f"{clean(error.message)} ({cause_of(error)})"


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
