"""Which AI providers may be asked about photos of which category, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.errors import ConfigurationError
from pipeline.hold import lane_behind
from pipeline.hooks.bound_plugin import BoundPlugin

if TYPE_CHECKING:
    from pipeline.settings import Settings

# Stages of providers. One provider of each stage is asked, stage by stage, until an answer is complete.
Cascade = Sequence[Sequence[str]]


def cascades_of(settings: Settings, providers: Mapping[str, BoundPlugin]) -> Mapping[str, Cascade]:
    """Return the cascade of each category, "" for all other categories.

    ConfigurationError when no provider takes the photos of a category.
    """
    cascades: dict[str, Cascade] = {"": settings.cascade("")}
    for category in dict.fromkeys((*settings.categories, *settings.ai_provider_by_category)):
        wanted = settings.cascade(category)
        cascade = stages_taking(category, wanted, providers)
        if not cascade:
            raise ConfigurationError(
                f"AI_PROVIDER: {', '.join(flat(wanted))} takes no photos of the category {category!r}; name one that "
                "does in AI_PROVIDER_BY_CATEGORY, or leave the category out of CATEGORIES"
            )
        if cascade != cascades[""] or category in settings.ai_provider_by_category:
            cascades[category] = cascade
    return cascades


def stages_taking(
    category: str, cascade: Cascade, providers: Mapping[str, BoundPlugin]
) -> tuple[tuple[str, ...], ...]:
    """Return the cascade without the providers that take no photos of the category, and without empty stages."""
    stages = (tuple(name for name in stage if providers[name].limits.takes(category)) for stage in cascade)
    return tuple(stage for stage in stages if stage)


def flat(cascade: Cascade) -> tuple[str, ...]:
    """Return all providers of the cascade, in order."""
    return tuple(name for stage in cascade for name in stage)


def background_lanes(providers: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    """Return the providers of each category under its background lane: jobs there are claimed when no other is ready.

    providers: of each category.
    """
    return {lane_behind(category): names for category, names in providers.items()}
