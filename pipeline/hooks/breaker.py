"""When a plugin is not asked for a while: the one mechanism for providers, notifiers and hooks, each by itself.

Four things hold a plugin: it could not be asked at all, it failed so often in a row, it kept the event loop so often in
a row, or it said how long it is busy. The first three let single calls try it, after waits that double or that it named
itself; the last one ends by itself. What one process finds of a provider the worker carries to Redis, where it becomes
a hold for all, and Redis picks the jobs that try (queue/lua/lanes.lua). A process that alone cannot reach a provider
goes on holding it when the others do not.
Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic

from pipeline.hold import Avoided, ProviderReport, ProviderState, Hold

FIRST_WAIT_SECONDS = 1.0
# Of a plugin that keeps the event loop: the reason, which owners of photos read too, and the cause.
BLOCKING, BLOCKING_CAUSE = "Not available now", "it blocks the event loop"
# One who asks to be called again at once is believed only so far.
LEAST_BUSY_SECONDS = 1.0


class Breaker:
    """Says whether one plugin may be called. reason, cause: why it is held, as Hold has them."""

    def __init__(
        self, failures: int, longest_seconds: float, on_change: Callable[[bool], None] = lambda is_held: None
    ) -> None:
        """failures: so many in a row hold it. longest_seconds: between two calls that try it. on_change: called when
        this process has found a reason to hold it, or a far longer time, with True, and when it has an answer again,
        with False.
        """
        self._limit = failures
        self._longest_seconds = longest_seconds
        self.on_change = on_change
        self.on_state: Callable[[ProviderState, float], None] = lambda state, seconds: None
        self._failures = 0
        # How many calls in a row kept the event loop, whatever they came to.
        self.blocks = 0
        self._wait_seconds = 0.0  # between two calls that try it; 0 where the hold ends by itself
        self._until = 0.0
        self._is_trying = self._may_try = False
        self._is_told, self._told_seconds = False, 0.0
        self._of_all: Hold | None = None
        self._of_all_until = 0.0
        self.reason = self.cause = ""

    @property
    def left_seconds(self) -> float:
        """How long until it may be tried or, where nothing tries it, asked again; 0 when it may be asked now."""
        return max(self.left_here_seconds, self._of_all_until - monotonic())

    @property
    def is_held(self) -> bool:
        """True while only single calls may try it, or none."""
        return self._wait_seconds > 0 or self._is_held_by_all or self.left_seconds > 0

    @property
    def left_here_seconds(self) -> float:
        """How long this process, whatever the others do, may not even try it."""
        return max(0.0, self._until - monotonic())

    @property
    def is_held_here(self) -> bool:
        """True while this process, whatever the others do, may not even try it."""
        return self.left_here_seconds > 0

    @property
    def _is_held_by_all(self) -> bool:
        return self._of_all is not None and (self._of_all.wait_seconds > 0 or self._of_all_until > monotonic())

    def lets_through(self) -> bool:
        """Return whether the plugin may be called now; True while it is held: this call is the one that tries."""
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
        """True when this process, which could not call it, is to try it once more."""
        return self._wait_seconds > 0 and not self.is_held_here

    def begin_try(self) -> None:
        """Let the next call through and no other for a while."""
        self._until = monotonic() + self._wait_seconds
        self._may_try = True

    def tries(self) -> None:
        """The call that comes next tries a held plugin, whatever the time."""
        self._may_try, self._is_trying = False, True

    def answered(self) -> None:
        """The plugin did its work, whether the result was good or not. While it asks to be left alone it stays held.

        One whose calls keep the event loop is held now: everything else has to wait for them.
        """
        if self.blocks >= self._limit:
            self.unreachable(BLOCKING, BLOCKING_CAUSE)
            return
        self._failures = 0
        self._may_try = self._is_trying = False
        was_away = self._wait_seconds > 0
        if was_away:
            self._wait_seconds = self._until = 0.0
        if self._of_all is not None and self._of_all.wait_seconds > 0:
            was_away, self._of_all, self._of_all_until = True, None, 0.0
        if was_away:
            self.on_state(ProviderState.ANSWERED, 0)
        if self._is_told and not self.is_held_here:
            self._is_told = False
            self.on_change(False)

    def failed(self, reason: str, cause: str = "") -> None:
        """The plugin failed: once is no reason to hold it."""
        self._failures += 1
        if self._failures >= self._limit:
            self.unreachable(reason, cause)

    def unreachable(self, reason: str, cause: str = "", asked_seconds: float | None = None) -> None:
        """The plugin could not be asked. asked_seconds: when it says itself that it is to be tried again."""
        self.reason, self.cause = reason, cause
        if self._wait_seconds > 0 and not self._is_trying:
            return  # a call that had begun before the hold
        doubled = min(2 * self._wait_seconds, self._longest_seconds)
        # Not BUSY, though it names a time: that would hold it for the processes that can reach it too.
        self.on_state(
            ProviderState.TRIED if self._is_trying else ProviderState.AWAY, asked_seconds or self._longest_seconds
        )
        wait_seconds = asked_seconds or doubled or FIRST_WAIT_SECONDS
        self._hold(wait_seconds, wait_seconds)

    def busy(self, seconds: float, reason: str, cause: str = "") -> None:
        """The plugin wants to be left alone for so long."""
        self.reason, self.cause = reason, cause
        self._failures = 0
        seconds = max(seconds, LEAST_BUSY_SECONDS)
        self.on_state(ProviderState.BUSY, seconds)
        left_seconds = 0 if self._wait_seconds else self._until - monotonic()
        self._hold(max(left_seconds, seconds), 0.0)

    def adopt(self, hold: Hold | None) -> None:
        """Take over what holds it for all processes, None: nothing does."""
        self._of_all = hold
        self._of_all_until = monotonic() + hold.left_seconds if hold else 0.0
        if hold and not self.is_held_here:
            self.reason, self.cause = hold.reason, hold.cause

    def _hold(self, seconds: float, wait_seconds: float) -> None:
        self._until, self._wait_seconds = monotonic() + seconds, wait_seconds
        self._may_try = self._is_trying = False
        if not self._is_told or seconds > 2 * max(self._told_seconds, self._longest_seconds):
            self._is_told, self._told_seconds = True, seconds
            self.on_change(True)


class SharedBreakers:
    """The breakers of one queue's providers, and what of them the other processes have not been told yet."""

    def __init__(self, breakers: Mapping[str, Breaker], lanes: Mapping[str, Sequence[str]]) -> None:
        """lanes: for each lane of the queue the providers that its jobs may ask, any of which will do."""
        self.lanes = lanes
        self._breakers = breakers
        self._unreported: dict[tuple[str, bool], ProviderReport] = {}
        for name, breaker in breakers.items():
            breaker.on_state = partial(self._note, name)

    def reports(self) -> Sequence[ProviderReport]:
        """Return what this process has found and not told yet."""
        return tuple(self._unreported.values())

    def avoid(self) -> Avoided:
        """Return what this process leaves to others now."""
        if any(breaker.is_due_here for breaker in self._breakers.values()):
            return Avoided(is_trying=True)
        held = {name: breaker for name, breaker in self._breakers.items() if breaker.is_held_here}
        if not held:
            return Avoided()
        lanes = [lane for lane, chain in self.lanes.items() if held.keys() >= set(chain)]
        return Avoided(lanes, left_seconds=min(breaker.left_here_seconds for breaker in held.values()))

    def begin_try(self) -> None:
        """A job was claimed that tries what `avoid` said."""
        for breaker in self._breakers.values():
            if breaker.is_due_here:
                breaker.begin_try()

    def adopt(self, told: Sequence[ProviderReport], holds: Sequence[Hold]) -> None:
        """Take over all the holds there are, found by whatever process. told: the reports they contain."""
        for report in told:
            if self._unreported.get(_key(report)) is report:
                del self._unreported[_key(report)]
        found = {hold.provider: hold for hold in holds}
        for name, breaker in self._breakers.items():
            breaker.adopt(found.get(name))

    def _note(self, name: str, state: ProviderState, seconds: float) -> None:
        report = ProviderReport(name, state, seconds, self._breakers[name].reason, self._breakers[name].cause)
        self._unreported[_key(report)] = report


def _key(report: ProviderReport) -> tuple[str, bool]:
    # That it is there and that it is away contradict each other; that it is busy stands beside both.
    return report.provider, report.state is ProviderState.BUSY
