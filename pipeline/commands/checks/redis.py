"""Checks of Redis: the server of REDIS_URL, or the server program that `serve` would start under DATA_DIR."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import replace

from redis.exceptions import NoPermissionError, ReadOnlyError, RedisError

from pipeline import embedded
from pipeline.clock import Clock
from pipeline.commands.checks.findings import Finding, Mark, shown_address
from pipeline.commands.checks.redis_rights import missing_rights
from pipeline.commands.checks.tls import tls_hint
from pipeline.errors import ConfigurationError, DependencyUnavailable
from pipeline.link.master import Master
from pipeline.metrics import Metrics
from pipeline.parts.queues import QUEUE_NAME
from pipeline.stores import build_store
from pipeline.queue.queue import JobQueue
from pipeline.rooms.fanout import RoomFanout
from pipeline.rooms.rooms import Rooms
from pipeline.settings import Settings

OLDEST_REDIS = (6, 2)
FULL_PERCENT = 80


class RedisChecks:
    """The checks of everything that the queue and the rooms need from Redis."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._url = settings.redis_url.get_secret_value()

    async def embedded(self) -> AsyncIterator[Finding]:
        """Find the server program and its version; start none."""
        server = embedded.find_server()
        process = await asyncio.create_subprocess_exec(server, "--version", stdout=asyncio.subprocess.PIPE)
        try:
            output = (await process.communicate())[0].decode(errors="replace")
        finally:
            if process.returncode is None:
                process.kill()
        match = re.search(r"v=([\d.]+)", output)
        version = match[1] if match else "unknown"
        _check_redis_version(version)
        yield Finding(Mark.OK, "redis", f"embedded: {server} {version}")

    async def external(self) -> AsyncIterator[Finding]:
        """Use the server as the service does: write, run scripts, publish and subscribe."""
        prefix = self._settings.queue_prefix
        master = Master(self._url)
        try:
            info = await self._info(master)
            if missing := await missing_rights(master, prefix):
                remedy = f"ACL SETUSER ... {' '.join(missing)} (docs/operations.md has the whole line)"
                yield Finding(Mark.FAILED, "redis", f"its user lacks rights (NOPERM): {' '.join(missing)}", remedy)
                return
        except ReadOnlyError as error:
            raise ConfigurationError("it is a read-only replica, and takes no writes") from error
        except (OSError, RedisError) as error:
            if hint := await tls_hint(self._url):
                raise ConfigurationError(hint) from error
            raise
        finally:
            master.close()
        for finding in await self._described(info):
            yield finding
        await self._try_rooms()
        yield Finding(Mark.OK, "redis", "published events arrive at other processes")

    async def clock(self) -> AsyncIterator[Finding]:
        """Compare this machine's clock with that of Redis."""
        queue, clock = JobQueue(self._url, prefix=self._settings.queue_prefix), Clock()
        try:
            await clock.measure(queue.time)
        except DependencyUnavailable:
            return  # its own check has reported it
        finally:
            await queue.close()
        await clock.check()
        yield Finding(Mark.OK, "clock", "agrees with the clock of Redis")

    async def _info(self, master: Master) -> dict[str, str]:
        """Return the fields of INFO, {} where the user has no right to it; ConfigurationError for a replica."""
        with suppress(NoPermissionError):
            lines: str = await master.call(lambda link: link.ask("INFO"))
            info = dict(line.split(":", 1) for line in lines.splitlines() if ":" in line)
            _check_redis_version(info.get("redis_version", ""))
            if info.get("role") == "slave":
                raise ConfigurationError("it is a replica: what is written there is lost")
            return info
        return {}

    async def _described(self, info: Mapping[str, str]) -> list[Finding]:
        """Return findings about version, memory and persistence."""
        # The same call as for /metrics: it proves that scripts run and our keys can be read.
        queue = JobQueue(self._url, prefix=self._settings.queue_prefix)
        try:
            await queue.stats()
        finally:
            await queue.close()
        tls = "TLS" if self._url.lower().startswith("rediss") else "no TLS"
        append_only = "on" if info.get("aof_enabled") == "1" else "off" if info else "unknown"
        version = info.get("redis_version", "of unknown version")
        detail = f"{version} at {shown_address(self._url)}, {tls}, append-only file {append_only}"
        summary = Finding(Mark.OK, "redis", detail)
        warning = replace(summary, mark=Mark.WARNING)
        if not info:
            detail = "its user has no right to INFO: its version, maxmemory-policy and memory are not known"
            remedy = "ACL SETUSER ... +info, and make sure that maxmemory-policy is noeviction"
            return [summary, replace(warning, detail=detail, remedy=remedy)]
        findings = [summary]
        if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
            detail = f"maxmemory-policy is {policy}: when memory runs out, jobs vanish"
            findings.append(replace(warning, detail=detail, remedy="set maxmemory-policy noeviction in Redis"))
        limit = int(info.get("maxmemory", 0))
        used_percent = 100 * int(info.get("used_memory", 0)) // limit if limit else 0
        if used_percent >= FULL_PERCENT:
            detail = f"{used_percent} % of its memory is used"
            findings.append(replace(warning, detail=detail, remedy="raise maxmemory in Redis"))
        return findings

    async def _try_rooms(self) -> None:
        """Subscribe, publish, and wait for the published message."""
        settings = self._settings
        rooms = Rooms(max_bytes=settings.outbox_bytes, metrics=self._metrics)
        url = settings.redis_url.get_secret_value()
        fanout = RoomFanout(rooms, url, metrics=self._metrics, prefix=settings.queue_prefix)
        await fanout.start()
        try:
            await fanout.check()
        finally:
            await fanout.stop()

    async def owner(self) -> AsyncIterator[Finding]:
        """Check that the queue belongs to this asset store."""
        prefix = self._settings.queue_prefix
        queue = JobQueue(self._settings.redis_url.get_secret_value(), name=QUEUE_NAME, prefix=prefix)
        store = build_store(self._settings)
        try:
            await store.open()
            owner, ours = await queue.owned_by(), await store.identity()
        except DependencyUnavailable:
            return  # its own check has reported it
        finally:
            await store.close()
            await queue.close()
        if owner in ("", ours):
            yield Finding(Mark.OK, "queue", f"{prefix} is ours" if owner else f"{prefix} is free")
        else:
            detail = f"{prefix} is the queue of another asset store"
            remedy = f"set QUEUE_PREFIX or, if that store is gone for good, remove the key {queue.owner_key} from Redis"
            yield Finding(Mark.FAILED, "queue", detail, remedy)


def _check_redis_version(version: str) -> None:
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_REDIS:
        raise ConfigurationError(f"version {version} is too old; 6.2 or newer is needed")
