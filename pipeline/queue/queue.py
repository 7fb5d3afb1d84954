"""JobQueue: a job queue on Redis lists.

Every state move is one Lua script in lua/; JobQueue calls the scripts and turns their replies into objects. Its parts:
calls.py (keys, scripts, connections), failed_jobs.py, job_lookup.py, shared_state.py, server.py. Runs on the event
loop. Many methods because each calls one script, and callers know the queue alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from redis.exceptions import RedisError

from pipeline.errors import DependencyUnavailable
from pipeline.hold import Pace, ProviderReport
from pipeline.queue import codec
from pipeline.queue.calls import checked
from pipeline.queue.failed_jobs import FailedJobs
from pipeline.queue.job import Finish, JobState, Mode, NewJob, Outcome, Step
from pipeline.queue.job_lookup import JobLookup
from pipeline.queue.server import QueueServer
from pipeline.queue.shared_state import SharedState

# The owner that a process names before it knows the id of its asset store.
UNKNOWN_OWNER = "?"
RECOVER_AT_MOST = 100
NOTHING = "[]"
LONGEST_DELAY_SECONDS = 600.0
# An operator may postpone a job for so long.
LONGEST_POSTPONEMENT_SECONDS = 86_400
# After these outcomes Redis forgets all of a job but its id.
COMPLETIONS = (Outcome.COMPLETED, Outcome.CANCELLED)


class Owned(NamedTuple):
    """How the queue was when a store claimed it.

    before, now: its mode.
    is_old_pause: it was paused by a version of this service that knows no owner.
    """

    before: Mode
    now: Mode
    is_old_pause: bool


class Renewal(NamedTuple):
    """Leases that were not prolonged because they were lost, and those of jobs that were cancelled."""

    lost: Sequence[str]
    cancelled: Sequence[str]


class JobQueue(FailedJobs, JobLookup, SharedState, QueueServer):
    """One named queue. Any method raises DependencyUnavailable when Redis cannot be reached or refuses."""

    # Long because it explains each option of a queue.
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
        """longest_delay_seconds: no job is delayed and no provider held for longer, even if its service asks for that.

        block_seconds: longest one call of wait_for_work.
        max_age_seconds: an older parked job is claimed all the same, so that its worker ends it.
        lanes: the providers of each lane, any of which will do; those of "" are for all other lanes.
        paces: the limits of those providers that have any.
        behind: the providers that jobs of a lane ask after others have answered.
        owner: the id of the asset store whose jobs these are, see `own`; "": any owner will do.
        clock_offset_ms: added to Redis TIME; only tests set it.
        """
        super().__init__(
            url,
            name=name,
            prefix=prefix,
            block_seconds=block_seconds,
            keep_completed_seconds=keep_completed_seconds,
            keep_failed_seconds=keep_failed_seconds,
            clock_offset_ms=clock_offset_ms,
        )
        self.owner = owner
        # Whether some process asked for a snapshot lately, by the last reply; on_watched is called when that begins.
        self.is_watched = False
        self.on_watched: Callable[[], None] = lambda: None
        self._lease_ms = round(lease_seconds * 1000)
        self._longest_delay_ms = round(longest_delay_seconds * 1000)
        self._max_age_ms = round(max_age_seconds * 1000)
        self._lanes = codec.to_json(lanes)
        self._limits = codec.as_limits(paces, lanes, behind)

    @property
    def has_paces(self) -> bool:
        """Whether jobs reserve calls of providers when they are claimed."""
        return self._limits != "{}"

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

        group: jobs of different groups are claimed in rotation; those without a group go first, strictly in order.
          Jobs of the group BACKGROUND wait behind all others.
        lane: jobs of one lane may ask the same providers.
        revive: a job that is completed or failed starts over instead.
        """
        keys, args = self._enqueue_call(NewJob(job_id, data, request_id, trace_context, group, lane, revive))
        reply = checked(await self._with_room(lambda: self._run("enqueue", keys, args)))
        if reply in ("ok", "watched"):
            self._set_watched(reply == "watched")
        return reply in ("ok", "watched")

    async def restore(self, jobs: Sequence[NewJob]) -> int:
        """Enqueue those jobs that Redis does not know, and put back those that are not where their state says.

        Returns how many.
        """
        return await self._restore("enqueue", [self._enqueue_call(job) for job in jobs])

    def _enqueue_call(self, job: NewJob) -> tuple[list[str], list[Any]]:
        record: dict[str, Any] = {"submittedAt": job.submitted_at_ms} if job.submitted_at_ms else {}
        record |= {"requestId": job.request_id, "trace": job.trace_context, "group": job.group, "lane": job.lane}
        args = [self.owner, job.id, codec.to_json(record | {"data": job.data}), job.group, int(job.revive)]
        return self._place_keys("completed", "failed", "delayed", "leases", "parked", "owner", "watched"), args

    async def step(
        self,
        mark: str,
        finishes: Sequence[Finish],
        free: int,
        reports: Sequence[ProviderReport] = (),
        avoided: Sequence[str] = (),
        reserved: int = 0,
    ) -> Step:
        """Acknowledge the jobs that finished and claim for `free` slots, in one call.

        mark: `worker:number`, never used before; it becomes part of the leases, with their length, so that processes
          with other lengths know how far each may reach.
        reports: the states of providers that this process has found.
        avoided: lanes whose jobs it leaves to other processes.
        reserved: so many of the free slots are not for jobs in the background.
        """
        completed = [finish.job.lease for finish in finishes if finish.outcome in COMPLETIONS]
        args: list[Any] = [self.owner, self._lease_ms, f"{mark}:{self._lease_ms}", free]
        args += (self._longest_delay_ms, self._max_age_ms, self._lanes)
        args.append(codec.to_json([codec.as_texts(report) for report in reports]) if reports else NOTHING)
        args += (codec.to_json(avoided) if avoided else NOTHING, self._limits, reserved, len(completed), *completed)
        for finish in finishes:
            if finish.outcome not in COMPLETIONS:
                args += (finish.job.lease, finish.outcome, finish.delay_ms, int(finish.refunds_attempt))
                args += (finish.job.group, finish.error)
        reply = await self._run("step", self._all_keys, args)
        lost, claimed, has_more, next_due_ms, mode, held, now_ms, is_watched = reply
        self._set_watched(bool(is_watched))
        return Step(
            claimed=[codec.as_job(fields, now_ms) for fields in claimed],
            lost=lost,
            has_more=bool(has_more),
            next_due_ms=None if next_due_ms < 0 else next_due_ms,
            mode=Mode(mode),
            holds=codec.as_holds(held, now_ms),
        )

    async def renew(self, leases: Sequence[str]) -> Renewal:
        """Prolong the leases; return those that this worker has lost, and those of jobs that were cancelled."""
        keys = self._place_keys("leases", "watched")
        lost, cancelled, is_watched = await self._run("renew", keys, [self._lease_ms, *leases])
        self._set_watched(bool(is_watched))
        return Renewal(lost, cancelled)

    def _set_watched(self, is_watched: bool) -> None:
        before, self.is_watched = self.is_watched, is_watched
        if is_watched and not before:
            self.on_watched()

    async def reserve_call(
        self, provider: str, lease: str, wait_seconds: float, late_seconds: float | None = None
    ) -> tuple[bool, float]:
        """Reserve the next call of a provider with a pace for a running job.

        wait_seconds: how far off the call may be.
        late_seconds: how long ago the call could begin that the job had reserved and did not make.
        Returns whether a call is reserved, and in how many seconds it may begin or, without one, the job may ask again.
        """
        late_ms = "" if late_seconds is None else round(late_seconds * 1000)
        args = [self._limits, provider, lease, round(wait_seconds * 1000), late_ms, 0]
        is_reserved, in_ms = await self._run("pace", self._place_keys("leases", "holds"), args)
        return bool(is_reserved), in_ms / 1000

    async def release_call(self, provider: str, lease: str, unused_seconds: float | None = None) -> None:
        """Let another job call the provider: the call of this job has ended, or is not made.

        unused_seconds: how long ago the call could begin that is not made, less than 0 when it could not yet.
        """
        late_ms = "" if unused_seconds is None else round(unused_seconds * 1000)
        args = [self._limits, provider, lease, 0, late_ms, 1]
        await self._run("pace", self._place_keys("leases", "holds"), args)

    async def cancel(self, job_id: str) -> JobState | None:
        """End a job that waits or is delayed; return the state it was in, None when there was nothing to end.

        An active job stays active until its worker, which learns of it from its next renewal, has acknowledged it.
        """
        was = await self._run("cancel", self._place_keys("completed", "delayed", "parked"), [job_id])
        return None if was == "missing" else JobState(was)

    async def postpone(self, job_id: str, seconds: float) -> bool:
        """Delay the start of a waiting job; return False for a job that does not wait.

        seconds: at most LONGEST_POSTPONEMENT_SECONDS.
        """
        keys, args = self._place_keys("parked"), [job_id, round(seconds * 1000)]
        return bool(await self._with_room(lambda: self._run("postpone", keys, args)) == "ok")

    async def unpostpone(self, job_id: str) -> bool:
        """Put a postponed job at the front of waiting; return False for any other job."""
        return bool(await self._run("postpone", self._place_keys("parked"), [job_id, 0]) == "ok")

    async def recover(self, *, everything: bool = False) -> list[str]:
        """Put jobs whose lease ran out back to the front of waiting; return their ids.

        everything: all leased jobs, for a start with a Redis that no other process uses.
        """
        recovered: list[str] = []
        args = [RECOVER_AT_MOST, int(everything), self._lease_ms, self._longest_delay_ms]
        args.append(LONGEST_POSTPONEMENT_SECONDS * 1000)
        while True:
            ids = await self._run("recover", self._place_keys("leases", "delayed"), args)
            recovered += ids
            if len(ids) < RECOVER_AT_MOST:
                return recovered

    async def release_unknown(self, worker_id: str, leases: Iterable[str]) -> int:
        """Put back the jobs that this worker claimed in a step whose reply was lost; return how many.

        leases: those that the worker knows.
        """
        args = [worker_id, *leases]
        return cast(int, await self._run("release", self._place_keys("leases"), args, timed=False))

    async def wait_for_work(self) -> None:
        """Return when any process has enqueued a job, at the latest after block_seconds."""
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

    async def own(self, owner: str, *, is_paused: bool, takes_over: bool = False) -> Owned:
        """Claim the queue for the asset store of that id, if no other store has it.

        is_paused: as the store says; a queue without an owner has lost its pause with all other data of Redis.
        takes_over: claim it from another store too: for a Redis that no other service uses.
        """
        args = [owner, int(is_paused), int(takes_over)]
        before, now, is_old_pause = await self._run("own", self._keys("owner", "paused", "wake"), args, timed=False)
        return Owned(Mode(before), Mode(now), bool(is_old_pause))

    async def owned_by(self) -> str:
        """Return the id of the asset store that has the queue, "" when none has."""
        return str(await self._call(lambda link: link.ask("GET", self._key["owner"])) or "").partition(" ")[0]

    @property
    def owner_key(self) -> str:
        """The key that holds the owner, for people."""
        return self._key["owner"]
