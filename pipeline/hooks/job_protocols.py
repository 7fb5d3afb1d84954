"""The two objects that a job passes to its analysis: the listener of its progress and the permit for its calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import BudgetReached, RetryableJobError
from pipeline.hooks.provider_protocol import Analysis, Attribute, Usage


class AnalysisListener(Protocol):
    """Gets the progress of one analysis, for the owner of the photo."""

    def asked(self, provider: str) -> None:
        """A provider is being asked."""

    def reported(self, share: float | None, partial: Mapping[str, Attribute]) -> None:
        """The provider reported its progress: the share that is done, and the results so far."""


@dataclass(frozen=True, slots=True)
class CallUsage:
    """The usage of one failed call.

    usage: None when the provider reported an invalid one.
    """

    usage: Usage | None


class Permit(Protocol):
    """Decides whether one job may call a provider now, by budget, rate and earlier answers (usecases/permits.py)."""

    async def earlier_answer(self, provider: str) -> Analysis | None:
        """Return the provider's earlier answer to the same photo, None when there is none."""

    async def store_partial(self, provider: str, analysis: Analysis) -> None:
        """Store an incomplete answer until the job can ask the next stage; `earlier_answer` returns it then."""

    async def allow(self, provider: str) -> BudgetReached | None:
        """Return None while the budget of the provider allows a call, else the error."""

    async def begin(self, provider: str, *, waits: bool) -> RetryableJobError | None:
        """Wait until the rate of the provider allows a call. Return None then, or the error after some seconds.

        waits: False when another provider can be asked instead: then it does not wait.
        """

    async def end(self, provider: str, analysis: Analysis | None, failed_usage: CallUsage | None = None) -> None:
        """The call has ended.

        analysis: its answer, None without a usable one.
        failed_usage: the usage of a call without a usable answer.
        """


class NoListener:
    """A listener that ignores everything."""

    def asked(self, provider: str) -> None:
        """See AnalysisListener."""

    def reported(self, share: float | None, partial: Mapping[str, Attribute]) -> None:
        """See AnalysisListener."""


class NoLimits:
    """The permit of a job without limits."""

    async def earlier_answer(self, provider: str) -> Analysis | None:
        """See Permit."""
        return None

    async def store_partial(self, provider: str, analysis: Analysis) -> None:
        """See Permit."""

    async def allow(self, provider: str) -> BudgetReached | None:
        """See Permit."""
        return None

    async def begin(self, provider: str, *, waits: bool) -> RetryableJobError | None:
        """See Permit."""
        return None

    async def end(self, provider: str, analysis: Analysis | None, failed_usage: CallUsage | None = None) -> None:
        """See Permit."""


NO_LISTENER, NO_LIMITS = NoListener(), NoLimits()
