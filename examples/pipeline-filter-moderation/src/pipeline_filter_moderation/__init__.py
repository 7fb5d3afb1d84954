"""The filter `moderation`: asks a moderation service about each upload before it is accepted; refuses flagged uploads.

With FILTERS_REQUIRED=moderation it fails closed: while the service cannot answer, no upload is accepted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import aiohttp
from pydantic import Field, SecretStr

from pipeline.errors import DependencyUnavailable, ValidationError
from pipeline.hooks import Context, NotReady, PluginSettings, UploadFacts, hookimpl, retry_after_of

NAME = "moderation"
REFUSED = "This picture cannot be accepted here"


class ModerationSettings(PluginSettings):
    """PLUGIN_MODERATION_..."""

    url: str = Field("", description="URL of the moderation service, POST with the bytes; empty: the filter is off.")
    api_key: SecretStr = Field(SecretStr(""), description="Key for the service, sent as Bearer.")
    least_score: float = Field(0.8, gt=0, le=1, description="Pictures with this score or more are refused.")
    seconds: float = Field(5, gt=0, description="How long the service may take for one picture.")

    @property
    def is_active(self) -> bool:
        """Whether uploads are sent to the service."""
        return bool(self.url)


class Moderation:
    """The filter, with its context, settings and counter."""

    API_VERSION = 2  # of pipeline.hooks, the one this was written for

    async def start(self, context: Context) -> None:
        """Store the context; called before the first upload."""
        self._context = context
        self._settings = context.settings.plugin(NAME, ModerationSettings)
        self._checked = context.counter("checked", "Uploads by the moderation service's verdict.", "verdict")

    @hookimpl
    def register_settings(self) -> Iterator[tuple[str, type[PluginSettings]]]:
        """Offer the settings of `moderation`."""
        yield NAME, ModerationSettings

    @hookimpl
    async def validate_upload(self, upload: UploadFacts) -> None:
        """Refuse the upload when the service flags it. DependencyUnavailable when the service cannot be reached."""
        # In a thread, because it reads a file.
        content = await asyncio.to_thread(upload.read)
        score = await self._score(content, upload.content_type)
        is_refused = score >= self._settings.least_score
        self._checked.inc(verdict="refused" if is_refused else "taken")
        if is_refused:
            raise ValidationError.of("image", REFUSED)

    async def _score(self, content: bytes, content_type: str) -> float:
        headers = {"Authorization": f"Bearer {self._settings.api_key.get_secret_value()}", "Content-Type": content_type}
        timeout = aiohttp.ClientTimeout(total=self._settings.seconds)
        try:
            call = self._context.http.post(self._settings.url, data=content, headers=headers, timeout=timeout)
            async with call as reply:
                if reply.status in (401, 403):
                    raise NotReady("PLUGIN_MODERATION_API_KEY is not accepted", retry_after_seconds=60)
                if reply.status in (429, 503):
                    wait = retry_after_of(reply.headers)
                    raise DependencyUnavailable("The moderation service is busy", retry_after_seconds=wait)
                if reply.status >= 400:
                    raise Unjudged(f"The moderation service answers a picture with HTTP {reply.status}")
                return _score_in(await reply.text())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise DependencyUnavailable("The moderation service cannot be reached") from error


class Unjudged(Exception):
    """There is no verdict on one picture. Only this picture is concerned, so the filter is not held."""


def _score_in(text: str) -> float:
    try:
        score = float(json.loads(text)["score"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unjudged("The moderation service sends an unreadable answer") from error
    if not 0 <= score <= 1:
        raise Unjudged(f"The moderation service answers with a score of {score}")
    return score


plugin = Moderation()
