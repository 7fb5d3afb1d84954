"""The command `eval`: compares AI providers, or prompts of one provider, on photos whose contents people have given. It
prints how often each is right, its cost and its time. It calls the providers itself, with the settings of the service,
which need not run, and creates no assets and no jobs. It respects the budget of the day and the rates of the providers
(eval_limits.py).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import cast

import click
from rich.progress import MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipeline import logs
from pipeline.client import ClientError
from pipeline.commands import service_target
from pipeline.commands.eval_limits import EvalLimits, limits
from pipeline.commands.moving import open_backends, with_json
from pipeline.commands.scores import RIGHT, UNSURE, WRONG, Score
from pipeline.commands.output import bar, note, say_json, say_table, shown, stderr
from pipeline.commands.labelled_photos import Case, corrected, labelled
from pipeline.errors import ConfigurationError, NotReady, PermanentJobError, PipelineError, RetryableJobError
from pipeline.hold import Pace
from pipeline.hooks import faults
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.provider_calls import SERVICE, analysis_of
from pipeline.hooks.catalogue import Catalogue
from pipeline.hooks.checks import cleaned, provenance_fault, usage_fault
from pipeline.hooks.context import ContextFactory
from pipeline.hooks.kinds import PROVIDER
from pipeline.hooks.load_checks import nearest
from pipeline.hooks.photo import Photo
from pipeline.hooks.progress import ProgressReports, takes_progress
from pipeline.hooks.provider_protocol import Analysis, AnalyzeRequest, Usage
from pipeline.hooks.values import MemoryValues
from pipeline.metrics import Metrics
from pipeline.settings import Settings, plugin_variable
from pipeline.texts import cause_of

# Three attempts, as in the queue. A provider that asks for a longer wait than this is called after this time.
ATTEMPTS, BACKOFF_SECONDS, WAIT_AT_MOST_SECONDS = 3, 2.0, 60.0
PROMPT, PROMPT_FIELD = "prompt", "prompt_path"


@click.command("eval")
@click.option(
    "--provider",
    "names",
    multiple=True,
    metavar="NAME[:SETTING=VALUE,...]",
    help="A provider, with changed settings of its own if wanted: openai:prompt=FILE or openai:model=gpt-5.4. "
    "May be given several times. Default: the providers that the settings name.",
)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Photos with a labels.csv (file,category,brand,model,colorway) instead of corrected assets.",
)
@click.option("--category", help="Only photos of this category.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="At most this many photos.")
@click.option("--yes", is_flag=True, help="Do not ask before money is spent.")
@with_json
def evaluate(
    names: Sequence[str], folder: Path | None, category: str | None, limit: int, yes: bool, as_json: bool
) -> None:
    """Compare AI providers, or prompts, on photos that people have corrected.

    Each value is right, wrong or unsure (no answer). Capitals, accents and punctuation do not matter. Every photo is
    sent to every provider, which may cost money. The cost counts towards AI_BUDGET_PER_DAY; the comparison ends when
    that is reached.
    """
    settings = service_target.load()
    # Errors are printed at the end.
    logs.configure(settings.log_format, "CRITICAL")
    scores: list[Score] = []
    work = _evaluate(settings, names or settings.all_providers, folder, category, limit, yes, scores)
    is_complete = False
    try:
        asyncio.run(work)
        is_complete = True
    except KeyboardInterrupt:
        note("Interrupted; so far:")
    except ConfigurationError:
        raise
    except PipelineError as error:
        cause = f": {cause_of(error)}" if error.__cause__ is not None else ""
        raise ClientError(f"{error.message}{cause}") from error
    _print(scores, as_json)
    if not is_complete or not any(score.answers for score in scores):
        raise SystemExit(1)


async def _evaluate(
    settings: Settings,
    names: Sequence[str],
    folder: Path | None,
    category: str | None,
    limit: int,
    is_sure: bool,
    scores: list[Score],
) -> None:
    """Fill in the scores, one for each name."""
    async with AsyncExitStack() as opened:
        # First, so that faults of the providers are reported before anything else is opened.
        candidates = [await opened.enter_async_context(Candidate(name, settings)) for name in names]
        paces = {each.name: each.pace for each in candidates if each.pace is not None}
        limited = await opened.enter_async_context(limits(settings, paces))
        if folder is not None:
            cases = labelled(folder, settings.categories, category, limit)
        else:
            backends = await opened.enter_async_context(open_backends(settings))
            with stderr.status("Looking for photos that were corrected"):
                cases = await corrected(backends, category, limit)
        if not cases:
            where = "labels.csv names no such photo" if folder else "no asset was corrected"
            raise ClientError(f"There is nothing to compare with: {where}")
        for each in candidates:
            each.check(cases)
        if not is_sure:
            counts = ", ".join(f"{each.score.label}: {sum(map(each.takes, cases))} photos" for each in candidates)
            click.confirm(f"Asks {shown(counts)}. That may cost money. Go on?", abort=True, err=True)
        scores += [each.score for each in candidates]
        columns = (SpinnerColumn(), TextColumn("Asking"), MofNCompleteColumn(), TextColumn("photos"))
        with bar(*columns, TimeElapsedColumn()) as progress:
            for case in progress.track(cases):
                await _compare(case, candidates, limited)


async def _compare(case: Case, candidates: Sequence[Candidate], limited: EvalLimits) -> None:
    """Let all candidates analyze one photo at the same time."""
    taking = [each for each in candidates if each.takes(case)]
    try:
        content = await case.read()
    except (OSError, PipelineError) as error:
        for each in taking:
            each.score.fail(f"the photo cannot be read: {cause_of(error)}")
        return
    await asyncio.gather(*(each.ask(case, content, limited) for each in taking))


class Candidate:
    """One provider with its changed settings, and its score."""

    def __init__(self, label: str, settings: Settings) -> None:
        """label: NAME[:SETTING=VALUE,...]."""
        self.score = Score(label)
        self.name, _, changes = label.partition(":")
        self._settings = settings.with_changed_plugin_variables(_changes(self.name, changes, settings))
        self._metrics = Metrics()
        self._catalogue = Catalogue(self._settings)
        self._contexts = ContextFactory(self._settings, self._metrics, lambda name: MemoryValues())
        self._provider: BoundPlugin

    async def __aenter__(self) -> Candidate:
        self._provider = self._catalogue.build(PROVIDER, self.name, self._metrics, self._contexts)
        try:
            await self._provider.start()
        except Exception as error:
            await self.__aexit__()
            what = "is not ready" if isinstance(error, NotReady) else "cannot start"
            raise ConfigurationError(f"{self.score.label} {what}: {cause_of(error)}") from error
        # A wrong key is reported at once, not after all attempts.
        if reason := await self._provider.health():
            await self.__aexit__()
            raise ConfigurationError(f"{self.score.label} cannot be asked: {reason}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._provider.close()
        await self._contexts.close()
        await self._catalogue.sandbox.close()

    def takes(self, case: Case) -> bool:
        """Return whether the provider accepts photos of that category."""
        return self._provider.limits.takes(case.category)

    def check(self, cases: Sequence[Case]) -> None:
        """ConfigurationError when the provider cannot analyze these photos."""
        if not any(map(self.takes, cases)):
            raise ConfigurationError(f"{self.score.label} takes photos of none of these categories")
        if not getattr(self._provider.plugin, "needs_image", False) and not all(case.url for case in cases):
            raise ConfigurationError(f"{self.score.label} fetches photos by their address, and these have none")

    @property
    def pace(self) -> Pace | None:
        """The provider's rate."""
        return self._provider.limits.pace

    @property
    def is_free(self) -> bool:
        """True when the provider declares a cost of 0."""
        return getattr(self._provider.plugin, "cost", None) == 0

    async def ask(self, case: Case, content: bytes, limited: EvalLimits) -> None:
        """Let the provider analyze one photo, and count the result."""
        for attempt in range(1, ATTEMPTS + 1):
            self.score.stopped = self.score.stopped or await limited.refusal(is_free=self.is_free)
            if self.score.stopped:
                return
            await limited.wait_for_call(self.name, self.pace)
            started_at = monotonic()
            try:
                self.score.calls += 1
                analysis = await self._analyze(case, content, attempt)
            except Exception as raised:
                error = faults.job_error(raised, self.name, SERVICE)
                if error.usage is not None:
                    usage = cast(Usage, error.usage) if usage_fault(error.usage) is None else None
                    self.score.stopped = await limited.record(self.name, usage, is_free=self.is_free)
                has_cause = raised is not error or raised.__cause__ is not None
                reason = f"{error.message}: {cause_of(raised)}" if has_cause else error.message
                if isinstance(error, PermanentJobError) or attempt == ATTEMPTS:
                    self.score.fail(reason)
                    if not error.spends_attempt:
                        self.score.stopped = reason
                    return
                assert isinstance(error, RetryableJobError)
                await asyncio.sleep(min(error.retry_after_seconds or BACKOFF_SECONDS, WAIT_AT_MOST_SECONDS))
            else:
                self.score.add(case.name, case.category, case.truth, analysis, monotonic() - started_at)
                self.score.stopped = await limited.record(self.name, analysis.usage, is_free=self.is_free)
                return

    async def _analyze(self, case: Case, content: bytes, attempt: int) -> Analysis:
        provider, seconds = self._provider, self._settings.provider_timeout_seconds

        async def read() -> bytes:
            return content

        photo = Photo(read, case.content_type, self._catalogue.sandbox)
        image, content_type = await photo.for_provider(provider, seconds)
        request = AnalyzeRequest(
            image_url=case.url,
            category=case.category,
            asset_id=case.name,
            job_id="eval",
            request_id="eval",
            attempt=attempt,
            timeout_seconds=seconds,
            image=image,
            content_type=content_type,
        )
        keywords = {"progress": ProgressReports()} if takes_progress(provider.function("analyze")) else {}
        analysis = analysis_of(provider, await provider.call("analyze", seconds, request, keywords=keywords))
        if provenance_fault(analysis):
            analysis = replace(analysis, usage=None, ai_model="", prompt_version="", confidence_kind="none")
        return cleaned(analysis)


def _changes(name: str, text: str, settings: Settings) -> dict[str, str]:
    """Return variable -> value of SETTING=VALUE,...; ConfigurationError when the provider has no such setting."""
    own = Catalogue(settings).own_settings().get(name)
    known = [*own.model_fields] if own is not None else []
    changes = {}
    for change in re.split(r",(?=\w+=)", text) if text else ():
        field, is_given, value = change.partition("=")
        field = field.strip().lower()
        if field == PROMPT and PROMPT not in known:
            field = PROMPT_FIELD
        if not is_given or not value or field not in known:
            choice = f"there are: {', '.join(known) or 'none'}{nearest(field, known)}"
            raise ConfigurationError(f"--provider {name}: {change!r} is no SETTING=VALUE of its own; {choice}")
        changes[plugin_variable(name, field)] = value
    return changes


def _print(scores: Sequence[Score], as_json: bool) -> None:
    if as_json:
        say_json({"results": [score.to_json() for score in scores]})
        return
    fields: list[tuple[object, ...]] = []
    totals: list[tuple[object, ...]] = []
    for score in scores:
        for name, counts in score.fields.items():
            if counts:
                fields.append((score.label, name, *(counts[outcome] for outcome in (RIGHT, WRONG, UNSURE))))
        tokens = ", ".join("?" if each is None else str(each) for each in map(score.tokens, ("input", "output")))
        seconds = f"{times['mean']:.2f}" if (times := score.to_seconds()) else ""
        totals.append((score.label, len(score.answers), score.failed, seconds, _cost(score), tokens))
    say_table(("provider", "field", RIGHT, WRONG, UNSURE), fields)
    say_table(("provider", "answered", "failed", "seconds", "cost", "tokens in, out"), totals)
    for score in scores:
        for reason, count in score.failures.most_common(3):
            note(f"{score.label}: {count} failed: {reason}")
        if score.stopped:
            note(f"{score.label} was not asked about the rest: {score.stopped}")


def _cost(score: Score) -> str:
    if not score.answers:
        return ""
    costs = score.costs
    return "unknown" if costs is None else ", ".join(f"{cost:.4f} {name}" for name, cost in costs.items())
