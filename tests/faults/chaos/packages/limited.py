"""A second AI provider: the same service as `http`, at an address of its own, which takes few calls a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import Field

from pipeline.hooks import AIProvider, PluginSettings, hookimpl
from pipeline.settings import Settings
from pipeline.plugins.ai_http import HttpProvider


class LimitedSettings(PluginSettings):
    """PLUGIN_LIMITED_URL."""

    url: str = Field(description="Address of the service.")


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    yield "limited", LimitedSettings


@hookimpl
def register_ai_providers(settings: Settings) -> Iterator[tuple[str, Callable[[], AIProvider]]]:
    yield "limited", lambda: HttpProvider(settings.plugin("limited", LimitedSettings).url, "imageUrl")
