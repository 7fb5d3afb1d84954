"""When a plugin is not asked for a while: the one mechanism for providers, notifiers and hooks, each by itself.

Three things hold a plugin: it could not be asked at all, it failed so often in a row, or it said how long it is busy.
The first two let single calls try it, after waits that double; the third ends by itself. A provider's hold is shared
between processes: the worker carries it to Redis and back, and Redis picks the jobs that try (queue/lua/lanes.lua).
Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic

from pipeline.hold import Hold

FIRST_WAIT_SECONDS = 1.0
# One who asks to be called again at once is believed only so far.
LEAST_BUSY_SECONDS = 1.0


class Breaker:
    """Says whether one plugin may be called. reason, cause: why it is held, as Hold has them."""

    def __init__(self, failures: int, longest_seconds: float, on_change: Callable[[], None]) -> None:
        """failures: so many in a row hold it. longest_seconds: between two calls that try it. on_change: called when a
        hold begins, goes on or ends.
        """
        self._limit = failures
        self._longest_seconds = longest_seconds
        self._on_change = on_change
        self._failures = 0
        self._until = 0.0
        self._is_trying = False
        self.wait_seconds = 0.0  # between two calls that try it; 0 where the hold ends by itself
        self.reason = self.cause = ""

    @property
    def left_seconds(self) -> float:
        """How long until it may be tried or, where nothing tries it, asked again; 0 when it may be asked now."""
        return max(0.0, self._until - monotonic())

    @property
    def is_held(self) -> bool:
        """True while only single calls may try it, or none."""
        return self.wait_seconds > 0 or self.left_seconds > 0

    def lets_through(self) -> bool:
        """Return whether the plugin may be called now; True while it is held: this call is the one that tries."""
        if self.left_seconds > 0:
            return False
        if self.wait_seconds > 0:
            self._hold(self.wait_seconds, self.wait_seconds)
            self._is_trying = True
        return True

    def tries(self) -> None:
        """The call that comes next tries a held plugin, whatever the time."""
        self._is_trying = True

    def answered(self) -> None:
        """The plugin did its work, whether the result was good or not. While it asks to be left alone it stays held."""
        self._failures = 0
        if self.wait_seconds > 0:
            self.wait_seconds, self._until, self._is_trying = 0.0, 0.0, False
            self._on_change()

    def failed(self, reason: str, cause: str = "") -> None:
        """The plugin failed: once is no reason to hold it."""
        self._failures += 1
        if self._failures >= self._limit:
            self.unreachable(reason, cause)

    def unreachable(self, reason: str, cause: str = "") -> None:
        """The plugin could not be asked."""
        self.reason, self.cause = reason, cause
        if self.wait_seconds > 0 and not self._is_trying:
            return  # a call that had begun before the hold
        wait = min(2 * self.wait_seconds, self._longest_seconds) if self.wait_seconds else FIRST_WAIT_SECONDS
        self._hold(wait, wait)

    def busy(self, seconds: float, reason: str, cause: str = "") -> None:
        """The plugin wants to be left alone for so long."""
        self.reason, self.cause = reason, cause
        self._failures = 0
        left_seconds = 0 if self.wait_seconds else self.left_seconds
        self._hold(max(left_seconds, seconds, LEAST_BUSY_SECONDS), 0.0)

    def adopt(self, hold: Hold | None) -> None:
        """Take over what all processes have found; None: it is not held."""
        if hold is None:
            self.wait_seconds = self._until = 0.0
        else:
            self.wait_seconds, self._until = hold.wait_seconds, monotonic() + hold.left_seconds
            self.reason, self.cause = hold.reason, hold.cause

    def _hold(self, seconds: float, wait_seconds: float) -> None:
        self._until, self.wait_seconds, self._is_trying = monotonic() + seconds, wait_seconds, False
        self._on_change()


class SharedBreakers:
    """The breakers of one queue's providers, and what of them the other processes have not been told yet."""

    def __init__(self, breakers: Mapping[str, Breaker], lanes: Mapping[str, Sequence[str]]) -> None:
        """lanes: for each lane of the queue the providers that its jobs may ask, any of which will do."""
        self.lanes = lanes
        self._breakers = breakers
        self._untold: dict[str, Hold] = {}

    def changed(self, name: str) -> None:
        """Note that this process has found a hold to begin, go on or end."""
        breaker = self._breakers[name]
        self._untold[name] = Hold(name, breaker.left_seconds, breaker.wait_seconds, breaker.reason, breaker.cause)

    def changes(self) -> Sequence[Hold]:
        """Return what this process has found and not told yet."""
        return tuple(self._untold.values())

    def adopt(self, told: Sequence[Hold], holds: Sequence[Hold]) -> None:
        """Take over all the holds there are, found by whatever process. told: the changes they contain."""
        for hold in told:
            if self._untold.get(hold.provider) is hold:
                del self._untold[hold.provider]
        found = {hold.provider: hold for hold in holds}
        for name, breaker in self._breakers.items():
            # What was found while the others were told is newer.
            if name not in self._untold and (name in found or breaker.is_held):
                breaker.adopt(found.get(name))
