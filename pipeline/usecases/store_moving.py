"""Use case: the content of the asset store moves to another asset store while the service runs.

assets/movable.py has the part of the service's processes. This command copies everything and compares the copies. It
copies changed documents again, which the processes note, until few changes are left. Then it lets writes wait, copies
the rest, and decides. It can be interrupted at any moment, and continues when it is run again. The service uses the old
store until the decision; after it the old store is not changed any more.
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
from pipeline.assets.store import AssetStore, KeyRecord, Record
from pipeline.assets.store_move import (
    ARRIVED,
    ARRIVING,
    IS_MOVED,
    IS_THAWED,
    MOVE,
    NOTE,
    STORE,
    Move,
    Phase,
)
from pipeline.clock import utc_now
from pipeline.errors import Conflict, DependencyUnavailable, ValidationError
from pipeline.usecases.asset_scan import retried
from pipeline.usecases.moving_processes import MovingProcesses, check_alone, clear, end
from pipeline.usecases.outage_retry import OutageRetry
from pipeline.usecases.paging import dated_pages
from pipeline.usecases.store_copying import EVER, Copied, StoreCopy

# With so few changes in one pass the next pass is over in a moment.
FEW_NOTES = 100
# Writes of the service wait no longer than that: then the command lets them go on, and tries again later.
FREEZE_SECONDS = 20.0
# How long each write waits, at first and at most, while the copies do not catch up with the writes.
FIRST_PACE_SECONDS, LAST_PACE_SECONDS = 0.02, 1.0
POLL_SECONDS = 0.1
REST_SECONDS = 5.0


class _Interrupted(Exception):
    """The writes could not wait long enough for this try."""


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
        """to: the address of the new store
        on_phase: called with the current step, in words
        lease_seconds: after which time every process knows of the move
        """
        self._old = old
        self._new = new
        self._outage_retry = outage_retry
        self._on_asset = on_asset
        self._on_phase = on_phase
        self._lease_seconds = lease_seconds
        self._move = Move(secrets.token_hex(8), Phase.COPYING, to, secrets.token_hex(8))
        self._recording = asyncio.Lock()
        self._processes = MovingProcesses(old)
        self._copy = StoreCopy(old, new)

    async def run(self) -> Copied:
        """Move everything.

        Conflict, ValidationError: it cannot be moved there; the texts say why
        Conflict: also when another run of the command has taken over
        DependencyUnavailable: a store is away for long
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
            # There is nothing to continue. Under the lock: a heartbeat would write the record again.
            async with self._recording:
                await end(self._old, self._move)
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
        """Write the record, or continue with the record of an earlier run."""
        record = Move.of(await self._old.find_record(MOVE, STORE))
        if record is not None:
            await check_alone(self._old, record)
            # The earlier run may only be suspended: it must not decide any more.
            if await self._claim(IS_THAWED, record) == IS_MOVED:
                raise Conflict("The asset store was moved just now")
            if record.to == self._move.to:
                self._move = replace(self._move, after=record.after, beat=record.beat + 1)
        await self._new.put_record(Record(MOVE, ARRIVING, utc_now(), {"owner": self._move.owner}))
        await self._old.put_record(self._move.record())

    async def _record(self, **changes: Any) -> None:
        """Write the record again, if it is still this run's."""
        async with self._recording:
            record = Move.of(await self._old.find_record(MOVE, STORE))
            if record is None or record.owner != self._move.owner:
                raise Conflict("Another `move --store` has taken over, or this one was abandoned")
            self._move = replace(self._move, **changes, beat=self._move.beat + 1)
            await self._old.put_record(self._move.record())

    async def _beat(self) -> None:
        """Write this run's heartbeat, and read those of the processes, for ever."""
        while True:
            await self._outage_retry.run(self._record)
            with contextlib.suppress(DependencyUnavailable):
                await self._processes.read()
            await asyncio.sleep(BEAT_SECONDS)

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
        """Copy noted changes until few are left; writes wait a little when more is written than copied."""
        count = await self._pass(utc_now())
        while count > FEW_NOTES:
            before, count = count, await self._pass(utc_now())
            if count > before / 2:
                pace = min(max(2 * self._move.pace_seconds, FIRST_PACE_SECONDS), LAST_PACE_SECONDS)
                await self._outage_retry.run(partial(self._record, pace_seconds=pace))

    async def _pass(self, until: datetime = EVER) -> int:
        """Copy again the changes noted until then; return how many notes were removed.

        A write that failed, or whose process died, leaves a note for ever: such notes do not count.
        """
        count = 0
        async for notes in self._notes():
            if notes[0].at > until:
                break
            await self._outage_retry.run(lambda: self._copy.copy_noted(notes))
            # A write that was not done when its note was read may still change something.
            done = [note.id for note in notes if note.data["isDone"]]
            await self._old.delete_records(NOTE, *done)
            count += len(done)
        return count

    def _notes(self) -> AsyncIterator[Sequence[Record]]:
        return dated_pages(retried(self._outage_retry, partial(self._old.records, NOTE)))

    async def _decide(self) -> None:
        """Let writes wait, copy the rest, and decide; _Interrupted when that takes too long for a process."""
        while self._processes.has_silent:
            await asyncio.sleep(POLL_SECONDS)
        ends_at = time.monotonic() + FREEZE_SECONDS
        await self._record(phase=Phase.FREEZING)
        self._on_phase("Copying the last changes")
        while not await self._processes.are_still(self._move.token):
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
        # In this order: a process that starts between the two steps never uses an unfinished copy.
        for mark in (ARRIVING, STORE):
            await self._outage_retry.run(partial(self._new.delete_records, MOVE, mark))
        await self._finish(unfinished)

    async def _claim(self, decision: str, move: Move | None = None) -> str:
        """Decide about a move, by default this run's, if it is not decided; return the decision."""
        key, record = (move or self._move).decision, KeyRecord("", decision)
        return (await self._outage_retry.run(lambda: self._old.claim_key(key, record, utc_now()))).fingerprint

    async def _unfinished(self) -> Mapping[str, Asset | None]:
        """Return the assets of notes whose writes have not ended, as they are now."""
        assets: dict[str, Asset | None] = {}
        async for notes in self._notes():
            for kind, *name in (subject for note in notes for subject in note.data["subjects"]):
                if kind == "asset":
                    assets[name[0]] = await self._old.get(name[0])
        return assets

    async def _finish(self, unfinished: Mapping[str, Asset | None]) -> None:
        """Report assets that a process that counted as dead has changed after all; remove the notes."""
        if unfinished or self._processes.has_dead:
            await asyncio.sleep(self._lease_seconds)
        for asset_id, asset in (await self._unfinished()).items():
            if asset_id not in unfinished or unfinished[asset_id] != asset:
                self._copy.copied.late.append(f"Asset {asset_id} was changed in the old store after the move")
        await clear(self._old)
