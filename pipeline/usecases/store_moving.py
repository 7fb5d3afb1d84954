"""Use case: all that the asset store holds goes to another one while the service runs.

assets/movable.py tells what the processes of the service do meanwhile. This side copies everything and compares the
copies, copies again what the processes note as changed until little is left, lets their writes wait, copies the rest,
and decides. Interrupted at any moment and begun again it goes on. Until the decision the old store is the store; it
stays as it was then.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from pipeline.assets.asset import Asset
from pipeline.assets.movable import BEAT_SECONDS, LEASE_SECONDS
from pipeline.assets.store import AssetStore, Record, KeyRecord
from pipeline.assets.store_move import (
    ARRIVED,
    ARRIVING,
    IS_MOVED,
    IS_THAWED,
    MOVE,
    NOTE,
    PROCESS,
    STORE,
    Move,
    Phase,
)
from pipeline.clock import utc_now
from pipeline.errors import Conflict, DependencyUnavailable, ValidationError
from pipeline.usecases.asset_scan import retried
from pipeline.usecases.paging import dated_pages
from pipeline.usecases.outage_retry import OutageRetry
from pipeline.usecases.store_copying import EVER, Copied, StoreCopy

NOTES_AT_ONCE = 500
# With so few changes in one pass the next is over in a moment.
FEW_NOTES = 100
# Who has given no sign of life for so long is dead, or will look before it writes again.
DEAD_SECONDS = 15.0
# A process that lives gives one more often than that.
SILENT_SECONDS = 4.0
# Longer than that nobody's writes wait: the command gives way and tries again later.
FREEZE_SECONDS = 20.0
# For how long each write waits at first, and at most, where the copies do not catch up with the writes.
FIRST_PACE_SECONDS, LAST_PACE_SECONDS = 0.02, 1.0
POLL_SECONDS = 0.1
REST_SECONDS = 5.0


class _Interrupted(Exception):
    """The processes have decided against this try."""


class StoreMove:
    """One run of the command."""

    def __init__(
        self,
        old: AssetStore,
        new: AssetStore,
        to: str,
        outage_retry: OutageRetry,
        *,
        on_asset: Callable[[], None] = lambda: None,
        on_phase: Callable[[str], None] = lambda words: None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        """to: the address of the new store. on_phase: called with what is being done, in words.

        lease_seconds: after which time every process knows of the move.
        """
        self._old = old
        self._new = new
        self._outage_retry = outage_retry
        self._on_asset = on_asset
        self._on_phase = on_phase
        self._lease_seconds = lease_seconds
        self._move = Move(secrets.token_hex(8), Phase.COPYING, to, secrets.token_hex(8))
        self._recording = asyncio.Lock()
        self._alive: dict[str, tuple[str, float]] = {}
        self._said: dict[str, str] = {}
        self._copy = StoreCopy(old, new)

    async def run(self) -> Copied:
        """Move everything. Conflict, ValidationError: it cannot be moved there; the texts say why.

        Conflict also when another run of the command has taken over. DependencyUnavailable: a store is away for long.
        """
        await self._copy.check_target()
        await self._begin()
        beating = asyncio.create_task(self._beat())
        working = asyncio.create_task(self._work())
        try:
            await asyncio.wait([beating, working], return_when=asyncio.FIRST_COMPLETED)
            await (beating if beating.done() else working)
            return self._copy.copied
        except ValidationError:
            # There is nothing to go on with. Not while a heartbeat writes the record anew: it would be there again.
            async with self._recording:
                await _end(self._old, self._move)
            raise
        finally:
            beating.cancel()
            working.cancel()
            await asyncio.gather(beating, working, return_exceptions=True)

    async def _work(self) -> None:
        self._on_phase("Waiting until every process knows of the move")
        await asyncio.sleep(self._lease_seconds)
        await self._copy_all()
        while True:
            self._on_phase("Copying what has changed")
            await self._catch_up()
            try:
                await self._decide()
                return
            except _Interrupted:
                self._on_phase("A process would not wait: again in a moment")
                await self._record(token=secrets.token_hex(8), phase=Phase.COPYING)
                await asyncio.sleep(REST_SECONDS)

    async def _begin(self) -> None:
        """Leave the record, or go on with the one that an earlier run has left."""
        found = Move.of(await self._old.find_record(MOVE, STORE))
        if found is not None:
            await _check_alone(self._old, found)
            # The earlier run may only be stopped: it must not decide any more.
            if await self._claim(IS_THAWED, found) == IS_MOVED:
                raise Conflict("The asset store was moved just now")
            if found.to == self._move.to:
                self._move = replace(self._move, after=found.after, beat=found.beat + 1)
        await self._new.put_record(Record(MOVE, ARRIVING, utc_now(), {"owner": self._move.owner}))
        await self._old.put_record(self._move.record())

    async def _record(self, **changes: Any) -> None:
        """Write the record anew, if it is still this run's."""
        async with self._recording:
            found = Move.of(await self._old.find_record(MOVE, STORE))
            if found is None or found.owner != self._move.owner:
                raise Conflict("Another `move --store` has taken over, or this one was abandoned")
            self._move = replace(self._move, **changes, beat=self._move.beat + 1)
            await self._old.put_record(self._move.record())

    async def _beat(self) -> None:
        """Show that this run lives, and see which processes do."""
        while True:
            await self._outage_retry.run(self._record)
            with contextlib.suppress(DependencyUnavailable):
                await self._look_around()
            await asyncio.sleep(BEAT_SECONDS)

    async def _look_around(self) -> None:
        now = time.monotonic()
        for record in await self._old.records(PROCESS, limit=NOTES_AT_ONCE):
            beat, _ = self._alive.get(record.id, ("", 0.0))
            if beat != record.data["beat"]:
                self._alive[record.id] = record.data["beat"], now
            self._said[record.id] = record.data["said"]

    async def _copy_all(self) -> None:
        self._on_phase("Copying")
        run, copy = self._outage_retry.run, self._copy
        await run(copy.clear_target)
        await run(copy.copy_records)
        await run(copy.copy_keys)
        while ids := await run(lambda: copy.copy_page(self._move.after)):
            for _ in ids:
                self._on_asset()
            await run(partial(self._record, after=ids[-1]))
        if damaged := await run(copy.complete):
            shown = ", ".join(damaged[:10]) + (", ..." if len(damaged) > 10 else "")
            raise ValidationError(f"Damaged documents cannot be moved; remove them first: {shown}")

    async def _catch_up(self) -> None:
        """Copy what is noted until that is little; where more is written than copied, writes have to wait a little."""
        count = await self._pass(utc_now())
        while count > FEW_NOTES:
            before, count = count, await self._pass(utc_now())
            if count > before / 2:
                pace = min(max(2 * self._move.pace_seconds, FIRST_PACE_SECONDS), LAST_PACE_SECONDS)
                await self._outage_retry.run(partial(self._record, pace_seconds=pace))

    async def _pass(self, until: datetime = EVER) -> int:
        """Copy again what is noted as changed until then; return how many notes are dealt with.

        A write that failed, or whose process died, leaves a note for ever: such ones do not count.
        """
        count = 0
        async for notes in self._notes():
            if notes[0].at > until:
                break
            await self._outage_retry.run(lambda: self._copy.copy_noted(notes))
            # One that was not done when it was read may yet change something.
            done = [note.id for note in notes if note.data["isDone"]]
            await self._old.delete_records(NOTE, *done)
            count += len(done)
        return count

    def _notes(self) -> AsyncIterator[Sequence[Record]]:
        return dated_pages(retried(self._outage_retry, partial(self._old.records, NOTE)))

    async def _decide(self) -> None:
        """Let writes wait, copy the rest, and decide; _Interrupted when that was taking too long for a process."""
        while self._is_one_silent():
            await asyncio.sleep(POLL_SECONDS)
        ends_at = time.monotonic() + FREEZE_SECONDS
        await self._record(phase=Phase.FREEZING)
        self._on_phase("Copying the last changes")
        while not await self._all_still():
            if time.monotonic() > ends_at:
                await self._claim(IS_THAWED)
                raise _Interrupted
            await asyncio.sleep(POLL_SECONDS)
        await self._pass()
        unfinished = await self._unfinished()
        stale = await self._new.find_record(MOVE, STORE)
        ends = stale.data["token"] if stale is not None else ""
        await self._new.put_record(Record(MOVE, ARRIVED, utc_now(), {"token": self._move.token, "ends": ends}))
        if await self._claim(IS_MOVED if time.monotonic() < ends_at else IS_THAWED) != IS_MOVED:
            raise _Interrupted
        await self._outage_retry.run(partial(self._record, phase=Phase.MOVED))
        # In this order: a process that starts between the two finds the way here, and no copy that is not finished.
        for mark in (ARRIVING, STORE):
            await self._outage_retry.run(partial(self._new.delete_records, MOVE, mark))
        await self._finish(unfinished)

    def _is_one_silent(self) -> bool:
        """Return whether a process may be dead or not: writes must not wait until that is known."""
        now = time.monotonic()
        return any(SILENT_SECONDS < now - at <= DEAD_SECONDS for _, at in self._alive.values())

    async def _all_still(self) -> bool:
        """Return whether every process that lives has said that its writes have ended."""
        await self._look_around()
        still, now = f"{self._move.token} {Phase.FREEZING}", time.monotonic()
        return all(self._said[each] == still or now - at > DEAD_SECONDS for each, (_, at) in self._alive.items())

    async def _claim(self, what: str, move: Move | None = None) -> str:
        """Return what stands for the decision about a move, by default this run's."""
        key, record = (move or self._move).decision, KeyRecord("", what)
        return (await self._outage_retry.run(lambda: self._old.claim_key(key, record, utc_now()))).fingerprint

    async def _unfinished(self) -> Mapping[str, Asset | None]:
        """Return the assets that notes name whose writes have not ended, as they are now."""
        found: dict[str, Asset | None] = {}
        async for notes in self._notes():
            for kind, *name in (subject for note in notes for subject in note.data["subjects"]):
                if kind == "asset":
                    found[name[0]] = await self._old.get(name[0])
        return found

    async def _finish(self, unfinished: Mapping[str, Asset | None]) -> None:
        """See whether a process that was taken for dead has changed something after all; clear away what was noted."""
        if unfinished or any(time.monotonic() - at > DEAD_SECONDS for _, at in self._alive.values()):
            await asyncio.sleep(self._lease_seconds)
        for asset_id, asset in (await self._unfinished()).items():
            if asset_id not in unfinished or unfinished[asset_id] != asset:
                self._copy.copied.late.append(f"Asset {asset_id} was changed in the old store after the move")
        await clear(self._old)


async def abandon(store: AssetStore) -> bool:
    """End a move that is not decided; False when there is none. Conflict: its command is running."""
    move = Move.of(await store.find_record(MOVE, STORE))
    if move is None or move.phase is Phase.MOVED:
        return False
    await _check_alone(store, move)
    return await _end(store, move)


async def _check_alone(store: AssetStore, found: Move) -> None:
    """Conflict when the command whose record was found lives."""
    await asyncio.sleep(2 * BEAT_SECONDS)
    later = Move.of(await store.find_record(MOVE, STORE))
    if later is not None and later.beat != found.beat:
        raise Conflict("A `move --store` is running")


async def _end(store: AssetStore, move: Move) -> bool:
    """Remove the record and the notes of a move; False when it was decided."""
    stands = await store.claim_key(move.decision, KeyRecord("", IS_THAWED), utc_now())
    if stands.fingerprint == IS_MOVED:
        return False
    await store.delete_records(MOVE, STORE)
    await clear(store)
    return True


async def clear(store: AssetStore) -> None:
    """Remove what a move has noted."""
    for kind in (NOTE, PROCESS):
        while page := await store.records(kind, limit=NOTES_AT_ONCE):
            await store.delete_records(kind, *(each.id for each in page))
