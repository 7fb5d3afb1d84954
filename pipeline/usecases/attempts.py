"""What is kept of one attempt at a photo: which provider was asked last, when, and how it ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.assets.asset import CAUSE, to_timestamp
from pipeline.clock import utc_now
from pipeline.hooks import Analysis, Attribute, Usage
from pipeline.hooks.job_protocols import NO_LISTENER, AnalysisListener
from pipeline.queue.job import Job

# The longest reason that is kept.
MAX_REASON_LENGTH = 300


class Attempt:
    """The AnalysisListener of one attempt, who tells another one as well."""

    def __init__(self, job: Job) -> None:
        self._number = job.attempt
        self._started_at = utc_now()
        self._next: AnalysisListener = NO_LISTENER
        self.provider: str | None = None
        self._analysis: Analysis | None = None

    def before(self, listener: AnalysisListener) -> Attempt:
        """Return itself, telling that listener from here on."""
        self._next = listener
        return self

    def asked(self, provider: str) -> None:
        """A provider has been asked."""
        self.provider = provider
        self._next.asked(provider)

    def reported(self, share: float | None, partial: Mapping[str, Attribute]) -> None:
        """The provider has done so much of it, and found so much."""
        self._next.reported(share, partial)

    def found(self, analysis: Analysis) -> None:
        """The provider has answered so."""
        self._analysis = analysis

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
            "model": (self._analysis.ai_model or None) if self._analysis else None,
            "outcome": outcome,
            "reason": reason[:MAX_REASON_LENGTH] if reason else None,
        }

    def provenance(self) -> dict[str, Any]:
        """Return where the result came from."""
        analysis = self._analysis or Analysis()
        return {
            "provider": self.provider,
            "model": analysis.ai_model or None,
            "promptVersion": analysis.prompt_version or None,
            "confidenceKind": analysis.confidence_kind if self._analysis else None,
            "usage": _shown(analysis.usage) if analysis.usage else None,
            "cached": analysis.is_cached,
        }


def _shown(usage: Usage) -> dict[str, Any]:
    return {
        "inputTokens": usage.input_tokens,
        "outputTokens": usage.output_tokens,
        "cost": usage.cost,
        "currency": usage.currency,
    }
