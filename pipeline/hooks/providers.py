"""Asks the AI providers in use: the first of a photo's chain that may be asked and has an answer; in a cascade one of
each stage, until an answer is complete.

Every exception of a provider is logged once, with its trace, becomes a RetryableJobError or PermanentJobError, and
holds the provider where nobody else should ask it now (faults.py). Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

import structlog

from pipeline.errors import BudgetReached, ConfigurationError, JobError, PermanentJobError, RetryableJobError
from pipeline.hold import lane_behind
from pipeline.hooks import faults
from pipeline.hooks.breaker import SharedBreakers
from pipeline.hooks.calls import BoundPlugin
from pipeline.hooks.checks import cleaned, extra_fault, provenance_fault, result_fault, usage_fault
from pipeline.hooks.context import trace_of_call
from pipeline.hooks.limits import JPEG
from pipeline.hooks.pictures import Pictures
from pipeline.hooks.progress import Reporting, takes_progress
from pipeline.hooks.protocols import Analysis, AnalyzeRequest, Attribute, Usage
from pipeline.hooks.usage import UsageCounts
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


@dataclass(frozen=True, slots=True)
class Spent:
    """What one call took, as far as the provider has told. usage: None when what it told cannot be."""

    usage: Usage | None


class Permit(Protocol):
    """Says whether one job may call a provider now, beside the provider itself; usecases/permits.py has it."""

    async def known(self, provider: str) -> Analysis | None:
        """Return what the provider has answered before to the same photo, None when that is not known."""

    async def put_by(self, provider: str, analysis: Analysis) -> None:
        """Keep an answer that leaves something open for when the job can ask the next stage: then it is `known`."""

    async def allow(self, provider: str) -> BudgetReached | None:
        """Return None when the job may ask the provider at all today, else why not."""

    async def begin(self, provider: str, *, waits: bool) -> RetryableJobError | None:
        """Return when the provider may be called or, in seconds at most, why not. waits: False where another provider
        can be asked instead.
        """

    async def end(self, provider: str, analysis: Analysis | None, spent: Spent | None = None) -> None:
        """The call has ended, with that answer or with none. spent: what a call without a usable answer took."""


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
        usage: UsageCounts | None = None,
    ) -> None:
        """providers: by name, all that settings.all_providers names. pictures: judges the images they made. sandbox:
        where photos are brought into a form that a provider takes. usage: counts what the answers took.
        """
        self._settings = settings
        self._providers = providers
        self._tracing = tracing
        self._pictures = pictures or Pictures(settings)
        self._sandbox = sandbox
        self._usage = usage
        self._reporting = {name for name, each in providers.items() if takes_progress(each.function("analyze"))}
        self._cascades = _cascades(settings, providers)
        # What is left for each category that was asked for: few, as an asset's category was one of CATEGORIES once.
        self._taken: dict[str, Sequence[Sequence[str]]] = {}
        self._chains = {category: _flat(cascade) for category, cascade in self._cascades.items()}
        # Where there is another to go to, failures in a row hold a provider, whatever they are.
        self._replaceable = {name for chain in self._chains.values() for name in chain[:-1]}
        breakers = {name: provider.breaker("analyze") for name, provider in providers.items()}
        alone = {lane_behind("", name): (name,) for name in providers}
        self.holds = SharedBreakers(breakers, {**self._chains, **_behind_others(self._chains), **alone})
        # Which AI model and prompt each declares.
        self.versions = {name: _versions(each.plugin) for name, each in providers.items()}
        # What costs nothing needs no budget.
        self.free = {name for name, each in providers.items() if getattr(each.plugin, "cost", None) == 0}
        # Who is asked later on about photos of each category, at most once for each photo.
        behind = {category: _flat(cascade[1:]) for category, cascade in self._cascades.items()}
        self.behind: Mapping[str, Sequence[str]] = {**behind, **_behind_others(behind), **dict.fromkeys(alone, ())}
        self.paces = {name: pace for name, each in providers.items() if (pace := each.limits.pace) is not None}

    async def analyze(
        self,
        request: AnalyzeRequest,
        read_image: ReadImage,
        tries: str = "",
        witness: Witness | None = None,
        permit: Permit | None = None,
        only: str = "",
    ) -> Analysis:
        """Return the checked result of the category's first provider that has one.

        The next provider is asked when one refuses the image for good, is held, or fails at the job's last attempt;
        one of the next stage also when there is no complete answer yet. Of several the fullest is returned.
        read_image: awaited once if a provider wants the photo's bytes; what it raises is passed on. tries: the held
        provider that is to be asked all the same. witness: is told who is asked, and what that one reports.
        permit: lets the job call each provider, None where nothing limits that.
        only: the provider that is asked instead of the category's.
        """
        # Some time is left for keeping the result.
        deadline = asyncio.get_running_loop().time() + self._settings.job_timeout_seconds * 0.95
        stages = self._stages(request.category, only)
        best: tuple[Analysis, str] | None = None
        answered: Sequence[str] = ()
        fault: JobError | None = None
        held: RetryableJobError | None = None
        photo = Photo(read_image, request.content_type, self._sandbox)
        has_asked = False
        for stage, name in ((stage, name) for stage in stages for name in stage):
            if stage is answered:
                continue
            provider = self._providers[name]
            left = deadline - asyncio.get_running_loop().time()
            if has_asked and left < LEAST_SECONDS:
                if best is not None:
                    break
                # Also after a refusal: the one who was not asked may take the photo.
                raise RetryableJobError("AI service timed out") from fault or held
            found = await permit.known(name) if permit is not None else None
            if found is not None:
                if witness is not None:
                    witness.asked(name)
                best, answered = _fuller(best, (found, name)), stage
                if stage is stages[-1] or _known(best[0].brand, best[0].model) == 2:
                    break
                continue
            if refusal := await self._refusal(provider, permit, name == tries):
                held = held or refusal
                continue
            content, content_type = await photo.for_provider(provider, left)
            if permit is not None:
                if refusal := await permit.begin(name, waits=name == stage[-1]):
                    if best is not None:
                        await permit.put_by(best[1], best[0])
                        raise refusal
                    held = held or refusal
                    continue
                left = deadline - asyncio.get_running_loop().time()
            has_asked, found, spent = True, None, None
            try:
                asked = request
                if content is not None:
                    asked = replace(request, image=content, content_type=content_type)
                found = await self._ask(provider, asked, left, witness)
                best, answered = _fuller(best, (found, name)), stage
                if stage is stages[-1] or _known(best[0].brand, best[0].model) == 2:
                    break
            except (PermanentJobError, RetryableJobError) as error:
                spent = self._spent(provider, error)
                if best is None and not self._goes_on(provider, error, request.attempt):
                    raise
                if isinstance(error, RetryableJobError) and not error.spends_attempt:
                    held = held or error
                else:
                    fault = error
                if name != stages[-1][-1]:
                    log.warning("provider_passed_over", plugin=name, error=error.message)
            finally:
                if permit is not None:
                    await permit.end(name, found, spent)
        if best is None:
            raise _of_all(fault, held)
        if witness is not None and best[1] != name:
            witness.asked(best[1])
        return best[0]

    def _stages(self, category: str, only: str = "") -> Sequence[Sequence[str]]:
        """Return the cascade for photos of that category; PermanentJobError when nobody takes them."""
        if only and only not in self._providers:
            raise PermanentJobError(f"The AI provider {only!r} is not in use any more")
        if only and self._providers[only].limits.takes(category):
            return ((only,),)
        if only:
            raise PermanentJobError(f"The AI provider {only!r} takes no photos of the category {category!r}")
        if category not in self._taken:
            self._taken[category] = _taking(category, self._cascades.get(category, self._cascades[""]), self._providers)
        if stages := self._taken[category]:
            return stages
        raise PermanentJobError(f"No AI provider takes photos of the category {category!r}")

    async def _refusal(self, provider: BoundPlugin, permit: Permit | None, tries: bool) -> RetryableJobError | None:
        """Return why the provider is not to be asked now, None when it is. tries: though it is held."""
        breaker = provider.breaker("analyze")
        if permit is not None and (over := await permit.allow(provider.name)):
            if over.provider and not breaker.is_held:
                breaker.busy(over.retry_after_seconds or 0, over.message)
            return over
        if tries:
            breaker.tries()
        elif not provider.lets_through("analyze"):
            return faults.held(provider.name, breaker)
        return None

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
                    usage = result.usage if isinstance(result, Analysis) else None
                    invalid = RetryableJobError("AI service sent an invalid result", max_attempts=2, usage=usage)
                    raise invalid from ValueError(fault)
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
        analysis = cleaned(await self._pictures.kept(provider, "analyze", analysis))
        if self._usage is not None:
            self._usage.count(provider.name, analysis.ai_model, analysis.usage)
        return analysis

    def _spent(self, provider: BoundPlugin, error: JobError) -> Spent | None:
        """Count what a call took that ended with an error and was billed all the same; None when it tells nothing."""
        usage = error.usage
        if usage is None:
            return None
        if fault := usage_fault(usage):
            provider.count_error("analyze")
            log.warning("provenance_refused", plugin=provider.name, reason=fault)
            return Spent(None)
        assert isinstance(usage, Usage)
        if self._usage is not None:
            self._usage.count(provider.name, self.versions[provider.name][0], usage)
        told = {"inputTokens": usage.input_tokens, "outputTokens": usage.output_tokens, "currency": usage.currency}
        log.info("refused_answer_paid", plugin=provider.name, cost=usage.cost, **told)
        return Spent(usage)


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


def _versions(plugin: object) -> tuple[str, str]:
    return str(getattr(plugin, "model_name", "")), str(getattr(plugin, "prompt_version", ""))


def _cascades(settings: Settings, providers: Mapping[str, BoundPlugin]) -> Mapping[str, Sequence[Sequence[str]]]:
    """Return the stages of providers that each category's photos may be asked of, "" for all other categories.

    ConfigurationError when one has none.
    """
    cascades: dict[str, Sequence[Sequence[str]]] = {"": settings.cascade("")}
    for category in dict.fromkeys((*settings.categories, *settings.ai_provider_by_category)):
        wanted = settings.cascade(category)
        cascade = _taking(category, wanted, providers)
        if not cascade:
            raise ConfigurationError(
                f"AI_PROVIDER: {', '.join(_flat(wanted))} takes no photos of the category {category!r}; name one that "
                "does in AI_PROVIDER_BY_CATEGORY, or leave the category out of CATEGORIES"
            )
        if cascade != cascades[""] or category in settings.ai_provider_by_category:
            cascades[category] = cascade
    return cascades


def _taking(
    category: str, cascade: Sequence[Sequence[str]], providers: Mapping[str, BoundPlugin]
) -> tuple[tuple[str, ...], ...]:
    """Return what is left of the cascade without those that take no photos of the category."""
    stages = (tuple(name for name in stage if providers[name].limits.takes(category)) for stage in cascade)
    return tuple(stage for stage in stages if stage)


def _flat(cascade: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(name for stage in cascade for name in stage)


def _known(*attributes: Attribute | None) -> int:
    return sum(bool(each and each.value) for each in attributes)


def _fuller(before: tuple[Analysis, str] | None, found: tuple[Analysis, str]) -> tuple[Analysis, str]:
    """Return the answer in which more is known, the later one of two that tell as much."""
    if before is None:
        return found
    known = [_known(each.brand, each.model, each.colorway) for each in (before[0], found[0])]
    return before if known[0] > known[1] else found


def _behind_others(of: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    """Return the same for the lanes of jobs that are claimed only when no other job is ready."""
    return {lane_behind(category): names for category, names in of.items()}


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
