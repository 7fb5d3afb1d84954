"""Asks AI providers for one photo: one provider, and the stages of a cascade one after the other.

Every exception of a provider is logged once, with its trace, becomes a RetryableJobError or PermanentJobError, and
holds the provider where nobody else should ask it now (faults.py). Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import structlog

from pipeline.errors import BudgetReached, JobError, PermanentJobError, RetryableJobError
from pipeline.hooks import faults
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.cascades import Cascade
from pipeline.hooks.checks import cleaned, extra_fault, provenance_fault, result_fault, usage_fault
from pipeline.hooks.context import trace_of_call
from pipeline.hooks.job_protocols import Permit, CallUsage, AnalysisListener
from pipeline.hooks.photo import Photo
from pipeline.hooks.processed_images import ProcessedImages
from pipeline.hooks.progress import ProgressReports
from pipeline.hooks.protocols import Analysis, AnalyzeRequest, Attribute, Usage
from pipeline.hooks.usage import UsageCounters
from pipeline.tracing import Tracing

if TYPE_CHECKING:
    from pipeline.settings import Settings

log = structlog.get_logger(__name__)

# A provider that would have less time than this is not asked.
LEAST_SECONDS = 1.0
SERVICE = "AI service"


class ProviderCalls:
    """How one provider is asked, whichever it is."""

    def __init__(
        self,
        settings: Settings,
        tracing: Tracing,
        pictures: ProcessedImages,
        usage: UsageCounters,
        reporting: Collection[str],
        replaceable: Collection[str],
    ) -> None:
        """pictures: judges the images that providers made.
        usage: counts what the answers took.
        reporting: providers that say how far they are.
        replaceable: providers behind which there is another: failures in a row hold them, whatever they are.
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

        left: seconds for all of it, waiting for a thread included.
        """
        reporting = ProgressReports(listener.reported)
        listener.asked(provider.name)
        try:
            result = await self._called(provider, request, left, reporting)
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
            reporting.end()
        provider.breaker("analyze").answered()
        analysis = _without_faults(provider, result)
        analysis = cleaned(await self._pictures.without_refused(provider, "analyze", analysis))
        self._usage.count(provider.name, analysis.ai_model, analysis.usage)
        return analysis

    def spent(self, provider: BoundPlugin, error: JobError) -> CallUsage | None:
        """Count what a call took that ended with an error and was billed all the same; None when it tells nothing."""
        usage = error.usage
        if usage is None:
            return None
        if fault := usage_fault(usage):
            provider.count_error("analyze")
            log.warning("provenance_refused", plugin=provider.name, reason=fault)
            return CallUsage(None)
        assert isinstance(usage, Usage)
        self._usage.count(provider.name, str(getattr(provider.plugin, "model_name", "")), usage)
        told = {"inputTokens": usage.input_tokens, "outputTokens": usage.output_tokens, "currency": usage.currency}
        log.info("refused_answer_paid", plugin=provider.name, cost=usage.cost, **told)
        return CallUsage(usage)

    async def _called(
        self, provider: BoundPlugin, request: AnalyzeRequest, left: float, reporting: ProgressReports
    ) -> Analysis:
        seconds = min(self.settings.provider_timeout_seconds, left)
        keywords: dict[str, Any] = {"progress": reporting} if provider.name in self._reporting else {}
        with self._tracing.call(provider.kind, provider.name, "analyze") as span:
            context = span.trace_context or request.trace_context
            asked = replace(request, timeout_seconds=seconds, trace_context=context)
            trace_of_call.set(context)
            result = await provider.call("analyze", seconds, asked, wait_seconds=left - seconds, keywords=keywords)
            return analysis_of(provider, result)


class CascadeRun:
    """One analysis: what the providers that were asked have answered, and why others were not asked."""

    def __init__(
        self,
        calls: ProviderCalls,
        request: AnalyzeRequest,
        photo: Photo,
        *,
        tries: str,
        listener: AnalysisListener,
        permit: Permit,
    ) -> None:
        """Arguments: see Providers.analyze."""
        self._calls = calls
        self._request = request
        self._photo = photo
        self._tries = tries
        self._listener = listener
        self._permit = permit
        # Some time is left for keeping the result.
        self._deadline = asyncio.get_running_loop().time() + calls.settings.job_timeout_seconds * 0.95
        self._has_asked = False
        self._last = ""  # of whom the listener was told
        self._best: tuple[Analysis, str] | None = None
        # Of the last one that tried the work, and of the first one that did not, because it is held or could not.
        self._fault: JobError | None = None
        self._held: RetryableJobError | None = None

    async def through(self, cascade: Cascade, providers: Mapping[str, BoundPlugin]) -> Analysis:
        """Return the fullest answer of the cascade's providers; JobError when none has one."""
        for stage in cascade:
            if await self._is_over(stage, providers, is_last=stage is cascade[-1]):
                break
        if self._best is None:
            raise _of_all(self._fault, self._held)
        analysis, name = self._best
        if name != self._last:
            self._listener.asked(name)
        return analysis

    async def _is_over(self, stage: Sequence[str], providers: Mapping[str, BoundPlugin], *, is_last: bool) -> bool:
        """Ask the stage's providers until one has an answer. Return whether no further stage is to be asked."""
        for name in stage:
            if self._has_asked and self._left_seconds < LEAST_SECONDS:
                if self._best is not None:
                    return True
                # Also after a refusal: the one who was not asked may take the photo.
                raise RetryableJobError("AI service timed out") from self._fault or self._held
            if (known := await self._permit.earlier_answer(name)) is not None:
                self._tell_asked(name)
                self._best = _fuller(self._best, (known, name))
                return _is_complete(self._best[0])
            is_behind = is_last and name == stage[-1]
            found = await self._try(providers[name], waits=name == stage[-1], is_last=is_behind)
            if found is not None:
                self._best = _fuller(self._best, (found, name))
                return _is_complete(self._best[0])
        return False

    async def _try(self, provider: BoundPlugin, *, waits: bool, is_last: bool) -> Analysis | None:
        """Return the provider's answer, None when another may be asked instead.

        waits: for its turn. is_last: there is no other.
        """
        if refusal := await self._refusal(provider):
            self._held = self._held or refusal
            return None
        content, content_type = await self._photo.for_provider(provider, self._left_seconds)
        request = self._request
        if content is not None:
            request = replace(request, image=content, content_type=content_type)
        if refusal := await self._permit.begin(provider.name, waits=waits):
            if self._best is not None:
                await self._permit.store_partial(self._best[1], self._best[0])
                raise refusal
            self._held = self._held or refusal
            return None
        self._has_asked, self._last, found = True, provider.name, None
        spent: CallUsage | None = None
        try:
            found = await self._calls.ask(provider, request, self._left_seconds, self._listener)
        except (PermanentJobError, RetryableJobError) as error:
            spent = self._calls.spent(provider, error)
            if self._best is None and not self._goes_on(provider, error):
                raise
            self._note(error)
            if not is_last:
                log.warning("provider_passed_over", plugin=provider.name, error=error.message)
        finally:
            await self._permit.end(provider.name, found, spent)
        return found

    async def _refusal(self, provider: BoundPlugin) -> RetryableJobError | None:
        """Return why the provider is not to be asked now, None when it is."""
        breaker = provider.breaker("analyze")
        if spent := await self._permit.allow(provider.name):
            if spent.provider and not breaker.is_held:
                breaker.busy(spent.retry_after_seconds or 0, spent.message)
            return spent
        if provider.name == self._tries:
            breaker.tries()
        elif not provider.lets_through("analyze"):
            return faults.held_error(provider.name, breaker)
        return None

    def _goes_on(self, provider: BoundPlugin, error: JobError) -> bool:
        """Return whether the next provider, if there is one, is to be asked after that error."""
        if isinstance(error, PermanentJobError):
            return True
        assert isinstance(error, RetryableJobError)
        attempts = self._calls.settings.job_attempts
        attempts = min(attempts, error.max_attempts or attempts)
        return provider.breaker("analyze").is_held or self._request.attempt >= attempts

    def _note(self, error: JobError) -> None:
        if isinstance(error, RetryableJobError) and not error.spends_attempt:
            self._held = self._held or error
        else:
            self._fault = error

    def _tell_asked(self, name: str) -> None:
        self._last = name
        self._listener.asked(name)

    @property
    def _left_seconds(self) -> float:
        return self._deadline - asyncio.get_running_loop().time()


def analysis_of(provider: BoundPlugin, result: object) -> Analysis:
    """Return what the provider's `analyze` returned, if it is an analysis; else RetryableJobError, which tells what it
    took all the same.
    """
    if fault := result_fault(result):
        provider.count_error("analyze")
        usage = result.usage if isinstance(result, Analysis) else None
        invalid = RetryableJobError("AI service sent an invalid result", max_attempts=2, usage=usage)
        raise invalid from ValueError(fault)
    return cast(Analysis, result)


def _known(*attributes: Attribute | None) -> int:
    return sum(bool(each and each.value) for each in attributes)


def _fuller(before: tuple[Analysis, str] | None, found: tuple[Analysis, str]) -> tuple[Analysis, str]:
    """Return the answer in which more is known, the later one of two that tell as much."""
    if before is None:
        return found
    known = [_known(each.brand, each.model, each.colorway) for each in (before[0], found[0])]
    return before if known[0] > known[1] else found


def _is_complete(analysis: Analysis) -> bool:
    return _known(analysis.brand, analysis.model) == 2


def _without_faults(provider: BoundPlugin, analysis: Analysis) -> Analysis:
    """Return the analysis without what it cannot tell so, beside what is in the photo: an `extra` that cannot be kept,
    or how it came about. Each is logged and counted as an error of the provider.
    """
    extra, faults = analysis.extra, []
    if fault := extra_fault(extra):
        extra, faults = {}, [fault]
    else:
        extra, faults = provider.limits.extra_of(extra)
    if faults:
        provider.count_error("analyze")
        log.warning("extra_refused", plugin=provider.name, reason="; ".join(faults))
        analysis = replace(analysis, extra=extra)
    if fault := provenance_fault(analysis):
        provider.count_error("analyze")
        log.warning("provenance_refused", plugin=provider.name, reason=fault)
        analysis = replace(analysis, usage=None, ai_model="", prompt_version="", confidence_kind="none")
    return analysis


def _of_all(fault: JobError | None, held: RetryableJobError | None) -> JobError:
    """Return what a chain comes to that has no answer. fault: of the last one that tried the work; held: of the first
    one that did not, because it is held or could not.
    """
    if fault is None or held is None:
        error = fault or held
        assert error is not None
        return error
    # Who has not tried may take the photo. Nobody else waits for that, so the error names no provider.
    kind = BudgetReached if isinstance(held, BudgetReached) else RetryableJobError
    error = kind(held.message, spends_attempt=False)
    error.__cause__ = fault
    return error
