"""An AI provider that decodes each photo in the sandbox before it asks the same service as `http`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import Field

from pipeline.hooks import AIProvider, Analysis, AnalyzeRequest, PluginSettings, Sandbox, hookimpl
from pipeline.settings import Settings
from pipeline.plugins.ai_http import HttpProvider

# A photo of a run takes milliseconds, a hostile one many seconds.
SECONDS = 0.5


class DecodingSettings(PluginSettings):
    """PLUGIN_DECODING_URL."""

    url: str = Field(description="Address of the service.")


class DecodingProvider(HttpProvider):
    """Asks the service only about photos that can be decoded."""

    needs_image = True

    def __init__(self, url: str, sandbox: Sandbox) -> None:
        super().__init__(url, "imageUrl")
        self._sandbox = sandbox

    async def analyze(self, request: AnalyzeRequest) -> Analysis:
        await self._sandbox.reduce(request.image or b"", 16, seconds=SECONDS, wait_seconds=request.timeout_seconds / 2)
        return await super().analyze(request)


@hookimpl
def register_settings() -> Iterator[tuple[str, type[PluginSettings]]]:
    yield "decoding", DecodingSettings


@hookimpl
def register_ai_providers(settings: Settings, sandbox: Sandbox) -> Iterator[tuple[str, Callable[[], AIProvider]]]:
    yield "decoding", lambda: DecodingProvider(settings.plugin("decoding", DecodingSettings).url, sandbox)
