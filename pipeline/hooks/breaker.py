"""The circuit breaker of plugins: a plugin that fails is held, which means not called for a while. Each provider,
notifier and hook has its own.

Four things hold a plugin: it could not be reached, it failed several times in a row, it blocked the event loop several
times in a row, or it said how long it is busy. In the first three cases single calls try it, after delays that double
or that the plugin named; a busy plugin is released when its time is over.

The worker sends the state of a provider from its process to Redis, where it becomes a hold for all processes, and Redis
picks the jobs that try (queue/lua/lanes.lua). A process that alone cannot reach a provider still holds it when the
other processes do not. Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic

from pipeline.hold import Avoided, ProviderReport, ProviderState, Hold

FIRST_WAIT_SECONDS = 1.0
# Of a plugin that blocks the event loop: the reason, which owners of photos read too, and the cause.
BLOCKING, BLOCKING_CAUSE = "Not available now", "it blocks the event loop"
# A plugin that asks to be called again at once is held at least so long.
LEAST_BUSY_SECONDS = 1.0


# Many methods because it is one state machine: its states are read and its events reported one by one.
class Breaker:
    """Says whether one plugin may be called.

    reason, cause: why it is held, as in Hold.
    """

    def __init__(
        self, failures: int, longest_seconds: float, on_change: Callable[[bool], None] = lambda is_held: None
    ) -> None:
        """failures: how many in a row hold the plugin.
        longest_seconds: the longest delay between two calls that try it.
        on_change: called with True when this process begins to hold the plugin or holds it for a far longer time, and
        with False when the plugin has answered again.
        """
        self._limit = failures
        self._longest_seconds = longest_seconds
        self.on_change = on_change
        self.on_state: Callable[[ProviderState, float], None] = lambda state, seconds: None
        self._failures = 0
        # How many calls in a row blocked the event loop, whatever their result was.
        self.blocks = 0
        self._retry_seconds = 0.0  # between two calls that try it; 0 if the hold ends by itself
        self._until = 0.0
        self._is_trying = self._may_try = False
        # Whether on_change was called with True, and for which time.
        self._is_announced, self._announced_seconds = False, 0.0
        # The hold of all processes.
        self._shared: Hold | None = None
        self._shared_until = 0.0
        self.reason = self.cause = ""

    @property
    def left_seconds(self) -> float:
        """How long until it may be tried or, if nothing tries it, called again; 0 when it may be called now."""
        return max(self.left_here_seconds, self._shared_until - monotonic())

    @property
    def is_held(self) -> bool:
        """True while no calls, or only single ones that try it, are let through."""
        return self._retry_seconds > 0 or self._is_held_by_all or self.left_seconds > 0

    @property
    def left_here_seconds(self) -> float:
        """How long this process must not even try it, whatever the other processes do."""
        return max(0.0, self._until - monotonic())

    @property
    def is_held_here(self) -> bool:
        """True while this process must not even try it, whatever the other processes do."""
        return self.left_here_seconds > 0

    @property
    def _is_held_by_all(self) -> bool:
        return self._shared is not None and (self._shared.wait_seconds > 0 or self._shared_until > monotonic())

    def lets_through(self) -> bool:
        """Return whether the plugin may be called now. True for a held plugin means: this call tries it."""
        if self._is_held_by_all:
            return False
        if self.is_due_here:
            self.begin_try()
        if not self._may_try:
            return not self.is_held
        self.tries()
        return True

    @property
    def is_due_here(self) -> bool:
        """True when this process, which could not reach it, is to try it again."""
        return self._retry_seconds > 0 and not self.is_held_here

    def begin_try(self) -> None:
        """Let one call through, and no other for a while."""
        self._until = monotonic() + self._retry_seconds
        self._may_try = True

    def tries(self) -> None:
        """The next call tries the held plugin, even before its time."""
        self._may_try, self._is_trying = False, True

    def answered(self) -> None:
        """The plugin did its work, whether the result was good or not. A busy plugin stays held until its time is over.

        A plugin whose calls block the event loop is held now, because everything else has to wait for them.
        """
        if self.blocks >= self._limit:
            self.unreachable(BLOCKING, BLOCKING_CAUSE)
            return
        self._failures = 0
        self._may_try = self._is_trying = False
        was_away = self._retry_seconds > 0
        if was_away:
            self._retry_seconds = self._until = 0.0
        if self._shared is not None and self._shared.wait_seconds > 0:
            was_away, self._shared, self._shared_until = True, None, 0.0
        if was_away:
            self.on_state(ProviderState.ANSWERED, 0)
        if self._is_announced and not self.is_held_here:
            self._is_announced = False
            self.on_change(False)

    def failed(self, reason: str, cause: str = "") -> None:
        """The plugin failed; several failures in a row hold it."""
        self._failures += 1
        if self._failures >= self._limit:
            self.unreachable(reason, cause)

    def unreachable(self, reason: str, cause: str = "", asked_seconds: float | None = None) -> None:
        """The plugin could not be reached.

        asked_seconds: after which time it asks to be tried again; None when it names none.
        """
        self.reason, self.cause = reason, cause
        if self._retry_seconds > 0 and not self._is_trying:
            return  # a call that had begun before the hold
        doubled = min(2 * self._retry_seconds, self._longest_seconds)
        # Not BUSY, though it names a time: BUSY would also hold it for processes that can reach it.
        self.on_state(
            ProviderState.TRIED if self._is_trying else ProviderState.AWAY, asked_seconds or self._longest_seconds
        )
        retry_seconds = asked_seconds or doubled or FIRST_WAIT_SECONDS
        self._hold(retry_seconds, retry_seconds)

    def busy(self, seconds: float, reason: str, cause: str = "") -> None:
        """The plugin asks for no calls for so long."""
        self.reason, self.cause = reason, cause
        self._failures = 0
        seconds = max(seconds, LEAST_BUSY_SECONDS)
        self.on_state(ProviderState.BUSY, seconds)
        left_seconds = 0 if self._retry_seconds else self._until - monotonic()
        self._hold(max(left_seconds, seconds), 0.0)

    def adopt(self, hold: Hold | None) -> None:
        """Take over the hold of all processes; None when there is none."""
        self._shared = hold
        self._shared_until = monotonic() + hold.left_seconds if hold else 0.0
        if hold and not self.is_held_here:
            self.reason, self.cause = hold.reason, hold.cause

    def _hold(self, seconds: float, retry_seconds: float) -> None:
        self._until, self._retry_seconds = monotonic() + seconds, retry_seconds
        self._may_try = self._is_trying = False
        if not self._is_announced or seconds > 2 * max(self._announced_seconds, self._longest_seconds):
            self._is_announced, self._announced_seconds = True, seconds
            self.on_change(True)


class SharedBreakers:
    """The breakers of one queue's providers, and the reports on them that the other processes do not have yet."""

    def __init__(self, breakers: Mapping[str, Breaker], lanes: Mapping[str, Sequence[str]]) -> None:
        """lanes: for each lane of the queue the providers that its jobs may ask; one that works is enough."""
        self.lanes = lanes
        self._breakers = breakers
        self._unreported: dict[tuple[str, bool], ProviderReport] = {}
        for name, breaker in breakers.items():
            breaker.on_state = partial(self._report, name)

    def reports(self) -> Sequence[ProviderReport]:
        """Return the reports of this process that are not in Redis yet."""
        return tuple(self._unreported.values())

    def avoid(self) -> Avoided:
        """Return the lanes whose jobs this process must not claim now."""
        if any(breaker.is_due_here for breaker in self._breakers.values()):
            return Avoided(is_trying=True)
        held = {name: breaker for name, breaker in self._breakers.items() if breaker.is_held_here}
        if not held:
            return Avoided()
        lanes = [lane for lane, chain in self.lanes.items() if held.keys() >= set(chain)]
        return Avoided(lanes, left_seconds=min(breaker.left_here_seconds for breaker in held.values()))

    def begin_try(self) -> None:
        """This process claimed a job that tries the providers that are due."""
        for breaker in self._breakers.values():
            if breaker.is_due_here:
                breaker.begin_try()

    def adopt(self, sent: Sequence[ProviderReport], holds: Sequence[Hold]) -> None:
        """Take over all holds, reported by any process.

        sent: the reports of this process that the holds contain.
        """
        for report in sent:
            if self._unreported.get(_key(report)) is report:
                del self._unreported[_key(report)]
        by_provider = {hold.provider: hold for hold in holds}
        for name, breaker in self._breakers.items():
            breaker.adopt(by_provider.get(name))

    def _report(self, name: str, state: ProviderState, seconds: float) -> None:
        report = ProviderReport(name, state, seconds, self._breakers[name].reason, self._breakers[name].cause)
        self._unreported[_key(report)] = report


def _key(report: ProviderReport) -> tuple[str, bool]:
    # A report that it answers and one that it is away replace each other; a report that it is busy replaces neither.
    return report.provider, report.state is ProviderState.BUSY
