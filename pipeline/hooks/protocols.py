"""What a plugin is handed and what it hands back: plain data and three Protocols.

A plugin may write each method as `async def` (awaited on the event loop, must never block it) or as plain `def` (run
in the thread pool; it must set its own network timeouts, because a thread cannot be cancelled). Which one it is gets
decided once, when the plugin is loaded. Pure: imports nothing outside the standard library.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class Attribute:
    """One thing the AI says about the product. `value` "" with `confidence` 0 means: could not tell.

    confidence: 0.0 to 1.0, meant as the probability that the value is right.
    """

    value: str
    confidence: float


UNKNOWN = Attribute("", 0.0)


@dataclass(frozen=True, slots=True)
class ProcessedImage:
    """An image a provider made; the pipeline saves it through the storage backend."""

    content: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class AnalyzeRequest:
    """One photo to analyze.

    image_url: where the original can be fetched. image: its bytes, only for providers that say `needs_image = True`.
    category: sneaker | lego | camera | other. attempt: from 1. timeout_seconds: the time budget of this call.
    trace_context: what to send on as the W3C `traceparent` header, "" when nothing is traced.
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


@dataclass(frozen=True, slots=True)
class Analysis:
    """What a provider found. UNKNOWN brand or model makes the asset `partial`; colorway None means not looked for.

    A processed image comes either as the URL the AI service keeps it under or as bytes, never both.
    """

    brand: Attribute = UNKNOWN
    model: Attribute = UNKNOWN
    colorway: Attribute | None = None
    processed_image_url: str | None = None
    processed_image: ProcessedImage | None = None


class AIProvider(Protocol):
    """Names brand, model and colorway of the product in a photo.

    Optional attributes: `needs_image = True` to get the bytes in the request; `max_concurrency = n` to be given n
    threads of its own instead of POOL_THREADS (plain `def` only). Optional methods: `check()`, which raises when the
    provider cannot be reached (`run.py check` calls it), and `close()`.
    """

    def analyze(self, request: AnalyzeRequest) -> Analysis | Awaitable[Analysis]:
        """Return what is in the photo, within request.timeout_seconds.

        Raises RetryableJobError (try again later) or PermanentJobError (this image will never work); anything else
        that escapes is taken as retryable.
        """


class StorageBackend(Protocol):
    """Keeps images. A `public_id` is a path of lower-case letters, digits, "-" and "/", chosen by the pipeline.

    Optional attribute: `media_root: Path`, a folder the service then serves under /media. Optional method: `close()`.
    Every method raises DependencyUnavailable when the storage cannot be reached.
    """

    def save(self, public_id: str, file: BinaryIO, content_type: str) -> str | Awaitable[str]:
        """Store the file (read from its start) under public_id, replacing what was there, and return its URL."""

    def open(self, public_id: str) -> BinaryIO | Awaitable[BinaryIO]:
        """Return the stored image as a readable binary file; FileNotFoundError when there is none. The caller closes
        it.
        """

    def delete(self, public_id: str) -> None | Awaitable[None]:
        """Remove the image; nothing happens when there is none."""

    def check(self) -> None | Awaitable[None]:
        """Return when the storage is usable; raise DependencyUnavailable otherwise. Called by /readyz."""


class RoomPublisher(Protocol):
    """The one thing a notifier may do with rooms."""

    async def publish(self, room: str, event: Mapping[str, Any]) -> None:
        """Send the event to every socket in the room, on this process and on the others."""


@dataclass(frozen=True, slots=True)
class Notification:
    """An event for its owner.

    event: the payload of contracts/asset-processed-event.schema.json, not to be changed. delivery_id: the same for
    every repetition to one notifier. trace_context: what to send on as `traceparent`, or "".
    """

    event: Mapping[str, Any]
    user_id: str
    rooms: RoomPublisher
    delivery_id: str = ""
    trace_context: str = ""


class Notifier(Protocol):
    """Tells the owner, or somebody on the owner's behalf, that an asset is finished.

    Optional attribute: `durable = True` makes each event a job of a queue of its own, with retries over hours and dead
    letters; for whoever is told over a network. Without it an event gets one try. Optional method: `close()`.
    """

    def notify(self, notification: Notification) -> None | Awaitable[None]:
        """Deliver the event; may be called again with the same event. An exception is logged, counted and harms nobody
        else. A durable notifier raises PermanentJobError when no further try can help.
        """


@dataclass(frozen=True, slots=True)
class UploadFacts:
    """What is known of an upload before it is taken.

    category: sneaker | lego | camera | other. size_bytes, width, height: of the image, the latter in pixels. read:
    returns the image's bytes, up to MAX_UPLOAD_BYTES of them; it reads a file, so only a plain `def` should call it.
    """

    user_id: str
    category: str
    content_type: str
    size_bytes: int
    width: int
    height: int
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job.

    at: when, UTC. attempt: from 1, 0 before the first. outcome: completed | failed, only of job_finished. error: why an
    attempt or the job failed, as its owner is told, else "". delay_ms: until the next attempt. seconds: how long the
    attempt took, 0 before its end.
    """

    job_id: str
    asset_id: str
    user_id: str
    category: str
    request_id: str
    at: datetime
    attempt: int = 0
    outcome: str = ""
    error: str = ""
    delay_ms: int = 0
    seconds: float = 0.0


def media_root(backend: StorageBackend) -> Path | None:
    """Return the folder the backend wants served under /media, or None."""
    return getattr(backend, "media_root", None)
