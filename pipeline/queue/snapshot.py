"""Where the unfinished jobs of a queue are at one moment. Pure: built of the reply of lua/snapshot.lua."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pipeline.hold import Hold
from pipeline.instants import EPOCH
from pipeline.queue import codec
from pipeline.queue.job import JobState, Mode


@dataclass(frozen=True, slots=True)
class JobInfo:
    """Where one job is.

    state: None when the queue does not know the job.
    position: in the line, from 1; None when it is not in the line, or further back than the snapshot reads.
    attempt: starts that count, the running one included.
    error: why the last attempt failed, "" when none has.
    due_at: when a delayed job may start again.
    is_given_back: the last start did not count as an attempt.
    report: of the process that runs the job, see JobQueue.report.
    """

    state: JobState | None
    position: int | None = None
    attempt: int = 0
    error: str = ""
    due_at: datetime | None = None
    is_given_back: bool = False
    report: Mapping[str, Any] = field(default_factory=dict)


UNKNOWN = JobInfo(None)
# The error of a job that an operator has postponed.
POSTPONED = "Postponed by an operator"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All unfinished jobs, up to the bounds of JobQueue.snapshot.

    ended_in_last_minute: how many jobs.
    line: the positions of waiting jobs, by job id.
    parked: ids of jobs that wait for a held provider.
    others: jobs that run, are delayed or were asked for, by job id.
    """

    taken_at: datetime = EPOCH
    mode: Mode = Mode.RUNNING
    holds: Sequence[Hold] = ()
    ended_in_last_minute: int = 0
    line: Mapping[str, int] = field(default_factory=dict)
    parked: frozenset[str] = frozenset()
    others: Mapping[str, JobInfo] = field(default_factory=dict)

    def info(self, job_id: str) -> JobInfo | None:
        """Return where the job is, None when it is not in the snapshot: ask for it with the next one."""
        # A job that was put back may be in the line while it runs; its state is right.
        other = self.others.get(job_id)
        position = self.line.get(job_id)
        if other is not None and (other.state is not JobState.WAITING or position is None):
            return other
        if position is not None:
            return replace(other, position=position) if other else JobInfo(JobState.WAITING, position)
        return JobInfo(JobState.WAITING) if job_id in self.parked else None


def as_snapshot(reply: Sequence[Any]) -> Snapshot:
    """Return the snapshot in the script's reply."""
    mode, line, parked, others, held, ended, now_ms = reply
    positions: dict[str, int] = {}
    for position, job_id in enumerate(line.split("\n") if line else (), 1):
        positions.setdefault(job_id, position)
    return Snapshot(
        taken_at=codec.as_instant(now_ms) or EPOCH,
        mode=Mode(mode),
        holds=codec.as_holds(held, now_ms),
        ended_in_last_minute=ended,
        line=positions,
        parked=frozenset(member.rpartition("|")[2] for member in parked.split("\n") if member),
        others={job_id: as_job_info(*fields) for job_id, *fields in others},
    )


def as_job_info(state_text: str, running_text: str, due_ms: str, is_there: int, is_completed: int) -> JobInfo:
    """Return where a job is that is not in the line. The arguments are those of the reply of lua/snapshot.lua."""
    if not is_there:
        return JobInfo(JobState.COMPLETED) if is_completed else UNKNOWN
    state = codec.as_object(state_text) if state_text else {}
    try:
        name = JobState(state.get("state", JobState.WAITING))
    except ValueError:
        return UNKNOWN
    attempt, error = state.get("attempt"), state.get("error")
    is_postponed = name is JobState.DELAYED and bool(state.get("postponedUntil"))
    return JobInfo(
        name,
        attempt=attempt if isinstance(attempt, int) else 0,
        error=POSTPONED if is_postponed else error if isinstance(error, str) else "",
        due_at=codec.as_instant(due_ms) if name is JobState.DELAYED else None,
        is_given_back=is_postponed or bool(state.get("givenBack")),
        report=codec.as_object(running_text) if running_text and name is JobState.ACTIVE else {},
    )
