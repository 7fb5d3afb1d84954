"""QueueCalls: the keys of one queue, its Lua scripts, and calls to the Redis that has them.

The only file that builds a Redis key. All keys of a queue share one hash tag, so that the scripts run on Redis Cluster.
Runs on the event loop. Redis 6.2 commands only.

Keys that expire, beside those of jobs: turn:<name> (a lock), sums:<name> (a hash), limit:<name> (a bucket), watched,
processes (a hash, by process id), drain:<process id>.
Permanent keys: waiting, groups, grouped, group:<name>, delayed, postponed, leases, completed, failed, wake (at most one
marker), paused, holds, parked, owner. Each empties with its jobs. lua/place.lua says what Redis stores of a job,
lua/lanes.lua what holds are, lua/owner.lua what owner is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any, TypeVar

from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError

from pipeline.errors import DependencyUnavailable
from pipeline.link.connection import CALL_SECONDS, Link
from pipeline.link.master import Master

T = TypeVar("T")
SCRIPTS = (
    *("enqueue", "step", "renew", "recover", "release", "trim", "own", "pause", "stats", "list", "forget", "bury"),
    *("cancel", "postpone", "snapshot", "pace", "limit"),
)
# The parts that go before each script.
PARTS = {
    **dict.fromkeys(("renew", "recover", "release", "trim", "list", "forget", "cancel", "postpone"), ("place",)),
    **dict.fromkeys(("enqueue", "bury"), ("place", "owner")),
    **dict.fromkeys(("stats", "snapshot"), ("place", "owner", "reservations")),
    "pace": ("place", "reservations"),
    "own": ("owner",),
    "step": ("place", "owner", "claims", "reservations", "lanes", "finish"),
}
# The keys that lua/place.lua names.
PLACE_KEYS = ("waiting", "groups", "grouped", "wake")
NAMES = (
    *(*PLACE_KEYS, "delayed", "leases", "completed", "failed", "paused", "holds", "parked", "owner"),
    *("watched", "postponed", "processes"),
)
RESTORE_AT_ONCE = 100
TRIM_AT_MOST = 500


class ForeignQueue(DependencyUnavailable):
    """The queue of that name belongs to another asset store."""


class QueueFull(DependencyUnavailable):
    """Redis has no memory left for the write."""


class QueueCalls:
    """The keys, scripts and connections of one queue. Raises DependencyUnavailable when Redis is away or refuses."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        prefix: str,
        block_seconds: float,
        keep_completed_seconds: float,
        keep_failed_seconds: float,
        clock_offset_ms: int,
    ) -> None:
        """See JobQueue."""
        self.name = name
        self.clock_offset_ms = clock_offset_ms
        self._master = Master(url)
        self._blocking = Master(url, call_seconds=block_seconds + CALL_SECONDS)
        self._block_seconds = block_seconds
        self._keep_completed_ms = round(keep_completed_seconds * 1000)
        self._keep_failed_ms = round(keep_failed_seconds * 1000)
        self._base = f"{prefix}:{{{name}}}:"
        self._key = {key: self._base + key for key in NAMES}
        self._all_keys = self._place_keys(
            "delayed", "leases", "completed", "failed", "paused", "holds", "parked", "owner", "watched"
        )
        self._sources = {verb: _source(verb) for verb in SCRIPTS}
        self._hashes = {verb: hashlib.sha1(source.encode()).hexdigest() for verb, source in self._sources.items()}

    async def close(self) -> None:
        """Close both connections."""
        self._master.close()
        self._blocking.close()

    async def trim(self) -> int:
        """Remove finished jobs past retention; return how many."""
        total = 0
        while removed := await self._trim(self._keep_completed_ms, self._keep_failed_ms):
            total += removed
            if removed < TRIM_AT_MOST:
                break
        return total

    async def _trim(self, keep_completed_ms: int, keep_failed_ms: int) -> int:
        keys = self._place_keys("completed", "failed")
        removed: int = await self._run("trim", keys, [keep_completed_ms, keep_failed_ms, TRIM_AT_MOST])
        return removed

    def _keys(self, *names: str) -> list[str]:
        return [self._key[name] for name in names]

    def _place_keys(self, *names: str) -> list[str]:
        """Return the KEYS of a script that lua/place.lua goes before."""
        return [*self._keys(*PLACE_KEYS), self._base, *self._keys(*names)]

    def _key_of(self, kind: str, name: str) -> str:
        """Return a key of which there are many. kind: record, state, running, sums, limit, turn or drain."""
        return f"{self._base}{kind}:{name}"

    async def _run(self, verb: str, keys: Sequence[str], args: Sequence[Any], *, timed: bool = True) -> Any:
        """Return the reply of a script. timed: its first ARGV is the clock offset."""
        arguments = [len(keys), *keys, self.clock_offset_ms, *args] if timed else [len(keys), *keys, *args]

        async def ask(link: Link) -> Any:
            try:
                return await link.ask("EVALSHA", self._hashes[verb], *arguments)
            except NoScriptError:
                # This Redis has not seen it yet.
                return await link.ask("EVAL", self._sources[verb], *arguments)

        return await self._call(ask)

    async def _restore(self, verb: str, calls: Sequence[tuple[list[str], list[Any]]]) -> int:
        """Call a script with each of these keys and arguments; return how many it did not reply `exists` to."""
        load = ("SCRIPT", "LOAD", self._sources[verb])
        restored = 0
        # Not all at once: other calls wait behind them.
        for first in range(0, len(calls), RESTORE_AT_ONCE):
            commands = [
                ("EVALSHA", self._hashes[verb], len(keys), *keys, self.clock_offset_ms, *args)
                for keys, args in calls[first : first + RESTORE_AT_ONCE]
            ]
            _hash, *replies = await self._with_room(lambda: self._call(lambda link: link.ask_all(load, *commands)))
            restored += sum(checked(reply) != "exists" for reply in replies)
        return restored

    async def _with_room(self, run: Callable[[], Awaitable[T]]) -> T:
        """Return what `run` returns; in a full Redis remove completed jobs and run it again."""
        while True:
            try:
                return await run()
            except QueueFull:
                # Completed jobs are only remembered: they make room for jobs that have yet to run.
                if not await self._trim(0, self._keep_failed_ms):
                    raise

    async def _call(self, ask: Callable[[Link], Awaitable[Any]]) -> Any:
        """Return what `ask` returns; any failure, also a reply that never comes, is DependencyUnavailable."""
        try:
            return await self._master.call(ask)
        except OutOfMemoryError as error:
            raise QueueFull("The queue is full") from error
        except (RedisError, OSError, TimeoutError) as error:
            raise DependencyUnavailable("The queue cannot be reached") from error


def checked(reply: str) -> str:
    """Return the word that a script replied; ForeignQueue when it did nothing because of the owner."""
    if reply == "foreign":
        raise ForeignQueue("The queue belongs to another asset store")
    return reply


def _source(verb: str) -> str:
    folder = resources.files("pipeline.queue.lua")
    names = (*PARTS.get(verb, ()), verb)
    return "\n".join(folder.joinpath(f"{name}.lua").read_text("utf-8") for name in names)
