"""The filter `moderation`: asks a moderation service about each upload before it is taken, and refuses what it flags.

With FILTERS_REQUIRED=moderation it fails closed: while the service cannot answer, no upload is taken.
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
REFUSED = "This picture cannot be taken here"


class ModerationSettings(PluginSettings):
    """PLUGIN_MODERATION_..."""

    url: str = Field("", description="Where pictures are judged: POST with the bytes; empty: the filter is off.")
    api_key: SecretStr = Field(SecretStr(""), description="Our key there, sent as Bearer.")
    least_score: float = Field(0.8, gt=0, le=1, description="A picture with such a score, or a higher one, is refused.")
    seconds: float = Field(5, gt=0, description="How long the service may take for one picture.")

    @property
    def is_active(self) -> bool:
        """Whether uploads are shown to the service."""
        return bool(self.url)


class Moderation:
    """One session, one counter, and what the operator has set."""

    API_VERSION = 2  # of pipeline.hooks, the one this was written for

    async def start(self, context: Context) -> None:
        """Take what the service lends us; it is there before the first upload."""
        self._context = context
        self._own = context.settings.plugin(NAME, ModerationSettings)
        self._judged = context.counter("judged", "Uploads by what the moderation service said.", "verdict")

    @hookimpl
    def register_settings(self) -> Iterator[tuple[str, type[PluginSettings]]]:
        """Name our settings."""
        yield NAME, ModerationSettings

    @hookimpl
    async def validate_upload(self, upload: UploadFacts) -> None:
        """Refuse the upload when the service flags it. DependencyUnavailable when the service cannot be asked."""
        # Reading a file takes a thread.
        content = await asyncio.to_thread(upload.read)
        score = await self._score(content, upload.content_type)
        is_refused = score >= self._own.least_score
        self._judged.inc(verdict="refused" if is_refused else "taken")
        if is_refused:
            raise ValidationError.of("image", REFUSED)

    async def _score(self, content: bytes, content_type: str) -> float:
        headers = {"Authorization": f"Bearer {self._own.api_key.get_secret_value()}", "Content-Type": content_type}
        timeout = aiohttp.ClientTimeout(total=self._own.seconds)
        try:
            async with self._context.http.post(self._own.url, data=content, headers=headers, timeout=timeout) as reply:
                if reply.status in (401, 403):
                    raise NotReady("PLUGIN_MODERATION_API_KEY is not taken", retry_after_seconds=60)
                if reply.status in (429, 503):
                    wait = retry_after_of(reply.headers)
                    raise DependencyUnavailable("The moderation service is busy", retry_after_seconds=wait)
                if reply.status >= 400:
                    raise Unjudged(f"The moderation service says {reply.status} to a picture")
                return _score_in(await reply.text())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise DependencyUnavailable("The moderation service cannot be reached") from error


class Unjudged(Exception):
    """One picture cannot be judged. That is about the picture alone, so it does not hold the filter for all others."""


def _score_in(text: str) -> float:
    try:
        score = float(json.loads(text)["score"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unjudged("The moderation service answers what cannot be read") from error
    if not 0 <= score <= 1:
        raise Unjudged(f"The moderation service answers with a score of {score}")
    return score


plugin = Moderation()
