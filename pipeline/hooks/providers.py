"""Asks the AI providers in use: the first of a photo's chain that may be asked and has an answer.

Every exception of a provider is logged once, with its trace, becomes a RetryableJobError or PermanentJobError, and
holds the provider where nobody else should ask it now (faults.py). Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, cast

import structlog

from pipeline.errors import ConfigurationError, JobError, PermanentJobError, RetryableJobError
from pipeline.hold import lane_behind
from pipeline.hooks import faults
from pipeline.hooks.breaker import SharedBreakers
from pipeline.hooks.calls import BoundPlugin
from pipeline.hooks.checks import cleaned, extra_fault, provenance_fault, result_fault
from pipeline.hooks.context import trace_of_call
from pipeline.hooks.limits import JPEG
from pipeline.hooks.pictures import Pictures
from pipeline.hooks.progress import Reporting, takes_progress
from pipeline.hooks.protocols import Analysis, AnalyzeRequest, Attribute
from pipeline.texts import cause_of
from pipeline.tracing import OFF, Tracing

if TYPE_CHECKING:
    from pipeline.sandbox.sandbox import Sandbox
    from pipeline.settings import Settings

log = structlog.get_logger(__name__)

ReadImage = Callable[[], Awaitable[bytes]]


class Witness(Protocol):
    """Is told how one analysis goes, to tell the owner of the photo."""

    def asked(self, provider: str) -> None:
        """A provider has been asked."""

    def reported(self, share: float | None, partial: Mapping[str, Attribute]) -> None:
        """The provider has done so much of it, and found so much."""


CONVERT_SECONDS = 30.0
# A provider that would have less time than this is not asked.
LEAST_SECONDS = 1.0
SERVICE = "AI service"


class Providers:
    """All AI providers that some category uses. holds: those that are not asked for now, to be shared."""

    def __init__(
        self,
        settings: Settings,
        providers: Mapping[str, BoundPlugin],
        tracing: Tracing = OFF,
        pictures: Pictures | None = None,
        sandbox: Sandbox | None = None,
    ) -> None:
        """providers: by name, all that settings.all_providers names. pictures: judges the images they made. sandbox:
        where photos are brought into a form that a provider takes.
        """
        self._settings = settings
        self._providers = providers
        self._tracing = tracing
        self._pictures = pictures or Pictures(settings)
        self._sandbox = sandbox
        self._reporting = {name for name, each in providers.items() if takes_progress(each.function("analyze"))}
        self._chains = _chains(settings, providers)
        # Where there is another to go to, failures in a row hold a provider, whatever they are.
        self._replaceable = {name for chain in self._chains.values() for name in chain[:-1]}
        breakers = {name: provider.breaker("analyze") for name, provider in providers.items()}
        self.holds = SharedBreakers(breakers, {**self._chains, **_chains_behind(self._chains, providers)})

    async def analyze(
        self,
        request: AnalyzeRequest,
        read_image: ReadImage,
        tries: str = "",
        witness: Witness | None = None,
        only: str = "",
    ) -> Analysis:
        """Return the checked result of the category's first provider that has one.

        The next provider is asked when one refuses the image for good, is held, or fails at the job's last attempt.
        read_image: awaited once if a provider wants the photo's bytes; what it raises is passed on. tries: the held
        provider that is to be asked all the same. witness: is told who is asked, and what that one reports. only: the
        provider that is asked instead of the category's.
        """
        # Some time is left for keeping the result.
        deadline = asyncio.get_running_loop().time() + self._settings.job_timeout_seconds * 0.95
        chain = self._chains.get(request.category, self._chains[""]) if not only else (only,)
        if only and only not in self._providers:
            raise PermanentJobError(f"The AI provider {only!r} is not in use any more")
        names = [name for name in chain if self._providers[name].limits.takes(request.category)]
        if not names:
            raise PermanentJobError(f"No AI provider takes photos of the category {request.category!r}")
        fault: JobError | None = None
        held: RetryableJobError | None = None
        photo = Photo(read_image, request.content_type, self._sandbox)
        has_asked = False
        for name in names:
            provider = self._providers[name]
            left = deadline - asyncio.get_running_loop().time()
            if has_asked and left < LEAST_SECONDS:
                # Also after a refusal: the one who was not asked may take the photo.
                raise RetryableJobError("AI service timed out") from fault or held
            if name == tries:
                provider.breaker("analyze").tries()
            elif not provider.lets_through("analyze"):
                held = held or faults.held(name, provider.breaker("analyze"))
                continue
            content, content_type = await photo.for_provider(provider, left)
            has_asked = True
            try:
                asked = replace(request, image=content, content_type=content_type)
                return await self._ask(provider, asked, left, witness)
            except (PermanentJobError, RetryableJobError) as error:
                if not self._goes_on(provider, error, request.attempt):
                    raise
                if isinstance(error, RetryableJobError) and not error.spends_attempt:
                    held = held or error
                else:
                    fault = error
                if name != names[-1]:
                    log.warning("provider_passed_over", plugin=name, error=error.message)
        raise _of_all(fault, held)

    def _goes_on(self, provider: BoundPlugin, error: JobError, attempt: int) -> bool:
        """Return whether the next provider, if there is one, is to be asked after that error."""
        if isinstance(error, PermanentJobError):
            return True
        assert isinstance(error, RetryableJobError)
        attempts = min(self._settings.job_attempts, error.max_attempts or self._settings.job_attempts)
        return provider.breaker("analyze").is_held or attempt >= attempts

    async def _ask(
        self, provider: BoundPlugin, request: AnalyzeRequest, left: float, witness: Witness | None
    ) -> Analysis:
        """Return the provider's result. left: seconds for all of it, waiting for a thread included."""
        seconds = min(self._settings.provider_timeout_seconds, left)
        reporting = Reporting(witness.reported) if witness is not None else Reporting()
        if witness is not None:
            witness.asked(provider.name)
        try:
            with self._tracing.call(provider.kind, provider.name, "analyze") as span:
                context = span.trace_context or request.trace_context
                asked = replace(request, timeout_seconds=seconds, trace_context=context)
                trace_of_call.set(context)
                keywords = {"progress": reporting} if provider.name in self._reporting else {}
                result = await provider.call(
                    "analyze", seconds, asked, wait_seconds=left - seconds, keywords=keywords
                )
                if fault := result_fault(result):
                    provider.count_error("analyze")
                    raise RetryableJobError("AI service sent an invalid result", max_attempts=2) from ValueError(fault)
        except Exception as raised:
            error = faults.job_error(raised, provider.name, SERVICE)
            names = {"plugin": provider.name, "category": request.category}
            log.warning("provider_failed", error=error.message, cause=cause_of(raised), exc_info=True, **names)
            faults.note(
                provider.breaker("analyze"), error, raised, counts=provider.name in self._replaceable
            )
            if error is raised:
                raise
            raise error from raised
        finally:
            reporting.end()
        provider.breaker("analyze").answered()
        analysis = _without_faults(provider, cast(Analysis, result))
        return cleaned(await self._pictures.kept(provider, "analyze", analysis))


class Photo:
    """The photo of one analysis, read once and brought once into the form that some providers take."""

    def __init__(self, read: ReadImage, content_type: str, sandbox: Sandbox | None) -> None:
        self._read = read
        self._content_type = content_type
        self._sandbox = sandbox
        self._content: bytes | None = None
        self._as_jpeg: bytes | None = None

    async def for_provider(self, provider: BoundPlugin, seconds: float) -> tuple[bytes | None, str]:
        """Return the bytes, None for a provider that does not want them, and what they are.

        seconds: how long it may take to convert them. PermanentJobError when they are no picture that can be read.
        """
        if not getattr(provider.plugin, "needs_image", False):
            return None, self._content_type
        if self._content is None:
            self._content = await self._read()
        if provider.limits.takes_type(self._content_type) or self._sandbox is None:
            return self._content, self._content_type
        if self._as_jpeg is None:
            part = min(CONVERT_SECONDS, seconds / 4)
            self._as_jpeg = await self._sandbox.reduce_to_jpeg(self._content, seconds=part, wait_seconds=part)
        return self._as_jpeg, JPEG


def _chains(settings: Settings, providers: Mapping[str, BoundPlugin]) -> Mapping[str, Sequence[str]]:
    """Return which providers each category's photos may be asked of, the first one first, "" for all other categories.

    ConfigurationError when one has none.
    """
    chains: dict[str, Sequence[str]] = {"": settings.providers}
    for category in dict.fromkeys((*settings.categories, *settings.ai_provider_by_category)):
        wanted = tuple(dict.fromkeys(settings.ai_provider_by_category.get(category, settings.providers)))
        chain = tuple(name for name in wanted if providers[name].limits.takes(category))
        if not chain:
            raise ConfigurationError(
                f"AI_PROVIDER: {', '.join(wanted)} takes no photos of the category {category!r}; name one that does in "
                "AI_PROVIDER_BY_CATEGORY, or leave the category out of CATEGORIES"
            )
        if chain != settings.providers or category in settings.ai_provider_by_category:
            chains[category] = chain
    return chains


def _chains_behind(
    chains: Mapping[str, Sequence[str]], providers: Mapping[str, BoundPlugin]
) -> Mapping[str, Sequence[str]]:
    """Return the same for jobs that wait until no other job is ready, and those that may ask one provider only."""
    alone = {lane_behind("", name): (name,) for name in providers}
    return {lane_behind(category): chain for category, chain in chains.items()} | alone


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
    error = RetryableJobError(held.message, spends_attempt=False)
    error.__cause__ = fault
    return error
