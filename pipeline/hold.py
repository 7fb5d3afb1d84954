"""Holds: a provider that is not asked for now. The words that plugins, queue and processes share. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

# The first letter of the group and the lanes of jobs in the background, see queue/lua/place.lua: they are claimed only
# when no other job is ready.
BACKGROUND = "~"
# Calls are made a little slower than allowed, because they do not take the same time to arrive. A service that allows
# one call in seconds checks each gap; a service that allows several a second counts.
SLOWER, SLOWER_BY_SECONDS = 1.02, 1.04


def lane_behind(category: str, provider: str = "") -> str:
    """Return the lane of a job in the background. provider: the only provider that it may ask."""
    return f"{BACKGROUND}={provider}" if provider else BACKGROUND + category


class Hold(NamedTuple):
    """One provider or durable notifier is not asked for now, by any process.

    left_seconds: how long the hold lasts.
    wait_seconds: the time between two single jobs that try a provider which could not be asked; 0 when the provider
      itself said how long it is busy.
    reason: why, for the owner of a photo.
    cause: why, for operators: type and text of the error.
    is_paced: the provider works, and all its calls of the near future are reserved.
    """

    provider: str
    left_seconds: float
    wait_seconds: float = 0
    reason: str = ""
    cause: str = ""
    is_paced: bool = False


class Pace(NamedTuple):
    """How often, and how many times at once, all processes together may call a provider.

    interval_seconds: the least time between two calls, 0: no limit.
    at_once: calls at the same time, None: no limit.
    """

    interval_seconds: float = 0
    at_once: int | None = None

    @property
    def apart_seconds(self) -> float:
        """The time between the beginnings of two calls."""
        return self.interval_seconds * (SLOWER if self.interval_seconds < 1 else SLOWER_BY_SECONDS)


class Reservation(NamedTuple):
    """One reserved call of a provider that has a pace. begins_at: when it may begin, by the monotonic clock."""

    provider: str
    begins_at: float


class ProviderState(StrEnum):
    """The state of a provider, as one call has found it. TRIED: it was held, this call tried it, it is still AWAY."""

    AWAY = "away"
    TRIED = "tried"
    BUSY = "busy"
    ANSWERED = "answered"


class ProviderReport(NamedTuple):
    """What one process reports to the others about a provider.

    seconds: BUSY: for how long; AWAY and TRIED: the longest time between two jobs that try it.
    reason, cause: see Hold.
    """

    provider: str
    state: ProviderState
    seconds: float = 0
    reason: str = ""
    cause: str = ""


class Avoided(NamedTuple):
    """The lanes that one process leaves to the others, because it alone could not reach some providers.

    lanes: it claims no jobs of these.
    is_trying: it claims a single job now, which tries a provider.
    left_seconds: until the next such job, or None.
    """

    lanes: Sequence[str] = ()
    is_trying: bool = False
    left_seconds: float | None = None


class Holds(Protocol):
    """The providers that are not asked for now; implemented in hooks/breaker.py."""

    def reports(self) -> Sequence[ProviderReport]:
        """Return the reports of this process that the queue does not have yet."""

    def avoid(self) -> Avoided:
        """Return the lanes that this process leaves to others now."""

    def begin_try(self) -> None:
        """A job was claimed that tries a provider, as `avoid` said."""

    def adopt(self, reported: Sequence[ProviderReport], holds: Sequence[Hold]) -> None:
        """Adopt the holds of all processes. reported: the reports that they include."""
