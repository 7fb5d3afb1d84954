"""A move of the asset store, as its command sees the service: which processes are alive, and how a move ends.

Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import time

from pipeline.assets.movable import BEAT_SECONDS
from pipeline.assets.store import AssetStore, KeyRecord
from pipeline.assets.store_move import IS_MOVED, IS_THAWED, MOVE, NOTE, PROCESS, STORE, Move, Phase
from pipeline.clock import utc_now
from pipeline.errors import Conflict

NOTES_AT_ONCE = 500
# A process without a heartbeat for so long is dead, or will look at the move before it writes again.
DEAD_SECONDS = 15.0
# A process that is alive sends heartbeats more often than that.
SILENT_SECONDS = 4.0


class MovingProcesses:
    """The processes of the service during a move, by their heartbeats in the old store."""

    def __init__(self, store: AssetStore) -> None:
        self._store = store
        # By process id: the last heartbeat, and when it was first seen.
        self._alive: dict[str, tuple[str, float]] = {}
        # By process id: the phase of the move that the process has confirmed.
        self._confirmed: dict[str, str] = {}

    async def read(self) -> None:
        """Read the heartbeats."""
        now = time.monotonic()
        for record in await self._store.records(PROCESS, limit=NOTES_AT_ONCE):
            beat, _ = self._alive.get(record.id, ("", 0.0))
            if beat != record.data["beat"]:
                self._alive[record.id] = record.data["beat"], now
            self._confirmed[record.id] = record.data["said"]

    @property
    def has_silent(self) -> bool:
        """Whether some process may be dead or alive: writes must not wait until that is known."""
        now = time.monotonic()
        return any(SILENT_SECONDS < now - at <= DEAD_SECONDS for _, at in self._alive.values())

    @property
    def has_dead(self) -> bool:
        """Whether some process counts as dead."""
        return any(time.monotonic() - at > DEAD_SECONDS for _, at in self._alive.values())

    async def are_still(self, token: str) -> bool:
        """Return whether every process that is alive has confirmed that its writes have ended."""
        await self.read()
        still, now = f"{token} {Phase.FREEZING}", time.monotonic()
        return all(self._confirmed[each] == still or now - at > DEAD_SECONDS for each, (_, at) in self._alive.items())


async def abandon(store: AssetStore) -> bool:
    """End a move that is not decided; False when there is none. Conflict: its command is running."""
    move = Move.of(await store.find_record(MOVE, STORE))
    if move is None or move.phase is Phase.MOVED:
        return False
    await check_alone(store, move)
    return await end(store, move)


async def check_alone(store: AssetStore, move: Move) -> None:
    """Conflict when the command that wrote the record is running."""
    await asyncio.sleep(2 * BEAT_SECONDS)
    later = Move.of(await store.find_record(MOVE, STORE))
    if later is not None and later.beat != move.beat:
        raise Conflict("A `move --store` is running")


async def end(store: AssetStore, move: Move) -> bool:
    """Remove the record and the notes of a move; False when it was decided."""
    decision = await store.claim_key(move.decision, KeyRecord("", IS_THAWED), utc_now())
    if decision.fingerprint == IS_MOVED:
        return False
    await store.delete_records(MOVE, STORE)
    await clear(store)
    return True


async def clear(store: AssetStore) -> None:
    """Remove the notes of a move."""
    for kind in (NOTE, PROCESS):
        while page := await store.records(kind, limit=NOTES_AT_ONCE):
            await store.delete_records(kind, *(each.id for each in page))
