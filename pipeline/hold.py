"""A provider that is not asked for now, as plugins, queue and processes tell each other. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

# How the group and the lanes of jobs begin that are claimed only when no other job is ready, see queue/lua/place.lua.
BACKGROUND = "~"
# A little slower than is allowed: calls do not take the same time to arrive. Far ends that take one call in seconds
# look at each gap, those that take several a second count.
SLOWER, SLOWER_BY_SECONDS = 1.02, 1.04


def lane_behind(category: str, provider: str = "") -> str:
    """Return the lane of such a job. provider: the only one that it may ask."""
    return f"{BACKGROUND}={provider}" if provider else BACKGROUND + category


class Hold(NamedTuple):
    """Keeps everybody from asking one provider or durable notifier.

    left_seconds: for how long. wait_seconds: how far single jobs that try the provider are apart, because it could not
    be asked; 0 where it said itself how long it is busy. reason: why, for the owner of a photo; cause: the same for
    operators, type and text of the error. is_paced: it is well, and all its turns of the near future are given.
    """

    provider: str
    left_seconds: float
    wait_seconds: float = 0
    reason: str = ""
    cause: str = ""
    is_paced: bool = False


class Pace(NamedTuple):
    """How often and how many at once a provider may be called by all processes together.

    interval_seconds: how far two calls are apart at least, 0: no limit. at_once: None: no limit.
    """

    interval_seconds: float = 0
    at_once: int | None = None

    @property
    def apart_seconds(self) -> float:
        """How far apart calls begin."""
        return self.interval_seconds * (SLOWER if self.interval_seconds < 1 else SLOWER_BY_SECONDS)


class Reservation(NamedTuple):
    """The right to call a provider that has a pace, once. begins_at: from when on, by the monotonic clock."""

    provider: str
    begins_at: float


class ProviderState(StrEnum):
    """What one call has shown of a provider. TRIED: it was held, this call tried it, and it is still AWAY."""

    AWAY = "away"
    TRIED = "tried"
    BUSY = "busy"
    ANSWERED = "answered"


class ProviderReport(NamedTuple):
    """What one process tells the others of a provider.

    seconds: of BUSY how long, of AWAY and TRIED the longest wait between two jobs that try it. reason, cause: see Hold.
    """

    provider: str
    state: ProviderState
    seconds: float = 0
    reason: str = ""
    cause: str = ""


class Avoided(NamedTuple):
    """What one process leaves to the others, because it alone could not reach some providers.

    lanes: whose jobs it does not claim. is_trying: it is to claim a single job now, which tries a provider.
    left_seconds: until the next such job, or None.
    """

    lanes: Sequence[str] = ()
    is_trying: bool = False
    left_seconds: float | None = None


class Holds(Protocol):
    """Which providers are not asked for now; hooks/breaker.py has it."""

    def reports(self) -> Sequence[ProviderReport]:
        """Return what this process has found and not told yet."""

    def avoid(self) -> Avoided:
        """Return what this process leaves to others now."""

    def begin_try(self) -> None:
        """A job was claimed that tries what `avoid` said."""

    def adopt(self, told: Sequence[ProviderReport], holds: Sequence[Hold]) -> None:
        """Take over all the holds there are, found by whatever process. told: the reports they contain."""
