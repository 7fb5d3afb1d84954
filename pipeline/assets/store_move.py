"""What a move of the asset store keeps in the old store, and in the new one, while it goes on. Pure.

movable.py is the side of the processes, usecases/store_moving.py that of the command.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.assets.store import Record
from pipeline.clock import utc_now

# Names of what a move keeps in the old store, and, from ARRIVING on, in the new one.
MOVE, STORE, ARRIVING, ARRIVED = "move", "store", "arriving", "arrived"
NOTE, PROCESS, PROBE = "move-note", "move-process", "probe"
IS_MOVED, IS_THAWED = "moved", "thawed"


class Phase(StrEnum):
    """How far a move is."""

    COPYING = "copying"
    FREEZING = "freezing"
    MOVED = "moved"


@dataclass(frozen=True, slots=True)
class Move:
    """The record of a move. to: the address of the new store; it may hold a password, so it is in no log.

    owner: which run of the command has it. beat: changes while that lives. after: the last asset copied. pace_seconds:
    for how long each write waits, so that the copies catch up with them.
    """

    token: str
    phase: Phase
    to: str = field(repr=False)
    owner: str
    beat: int = 0
    after: str = ""
    pace_seconds: float = 0.0

    @classmethod
    def of(cls, record: Record | None) -> Move | None:
        """Return what is kept, None when nothing is."""
        return cls(**dict(record.data) | {"phase": Phase(record.data["phase"])}) if record is not None else None

    def record(self) -> Record:
        """Return it as it is kept."""
        data = {name: getattr(self, name) for name in ("token", "to", "owner", "beat", "after", "pace_seconds")}
        return Record(MOVE, STORE, utc_now(), data | {"phase": self.phase.value})

    @property
    def decision(self) -> str:
        """The idempotency key by which it is decided."""
        return f"move-decision:{self.token}"


def is_of_move(record: Record) -> bool:
    """Return whether it tells of a move of the store, and so of one database only."""
    is_record = record.kind == MOVE and record.id in (STORE, ARRIVING, ARRIVED, PROBE)
    return is_record or record.kind in (NOTE, PROCESS)
