"""The job loop: five coroutine slots fed by one claiming coroutine.

One call of JobQueue.step acknowledges whatever finished and claims for whatever is free; prefetch.py says how much
more is claimed. leases.py keeps what is claimed, attempt.py says what becomes of it. Runs on the event loop, knows
nothing of photos.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import structlog

from pipeline.delays import retry_delays
from pipeline.errors import DependencyUnavailable
from pipeline.hold import Avoided, Holds
from pipeline.metrics import Metrics
from pipeline.queue.prefetch import LATE_SECONDS, Prefetch
from pipeline.queue.attempt import Attempts, JobHandler, RetryPolicy
from pipeline.queue.claim import Claim
from pipeline.queue.job import Finish, Job, Mode, Outcome
from pipeline.queue.leases import RENEWALS_PER_LEASE, Leases
from pipeline.queue.queue import UNKNOWN_OWNER, JobQueue
from pipeline.queue.unacknowledged import Unacknowledged
from pipeline.supervision import Supervisor, SupervisedTask, cancel
from pipeline.texts import cause_of
from pipeline.tracing import OFF, Tracing

log = structlog.get_logger(__name__)

RECONNECT_SECONDS = (0.1, 2.0)
# Longer than an idle worker blocks and than two renewals are apart: who has heard nothing for so long does not work.
SILENT_SECONDS = 10.0
# How long a drain waits for a step that is under way, and for Redis to hear how the last jobs ended.
REDIS_SECONDS = 0.7
HAND_BACK_SECONDS = 1.0
LOOK_SECONDS = 0.02
SUSPENDED_SECONDS = 2.0
# While there are jobs ahead an end need not be told at once: several of them share a call.
TELL_ENDS_SECONDS = 0.005
# How long a drain waits for events to be published: what is not, the next process sends at once.
TELL_SECONDS = 1.0


class Worker:
    """Runs a queue's jobs until it is drained."""

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
        """supervisor: keeps this worker's tasks running; default: one of its own.

        renew_seconds: how often leases are renewed; default: three times in lease_seconds.

        on_reconnect: called when Redis answers again after it did not. on_unowned: called when nobody, or another asset
        store, has the queue; nothing is claimed then.

        on_start, on_finish: called when an attempt begins and when it ends with its lease still held, after so many
        seconds; must not block or raise. unpublished: returns the future that is done when the event of the
        job's end is published; the job is acknowledged then. None when it is published.
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
        # A job that is not in the background finds a slot free.
        self._reserved = min(1, concurrency - 1)
        self._renew_seconds = renew_seconds or lease_seconds / RENEWALS_PER_LEASE
        self._leases = Leases(
            queue, self._metrics, lease_seconds=lease_seconds, renew_seconds=self._renew_seconds, on_answer=self._hear
        )
        self._on_reconnect = on_reconnect
        self._on_unowned = on_unowned
        self._id = secrets.token_hex(8)
        self._steps = self._busy = 0
        # Claimed and yet to be started.
        self._claimed: asyncio.Queue[Claim] = asyncio.Queue()
        self._ahead = Prefetch(concurrency)
        self._ahead_count = 0
        self._ends_timer: asyncio.TimerHandle | None = None
        self._finishes: list[Finish] = []
        self._unacknowledged = Unacknowledged(unpublished, self._acknowledge)
        self._changed = asyncio.Event()
        self._marker: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_draining = self._is_drained = self._is_suspended = self._is_held = False
        self._is_connected = True
        self._mode = Mode.RUNNING
        self._lost_by: BaseException | None = None
        self._delays = retry_delays(*RECONNECT_SECONDS)
        self._last_reply_at = 0.0
        # True while Redis may have given us jobs in a step whose reply we have not seen.
        self._is_step_open = False
        self._watched: list[SupervisedTask] = []
        self._metrics.slots.set(concurrency)
        self._metrics.slots_busy.set_function(lambda: self._busy)

    async def check(self) -> None:
        """Return when this worker can claim: the queue has answered it lately. DependencyUnavailable otherwise."""
        silent_seconds = asyncio.get_running_loop().time() - self._last_reply_at
        if not self._is_connected or silent_seconds > max(SILENT_SECONDS, 2 * self._renew_seconds):
            raise DependencyUnavailable(f"The queue has not answered for {silent_seconds:.0f} s") from self._lost_by
        if self._mode is Mode.UNOWNED:
            raise DependencyUnavailable("The queue was lost and is being rebuilt")
        if self._mode is Mode.FOREIGN and self._queue.owner == UNKNOWN_OWNER:
            raise DependencyUnavailable("The asset store has not told yet whose queue this is")
        if self._mode is Mode.FOREIGN:
            raise DependencyUnavailable("The queue belongs to another asset store")

    def start(self) -> None:
        """Start the slots, the claiming and the renewing."""
        self._hear()
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
        """Claim no jobs until `resume`; those that run go on."""
        self._is_suspended = True

    def resume(self) -> None:
        """Claim jobs again."""
        self._is_suspended = False
        self._changed.set()

    def cancel(self, job_id: str) -> None:
        """End the job if it runs here: nobody wants its result any more."""
        self._leases.cancel(job_id)

    async def drain(self, seconds: float) -> None:
        """Stop claiming, let running jobs finish for that long, hand back the rest, and those whose event is not told,
        without counting the attempt, and stop.

        A Redis that does not answer adds two seconds at most; leases run out by themselves.
        """
        self._is_draining = True
        self._changed.set()
        await _within(REDIS_SECONDS, lambda: not (self._is_step_open and self._is_connected))
        ends_at = asyncio.get_running_loop().time() + seconds
        if not await _within(seconds, lambda: not self._busy and self._claimed.empty()):
            self._leases.release_all()
        left_seconds = ends_at - asyncio.get_running_loop().time()
        await _within(min(TELL_SECONDS, left_seconds), lambda: not self._unacknowledged or not self._is_connected)
        self._finishes += self._unacknowledged.close()
        self._changed.set()
        await _within(HAND_BACK_SECONDS, lambda: self._is_drained)
        await self._supervisor.stop(self._watched)
        await cancel([self._marker] if self._marker else [])
        for timer in (self._timer, self._ends_timer):
            if timer:
                timer.cancel()

    async def _claim_until_drained(self) -> None:
        while not self._is_drained:
            try:
                await self._claim()
            except DependencyUnavailable as error:
                await self._wait_for_redis(error)

    async def _claim(self) -> None:
        """Acknowledge, claim, and wait until there is a reason to do so again."""
        self._changed.clear()
        self._give_back_late()
        # Newest first: each released job goes to the front of waiting, so the oldest has to come last.
        finishes = sorted(self._finishes, key=_age, reverse=True)
        held = self._leases.claims
        for lease in self._unacknowledged.take_lost():
            held.pop(lease, None)
        self._ahead_count = self._count_ahead()
        wanted = self._concurrency + self._ahead_count - self._occupied + len(finishes)
        free = max(0, wanted) if self.is_claiming else 0
        asked_at = asyncio.get_running_loop().time()
        self._steps += 1
        if self._is_step_open:
            await self._queue.release_unknown(self._id, held)
        self._is_step_open = True
        reports = self._holds.reports() if self._holds else ()
        avoided = self._holds.avoid() if self._holds and free else Avoided()
        free = min(free, 1) if avoided.is_trying else free
        step = await self._queue.step(
            f"{self._id}:{self._steps}", finishes, free, reports, avoided.lanes, self._reserved + self._ahead_count
        )
        self._hear()
        self._reconnected()
        if self._holds:
            self._holds.adopt(reports, step.holds)
            if avoided.is_trying and step.claimed:
                self._holds.begin_try()
        del self._finishes[: len(finishes)]
        for finish in finishes:
            held.pop(finish.job.lease, None)
        self._metrics.leases_lost.inc(len(step.lost))
        for job in step.claimed:
            self._claimed.put_nowait(self._leases.add(job, asked_at))
        self._is_step_open = False
        self._metrics.jobs_claimed.inc(len(step.claimed))
        self._wake_in(step.next_due_ms, avoided.left_seconds)
        self._is_held = bool(step.holds)
        self._mode = step.mode
        if step.mode in (Mode.UNOWNED, Mode.FOREIGN):
            self._on_unowned()
        if self._is_draining:
            if not held:
                self._is_drained = True
                return
        elif self._occupied < self._concurrency and not self._is_suspended:
            # A suspended worker does not listen: it would take the marker from those that can claim.
            if step.has_more and step.mode is Mode.RUNNING:
                return  # what was popped could not be claimed; there may be jobs behind it that can
            self._listen()
        await self._changed.wait()

    def _count_ahead(self) -> int:
        """Return how many jobs to claim beside those for the slots: none where providers are held or have a pace, or
        while this process leaves lanes to others, because these decide anew with each claim.
        """
        if not self.is_claiming or self._is_held or self._queue.has_paces:
            return 0
        return self._ahead.count(self._leases.longest_running_seconds())

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
        """How many jobs are held that run, are about to, or have yet to be acknowledged."""
        return len(self._leases.claims) - len(self._unacknowledged)

    def _note_end(self) -> None:
        """Let Redis hear of an end: at once when slots would else be idle, or within milliseconds."""
        is_pressing = self._claimed.qsize() <= self._ahead_count // 2
        if is_pressing or self._is_draining:
            self._changed.set()
        elif self._ends_timer is None:
            self._ends_timer = asyncio.get_running_loop().call_later(TELL_ENDS_SECONDS, self._tell_ends)

    def _tell_ends(self) -> None:
        self._ends_timer = None
        self._changed.set()

    def _acknowledge(self, finish: Finish) -> None:
        self._finishes.append(finish)
        self._changed.set()

    def _listen(self) -> None:
        """Block on the wake-up marker beside the running jobs; the call is never cancelled, so no marker is lost."""
        if self._marker is None or self._marker.done():
            self._marker = asyncio.create_task(self._queue.wait_for_work(), name="wait_for_work")
            self._marker.add_done_callback(self._heard)

    def _heard(self, marker: asyncio.Task[None]) -> None:
        if not marker.cancelled():
            if (error := marker.exception()) is None:
                self._hear()
            else:
                # The step that follows may find Redis there again and no trace of its restart.
                self._lose(error)
                if not isinstance(error, DependencyUnavailable):
                    log.error("waiting_failed", exc_info=error)
        self._changed.set()

    def _hear(self) -> None:
        self._last_reply_at = asyncio.get_running_loop().time()

    def _wake_in(self, next_due_ms: int | None, left_seconds: float | None) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        due_seconds = None if next_due_ms is None else next_due_ms / 1000
        # A suspended worker asks as often as one that listens: so it notices what becomes of Redis and the queue.
        look_seconds = SUSPENDED_SECONDS if self._is_suspended else None
        late_seconds = LATE_SECONDS if self._ahead_count else None
        if waits := [each for each in (due_seconds, left_seconds, look_seconds, late_seconds) if each is not None]:
            # One more millisecond: Redis rounds down, and a step that comes too early would spin.
            self._timer = asyncio.get_running_loop().call_later(min(waits) + 0.001, self._changed.set)

    def _lose(self, error: BaseException) -> None:
        self._lost_by = error.__cause__ or error
        if self._is_connected:
            log.warning("queue_unreachable", error=cause_of(error))
            self._is_connected = False
            self._delays = retry_delays(*RECONNECT_SECONDS)

    async def _wait_for_redis(self, error: DependencyUnavailable) -> None:
        self._lose(error)
        await asyncio.sleep(next(self._delays))

    def _reconnected(self) -> None:
        if not self._is_connected:
            self._is_connected, self._lost_by = True, None
            log.info("queue_reconnected")
            self._on_reconnect()

    async def _slot(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            claim = await self._claimed.get()
            finish = None
            self._busy += 1
            try:
                finish = await self._attempts.run(claim)
            finally:
                # Also when something nobody foresaw ends this slot: the lease runs out then and brings the job back.
                self._busy -= 1
                if finish is None:
                    self._leases.claims.pop(claim.job.lease, None)
                elif (told := self._unacknowledged.hold(claim, finish)) is not None:
                    self._finishes.append(told)
                if finish is not None:
                    self._ahead.ended(claim.ended_at - claim.started_at)
                self._note_end()
            # After the claiming coroutine has asked Redis, while it waits for the answer.
            loop.call_soon(self._attempts.report, claim, finish)


async def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Return whether the condition has come true, at the latest after so many seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition() and loop.time() < end:
        await asyncio.sleep(LOOK_SECONDS)
    return condition()


def _age(finish: Finish) -> tuple[int, str]:
    return finish.job.enqueued_at_ms, finish.job.id
