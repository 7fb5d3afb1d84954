"""One attempt at a photo: its image is read, the AI service is asked, previews are made, and new images are stored.

Processing (processing.py) and reanalysis (reanalysis.py) both use it, and commit its result. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from typing import Any, Protocol

import structlog

from pipeline.assets.asset import CAUSE, AiMetadata, Asset, ImageRef, to_timestamp
from pipeline.assets.asset_ids import processed_public_id
from pipeline.assets.store import AssetStore
from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, PermanentJobError, PipelineError, ValidationError
from pipeline.hooks import Analysis, AnalyzeRequest, Attribute, Usage
from pipeline.hooks.job_protocols import NO_LIMITS, NO_LISTENER, AnalysisListener, Permit
from pipeline.queue.job import Job
from pipeline.texts import cause_of
from pipeline.usecases.cleaning import Cleaning
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.previews import Previews
from pipeline.usecases.storage import ImageStorage

log = structlog.get_logger(__name__)

NOTE_SECONDS = 1.0
# The longest reason that is stored.
MAX_REASON_LENGTH = 300
NO_ORIGINAL = "The uploaded image is no longer there"


class Plugins(ImageStorage, Protocol):
    """The plugins as an analysis needs them; hooks/manager.py has it."""

    async def analyze(
        self,
        request: AnalyzeRequest,
        read_image: Callable[[], Awaitable[bytes]],
        tries: str = "",
        listener: AnalysisListener = NO_LISTENER,
        permit: Permit = NO_LIMITS,
        only: str = "",
    ) -> Analysis:
        """Ask the AI provider.

        read_image: returns the image, for a provider that needs its bytes
        tries: the held provider to try
        listener: is called as the analysis goes on
        permit: says when each provider may be called
        only: the provider to ask, instead of the category's
        """


class Attempt:
    """The record of one attempt at a photo: an AnalysisListener that calls another listener as well."""

    def __init__(self, job: Job) -> None:
        self._number = job.attempt
        self._started_at = utc_now()
        self._next: AnalysisListener = NO_LISTENER
        self.provider: str | None = None
        self._analysis: Analysis | None = None

    def before(self, listener: AnalysisListener) -> Attempt:
        """Return itself; from now on it calls that listener as well."""
        self._next = listener
        return self

    def asked(self, provider: str) -> None:
        """A provider has been asked."""
        self.provider = provider
        self._next.asked(provider)

    def reported(self, share: float | None, partial: Mapping[str, Attribute]) -> None:
        """The provider has reported its progress, and the attributes that it knows already."""
        self._next.reported(share, partial)

    def found(self, analysis: Analysis) -> None:
        """The provider has answered."""
        self._analysis = analysis

    def ended(self, outcome: str, reason: str | None = None, cause: str | None = None) -> dict[str, Any]:
        """Return the attempt as the asset stores it.

        outcome: completed | failed
        cause: the cause behind the reason, for operators
        """
        behind = {CAUSE: cause} if cause else {}
        return behind | {
            "attempt": self._number,
            "startedAt": to_timestamp(self._started_at),
            "endedAt": to_timestamp(utc_now()),
            "provider": self.provider,
            "model": (self._analysis.ai_model or None) if self._analysis else None,
            "outcome": outcome,
            "reason": reason[:MAX_REASON_LENGTH] if reason else None,
        }

    def provenance(self) -> dict[str, Any]:
        """Return the origin of the result: provider, model, prompt and usage."""
        analysis = self._analysis or Analysis()
        return {
            "provider": self.provider,
            "model": analysis.ai_model or None,
            "promptVersion": analysis.prompt_version or None,
            "confidenceKind": analysis.confidence_kind if self._analysis else None,
            "usage": _usage_json(analysis.usage) if analysis.usage else None,
            "cached": analysis.is_cached,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an analysis, before it is committed."""

    asset: Asset
    analysis: Analysis
    attempt: Attempt
    previews: Mapping[str, ImageRef] | None


class PhotoAnalysis:
    """Analyzes photos, and stores the images that result from it."""

    def __init__(
        self,
        store: AssetStore,
        plugins: Plugins,
        *,
        urls: ImageUrls,
        previews: Previews,
        cleaning: Cleaning,
        provider_timeout_seconds: float = 90,
        listener: Callable[[Job], AbstractContextManager[AnalysisListener]] = lambda job: nullcontext(NO_LISTENER),
        permit: Callable[[Job, Asset], Permit] = lambda job, asset: NO_LIMITS,
    ) -> None:
        """listener: yields the listener of a job's analysis
        permit: returns the permit of a job to ask providers
        """
        self._store = store
        self._plugins = plugins
        self._urls = urls
        self._previews = previews
        self._cleaning = cleaning
        self._provider_timeout_seconds = provider_timeout_seconds
        self._listener = listener
        self._permit = permit

    async def analyze(self, job: Job, asset: Asset, only: str = "") -> Result:
        """Return the AI's answer about the asset, whose fence this run has taken.

        only: the provider to ask, instead of the category's
        """
        if not asset.has_original:
            # A process of version 0.1 retries such an asset.
            raise PermanentJobError(NO_ORIGINAL)
        request = await self._request(job, asset)
        attempt, read = Attempt(job), once(partial(self._read, asset))
        self._previews.begin(asset, read)
        try:
            with self._listener(job) as listener:
                analysis = await self._plugins.analyze(
                    request, read, job.tries, attempt.before(listener), self._permit(job, asset), only
                )
            attempt.found(analysis)
            return Result(asset, analysis, attempt, await self._previews.take(asset))
        except asyncio.CancelledError:
            await self._previews.drop(asset)
            raise
        except Exception as error:
            await self._record_failure(asset, attempt, error)
            raise

    async def make_previews(self, asset: Asset) -> Mapping[str, ImageRef] | None:
        """Return previews of an asset that has failed, if they are ready soon."""
        self._previews.begin(asset, partial(self._read, asset))
        return await self._previews.take(asset)

    async def store_processed(self, result: Result) -> ImageRef | None:
        """Store the image that the provider made, if there is one that can be stored, and return it."""
        asset, analysis = result.asset, result.analysis
        if analysis.processed_image_url:
            return ImageRef("", "", analysis.processed_image_url)
        if analysis.processed_image is None:
            return None
        public_id = processed_public_id(asset.id, asset.fence)
        image = analysis.processed_image
        content = await self._cleaning.for_storing(image.content, image.content_type)
        if content is None:
            return None
        try:
            saved = await self._plugins.save(public_id, io.BytesIO(content), image.content_type)
        except ValidationError as error:
            # The storage refuses the image: another attempt would not change that, and each costs an analysis.
            log.warning("processed_image_refused", cause=cause_of(error))
            return None
        return ImageRef(
            backend=saved.backend,
            public_id=public_id,
            url=saved.url,
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
            content_type=image.content_type,
        )

    async def _request(self, job: Job, asset: Asset) -> AnalyzeRequest:
        image_url = await self._urls.of_image(asset.original, self._provider_timeout_seconds)
        if image_url is None:
            raise DependencyUnavailable("Image storage unavailable")
        return AnalyzeRequest(
            image_url=image_url,
            category=asset.category,
            asset_id=asset.id,
            job_id=job.id,
            request_id=job.request_id,
            attempt=job.attempt,
            timeout_seconds=self._provider_timeout_seconds,
            trace_context=job.trace_context,
            content_type=asset.original.content_type,
        )

    async def _record_failure(self, asset: Asset, attempt: Attempt, error: Exception) -> None:
        """Store an attempt that failed, if the store answers soon: the error matters more than its record."""
        reason = error.message if isinstance(error, PipelineError) else "Processing failed"
        try:
            async with asyncio.timeout(NOTE_SECONDS):
                record = attempt.ended("failed", reason, cause_of(error))
                await self._store.add_attempt(asset.id, asset.processing_job_id, asset.fence, record)
        except (PipelineError, TimeoutError) as fault:
            log.warning("attempt_not_kept", cause=cause_of(fault))

    async def _read(self, asset: Asset) -> bytes:
        try:
            if asset.original.name is None:
                raise FileNotFoundError
            content = await self._plugins.read(asset.original.name)
        except FileNotFoundError:
            # It may have been moved to another storage since the job began.
            current = await self._store.get(asset.id)
            if current is None or current.original.name in (None, asset.original.name):
                raise PermanentJobError(NO_ORIGINAL) from None
            return await self._read(current)
        return await self._cleaning.for_provider(content, asset.original.content_type)


def once(read: Callable[[], Awaitable[bytes]]) -> Callable[[], Awaitable[bytes]]:
    """Return a function that reads at its first call, and gives all its callers the same bytes."""
    reading: list[asyncio.Future[bytes]] = []

    async def read_once() -> bytes:
        if not reading:
            reading.append(asyncio.ensure_future(read()))
        # A caller that is cancelled does not cancel the read of the other callers.
        return await asyncio.shield(reading[0])

    return read_once


def metadata_of(analysis: Analysis, processed_at: datetime | None = None) -> AiMetadata:
    """Return the analysis as the asset stores it."""

    def field(attribute: Attribute | None) -> Mapping[str, Any] | None:
        return asdict(attribute) if attribute is not None and attribute.value else None

    return AiMetadata(
        brand=field(analysis.brand),
        model=field(analysis.model),
        colorway=field(analysis.colorway),
        processed_at=processed_at,
        extra=analysis.extra,
    )


def _usage_json(usage: Usage) -> dict[str, Any]:
    return {
        "inputTokens": usage.input_tokens,
        "outputTokens": usage.output_tokens,
        "cost": usage.cost,
        "currency": usage.currency,
    }
