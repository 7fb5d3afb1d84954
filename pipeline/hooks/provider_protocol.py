"""An AI provider: its methods, the request it gets and the analysis it returns. Pure: plain data and Protocols.

A plugin writes each method as `async def` (awaited on the event loop, which it must not block) or as plain `def` (run
in a thread of the plugin; it sets its own network timeouts, because a thread cannot be cancelled). The service looks
once, when it loads the plugin, which of the two a method is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of the product. `value` "" with `confidence` 0 means that the AI does not know it.

    confidence: 0.0 to 1.0, meant as the probability that the value is right.
    """

    value: str
    confidence: float


UNKNOWN = Attribute("", 0.0)
# Where confidences come from: "measured": the provider computed them. "self_reported": the model stated them about its
# own answer, so nothing may be decided by them. "none": they mean nothing.
CONFIDENCE_KINDS = ("measured", "self_reported", "none")


@dataclass(frozen=True, slots=True)
class ProcessedImage:
    """An image that a provider made; the service saves it in the current storage."""

    content: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a provider may be called: n calls in per_seconds, by all processes together.

    The calls are spread evenly: `Rate(5)` is one each 0.2 s, `Rate(1, 2)` one each 2 s.
    """

    n: float
    per_seconds: float = 1.0

    @property
    def interval_seconds(self) -> float:
        """The time between two calls."""
        return self.per_seconds / self.n


@dataclass(frozen=True, slots=True)
class Usage:
    """What one analysis used and cost.

    input_tokens, output_tokens: None when unknown.
    cost: in units of `currency`, None when the price is unknown; 0 when it costs nothing.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = None
    currency: str = "USD"


@dataclass(frozen=True, slots=True)
class AnalyzeRequest:
    """One photo to analyze.

    image_url: where the original can be fetched.
    category: one of CATEGORIES, or one that has been removed from it.
    attempt: from 1.
    timeout_seconds: the time budget of this call.
    image: the photo's bytes, only for providers with `needs_image = True`.
    trace_context: the value for the W3C `traceparent` header, "" without tracing.
    content_type: of the bytes in `image` or, without them, of the original, e.g. "image/jpeg".
    """

    image_url: str
    category: str
    asset_id: str
    job_id: str
    request_id: str
    attempt: int
    timeout_seconds: float
    image: bytes | None = None
    trace_context: str = ""
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class Analysis:
    """The result of an analysis. With an UNKNOWN brand or model the asset becomes `partial`.

    colorway: None when the provider does not look for one.
    processed_image_url, processed_image: a processed image, as a URL at the AI service or as bytes, never both.
    extra: further results by name: JSON values of at most 8 KB together, no name with "$" in front. It is stored and
    shown; an `extra` that cannot be stored is left out, and the rest of the result stands.
    usage: None when unknown.
    ai_model, prompt_version: which model answered which prompt, texts of at most 200 characters.
    confidence_kind: where the confidences come from, one of CONFIDENCE_KINDS.
    is_cached: set by the service: this is an earlier answer to the same photo.
    """

    brand: Attribute = UNKNOWN
    model: Attribute = UNKNOWN
    colorway: Attribute | None = None
    processed_image_url: str | None = None
    processed_image: ProcessedImage | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage | None = None
    ai_model: str = ""
    prompt_version: str = ""
    confidence_kind: str = "measured"
    is_cached: bool = False


class Progress(Protocol):
    """Reports to the owner of a photo how far its analysis is. An `analyze` with a parameter `progress` gets it."""

    def __call__(self, share: float | None = None, **partial: Attribute) -> Awaitable[None]:
        """Report how much is done.

        share: from 0 to 1, None when unknown.
        partial: the results so far, as `brand`, `model` and `colorway`; they are shown and not stored.

        An `async def` awaits the call, a plain `def` only makes it. Reports that come faster than two a second may be
        dropped. ValueError or TypeError when the arguments are not as above.
        """


class AIProvider(Protocol):
    """Names brand, model and colorway of the product in a photo.

    Optional attributes:
    `needs_image = True`: the request contains the photo's bytes.
    `max_concurrency = n`: the plugin gets n threads of its own instead of 16 or more (plain `def` only).
    `sees = "..."`: one or two plain sentences for the owners of photos: what it can see and what it cannot (500
    characters at most).

    Optional methods: `check()`, which raises when the provider cannot be reached (`run.py check` calls it), and
    `close()`.
    """

    def analyze(self, request: AnalyzeRequest) -> Analysis | Awaitable[Analysis]:
        """Return what is in the photo, within request.timeout_seconds.

        RetryableJobError: try again later. PermanentJobError: this image will never work. Any other exception counts
        as retryable.
        """


class ReportingAIProvider(Protocol):
    """An AIProvider that reports its progress. Everything else is as in AIProvider."""

    def analyze(self, request: AnalyzeRequest, progress: Progress) -> Analysis | Awaitable[Analysis]:
        """Return what is in the photo, as AIProvider.analyze does; call `progress` on the way."""
