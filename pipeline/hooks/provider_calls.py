"""Calls one AI provider for one photo and checks its result.

Every exception of a provider is logged once, with its traceback, and becomes a RetryableJobError or PermanentJobError.
It holds the provider when no other job should call the provider now (faults.py). Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import structlog

from pipeline.errors import JobError, RetryableJobError
from pipeline.hooks import faults
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.checks import cleaned, extra_fault, provenance_fault, result_fault, usage_fault
from pipeline.hooks.context import trace_of_call
from pipeline.hooks.job_protocols import AnalysisListener, CallUsage
from pipeline.hooks.processed_images import ProcessedImages
from pipeline.hooks.progress import ProgressReports
from pipeline.hooks.provider_protocol import Analysis, AnalyzeRequest, Usage
from pipeline.hooks.usage import UsageCounters
from pipeline.tracing import Tracing

if TYPE_CHECKING:
    from pipeline.settings import Settings

log = structlog.get_logger(__name__)

SERVICE = "AI service"


class ProviderCalls:
    """Calls any provider in the same way."""

    def __init__(
        self,
        settings: Settings,
        tracing: Tracing,
        pictures: ProcessedImages,
        usage: UsageCounters,
        reporting: Collection[str],
        replaceable: Collection[str],
    ) -> None:
        """pictures: checks the images that providers made.
        usage: counts calls, tokens and money.
        reporting: the providers that report their progress.
        replaceable: the providers that have a next one: failures of any kind in a row hold them.
        """
        self.settings = settings
        self._tracing = tracing
        self._pictures = pictures
        self._usage = usage
        self._reporting = reporting
        self._replaceable = replaceable

    async def ask(
        self, provider: BoundPlugin, request: AnalyzeRequest, left: float, listener: AnalysisListener
    ) -> Analysis:
        """Return the provider's checked result; JobError when it has none.

        left: seconds for all of it, including the wait for a thread.
        """
        progress = ProgressReports(listener.reported)
        listener.asked(provider.name)
        try:
            result = await self._call(provider, request, left, progress)
        except Exception as raised:
            error = faults.job_error(raised, provider.name, SERVICE)
            names = {"plugin": provider.name, "category": request.category}
            cause = faults.cause_beside(error, raised)
            log.warning("provider_failed", error=error.message, cause=cause, exc_info=True, **names)
            counts = provider.name in self._replaceable
            faults.record_failure(provider.breaker("analyze"), error, raised, counts=counts)
            if error is raised:
                raise
            raise error from raised
        finally:
            progress.end()
        provider.breaker("analyze").answered()
        analysis = _without_faults(provider, result)
        analysis = cleaned(await self._pictures.without_refused(provider, "analyze", analysis))
        self._usage.count(provider.name, analysis.ai_model, analysis.usage)
        return analysis

    def failed_call_usage(self, provider: BoundPlugin, error: JobError) -> CallUsage | None:
        """Count the usage of a failed call that the AI service bills; None when the error has no usage."""
        usage = error.usage
        if usage is None:
            return None
        if fault := usage_fault(usage):
            provider.count_error("analyze")
            log.warning("provenance_refused", plugin=provider.name, reason=fault)
            return CallUsage(None)
        assert isinstance(usage, Usage)
        self._usage.count(provider.name, str(getattr(provider.plugin, "model_name", "")), usage)
        fields = {"inputTokens": usage.input_tokens, "outputTokens": usage.output_tokens, "currency": usage.currency}
        log.info("refused_answer_paid", plugin=provider.name, cost=usage.cost, **fields)
        return CallUsage(usage)

    async def _call(
        self, provider: BoundPlugin, request: AnalyzeRequest, left: float, progress: ProgressReports
    ) -> Analysis:
        seconds = min(self.settings.provider_timeout_seconds, left)
        keywords: dict[str, Any] = {"progress": progress} if provider.name in self._reporting else {}
        with self._tracing.call(provider.kind, provider.name, "analyze") as span:
            context = span.trace_context or request.trace_context
            bounded = replace(request, timeout_seconds=seconds, trace_context=context)
            trace_of_call.set(context)
            result = await provider.call("analyze", seconds, bounded, wait_seconds=left - seconds, keywords=keywords)
            return analysis_of(provider, result)


def analysis_of(provider: BoundPlugin, result: object) -> Analysis:
    """Return the result of `analyze` if it is a valid analysis; else a RetryableJobError that has its usage."""
    if fault := result_fault(result):
        provider.count_error("analyze")
        usage = result.usage if isinstance(result, Analysis) else None
        invalid = RetryableJobError("AI service sent an invalid result", max_attempts=2, usage=usage)
        raise invalid from ValueError(fault)
    return cast(Analysis, result)


def _without_faults(provider: BoundPlugin, analysis: Analysis) -> Analysis:
    """Return the analysis without an invalid `extra` and without an invalid provenance.

    Each of them is logged and counts as an error of the provider; brand, model and colorway stand.
    """
    extra, faults = analysis.extra, []
    if fault := extra_fault(extra):
        extra, faults = {}, [fault]
    else:
        extra, faults = provider.limits.split_extra(extra)
    if faults:
        provider.count_error("analyze")
        log.warning("extra_refused", plugin=provider.name, reason="; ".join(faults))
        analysis = replace(analysis, extra=extra)
    if fault := provenance_fault(analysis):
        provider.count_error("analyze")
        log.warning("provenance_refused", plugin=provider.name, reason=fault)
        analysis = replace(analysis, usage=None, ai_model="", prompt_version="", confidence_kind="none")
    return analysis
