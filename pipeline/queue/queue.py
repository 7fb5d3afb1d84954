"""JobQueue: a job queue on Redis lists, and the only file that knows its keys.

Every state move is one Lua script in lua/; this file names the keys, calls the scripts and turns their replies into
objects. Runs on the event loop. Redis 6.2 commands only. All keys of a queue share one hash tag, so that the scripts
run on Redis Cluster.

Keys that expire beside those of jobs: turn:<name>, sums:<name> (a hash), limit:<name>, watched, processes (a hash, by
process id), drain:<process id>.
Permanent keys: waiting, groups, grouped, group:<name>, delayed, postponed, leases, completed, failed, wake (at most one
marker), paused, holds, parked, owner. Each empties with its jobs. What is kept of a job is said in lua/place.lua,
what holds are in lua/lanes.lua, whose the queue is in lua/owner.lua.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Any, NamedTuple, TypeVar, cast

from redis.exceptions import NoPermissionError, NoScriptError, OutOfMemoryError, RedisError, ResponseError

from pipeline.clock import Reading, boot_seconds
from pipeline.errors import DependencyUnavailable
from pipeline.hold import BACKGROUND, ProviderReport, Hold, Pace
from pipeline.instants import milliseconds_of
from pipeline.link.connection import CALL_SECONDS, Link
from pipeline.link.master import Master
from pipeline.queue import records
from pipeline.queue.job import FailedJob, FailedPage, Finish, JobState, Mode, NewJob, Outcome, Step
from pipeline.queue.snapshot import JobInfo, Snapshot, as_job_info, as_snapshot

T = TypeVar("T")
# The id of no store: for a process that has yet to ask its own.
UNKNOWN_OWNER = "?"
SCRIPTS = (
    *("enqueue", "step", "renew", "recover", "release", "trim", "own", "pause", "stats", "list", "forget", "bury"),
    *("cancel", "postpone", "snapshot", "pace", "limit"),
)
# The keys that lua/place.lua names, and what goes before each script.
PLACES = ("waiting", "groups", "grouped", "wake")
PARTS = {
    **dict.fromkeys(("renew", "recover", "release", "trim", "list", "forget", "cancel", "postpone"), ("place",)),
    **dict.fromkeys(("enqueue", "bury"), ("place", "owner")),
    **dict.fromkeys(("stats", "snapshot"), ("place", "owner", "turns")),
    "pace": ("place", "turns"),
    "own": ("owner",),
    "step": ("place", "owner", "claims", "turns", "lanes", "finish"),
}
TRIM_AT_MOST = 500
RECOVER_AT_MOST = 100
RESTORE_AT_ONCE = 100
NOTHING = "[]"
LONGEST_DELAY_SECONDS = 600.0
# For so long an operator may postpone a job.
LONGEST_POSTPONEMENT_SECONDS = 86_400
# What a snapshot reads at most: of the line, and of the jobs that run, are delayed or are asked for, each.
LINE_AT_MOST = 10_000
OTHERS_AT_MOST = 1000
# Workers tell of the jobs that they run until so long after the last snapshot.
WATCHED_SECONDS = 30
# What a worker has told of a job is repeated in time, or forgotten.
REPORT_SECONDS = 90
# A process that has not written for so long is forgotten, and so is what was asked of it.
KEEP_PROCESS_SECONDS = 3600
# A rewrite of the append-only file takes seconds.
REWRITE_TRIES = 60
REWRITE_AGAIN_SECONDS = 0.5
# The sorted sets of jobs that are not in the line.
BESIDE = {JobState.ACTIVE: ("leases",), JobState.DELAYED: ("delayed", "postponed")}
# Outcomes after which a job is done with.
OVER = (Outcome.COMPLETED, Outcome.CANCELLED)


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Jobs by state (those that wait for a held provider are waiting), how long the oldest that could start has waited
    (None when there is none), which providers are held, and how many jobs ended in the last minute. background: jobs
    that wait until no other job is ready; they are not among the waiting.
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


class Owned(NamedTuple):
    """What claiming a queue has found. before, now: its mode. is_old_pause: a version that knows no owner paused it."""

    before: Mode
    now: Mode
    is_old_pause: bool


class Renewal(NamedTuple):
    """Leases that were not prolonged because they were lost, and those of jobs that were cancelled."""

    lost: Sequence[str]
    cancelled: Sequence[str]


class ForeignQueue(DependencyUnavailable):
    """The queue of that name belongs to another asset store."""


class QueueFull(DependencyUnavailable):
    """Redis has no memory left for what was asked."""


class JobQueue:
    """One named queue. Any method raises DependencyUnavailable when Redis cannot be reached or refuses."""

    def __init__(
        self,
        url: str,
        *,
        name: str = "ai-processing",
        prefix: str = "pipeline",
        lease_seconds: float = 15,
        keep_completed_seconds: float = 86_400,
        keep_failed_seconds: float = 604_800,
        block_seconds: float = 2,
        longest_delay_seconds: float = LONGEST_DELAY_SECONDS,
        max_age_seconds: float = 86_400,
        lanes: Mapping[str, Sequence[str]] = {},
        paces: Mapping[str, Pace] = {},
        behind: Mapping[str, Sequence[str]] = {},
        owner: str = "",
        clock_offset_ms: int = 0,
    ) -> None:
        """longest_delay_seconds: no job is delayed and no provider held for longer, whatever another service asks for.

        block_seconds: longest one call of wait_for_work. max_age_seconds: a parked job that is older is claimed all the
        same, for its worker to end it. lanes: the providers of each lane, any of which will do; those of "" are for all
        other lanes. paces: the limits of those providers that have any. behind: the providers that jobs of a lane ask
        later on. owner: the id of the asset store whose jobs these are, see `own`; "" for one who does not care.
        clock_offset_ms: added to Redis TIME; only tests set it.
        """
        self.name = name
        self.owner = owner
        # Whether some process asks how jobs go, as Redis said last; on_watched is called when that begins.
        self.is_watched = False
        self.on_watched: Callable[[], None] = lambda: None
        self.clock_offset_ms = clock_offset_ms
        self._master = Master(url)
        self._blocking = Master(url, call_seconds=block_seconds + CALL_SECONDS)
        self._block_seconds = block_seconds
        self._lease_ms = round(lease_seconds * 1000)
        self._keep_completed_ms = round(keep_completed_seconds * 1000)
        self._keep_failed_ms = round(keep_failed_seconds * 1000)
        self._longest_delay_ms = round(longest_delay_seconds * 1000)
        self._max_age_ms = round(max_age_seconds * 1000)
        self._lanes = records.to_json(lanes)
        self._limits = records.as_limits(paces, lanes, behind)
        self._base = base = f"{prefix}:{{{name}}}:"
        self._key = {
            key: base + key
            for key in (
                *(*PLACES, "delayed", "leases", "completed", "failed", "paused", "holds", "parked", "owner"),
                *("watched", "postponed", "processes"),
            )
        }
        self._step_keys = self._places(
            "delayed", "leases", "completed", "failed", "paused", "holds", "parked", "owner", "watched"
        )
        self._sources = {verb: _source(verb) for verb in SCRIPTS}
        self._hashes = {verb: hashlib.sha1(source.encode()).hexdigest() for verb, source in self._sources.items()}

    @property
    def has_paces(self) -> bool:
        """Whether jobs get turns at providers when they are claimed."""
        return self._limits != "{}"

    async def close(self) -> None:
        """Close both connections."""
        self._master.close()
        self._blocking.close()

    def job_id(self, unique: str) -> str:
        """Return the id of this queue's job for a unique string (24 hex digits)."""
        return f"{self.name}:{unique}"

    async def enqueue(
        self,
        job_id: str,
        data: Mapping[str, Any],
        *,
        request_id: str = "",
        trace_context: str = "",
        group: str = "",
        lane: str = "",
        revive: bool = False,
    ) -> bool:
        """Put the job at the back of waiting; False when it is known already, which changes nothing.

        group: jobs of different groups take turns, those without go first and strictly in order. lane: jobs of
        one lane may ask the same providers. Jobs of the group BACKGROUND wait behind all others. revive: a job that is
        completed or failed starts over instead.
        """
        keys, args = self._enqueue_call(NewJob(job_id, data, request_id, trace_context, group, lane, revive))
        reply = _checked(await self._with_room(lambda: self._run("enqueue", keys, args)))
        if reply in ("ok", "watched"):
            self._note_watched(reply == "watched")
        return reply in ("ok", "watched")

    async def restore(self, jobs: Sequence[NewJob]) -> int:
        """Enqueue those jobs that Redis does not know and put back those that are not where their state says; return
        how many.
        """
        return await self._restore("enqueue", [self._enqueue_call(job) for job in jobs])

    async def completed(self, job_ids: Sequence[str]) -> list[str]:
        """Return those that Redis remembers as completed."""
        if not job_ids:
            return []
        scores = await self._call(lambda link: link.ask("ZMSCORE", self._key["completed"], *job_ids))
        return [job_id for job_id, score in zip(job_ids, scores, strict=True) if score is not None]

    async def restore_failed(self, dead: Sequence[FailedJob]) -> int:
        """Put back those dead letters that Redis does not know; return how many."""
        return await self._restore("bury", [self._bury_call(each) for each in dead])

    async def _restore(self, verb: str, calls: Sequence[tuple[list[str], list[Any]]]) -> int:
        """Call a script with each of these keys and arguments; return how many it did not reply `exists` to."""
        load = ("SCRIPT", "LOAD", self._sources[verb])
        restored = 0
        # Not all at once: other calls stand behind them.
        for first in range(0, len(calls), RESTORE_AT_ONCE):
            commands = [
                ("EVALSHA", self._hashes[verb], len(keys), *keys, self.clock_offset_ms, *args)
                for keys, args in calls[first : first + RESTORE_AT_ONCE]
            ]
            _hash, *replies = await self._with_room(lambda: self._call(lambda link: link.ask_all(load, *commands)))
            restored += sum(_checked(reply) != "exists" for reply in replies)
        return restored

    async def step(
        self,
        mark: str,
        finishes: Sequence[Finish],
        free: int,
        reports: Sequence[ProviderReport] = (),
        avoided: Sequence[str] = (),
        reserved: int = 0,
    ) -> Step:
        """Acknowledge what finished and claim for `free` slots, in one call.

        mark: `worker:number`, never used before; it becomes part of the leases, with their length, so that processes
        with other lengths know how far each may reach. reports: what this process has found of providers. avoided:
        lanes whose jobs it leaves to others. reserved: so many of the free slots are not for jobs in the background.
        """
        completed = [finish.job.lease for finish in finishes if finish.outcome in OVER]
        args: list[Any] = [self.owner, self._lease_ms, f"{mark}:{self._lease_ms}", free]
        args += (self._longest_delay_ms, self._max_age_ms, self._lanes)
        args.append(records.to_json([records.as_texts(report) for report in reports]) if reports else NOTHING)
        args += (records.to_json(avoided) if avoided else NOTHING, self._limits, reserved, len(completed), *completed)
        for finish in finishes:
            if finish.outcome not in OVER:
                args += (finish.job.lease, finish.outcome, finish.delay_ms, int(finish.refunds_attempt))
                args += (finish.job.group, finish.error)
        lost, claimed, has_more, next_due_ms, mode, held, now_ms, watched = await self._run(
            "step", self._step_keys, args
        )
        self._note_watched(bool(watched))
        return Step(
            claimed=[records.as_job(fields, now_ms) for fields in claimed],
            lost=lost,
            has_more=bool(has_more),
            next_due_ms=None if next_due_ms < 0 else next_due_ms,
            mode=Mode(mode),
            holds=records.as_holds(held, now_ms),
        )

    async def renew(self, leases: Sequence[str]) -> Renewal:
        """Prolong the leases; return those that are no longer ours, and those of jobs that were cancelled."""
        keys = self._places("leases", "watched")
        lost, cancelled, watched = await self._run("renew", keys, [self._lease_ms, *leases])
        self._note_watched(bool(watched))
        return Renewal(lost, cancelled)

    async def reserve_call(
        self, provider: str, lease: str, wait_seconds: float, late_seconds: float | None = None
    ) -> tuple[bool, float]:
        """Give a running job the next turn at a provider that has a pace.

        wait_seconds: how far off it may be. late_seconds: how long ago the turn began that the job had and did not use.
        Returns whether it has a turn, and in how many seconds it begins or, without one, it may be asked for again.
        """
        late_ms = "" if late_seconds is None else round(late_seconds * 1000)
        args = [self._limits, provider, lease, round(wait_seconds * 1000), late_ms, 0]
        is_given, in_ms = await self._run("pace", self._places("leases", "holds"), args)
        return bool(is_given), in_ms / 1000

    async def release_call(self, provider: str, lease: str, unused_seconds: float | None = None) -> None:
        """Let another job be asked of the provider: the call of this one has ended, or none is made.

        unused_seconds: how long ago the turn began that is not used, less than 0 when it has yet to begin.
        """
        late_ms = "" if unused_seconds is None else round(unused_seconds * 1000)
        await self._run("pace", self._places("leases", "holds"), [self._limits, provider, lease, 0, late_ms, 1])

    async def cancel(self, job_id: str) -> JobState | None:
        """End a job that waits or is delayed; return the state it was in, None when there was nothing to end.

        One that is active stays so until its worker, which hears of it with its next renewal, has acknowledged it.
        """
        was = await self._run("cancel", self._places("completed", "delayed", "parked"), [job_id])
        return None if was == "missing" else JobState(was)

    async def postpone(self, job_id: str, seconds: float) -> bool:
        """Let a job that waits wait for so long before it may start; return False for a job that does not wait.

        seconds: at most LONGEST_POSTPONEMENT_SECONDS.
        """
        keys, args = self._places("parked"), [job_id, round(seconds * 1000)]
        return bool(await self._with_room(lambda: self._run("postpone", keys, args)) == "ok")

    async def unpostpone(self, job_id: str) -> bool:
        """Put a postponed job at the front of waiting; return False for any other job."""
        return bool(await self._run("postpone", self._places("parked"), [job_id, 0]) == "ok")

    async def recover(self, *, everything: bool = False) -> list[str]:
        """Put jobs whose lease ran out back to the front of waiting; return their ids.

        everything: whatever is leased, for a start with a Redis that nobody else uses.
        """
        recovered: list[str] = []
        while True:
            ids = await self._run(
                "recover",
                self._places("leases", "delayed"),
                [
                    *(RECOVER_AT_MOST, int(everything), self._lease_ms, self._longest_delay_ms),
                    LONGEST_POSTPONEMENT_SECONDS * 1000,
                ],
            )
            recovered += ids
            if len(ids) < RECOVER_AT_MOST:
                return recovered

    async def release_unknown(self, worker_id: str, leases: Iterable[str]) -> int:
        """Put back what this worker claimed without knowing (the reply of a step was lost); return how many."""
        return cast(
            int,
            await self._run("release", self._places("leases"), [worker_id, *leases], timed=False),
        )

    async def trim(self) -> int:
        """Remove finished jobs past retention; return how many."""
        total = 0
        while removed := await self._trim(self._keep_completed_ms, self._keep_failed_ms):
            total += removed
            if removed < TRIM_AT_MOST:
                break
        return total

    async def _trim(self, keep_completed_ms: int, keep_failed_ms: int) -> int:
        keys = self._places("completed", "failed")
        return cast(int, await self._run("trim", keys, [keep_completed_ms, keep_failed_ms, TRIM_AT_MOST]))

    async def wait_for_work(self) -> None:
        """Return when something was enqueued anywhere, at the latest after block_seconds."""
        try:
            await self._blocking.call(lambda link: link.ask("BLPOP", self._key["wake"], self._block_seconds))
        except (RedisError, OSError, TimeoutError) as error:
            raise DependencyUnavailable("The queue cannot be reached") from error

    async def pause(self) -> None:
        """Stop claiming on every process; running jobs finish."""
        await self._run("pause", self._keys("paused", "wake", "owner"), [1], timed=False)

    async def resume(self) -> None:
        """Claim again."""
        await self._run("pause", self._keys("paused", "wake", "owner"), [0], timed=False)

    async def stats(self) -> QueueStats:
        """Return the counts as they are now."""
        reply = await self._run("stats", self._step_keys, [])
        waiting, delayed, active, completed, failed, is_paused, age_ms, held, now_ms, ended, background = reply
        return QueueStats(
            waiting=waiting,
            delayed=delayed,
            active=active,
            completed=completed,
            failed=failed,
            is_paused=bool(is_paused),
            oldest_ready_seconds=None if age_ms < 0 else age_ms / 1000,
            holds=records.as_holds(held, now_ms),
            ended_in_last_minute=ended,
            background=background,
        )

    async def snapshot(self, job_ids: Sequence[str] = ()) -> Snapshot:
        """Return where unfinished jobs are now, and have workers tell of the jobs that they run for half a minute.

        Read are the first 10,000 jobs of the line, as many parked ones, and 1,000 each of those that run and those that
        are delayed. job_ids: jobs that may be none of these, a thousand at most.
        """
        args = [WATCHED_SECONDS * 1000, LINE_AT_MOST, OTHERS_AT_MOST, *job_ids[:OTHERS_AT_MOST]]
        return as_snapshot(await self._run("snapshot", self._step_keys, args))

    async def job_infos(self, job_ids: Sequence[str]) -> dict[str, JobInfo]:
        """Return where these jobs are now, without their positions; in one call, for a thousand jobs at most."""
        if not job_ids:
            return {}
        kinds = ("record:", "state:", "running:")
        questions = [("MGET", *(f"{self._base}{kind}{job_id}" for job_id in job_ids for kind in kinds))]
        questions += [("ZMSCORE", self._key[key], *job_ids) for key in ("delayed", "postponed", "completed")]
        texts, delayed, postponed, completed = await self._call(lambda link: link.ask_all(*questions))
        found = {}
        for i, job_id in enumerate(job_ids):
            record, state, running = texts[3 * i : 3 * i + 3]
            due_at = delayed[i] or postponed[i] or ""
            is_completed = completed[i] is not None
            found[job_id] = as_job_info(state or "", running or "", due_at, record is not None, is_completed)
        return found

    async def background_counts(self, *states: JobState, at_most: int) -> tuple[list[str], bool]:
        """Return the ids of the assets whose jobs are ACTIVE or DELAYED, and whether these are all of them.

        at_most: so many of each kind are read.
        """
        names = [name for state in states for name in BESIDE[state]]
        questions = [("ZRANGE", self._key[name], 0, at_most - 1) for name in names]
        found = await self._call(lambda link: link.ask_all(*questions))
        # A lease is the job's id and the mark of its claim.
        ids = [member.partition("|")[0] for each in found for member in each]
        if not ids:
            return [], True
        records_of = await self._call(lambda link: link.ask("MGET", *(f"{self._base}record:{each}" for each in ids)))
        data = [records.as_object(text).get("data") for text in records_of if text]
        asset_ids = [each.get("assetId") for each in data if isinstance(each, dict)]
        return [each for each in asset_ids if isinstance(each, str)], all(len(each) < at_most for each in found)

    async def report(self, reports: Mapping[str, Mapping[str, Any]]) -> None:
        """Let snapshots know of jobs that this process runs. reports: by job id; told again within REPORT_SECONDS."""
        commands = [
            ("SET", f"{self._base}running:{job_id}", records.to_json(each), "EX", REPORT_SECONDS)
            for job_id, each in reports.items()
        ]
        await self._call(lambda link: link.ask_all(*commands))

    def _note_watched(self, is_watched: bool) -> None:
        before, self.is_watched = self.is_watched, is_watched
        if is_watched and not before:
            self.on_watched()

    async def failed_jobs(self, limit: int, after: tuple[datetime, str] | None = None) -> FailedPage:
        """Return dead letters, newest first; those of one millisecond by id, descending.

        after: (failed_at, id) of the last one seen, which may be gone by now; those after it follow.
        """
        failed_at_ms, job_id = (milliseconds_of(after[0]), after[1]) if after else ("", "")
        return await self._list_failed(limit, failed_at_ms, job_id)

    async def failed_job(self, job_id: str) -> FailedJob | None:
        """Return the dead letter of that id, None when there is none."""
        return next(iter((await self._list_failed(1, "", job_id)).jobs), None)

    async def _list_failed(self, limit: int, failed_at_ms: int | str, job_id: str) -> FailedPage:
        keys = self._places("failed")
        older, *entries = await self._run("list", keys, [limit, failed_at_ms, job_id], timed=False)
        return FailedPage([records.as_failed_job(*fields) for fields in entries], older)

    async def remove_failed(self, *job_ids: str) -> int:
        """Forget dead letters; return how many of the ids were some. Other jobs are left alone."""
        return cast(int, await self._run("forget", self._places("failed"), job_ids, timed=False))

    async def backlog(self) -> int:
        """Return how many jobs have yet to start or start again."""
        questions = (
            ("LLEN", self._key["waiting"]),
            ("GET", self._key["grouped"]),
            ("ZCARD", self._key["delayed"]),
            ("ZCARD", self._key["postponed"]),
            ("ZLEXCOUNT", self._key["parked"], "-", f"({BACKGROUND}"),
        )
        return sum(int(each or 0) for each in await self._call(lambda link: link.ask_all(*questions)))

    async def fields(self, job_id: str) -> dict[str, Any]:
        """Return what Redis knows of the job, {} when nothing: for operators and tests.

        Of a completed job that is {"state": "completed"}; of others also what lua/place.lua says.
        """
        questions = (
            ("MGET", f"{self._base}record:{job_id}", f"{self._base}state:{job_id}"),
            ("ZSCORE", self._key["completed"], job_id),
        )
        (record, state), completed_at = await self._call(lambda link: link.ask_all(*questions))
        if record is None:
            return {} if completed_at is None else {"state": JobState.COMPLETED}
        return {"state": JobState.WAITING} | records.as_object(record) | records.as_object(state or "")

    async def own(self, owner: str, *, is_paused: bool, takes_over: bool = False) -> Owned:
        """Claim the queue for the asset store of that id, if no other store has it.

        is_paused: what the store knows of the queue; a queue without an owner has lost that, with whatever else Redis
        had. takes_over: claim it from another store too: for a Redis that nobody else uses.
        """
        before, now, is_old_pause = await self._run(
            "own", self._keys("owner", "paused", "wake"), [owner, int(is_paused), int(takes_over)], timed=False
        )
        return Owned(Mode(before), Mode(now), bool(is_old_pause))

    async def owned_by(self) -> str:
        """Return the id of the asset store that has the queue, "" when none has."""
        return str(await self._call(lambda link: link.ask("GET", self._key["owner"])) or "").partition(" ")[0]

    @property
    def owner_key(self) -> str:
        """The key that says whose queue this is, for people."""
        return self._key["owner"]

    async def sums(self, name: str, fields: Sequence[str]) -> list[float | None]:
        """Return these fields of the sums of that name, None for one that is not there."""
        found = await self._call(lambda link: link.ask("HMGET", self._sums_key(name), *fields))
        return [None if each is None else float(each) for each in found]

    async def add_to_sums(self, name: str, amounts: Mapping[str, float], keep_seconds: int) -> None:
        """Add to the sums of that name, which are kept for so long."""
        await self._put_sums("HINCRBYFLOAT", name, amounts, keep_seconds)

    async def begin_sums(self, name: str, amounts: Mapping[str, float], keep_seconds: int) -> None:
        """Let the sums of that name begin with these; those that are there already stay."""
        await self._put_sums("HSETNX", name, amounts, keep_seconds)

    async def fill_buckets(self, added: Sequence[tuple[str, int, int]]) -> Sequence[float]:
        """Add to the buckets of these names and return how full each is then, in milliseconds.

        added: name, what is added and how much the bucket holds (milliseconds); it empties by one in a millisecond.
        """
        keys = [f"{self._base}limit:{name}" for name, _, _ in added]
        amounts = [amount for _, *each in added for amount in each]
        return cast(Sequence[float], await self._run("limit", keys, amounts))

    async def acquire_lock(self, name: str, owner: str, seconds: float) -> bool:
        """Take or prolong a lease of that name, so that one process at a time does what it stands for.

        Best effort: what it guards must bear being done twice.
        """
        key, milliseconds = f"{self._base}turn:{name}", round(seconds * 1000)
        if await self._call(lambda link: link.ask("SET", key, owner, "NX", "PX", milliseconds)):
            return True
        if await self._call(lambda link: link.ask("GET", key)) != owner:
            return False
        return bool(await self._call(lambda link: link.ask("PEXPIRE", key, milliseconds)))

    async def write_process(self, process_id: str, entry: Mapping[str, Any]) -> None:
        """Write what this process does, for all others."""
        key = self._key["processes"]
        commands = (("HSET", key, process_id, records.to_json(entry)), ("EXPIRE", key, KEEP_PROCESS_SECONDS))
        await self._call(lambda link: link.ask_all(*commands))

    async def is_drain_requested(self, process_id: str) -> bool | None:
        """Return whether that process is asked to claim no jobs; None when nobody has asked anything lately."""
        wish = await self._call(lambda link: link.ask("GET", self._drain_key(process_id)))
        return None if wish is None else wish == "1"

    async def processes(self) -> dict[str, dict[str, Any]]:
        """Return what each process has written of itself, by its id."""
        found = await self._call(lambda link: link.ask("HGETALL", self._key["processes"]))
        return {name: records.as_object(text) for name, text in zip(found[::2], found[1::2], strict=True)}

    async def forget_processes(self, *process_ids: str) -> None:
        """Remove what these processes have written."""
        await self._call(lambda link: link.ask("HDEL", self._key["processes"], *process_ids))

    async def request_drain(self, process_id: str, is_wanted: bool) -> None:
        """Ask a process to claim no jobs, or to claim them again; see `is_drain_requested`."""
        key = self._drain_key(process_id)
        await self._call(lambda link: link.ask("SET", key, int(is_wanted), "EX", KEEP_PROCESS_SECONDS))

    async def server(self) -> dict[str, str]:
        """Return what the server that has the queue says of itself, the fields of INFO; {} where we may not ask."""

        async def ask(link: Link) -> str:
            try:
                return cast(str, await link.ask("INFO"))
            except NoPermissionError:
                return ""

        lines = await self._call(ask)
        return dict(line.split(":", 1) for line in lines.splitlines() if ":" in line)

    async def forget_history(self) -> None:
        """Have Redis write its append-only file anew, without what is gone: for a Redis that nobody else uses."""
        for _ in range(REWRITE_TRIES):
            try:
                await self._master.call(lambda link: link.ask("BGREWRITEAOF"))
                return
            except ResponseError:
                # One is under way, and it may have begun before the last change.
                await asyncio.sleep(REWRITE_AGAIN_SECONDS)
            except (RedisError, OSError, TimeoutError) as error:
                raise DependencyUnavailable("The queue cannot be reached") from error

    async def ping(self) -> None:
        """Return when Redis answers."""
        await self._call(lambda link: link.ask("PING"))

    async def time(self) -> Reading:
        """Return what time Redis has."""

        async def ask(link: Link) -> Reading:
            asked_at = boot_seconds()
            seconds, microseconds = map(int, await link.ask("TIME"))
            return Reading(seconds + microseconds / 1e6, asked_at, boot_seconds())

        return cast(Reading, await self._call(ask))

    async def _put_sums(self, verb: str, name: str, amounts: Mapping[str, float], keep_seconds: int) -> None:
        key = self._sums_key(name)
        commands = [(verb, key, field, repr(amount)) for field, amount in amounts.items()]
        await self._call(lambda link: link.ask_all(*commands, ("EXPIRE", key, keep_seconds)))

    def _sums_key(self, name: str) -> str:
        return f"{self._base}sums:{name}"

    def _drain_key(self, process_id: str) -> str:
        return f"{self._base}drain:{process_id}"

    def _keys(self, *names: str) -> list[str]:
        return [self._key[name] for name in names]

    def _places(self, *names: str) -> list[str]:
        return [*self._keys(*PLACES), self._base, *self._keys(*names)]

    def _enqueue_call(self, job: NewJob) -> tuple[list[str], list[Any]]:
        record: dict[str, Any] = {"submittedAt": job.submitted_at_ms} if job.submitted_at_ms else {}
        record |= {"requestId": job.request_id, "trace": job.trace_context, "group": job.group, "lane": job.lane}
        args = [self.owner, job.id, records.to_json(record | {"data": job.data}), job.group, int(job.revive)]
        return self._places("completed", "failed", "delayed", "leases", "parked", "owner", "watched"), args

    def _bury_call(self, dead: FailedJob) -> tuple[list[str], list[Any]]:
        enqueued_at_ms = milliseconds_of(dead.enqueued_at) if dead.enqueued_at else 0
        record = {"enqueuedAt": enqueued_at_ms, "requestId": dead.request_id, "data": dead.data}
        state = {"state": "failed", "attempt": dead.attempts, "stalls": dead.stalls, "error": dead.error}
        args = [dead.id, records.to_json(record), records.to_json(state), milliseconds_of(dead.failed_at)]
        return self._places("completed", "failed", "owner"), [self.owner, *args]

    async def _run(self, verb: str, keys: Sequence[str], args: Sequence[Any], *, timed: bool = True) -> Any:
        """Call a script. timed: its first ARGV is the clock offset."""
        arguments = [len(keys), *keys, self.clock_offset_ms, *args] if timed else [len(keys), *keys, *args]

        async def ask(link: Link) -> Any:
            try:
                return await link.ask("EVALSHA", self._hashes[verb], *arguments)
            except NoScriptError:
                # This Redis has not seen it yet.
                return await link.ask("EVAL", self._sources[verb], *arguments)

        return await self._call(ask)

    async def _with_room(self, run: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await run()
            except QueueFull:
                # What is completed is only remembered; it makes room for what has yet to be done.
                if not await self._trim(0, self._keep_failed_ms):
                    raise

    async def _call(self, ask: Callable[[Link], Awaitable[Any]]) -> Any:
        """Ask the server; any failure, an answer that never comes included, is DependencyUnavailable."""
        try:
            return await self._master.call(ask)
        except OutOfMemoryError as error:
            raise QueueFull("The queue is full") from error
        except (RedisError, OSError, TimeoutError) as error:
            raise DependencyUnavailable("The queue cannot be reached") from error


def _source(verb: str) -> str:
    folder = resources.files("pipeline.queue.lua")
    names = (*PARTS.get(verb, ()), verb)
    return "\n".join(folder.joinpath(f"{name}.lua").read_text("utf-8") for name in names)


def _checked(reply: str) -> str:
    if reply == "foreign":
        raise ForeignQueue("The queue belongs to another asset store")
    return reply
