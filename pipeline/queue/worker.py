"""The job loop: five coroutine slots fed by one claiming coroutine.

One call of JobQueue.step acknowledges whatever finished and claims for whatever is free. leases.py keeps what is
claimed, attempt.py says what becomes of it. Runs on the event loop, knows nothing of photos.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import structlog

from pipeline.errors import DependencyUnavailable
from pipeline.hold import Avoided, Finding, Hold
from pipeline.metrics import Metrics
from pipeline.queue.attempt import Attempts, JobHandler, RetryPolicy
from pipeline.queue.claim import Claim
from pipeline.queue.job import Finish, Job
from pipeline.queue.leases import Leases
from pipeline.queue.queue import JobQueue
from pipeline.texts import cause_of
from pipeline.tracing import OFF, Tracing

log = structlog.get_logger(__name__)

RECONNECT_SECONDS = (0.1, 2.0)
# Longer than an idle worker blocks and than two renewals are apart: who has heard nothing for so long does not work.
SILENT_SECONDS = 10.0
# How long a drain waits for Redis when nothing runs any more, and for jobs to be handed back.
REDIS_SECONDS = 0.7
HAND_BACK_SECONDS = 1.2
DRAIN_LOOK_SECONDS = 0.02
# How often a task is asked to end before it is left behind, and how long it may take each time.
CANCELS, CANCEL_SECONDS = 4, 0.25


class Holds(Protocol):
    """Which providers are not asked for now; hooks/breaker.py has it."""

    def findings(self) -> Sequence[Finding]:
        """Return what this process has found and not told yet."""

    def avoid(self) -> Avoided:
        """Return what this process leaves to others now."""

    def begin_try(self) -> None:
        """A job was claimed that tries what `avoid` said."""

    def adopt(self, told: Sequence[Finding], holds: Sequence[Hold]) -> None:
        """Take over all the holds there are, found by whatever process. told: the findings they contain."""


class Worker:
    """Runs a queue's jobs until it is drained."""

    def __init__(
        self,
        queue: JobQueue,
        handler: JobHandler,
        policy: RetryPolicy,
        metrics: Metrics,
        *,
        holds: Holds | None = None,
        concurrency: int = 5,
        lease_seconds: float = 15,
        renew_seconds: float = 5,
        on_reconnect: Callable[[], None] = lambda: None,
        on_start: Callable[[Job], None] = lambda job: None,
        on_finish: Callable[[Finish, float], None] = lambda finish, seconds: None,
        tracing: Tracing = OFF,
    ) -> None:
        """on_reconnect: called when Redis answers again after it did not.

        on_start, on_finish: called when an attempt begins and when it ends with its lease still held, after so many
        seconds; must not block or raise.
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
        self._holds = holds
        self._concurrency = concurrency
        self._leases = Leases(
            queue, self._metrics, lease_seconds=lease_seconds, renew_seconds=renew_seconds, on_answer=self._hear
        )
        self._renew_seconds = renew_seconds
        self._on_reconnect = on_reconnect
        self._id = secrets.token_hex(8)
        self._steps = 0
        self._claimed: asyncio.Queue[Claim] = asyncio.Queue()
        self._finishes: list[Finish] = []
        self._changed = asyncio.Event()
        self._marker: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_draining = self._is_drained = False
        self._is_connected = True
        self._lost_by: BaseException | None = None
        self._heard_at = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._busy = 0
        self._metrics.slots.set(concurrency)
        self._metrics.slots_busy.set_function(lambda: self._busy)

    async def check(self) -> None:
        """Return when this worker can claim: the queue has answered it lately. DependencyUnavailable otherwise."""
        silent_seconds = asyncio.get_running_loop().time() - self._heard_at
        if not self._is_connected or silent_seconds > max(SILENT_SECONDS, 2 * self._renew_seconds):
            raise DependencyUnavailable(f"The queue has not answered for {silent_seconds:.0f} s") from self._lost_by

    def start(self) -> None:
        """Start the slots, the claiming and the renewing."""
        self._hear()
        self._tasks = [asyncio.create_task(self._slot(), name=f"slot-{number}") for number in range(self._concurrency)]
        self._tasks.append(asyncio.create_task(self._leases.renew_forever(), name="renew"))
        self._tasks.append(asyncio.create_task(self._leases.enforce_forever(), name="enforce"))
        self._claiming = asyncio.create_task(self._claim_until_drained(), name="claim")

    async def drain(self, seconds: float) -> None:
        """Stop claiming, let running jobs finish for that long, hand back the rest without counting the attempt, and
        stop.
        """
        self._is_draining = True
        self._changed.set()
        if not await self._is_claiming_done(seconds) and self._is_running():
            self._leases.release_all()
            self._changed.set()
            # Bounded, because Redis may be away; the leases run out by themselves then.
            await self._is_claiming_done(HAND_BACK_SECONDS)
        await cancel([*self._tasks, self._claiming, *([self._marker] if self._marker else [])])
        if self._timer:
            self._timer.cancel()

    async def _is_claiming_done(self, seconds: float) -> bool:
        """Wait until everything that was claimed is acknowledged; not for Redis alone, once nothing runs any more."""
        now = asyncio.get_running_loop().time
        started_at = busy_at = now()
        while now() < min(started_at + seconds, busy_at + REDIS_SECONDS):
            if (await asyncio.wait({self._claiming}, timeout=DRAIN_LOOK_SECONDS))[0]:
                return True
            if self._is_running():
                busy_at = now()
        return False

    def _is_running(self) -> bool:
        return len(self._leases.claims) > len(self._finishes)

    # claiming

    async def _claim_until_drained(self) -> None:
        while not self._is_drained:
            try:
                await self._claim()
            except DependencyUnavailable as error:
                await self._wait_for_redis(error)
            except Exception:
                # Nothing known comes here, but a process that claims no more must not look alive.
                log.exception("claiming_failed")
                await asyncio.sleep(RECONNECT_SECONDS[1])

    async def _claim(self) -> None:
        """Acknowledge, claim, and wait until there is a reason to do so again."""
        self._changed.clear()
        # Newest first: each released job goes to the front of waiting, so the oldest has to come last.
        finishes = sorted(self._finishes, key=_age, reverse=True)
        held = self._leases.claims
        free = 0 if self._is_draining else self._concurrency - len(held) + len(finishes)
        asked_at = asyncio.get_running_loop().time()
        self._steps += 1
        if not self._is_connected:
            await self._queue.release_unknown(self._id, held)
        findings = self._holds.findings() if self._holds else ()
        avoided = self._holds.avoid() if self._holds and free else Avoided()
        free = min(free, 1) if avoided.is_trying else free
        step = await self._queue.step(f"{self._id}:{self._steps}", finishes, free, findings, avoided.lanes)
        self._hear()
        self._reconnected()
        if self._holds:
            self._holds.adopt(findings, step.holds)
            if avoided.is_trying and step.claimed:
                self._holds.begin_try()
        del self._finishes[: len(finishes)]
        for finish in finishes:
            held.pop(finish.job.lease, None)
        self._metrics.leases_lost.inc(len(step.lost))
        for job in step.claimed:
            self._claimed.put_nowait(self._leases.add(job, asked_at))
        self._metrics.jobs_claimed.inc(len(step.claimed))
        self._wake_in(step.next_due_ms, avoided.left_seconds)
        if self._is_draining:
            if not held:
                self._is_drained = True
                return
        elif len(held) < self._concurrency:
            if step.has_more and not step.is_paused:
                return  # what was popped could not be claimed; there may be jobs behind it that can
            self._listen()
        await self._changed.wait()

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
        self._changed.set()

    def _hear(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()

    def _wake_in(self, next_due_ms: int | None, left_seconds: float | None) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        due_seconds = None if next_due_ms is None else next_due_ms / 1000
        if waits := [each for each in (due_seconds, left_seconds) if each is not None]:
            # One more millisecond: Redis rounds down, and a step that comes too early would spin.
            self._timer = asyncio.get_running_loop().call_later(min(waits) + 0.001, self._changed.set)

    def _lose(self, error: BaseException) -> None:
        self._lost_by = error.__cause__ or error
        if self._is_connected:
            log.warning("queue_unreachable", error=cause_of(error))
            self._is_connected = False
            self._reconnect_delay = RECONNECT_SECONDS[0]

    async def _wait_for_redis(self, error: DependencyUnavailable) -> None:
        self._lose(error)
        await asyncio.sleep(self._reconnect_delay)
        self._reconnect_delay = min(RECONNECT_SECONDS[1], self._reconnect_delay * 2)

    def _reconnected(self) -> None:
        if not self._is_connected:
            self._is_connected, self._lost_by = True, None
            log.info("queue_reconnected")
            self._on_reconnect()

    async def _slot(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            claim = await self._claimed.get()
            self._busy += 1
            try:
                finish = await self._attempts.run(claim)
            except Exception:
                # Nothing known comes here, but nobody would miss a slot that ended. The lease brings the job back.
                log.exception("slot_failed")
                finish = None
            self._busy -= 1
            if finish is None:
                self._leases.claims.pop(claim.job.lease, None)
            else:
                self._finishes.append(finish)
            self._changed.set()
            # After the claiming coroutine has asked Redis, while it waits for the answer.
            loop.call_soon(self._attempts.report, claim, finish)


async def cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """End the tasks, asking again where the Redis client took a cancellation for a failed connection; what goes on all
    the same is left behind.
    """
    pending = set(tasks)
    for _ in range(CANCELS):
        for task in pending:
            task.cancel()
        if pending:
            _, pending = await asyncio.wait(pending, timeout=CANCEL_SECONDS)
    if pending:
        log.warning("tasks_left_behind", tasks=sorted(task.get_name() for task in pending))


def _age(finish: Finish) -> tuple[int, str]:
    return finish.job.enqueued_at_ms, finish.job.id
