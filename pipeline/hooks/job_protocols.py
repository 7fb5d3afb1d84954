"""What the job brings to its analysis: who is told how it goes, and what allows its calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import BudgetReached, RetryableJobError
from pipeline.hooks.provider_protocol import Analysis, Attribute, Usage


class AnalysisListener(Protocol):
    """Is told how one analysis goes, to tell the owner of the photo."""

    def asked(self, provider: str) -> None:
        """A provider has been asked."""

    def reported(self, share: float | None, partial: Mapping[str, Attribute]) -> None:
        """The provider has done so much of it, and found so much."""


@dataclass(frozen=True, slots=True)
class CallUsage:
    """What one call took, as far as the provider has told. usage: None when what it told cannot be."""

    usage: Usage | None


class Permit(Protocol):
    """Says whether one job may call a provider now, beside the provider itself; usecases/permits.py has it."""

    async def earlier_answer(self, provider: str) -> Analysis | None:
        """Return what the provider has answered before to the same photo, None when that is not known."""

    async def store_partial(self, provider: str, analysis: Analysis) -> None:
        """Keep an answer that leaves something open for when the job can ask the next stage: then it is `known`."""

    async def allow(self, provider: str) -> BudgetReached | None:
        """Return None when the job may ask the provider at all today, else why not."""

    async def begin(self, provider: str, *, waits: bool) -> RetryableJobError | None:
        """Return when the provider may be called or, in seconds at most, why not. waits: False where another provider
        can be asked instead.
        """

    async def end(self, provider: str, analysis: Analysis | None, spent: CallUsage | None = None) -> None:
        """The call has ended, with that answer or with none. spent: what a call without a usable answer took."""


class NoListener:
    """Tells nobody."""

    def asked(self, provider: str) -> None:
        """See AnalysisListener."""

    def reported(self, share: float | None, partial: Mapping[str, Attribute]) -> None:
        """See AnalysisListener."""


class NoLimits:
    """The permit where nothing limits a job."""

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

    async def end(self, provider: str, analysis: Analysis | None, spent: CallUsage | None = None) -> None:
        """See Permit."""


NO_LISTENER, NO_LIMITS = NoListener(), NoLimits()
