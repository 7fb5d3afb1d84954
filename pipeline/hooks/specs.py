"""The hooks a plugin may implement, in pluggy's terms.

pluggy finds, validates and orders the implementations; hooks/manager.py calls them, one by one and guarded, because
pluggy itself is synchronous and stops at the first exception. Each implementation runs once, at start, on the main
thread, and must not block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import pluggy

from pipeline.hooks.protocols import AIProvider, Notifier, StorageBackend

if TYPE_CHECKING:
    from pipeline.settings import Settings

PROJECT = "ai_queue_pipeline"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Plugin = TypeVar("Plugin")
Factories = Iterable[tuple[str, Callable[[], Plugin]]]


@hookspec
def register_ai_providers(settings: Settings) -> Factories[AIProvider]:  # type: ignore[empty-body]
    """Yield (name, factory) pairs; the one that AI_PROVIDER names is built. Import heavy packages in the factory, not
    before.

    A factory raises ConfigurationError when its settings or packages are missing.
    """


@hookspec
def register_storage_backends(settings: Settings) -> Factories[StorageBackend]:  # type: ignore[empty-body]
    """Yield (name, factory) pairs; the one that STORAGE_BACKEND names is built."""


@hookspec
def register_notifiers(settings: Settings) -> Factories[Notifier]:  # type: ignore[empty-body]
    """Yield (name, factory) pairs; those that NOTIFIERS names are built, in that order."""
