"""Asks the stages of a cascade for one photo, one after the other, until an answer is complete. Runs on the event
loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog

from pipeline.errors import BudgetReached, JobError, PermanentJobError, RetryableJobError
from pipeline.hooks import faults
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.cascades import Cascade
from pipeline.hooks.job_protocols import AnalysisListener, CallUsage, Permit
from pipeline.hooks.photo import Photo
from pipeline.hooks.provider_calls import ProviderCalls
from pipeline.hooks.provider_protocol import Analysis, AnalyzeRequest, Attribute

log = structlog.get_logger(__name__)

# A provider that would have less time than this is not asked.
LEAST_SECONDS = 1.0
# Of the job's time; the rest is for storing the result.
ANALYSIS_SHARE = 0.95


class CascadeRun:
    """One analysis: the answers of the providers that were asked, and the reasons why others were not asked."""

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
        self._deadline = asyncio.get_running_loop().time() + calls.settings.job_timeout_seconds * ANALYSIS_SHARE
        self._has_asked = False
        self._last_asked = ""  # the provider that the listener knows as the last one
        self._best: tuple[Analysis, str] | None = None
        # The error of the last provider that did work on the photo.
        self._fault: JobError | None = None
        # The error of the first provider that did not: it is held or could not be called.
        self._held: RetryableJobError | None = None

    async def run(self, cascade: Cascade, providers: Mapping[str, BoundPlugin]) -> Analysis:
        """Return the fullest answer of the cascade's providers; JobError when none has one."""
        for stage in cascade:
            if await self._ends_with(stage, providers, is_last=stage is cascade[-1]):
                break
        if self._best is None:
            raise _final_error(self._fault, self._held)
        analysis, name = self._best
        if name != self._last_asked:
            self._listener.asked(name)
        return analysis

    async def _ends_with(self, stage: Sequence[str], providers: Mapping[str, BoundPlugin], *, is_last: bool) -> bool:
        """Ask the stage's providers until one has an answer. Return whether the analysis ends with this stage."""
        for name in stage:
            if self._has_asked and self._left_seconds < LEAST_SECONDS:
                if self._best is not None:
                    return True
                # Also after a refusal: the provider that was not asked may accept the photo.
                raise RetryableJobError("AI service timed out") from self._fault or self._held
            if (earlier := await self._permit.earlier_answer(name)) is not None:
                self._last_asked = name
                self._listener.asked(name)
                self._best = _fuller(self._best, (earlier, name))
                return _is_complete(self._best[0])
            is_final = is_last and name == stage[-1]
            analysis = await self._try(providers[name], waits=name == stage[-1], is_last=is_final)
            if analysis is not None:
                self._best = _fuller(self._best, (analysis, name))
                return _is_complete(self._best[0])
        return False

    async def _try(self, provider: BoundPlugin, *, waits: bool, is_last: bool) -> Analysis | None:
        """Return the provider's answer, None when another provider may be asked instead.

        waits: until the provider's rate allows a call.
        is_last: no other provider follows.
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
        self._has_asked, self._last_asked = True, provider.name
        analysis: Analysis | None = None
        failed_usage: CallUsage | None = None
        try:
            analysis = await self._calls.ask(provider, request, self._left_seconds, self._listener)
        except (PermanentJobError, RetryableJobError) as error:
            failed_usage = self._calls.failed_call_usage(provider, error)
            if self._best is None and not self._may_ask_next(provider, error):
                raise
            self._remember(error)
            if not is_last:
                log.warning("provider_passed_over", plugin=provider.name, error=error.message)
        finally:
            await self._permit.end(provider.name, analysis, failed_usage)
        return analysis

    async def _refusal(self, provider: BoundPlugin) -> RetryableJobError | None:
        """Return why the provider is not to be asked now, None when it may be asked."""
        breaker = provider.breaker("analyze")
        if reached := await self._permit.allow(provider.name):
            if reached.provider and not breaker.is_held:
                breaker.busy(reached.retry_after_seconds or 0, reached.message)
            return reached
        if provider.name == self._tries:
            breaker.tries()
        elif not provider.lets_through("analyze"):
            return faults.held_error(provider.name, breaker)
        return None

    def _may_ask_next(self, provider: BoundPlugin, error: JobError) -> bool:
        """Return whether the next provider, if there is one, is to be asked after that error."""
        if isinstance(error, PermanentJobError):
            return True
        assert isinstance(error, RetryableJobError)
        attempts = self._calls.settings.job_attempts
        attempts = min(attempts, error.max_attempts or attempts)
        return provider.breaker("analyze").is_held or self._request.attempt >= attempts

    def _remember(self, error: JobError) -> None:
        if isinstance(error, RetryableJobError) and not error.spends_attempt:
            self._held = self._held or error
        else:
            self._fault = error

    @property
    def _left_seconds(self) -> float:
        return self._deadline - asyncio.get_running_loop().time()


def _known_values(*attributes: Attribute | None) -> int:
    return sum(bool(attribute and attribute.value) for attribute in attributes)


def _fuller(before: tuple[Analysis, str] | None, later: tuple[Analysis, str]) -> tuple[Analysis, str]:
    """Return the answer with more known values, the later one of two that have equally many."""
    if before is None:
        return later
    values = [_known_values(each.brand, each.model, each.colorway) for each in (before[0], later[0])]
    return before if values[0] > values[1] else later


def _is_complete(analysis: Analysis) -> bool:
    return _known_values(analysis.brand, analysis.model) == 2


def _final_error(fault: JobError | None, held: RetryableJobError | None) -> JobError:
    """Return the error of an analysis without an answer.

    fault: of the last provider that did work on the photo.
    held: of the first provider that did not.
    """
    if fault is None or held is None:
        error = fault or held
        assert error is not None
        return error
    # The provider that was not asked may accept the photo. No other job waits for that, so the error names no provider.
    kind = BudgetReached if isinstance(held, BudgetReached) else RetryableJobError
    error = kind(held.message, spends_attempt=False)
    error.__cause__ = fault
    return error
