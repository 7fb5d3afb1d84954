"""The records that a move of the asset store writes in the old store and in the new one. Pure.

movable.py is the part of the processes, usecases/store_moving.py that of the command.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.assets.store import Record
from pipeline.clock import utc_now

# Kinds and ids of records in the old store; ARRIVING and ARRIVED are in the new one.
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
    """The record of a move.

    to: the address of the new store; it may contain a password, so it is in no log.
    owner: the run of the command that makes the move.
    beat: changes while that run lives.
    after: the id of the last asset copied.
    pace_seconds: how long each write waits, so that the copies catch up with the writes.
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
        """Return the move in the record, None without a record."""
        return cls(**dict(record.data) | {"phase": Phase(record.data["phase"])}) if record is not None else None

    def record(self) -> Record:
        """Return the record of the move."""
        data = {name: getattr(self, name) for name in ("token", "to", "owner", "beat", "after", "pace_seconds")}
        return Record(MOVE, STORE, utc_now(), data | {"phase": self.phase.value})

    @property
    def decision(self) -> str:
        """The idempotency key that decides the move: the first to claim it wins."""
        return f"move-decision:{self.token}"


def is_of_move(record: Record) -> bool:
    """Return whether the record is of a move, and so concerns one database only."""
    is_record = record.kind == MOVE and record.id in (STORE, ARRIVING, ARRIVED, PROBE)
    return is_record or record.kind in (NOTE, PROCESS)
