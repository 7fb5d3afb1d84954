"""The kinds of plugins: the hook that offers each, the setting that selects it, its required and optional methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.hooks.bound_plugin import CHECK, REGISTER_ROUTES, START
from pipeline.hooks.notifiers import NOTIFY, NOTIFY_MANY
from pipeline.hooks.sources import Source

if TYPE_CHECKING:
    from pipeline.settings import Settings

BUILT_IN_MODULES = (
    "pipeline.plugins.ai_http",
    "pipeline.plugins.ai_local",
    "pipeline.plugins.ai_openai",
    "pipeline.plugins.ai_anthropic",
    "pipeline.plugins.ai_gemini",
    "pipeline.plugins.storage_local",
    "pipeline.plugins.storage_cloudinary",
    "pipeline.plugins.storage_object",
    "pipeline.plugins.notify_websocket",
    "pipeline.plugins.notify_webhook",
    "pipeline.plugins.notify_apprise",
    "pipeline.plugins.notify_webpush",
    "pipeline.plugins.observe_journal",
    "pipeline.plugins.filter_photos",
)
# Hooks that are called while the service works; the other hooks register something at start.
OBSERVERS = ("job_enqueued", "job_started", "job_retrying", "job_finished")
VALIDATE, TRANSFORM = "validate_upload", "transform_analysis"
FILTERS = (VALIDATE, TRANSFORM)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of plugin.

    hook: offers the plugins of this kind.
    setting: selects one or more of them.
    methods: those that a plugin must have.
    """

    name: str
    hook: str
    setting: str
    methods: tuple[str, ...]
    optional: tuple[str, ...] = ()


# Optional methods of every plugin; see Starting in context_api.py. `close` is called for every API version.
LIFE = (START, CHECK)
PROVIDER = Kind("provider", "register_ai_providers", "AI_PROVIDER", ("analyze",), optional=(*LIFE, REGISTER_ROUTES))
STORAGE = Kind(
    "storage",
    "register_storage_backends",
    "STORAGE_BACKEND",
    ("save", "open", "delete", "check"),
    optional=("list", "url", "save_many", START, REGISTER_ROUTES),
)
NOTIFIER = Kind(
    "notifier",
    "register_notifiers",
    "NOTIFIERS",
    (NOTIFY,),
    optional=(NOTIFY_MANY, *LIFE, REGISTER_ROUTES),
)
KINDS = (PROVIDER, STORAGE, NOTIFIER)
# The kind of modules, or objects, with observers or filters. No setting selects them by name.
HOOK = "hook"


def route_seconds(settings: Settings) -> Mapping[str, float]:
    """Return for each kind how long a route handler may take: the same time as the work of that kind."""
    return {
        PROVIDER.name: settings.provider_timeout_seconds,
        STORAGE.name: settings.storage_timeout_seconds,
        NOTIFIER.name: settings.notifier_timeout_seconds,
        HOOK: settings.hook_timeout_seconds,
    }


@dataclass(frozen=True, slots=True)
class Offer:
    """A plugin that can be built.

    key: of its source, in the registry.
    build: the plugin's factory.
    """

    kind: Kind
    key: str
    source: Source
    build: Callable[[], Any]
