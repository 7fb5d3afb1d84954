"""Where the jobs of a queue are, for people: counts, snapshots, single jobs. A part of JobQueue, see queue.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.hold import BACKGROUND, Hold
from pipeline.queue import codec
from pipeline.queue.calls import QueueCalls
from pipeline.queue.job import JobState
from pipeline.queue.snapshot import JobInfo, Snapshot, as_job_info, as_snapshot

# A snapshot reads at most so many jobs of the line, and so many each that run, are delayed or are asked for.
LINE_AT_MOST = 10_000
OTHERS_AT_MOST = 1000
# Workers report the jobs that they run until so long after the last snapshot.
WATCHED_SECONDS = 30
# The report of a job expires after that.
REPORT_SECONDS = 90
# The sorted sets of jobs that are not in the line.
SETS = {JobState.ACTIVE: ("leases",), JobState.DELAYED: ("delayed", "postponed")}


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Jobs by state, and how the queue is.

    waiting: with the jobs that wait for a held provider, without those in the background.
    oldest_ready_seconds: how long the oldest job that could start has waited; None when no job could.
    holds: the providers that are held.
    ended_in_last_minute: jobs.
    background: jobs that wait until no other job is ready.
    """

    waiting: int
    delayed: int
    active: int
    completed: int
    failed: int
    is_paused: bool
    oldest_ready_seconds: float | None
    holds: Sequence[Hold] = ()
    ended_in_last_minute: int = 0
    background: int = 0


class JobLookup(QueueCalls):
    """Reads jobs; moves none."""

    async def stats(self) -> QueueStats:
        """Return the counts as they are now."""
        reply = await self._run("stats", self._all_keys, [])
        waiting, delayed, active, completed, failed, is_paused, age_ms, held, now_ms, ended, background = reply
        return QueueStats(
            waiting=waiting,
            delayed=delayed,
            active=active,
            completed=completed,
            failed=failed,
            is_paused=bool(is_paused),
            oldest_ready_seconds=None if age_ms < 0 else age_ms / 1000,
            holds=codec.as_holds(held, now_ms),
            ended_in_last_minute=ended,
            background=background,
        )

    async def snapshot(self, job_ids: Sequence[str] = ()) -> Snapshot:
        """Return where unfinished jobs are now, and make workers report the jobs that they run for WATCHED_SECONDS.

        Reads the first 10,000 jobs of the line, as many parked ones, and 1,000 each of those that run and those that
        are delayed.
        job_ids: further jobs to read, a thousand at most.
        """
        args = [WATCHED_SECONDS * 1000, LINE_AT_MOST, OTHERS_AT_MOST, *job_ids[:OTHERS_AT_MOST]]
        return as_snapshot(await self._run("snapshot", self._all_keys, args))

    async def job_infos(self, job_ids: Sequence[str]) -> dict[str, JobInfo]:
        """Return where these jobs are now, without their positions; in one call, for a thousand jobs at most."""
        if not job_ids:
            return {}
        kinds = ("record", "state", "running")
        commands = [("MGET", *(self._key_of(kind, job_id) for job_id in job_ids for kind in kinds))]
        commands += [("ZMSCORE", self._key[key], *job_ids) for key in ("delayed", "postponed", "completed")]
        texts, delayed, postponed, completed = await self._call(lambda link: link.ask_all(*commands))
        infos = {}
        for i, job_id in enumerate(job_ids):
            record, state, running = texts[3 * i : 3 * i + 3]
            due_at = delayed[i] or postponed[i] or ""
            is_completed = completed[i] is not None
            infos[job_id] = as_job_info(state or "", running or "", due_at, record is not None, is_completed)
        return infos

    async def background_counts(self, *states: JobState, at_most: int) -> tuple[list[str], bool]:
        """Return the ids of the assets whose jobs are ACTIVE or DELAYED, and whether these are all of them.

        at_most: so many jobs of each kind are read.
        """
        names = [name for state in states for name in SETS[state]]
        commands = [("ZRANGE", self._key[name], 0, at_most - 1) for name in names]
        members = await self._call(lambda link: link.ask_all(*commands))
        # A lease is the job's id and the mark of its claim.
        ids = [member.partition("|")[0] for each in members for member in each]
        if not ids:
            return [], True
        texts = await self._call(lambda link: link.ask("MGET", *(self._key_of("record", each) for each in ids)))
        data = [codec.as_object(text).get("data") for text in texts if text]
        asset_ids = [each.get("assetId") for each in data if isinstance(each, dict)]
        return [each for each in asset_ids if isinstance(each, str)], all(len(each) < at_most for each in members)

    async def report(self, reports: Mapping[str, Mapping[str, Any]]) -> None:
        """Write how the jobs of this process go, for snapshots; to be repeated within REPORT_SECONDS.

        reports: by job id.
        """
        commands = [
            ("SET", self._key_of("running", job_id), codec.to_json(report), "EX", REPORT_SECONDS)
            for job_id, report in reports.items()
        ]
        await self._call(lambda link: link.ask_all(*commands))

    async def backlog(self) -> int:
        """Return how many jobs, without those in the background, have yet to start or start again."""
        commands = (
            ("LLEN", self._key["waiting"]),
            ("GET", self._key["grouped"]),
            ("ZCARD", self._key["delayed"]),
            ("ZCARD", self._key["postponed"]),
            ("ZLEXCOUNT", self._key["parked"], "-", f"({BACKGROUND}"),
        )
        return sum(int(count or 0) for count in await self._call(lambda link: link.ask_all(*commands)))

    async def completed(self, job_ids: Sequence[str]) -> list[str]:
        """Return those of the jobs that Redis remembers as completed."""
        if not job_ids:
            return []
        scores = await self._call(lambda link: link.ask("ZMSCORE", self._key["completed"], *job_ids))
        return [job_id for job_id, score in zip(job_ids, scores, strict=True) if score is not None]

    async def fields(self, job_id: str) -> dict[str, Any]:
        """Return everything that Redis knows of the job, {} when nothing: for operators and tests.

        Of a completed job that is {"state": "completed"}; of others also the fields that lua/place.lua lists.
        """
        commands = (
            ("MGET", self._key_of("record", job_id), self._key_of("state", job_id)),
            ("ZSCORE", self._key["completed"], job_id),
        )
        (record, state), completed_at = await self._call(lambda link: link.ask_all(*commands))
        if record is None:
            return {} if completed_at is None else {"state": JobState.COMPLETED}
        return {"state": JobState.WAITING} | codec.as_object(record) | codec.as_object(state or "")
