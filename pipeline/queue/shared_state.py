"""State that all processes share in Redis beside the jobs: locks, sums, buckets and what each process does.

A part of JobQueue, see queue.py. All of it expires.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pipeline.queue import codec
from pipeline.queue.calls import QueueCalls

# The entry of a process that has not written for so long expires, and so does a request to drain it.
KEEP_PROCESS_SECONDS = 3600


class SharedState(QueueCalls):
    """Locks, sums, buckets and entries of processes, each by its name."""

    async def acquire_lock(self, name: str, owner: str, seconds: float) -> bool:
        """Acquire or prolong the lock of that name; return whether `owner` holds it now.

        Best effort: two processes may hold it for a moment, so the guarded work may be done twice.
        """
        key, milliseconds = self._key_of("turn", name), round(seconds * 1000)
        if await self._call(lambda link: link.ask("SET", key, owner, "NX", "PX", milliseconds)):
            return True
        if await self._call(lambda link: link.ask("GET", key)) != owner:
            return False
        return bool(await self._call(lambda link: link.ask("PEXPIRE", key, milliseconds)))

    async def sums(self, name: str, fields: Sequence[str]) -> list[float | None]:
        """Return these fields of the sums of that name, None for a field that is missing."""
        key = self._key_of("sums", name)
        values = await self._call(lambda link: link.ask("HMGET", key, *fields))
        return [None if value is None else float(value) for value in values]

    async def add_to_sums(self, name: str, amounts: Mapping[str, float], keep_seconds: int) -> None:
        """Add to the sums of that name, which expire after keep_seconds."""
        await self._put_sums("HINCRBYFLOAT", name, amounts, keep_seconds)

    async def begin_sums(self, name: str, amounts: Mapping[str, float], keep_seconds: int) -> None:
        """Set those of the sums of that name that are missing; they expire after keep_seconds."""
        await self._put_sums("HSETNX", name, amounts, keep_seconds)

    async def _put_sums(self, verb: str, name: str, amounts: Mapping[str, float], keep_seconds: int) -> None:
        key = self._key_of("sums", name)
        commands = [(verb, key, field, repr(amount)) for field, amount in amounts.items()]
        await self._call(lambda link: link.ask_all(*commands, ("EXPIRE", key, keep_seconds)))

    async def fill_buckets(self, added: Sequence[tuple[str, int, int]]) -> Sequence[float]:
        """Add to the buckets of these names; return how full each is then, in milliseconds.

        added: name, amount to add and size of the bucket, both in milliseconds. A bucket empties by one millisecond in
        each millisecond.
        """
        keys = [self._key_of("limit", name) for name, _, _ in added]
        amounts = [amount for _, *each in added for amount in each]
        return cast(Sequence[float], await self._run("limit", keys, amounts))

    async def write_process(self, process_id: str, entry: Mapping[str, Any]) -> None:
        """Write what this process does, for all other processes."""
        key = self._key["processes"]
        commands = (("HSET", key, process_id, codec.to_json(entry)), ("EXPIRE", key, KEEP_PROCESS_SECONDS))
        await self._call(lambda link: link.ask_all(*commands))

    async def processes(self) -> dict[str, dict[str, Any]]:
        """Return the entry that each process has written, by process id."""
        entries = await self._call(lambda link: link.ask("HGETALL", self._key["processes"]))
        return {name: codec.as_object(text) for name, text in zip(entries[::2], entries[1::2], strict=True)}

    async def forget_processes(self, *process_ids: str) -> None:
        """Remove the entries of these processes."""
        await self._call(lambda link: link.ask("HDEL", self._key["processes"], *process_ids))

    async def request_drain(self, process_id: str, is_wanted: bool) -> None:
        """Ask a process to claim no jobs, or to claim them again; see `is_drain_requested`."""
        key = self._key_of("drain", process_id)
        await self._call(lambda link: link.ask("SET", key, int(is_wanted), "EX", KEEP_PROCESS_SECONDS))

    async def is_drain_requested(self, process_id: str) -> bool | None:
        """Return whether the process is asked to claim no jobs; None when no request was made lately."""
        key = self._key_of("drain", process_id)
        wish = await self._call(lambda link: link.ask("GET", key))
        return None if wish is None else wish == "1"
