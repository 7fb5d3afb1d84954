"""The Redis server that has a queue: its clock, its state and its file. A part of JobQueue, see queue.py."""

from __future__ import annotations

import asyncio
from typing import cast

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from pipeline.clock import Reading, boot_seconds
from pipeline.errors import DependencyUnavailable
from pipeline.link.connection import Link
from pipeline.queue.calls import QueueCalls

# A rewrite of the append-only file takes seconds.
REWRITE_TRIES = 60
REWRITE_RETRY_SECONDS = 0.5


class QueueServer(QueueCalls):
    """Asks the server about itself."""

    async def ping(self) -> None:
        """Return when Redis answers."""
        await self._call(lambda link: link.ask("PING"))

    async def time(self) -> Reading:
        """Return Redis TIME."""

        async def ask(link: Link) -> Reading:
            asked_at = boot_seconds()
            seconds, microseconds = map(int, await link.ask("TIME"))
            return Reading(seconds + microseconds / 1e6, asked_at, boot_seconds())

        return cast(Reading, await self._call(ask))

    async def server(self) -> dict[str, str]:
        """Return the fields of INFO; {} when this user may not ask for them."""

        async def ask(link: Link) -> str:
            try:
                return cast(str, await link.ask("INFO"))
            except NoPermissionError:
                return ""

        lines = await self._call(ask)
        return dict(line.split(":", 1) for line in lines.splitlines() if ":" in line)

    async def forget_history(self) -> None:
        """Have Redis rewrite its append-only file without deleted data: for a Redis that no other service uses."""
        for _ in range(REWRITE_TRIES):
            try:
                await self._master.call(lambda link: link.ask("BGREWRITEAOF"))
                return
            except ResponseError:
                # A rewrite is under way, and it may have begun before the last change.
                await asyncio.sleep(REWRITE_RETRY_SECONDS)
            except (RedisError, OSError, TimeoutError) as error:
                raise DependencyUnavailable("The queue cannot be reached") from error
