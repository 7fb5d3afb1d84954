"""What is kept of one attempt at a photo: which provider was asked last, when, and how it ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.assets.asset import CAUSE, to_timestamp
from pipeline.clock import utc_now
from pipeline.hooks import Attribute
from pipeline.hooks.providers import Witness
from pipeline.queue.job import Job

# The longest reason that is kept.
MAX_REASON_LENGTH = 300


class Attempt:
    """The Witness of one attempt, who tells another one as well."""

    def __init__(self, job: Job) -> None:
        self._number = job.attempt
        self._started_at = utc_now()
        self._next: Witness | None = None
        self.provider: str | None = None

    def before(self, witness: Witness | None) -> Attempt:
        """Return itself, telling that witness from here on."""
        self._next = witness
        return self

    def asked(self, provider: str) -> None:
        """A provider has been asked."""
        self.provider = provider
        if self._next is not None:
            self._next.asked(provider)

    def reported(self, share: float | None, partial: Mapping[str, Attribute]) -> None:
        """The provider has done so much of it, and found so much."""
        if self._next is not None:
            self._next.reported(share, partial)

    def ended(self, outcome: str, reason: str | None = None, cause: str | None = None) -> dict[str, Any]:
        """Return it as the asset keeps it.

        outcome: completed | failed.
        cause: what was behind the reason, for operators.
        """
        behind = {CAUSE: cause} if cause else {}
        return behind | {
            "attempt": self._number,
            "startedAt": to_timestamp(self._started_at),
            "endedAt": to_timestamp(utc_now()),
            "provider": self.provider,
            "model": None,
            "outcome": outcome,
            "reason": reason[:MAX_REASON_LENGTH] if reason else None,
        }

    def provenance(self) -> dict[str, Any]:
        """Return where the result came from."""
        return {
            "provider": self.provider,
            "model": None,
            "promptVersion": None,
            "confidenceKind": None,
            "usage": None,
        }
