"""The AI providers in use, and the cascade of providers for the photos of each category.

cascade_run.py asks a cascade, provider_calls.py one provider. Runs on the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.errors import PermanentJobError
from pipeline.hold import lane_behind
from pipeline.hooks.cascade_run import CascadeRun
from pipeline.hooks.provider_calls import ProviderCalls
from pipeline.hooks.breaker import SharedBreakers
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.cascades import Cascade, background_lanes, cascades_of, flat, stages_taking
from pipeline.hooks.job_protocols import NO_LIMITS, NO_LISTENER, Permit, AnalysisListener
from pipeline.hooks.photo import Photo, ReadImage
from pipeline.hooks.processed_images import ProcessedImages
from pipeline.hooks.progress import takes_progress
from pipeline.hooks.provider_protocol import Analysis, AnalyzeRequest
from pipeline.hooks.usage import UsageCounters
from pipeline.tracing import Tracing

if TYPE_CHECKING:
    from pipeline.sandbox.sandbox import Sandbox
    from pipeline.settings import Settings


class Providers:
    """All AI providers that any category uses.

    holds: their breakers, for the exchange with other processes.
    """

    def __init__(
        self,
        settings: Settings,
        providers: Mapping[str, BoundPlugin],
        tracing: Tracing,
        pictures: ProcessedImages,
        sandbox: Sandbox | None,
        usage: UsageCounters,
    ) -> None:
        """providers: by name, all that settings.all_providers names.
        pictures: checks the images they made.
        sandbox: converts photos into a format that a provider accepts.
        usage: counts calls, tokens and money.
        """
        self._providers = providers
        self._sandbox = sandbox
        self._cascades = cascades_of(settings, providers)
        # Of each category that was needed: few, because an asset's category was one of CATEGORIES at some time.
        self._stages_by_category: dict[str, Cascade] = {}
        chains = {category: flat(cascade) for category, cascade in self._cascades.items()}
        replaceable = {name for chain in chains.values() for name in chain[:-1]}
        reporting = {name for name, each in providers.items() if takes_progress(each.function("analyze"))}
        self._calls = ProviderCalls(settings, tracing, pictures, usage, reporting, replaceable)
        breakers = {name: provider.breaker("analyze") for name, provider in providers.items()}
        alone = {lane_behind("", name): (name,) for name in providers}
        self.holds = SharedBreakers(breakers, {**chains, **background_lanes(chains), **alone})
        # The AI model and the prompt version that each declares.
        self.versions = {name: _versions(each.plugin) for name, each in providers.items()}
        # Providers without cost need no budget.
        self.free = {name for name, each in providers.items() if getattr(each.plugin, "cost", None) == 0}
        # The providers of the later stages for each lane; each is asked at most once about a photo.
        later = {category: flat(cascade[1:]) for category, cascade in self._cascades.items()}
        self.later_providers: Mapping[str, Sequence[str]] = {
            **later,
            **background_lanes(later),
            **dict.fromkeys(alone, ()),
        }
        self.paces = {name: pace for name, each in providers.items() if (pace := each.limits.pace) is not None}

    async def analyze(
        self,
        request: AnalyzeRequest,
        read_image: ReadImage,
        tries: str = "",
        listener: AnalysisListener = NO_LISTENER,
        permit: Permit = NO_LIMITS,
        only: str = "",
    ) -> Analysis:
        """Return the checked result of the category's first provider that has one.

        The next provider is asked when one refuses the image for good, is held, or fails at the job's last attempt; a
        provider of the next stage also when there is no complete answer yet. Of several answers the fullest is
        returned.

        read_image: awaited once if a provider needs the photo's bytes; its exceptions are passed on.
        tries: the held provider that this job tries.
        listener: gets the name of each provider that is asked, and its progress.
        permit: decides whether the job may call each provider.
        only: a provider that is asked instead of the category's.
        """
        photo = Photo(read_image, request.content_type, self._sandbox)
        analysis = CascadeRun(self._calls, request, photo, tries=tries, listener=listener, permit=permit)
        return await analysis.run(self._stages(request.category, only), self._providers)

    def _stages(self, category: str, only: str = "") -> Cascade:
        """Return the cascade for photos of that category; PermanentJobError when no provider takes them."""
        if only and only not in self._providers:
            raise PermanentJobError(f"The AI provider {only!r} is not in use any more")
        if only and self._providers[only].limits.takes(category):
            return ((only,),)
        if only:
            raise PermanentJobError(f"The AI provider {only!r} takes no photos of the category {category!r}")
        if category not in self._stages_by_category:
            cascade = self._cascades.get(category, self._cascades[""])
            self._stages_by_category[category] = stages_taking(category, cascade, self._providers)
        if stages := self._stages_by_category[category]:
            return stages
        raise PermanentJobError(f"No AI provider takes photos of the category {category!r}")


def _versions(plugin: object) -> tuple[str, str]:
    return str(getattr(plugin, "model_name", "")), str(getattr(plugin, "prompt_version", ""))
