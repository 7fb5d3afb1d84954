"""The job loop: slots (coroutines that run one job at a time) fed by one claiming coroutine.

One call of JobQueue.step acknowledges the jobs that finished and claims for the slots that are free; prefetch.py says
how many more are claimed. leases.py renews the leases, attempt.py decides how an attempt ends, contact.py and
wakeups.py say when the next step is made. Runs on the event loop, knows nothing of photos.
Long because the claiming coroutine and the slots share one state. Many methods because each is one step of these.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from pipeline.errors import DependencyUnavailable
from pipeline.hold import Avoided, Holds
from pipeline.metrics import Metrics
from pipeline.queue.attempt import Attempts, RetryPolicy
from pipeline.queue.job_handler import JobHandler
from pipeline.queue.claim import Claim
from pipeline.queue.contact import Contact
from pipeline.queue.job import Finish, Job, Mode, Outcome, Step
from pipeline.queue.leases import RENEWALS_PER_LEASE, Leases
from pipeline.queue.prefetch import LATE_SECONDS, Prefetch
from pipeline.queue.queue import UNKNOWN_OWNER, JobQueue
from pipeline.queue.unacknowledged import Unacknowledged
from pipeline.queue.wakeups import Wakeups
from pipeline.supervision import Supervisor, SupervisedTask
from pipeline.tracing import OFF, Tracing

# How long a drain waits for a step that is under way, and for the acknowledgement of the last jobs.
REDIS_SECONDS = 0.7
HAND_BACK_SECONDS = 1.0
POLL_SECONDS = 0.02
SUSPENDED_SECONDS = 2.0
# While there are prefetched jobs an end need not be acknowledged at once: several of them share a call.
ACKNOWLEDGE_SECONDS = 0.005
# How long a drain waits for events to be published; the next process publishes the others at once.
PUBLISH_SECONDS = 1.0


class Worker:
    """Runs a queue's jobs until it is drained."""

    # Long because it stores the arguments: one attribute a line.
    def __init__(
        self,
        queue: JobQueue,
        handler: JobHandler,
        policy: RetryPolicy,
        metrics: Metrics,
        *,
        supervisor: Supervisor | None = None,
        holds: Holds | None = None,
        concurrency: int = 5,
        lease_seconds: float = 15,
        renew_seconds: float | None = None,
        on_reconnect: Callable[[], None] = lambda: None,
        on_unowned: Callable[[], None] = lambda: None,
        on_start: Callable[[Job], None] = lambda job: None,
        on_finish: Callable[[Finish, float], None] = lambda finish, seconds: None,
        unpublished: Callable[[Job], asyncio.Future[None] | None] = lambda job: None,
        tracing: Tracing = OFF,
    ) -> None:
        """supervisor: keeps this worker's tasks running; default: a supervisor of its own.

        renew_seconds: how often leases are renewed; default: three times in lease_seconds.
        on_reconnect: called when Redis replies after an outage.
        on_unowned: called when no asset store, or another one, has the queue; nothing is claimed then.
        on_start: called when an attempt begins; must not block or raise.
        on_finish: called when an attempt ends with its lease still held, after so many seconds; must not block or
          raise.
        unpublished: returns the future that is done when the event of the job's end is published, None when it is
          published; the job is acknowledged then.
        """
        self._queue = queue
        self._metrics = metrics.of_queue(queue.name)
        self._attempts = Attempts(
            handler,
            policy,
            self._metrics,
            queue_name=queue.name,
            on_start=on_start,
            on_finish=on_finish,
            tracing=tracing,
        )
        self._supervisor = supervisor or Supervisor()
        self._holds = holds
        self._concurrency = concurrency
        # Slots that jobs in the background leave free for other jobs.
        self._reserved = min(1, concurrency - 1)
        renew_seconds = renew_seconds or lease_seconds / RENEWALS_PER_LEASE
        self._contact = Contact(renew_seconds, on_reconnect)
        self._leases = Leases(
            queue,
            self._metrics,
            lease_seconds=lease_seconds,
            renew_seconds=renew_seconds,
            on_answer=self._contact.replied,
        )
        self._on_unowned = on_unowned
        self._id = secrets.token_hex(8)
        self._steps = self._busy = 0
        # Claimed and yet to be started.
        self._claimed: asyncio.Queue[Claim] = asyncio.Queue()
        self._prefetch = Prefetch(concurrency)
        self._prefetched = 0
        self._ends_timer: asyncio.TimerHandle | None = None
        self._finishes: list[Finish] = []
        self._unacknowledged = Unacknowledged(unpublished, self._acknowledge)
        self._wakeups = Wakeups(queue, self._contact)
        self._is_draining = self._is_drained = self._is_suspended = self._has_holds = False
        self._mode = Mode.RUNNING
        # True while Redis may have given us jobs in a step whose reply we have not seen.
        self._is_step_open = False
        self._watched: list[SupervisedTask] = []
        self._metrics.slots.set(concurrency)
        self._metrics.slots_busy.set_function(lambda: self._busy)

    async def check(self) -> None:
        """Return when this worker can claim: the queue has answered it lately. DependencyUnavailable otherwise."""
        self._contact.check()
        if self._mode is Mode.UNOWNED:
            raise DependencyUnavailable("The queue was lost and is being rebuilt")
        if self._mode is Mode.FOREIGN and self._queue.owner == UNKNOWN_OWNER:
            raise DependencyUnavailable("The id of the asset store is not known yet")
        if self._mode is Mode.FOREIGN:
            raise DependencyUnavailable("The queue belongs to another asset store")

    def start(self) -> None:
        """Start the slots, the claiming and the renewing."""
        self._contact.replied()
        parts = [(f"slot {number}", self._slot, "slot") for number in range(self._concurrency)]
        parts.append(("renewal", self._leases.renew_forever, "renewal"))
        parts.append(("enforcement", self._leases.enforce_forever, "enforcement"))
        parts.append(("claiming", self._claim_until_drained, "claiming"))
        self._watched = [
            self._supervisor.start(f"{self._queue.name} {name}", run, kind=kind) for name, run, kind in parts
        ]

    @property
    def is_claiming(self) -> bool:
        """False while it is suspended, and once it is drained."""
        return not (self._is_suspended or self._is_draining)

    @property
    def running(self) -> list[Job]:
        """The jobs that its slots run."""
        return [claim.job for claim in self._leases.claims.values() if claim.started_at and not claim.ended_at]

    def suspend(self) -> None:
        """Claim no jobs until `resume`; running jobs go on."""
        self._is_suspended = True

    def resume(self) -> None:
        """Claim jobs again."""
        self._is_suspended = False
        self._wakeups.set()

    def cancel(self, job_id: str) -> None:
        """End the job if it runs here: its result is not wanted any more."""
        self._leases.cancel(job_id)

    async def drain(self, seconds: float) -> None:
        """Stop claiming, let running jobs finish for that long, and stop.

        Jobs that still run, and those whose event is not published, are handed back without counting the attempt. A
        Redis that does not reply adds two seconds at most; leases run out by themselves.
        """
        self._is_draining = True
        self._wakeups.set()
        await _within(REDIS_SECONDS, lambda: not (self._is_step_open and self._contact.is_connected))
        ends_at = asyncio.get_running_loop().time() + seconds
        if not await _within(seconds, lambda: not self._busy and self._claimed.empty()):
            self._leases.release_all()
        left_seconds = ends_at - asyncio.get_running_loop().time()
        await _within(
            min(PUBLISH_SECONDS, left_seconds), lambda: not self._unacknowledged or not self._contact.is_connected
        )
        self._finishes += self._unacknowledged.close()
        self._wakeups.set()
        await _within(HAND_BACK_SECONDS, lambda: self._is_drained)
        await self._supervisor.stop(self._watched)
        await self._wakeups.close()
        if self._ends_timer:
            self._ends_timer.cancel()

    async def _claim_until_drained(self) -> None:
        while not self._is_drained:
            try:
                await self._claim()
            except DependencyUnavailable as error:
                self._contact.lost(error)
                await self._contact.wait()

    async def _claim(self) -> None:
        """Acknowledge, claim, and wait until there is a reason to do so again."""
        self._wakeups.clear()
        self._give_back_late()
        # Newest first: each released job goes to the front of waiting, so the oldest has to come last.
        finishes = sorted(self._finishes, key=_age, reverse=True)
        for lease in self._unacknowledged.take_lost():
            self._leases.claims.pop(lease, None)
        step, avoided = await self._step(finishes)
        late_seconds = LATE_SECONDS if self._prefetched else None
        # A suspended worker asks as often as one that listens: so it notices the state of Redis and of the queue.
        look_seconds = SUSPENDED_SECONDS if self._is_suspended else None
        due_seconds = None if step.next_due_ms is None else step.next_due_ms / 1000
        self._wakeups.set_in(due_seconds, avoided.left_seconds, look_seconds, late_seconds)
        self._has_holds = bool(step.holds)
        self._mode = step.mode
        if step.mode in (Mode.UNOWNED, Mode.FOREIGN):
            self._on_unowned()
        if self._is_draining:
            if not self._leases.claims:
                self._is_drained = True
                return
        elif self._occupied < self._concurrency and not self._is_suspended:
            # A suspended worker does not listen: it would take the marker from workers that can claim.
            if step.has_more and step.mode is Mode.RUNNING:
                return  # the ids that were popped could not be claimed; there may be jobs behind them that can
            self._wakeups.listen()
        await self._wakeups.wait()

    async def _step(self, finishes: list[Finish]) -> tuple[Step, Avoided]:
        """Make one call of JobQueue.step and adopt its reply; return it, and the lanes that were left to others."""
        claims = self._leases.claims
        self._prefetched = self._prefetch_count()
        wanted = self._concurrency + self._prefetched - self._occupied + len(finishes)
        free = max(0, wanted) if self.is_claiming else 0
        asked_at = asyncio.get_running_loop().time()
        self._steps += 1
        if self._is_step_open:
            await self._queue.release_unknown(self._id, claims)
        self._is_step_open = True
        reports = self._holds.reports() if self._holds else ()
        avoided = self._holds.avoid() if self._holds and free else Avoided()
        free = min(free, 1) if avoided.is_trying else free
        step = await self._queue.step(
            f"{self._id}:{self._steps}", finishes, free, reports, avoided.lanes, self._reserved + self._prefetched
        )
        self._contact.replied()
        self._contact.reconnected()
        if self._holds:
            self._holds.adopt(reports, step.holds)
            if avoided.is_trying and step.claimed:
                self._holds.begin_try()
        del self._finishes[: len(finishes)]
        for finish in finishes:
            claims.pop(finish.job.lease, None)
        self._metrics.leases_lost.inc(len(step.lost))
        for job in step.claimed:
            self._claimed.put_nowait(self._leases.add(job, asked_at))
        self._is_step_open = False
        self._metrics.jobs_claimed.inc(len(step.claimed))
        return step, avoided

    def _prefetch_count(self) -> int:
        """Return how many jobs to claim beside those for the slots.

        None while providers are held or have a pace, or while this process leaves lanes to others: these decide anew
        with each claim.
        """
        if not self.is_claiming or self._has_holds or self._queue.has_paces:
            return 0
        return self._prefetch.count(self._leases.longest_running_seconds())

    def _give_back_late(self) -> None:
        """Give back jobs that wait here behind slow ones; all of them once no more are claimed."""
        now = asyncio.get_running_loop().time()
        for _ in range(self._claimed.qsize()):
            claim = self._claimed.get_nowait()
            if self.is_claiming and now - claim.claimed_at < LATE_SECONDS:
                self._claimed.put_nowait(claim)
            else:
                self._finishes.append(Finish(claim.job, Outcome.RELEASED, refunds_attempt=True))

    @property
    def _occupied(self) -> int:
        """How many claimed jobs run, are about to run, or have yet to be acknowledged."""
        return len(self._leases.claims) - len(self._unacknowledged)

    def _acknowledge_soon(self) -> None:
        """Acknowledge the end of a job: at once when slots would else be idle, or within milliseconds."""
        is_pressing = self._claimed.qsize() <= self._prefetched // 2
        if is_pressing or self._is_draining:
            self._wakeups.set()
        elif self._ends_timer is None:
            self._ends_timer = asyncio.get_running_loop().call_later(ACKNOWLEDGE_SECONDS, self._acknowledge_ends)

    def _acknowledge_ends(self) -> None:
        self._ends_timer = None
        self._wakeups.set()

    def _acknowledge(self, finish: Finish) -> None:
        self._finishes.append(finish)
        self._wakeups.set()

    async def _slot(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            claim = await self._claimed.get()
            finish = None
            self._busy += 1
            try:
                finish = await self._attempts.run(claim)
            finally:
                # Also when an unforeseen error ends this slot: the lease runs out then and brings the job back.
                self._busy -= 1
                if finish is None:
                    self._leases.claims.pop(claim.job.lease, None)
                elif (ready := self._unacknowledged.add(claim, finish)) is not None:
                    self._finishes.append(ready)
                if finish is not None:
                    self._prefetch.ended(claim.ended_at - claim.started_at)
                self._acknowledge_soon()
            # After the claiming coroutine has asked Redis, while it waits for the reply.
            loop.call_soon(self._attempts.report, claim, finish)


async def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Return whether the condition has come true, at the latest after so many seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition() and loop.time() < end:
        await asyncio.sleep(POLL_SECONDS)
    return condition()


def _age(finish: Finish) -> tuple[int, str]:
    return finish.job.enqueued_at_ms, finish.job.id
