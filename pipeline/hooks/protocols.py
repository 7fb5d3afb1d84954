"""What a plugin is handed and what it hands back: plain data and three Protocols.

A plugin may write each method as `async def` (awaited on the event loop, must never block it) or as plain `def` (run
in the thread pool; it must set its own network timeouts, because a thread cannot be cancelled). Which one it is gets
decided once, when the plugin is loaded. Pure: needs nothing outside the standard library.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, BinaryIO, Protocol

from pipeline.sandbox import Picture

# Of a stored image: more than any photo has. A file that goes on for ever must not fill the memory; MAX_UPLOAD_BYTES
# may have been larger when the image was stored.
READ_AT_MOST_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Attribute:
    """One thing the AI says about the product. `value` "" with `confidence` 0 means: could not tell.

    confidence: 0.0 to 1.0, meant as the probability that the value is right.
    """

    value: str
    confidence: float


UNKNOWN = Attribute("", 0.0)
# Whence confidences are: computed by the provider, said by the model of its own answer (nothing may be decided by
# those), or made up to have one.
CONFIDENCE_KINDS = ("measured", "self_reported", "none")


@dataclass(frozen=True, slots=True)
class ProcessedImage:
    """An image a provider made; the pipeline saves it through the storage backend."""

    content: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a provider may be asked: n calls in per_seconds, by all processes together.

    The calls are spread evenly: `Rate(5)` is one each 0.2 s, `Rate(1, 2)` one each 2 s.
    """

    n: float
    per_seconds: float = 1.0

    @property
    def interval_seconds(self) -> float:
        """How far two calls are apart."""
        return self.per_seconds / self.n


@dataclass(frozen=True, slots=True)
class Usage:
    """What one analysis took. input_tokens, output_tokens: None when not told.

    cost: in units of `currency`, None when the price is not known; 0 when it costs nothing.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = None
    currency: str = "USD"


@dataclass(frozen=True, slots=True)
class AnalyzeRequest:
    """One photo to analyze.

    image_url: where the original can be fetched. image: its bytes, only for providers that say `needs_image = True`.
    category: one of CATEGORIES, or of what it once was. attempt: from 1. timeout_seconds: the time budget of this call.
    trace_context: what to send on as the W3C `traceparent` header, "" when nothing is traced. content_type: of the
    bytes in `image` or, without them, of the original, e.g. "image/jpeg".
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
    """What a provider found. UNKNOWN brand or model makes the asset `partial`; colorway None means not looked for.

    A processed image comes either as the URL the AI service keeps it under or as bytes, never both.
    extra: what else the provider has to say, by name: JSON values of at most 8 KB together, no name with "$" in front.
    It is kept and shown; one that cannot be kept is left out, and the rest of the result stands.
    usage: what it took; None when nothing can be told of it. ai_model, prompt_version: which model answered which
    prompt, texts of at most 200 characters. confidence_kind: CONFIDENCE_KINDS says whence the confidences are.
    These four are kept as the asset's provenance. is_cached: the pipeline sets it: an earlier answer, given again.
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


class SandboxPool(Protocol):
    """Child processes for work that can hang, crash or take too much memory: decoding, OpenCV, models.

    A child is ended when a call reaches a limit, and the next call gets a new one: a call hurts only itself. A child
    ends with the service. It sees the arguments of its calls, not our environment, and writes no files; that is no jail
    for code you do not trust.
    """

    async def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        seconds: float,
        cpu_seconds: float | None = None,
        wait_seconds: float | None = None,
    ) -> Any:
        """Return function(*args), called in a child that works for this call alone; calls wait in order for a free one.

        function: one at the top of a module; a child imports that module by its name, so whatever only the child needs
        is best imported inside the function. args, result: None, booleans, numbers, texts, bytes, lists and dicts of
        these; a tuple arrives as a list. The result has at most 64 MB, and 1 MB without its bytes.
        seconds: how long the call may take, from when a child takes it. cpu_seconds: how much processor time, in whole
        seconds, all threads together; default: what all cores have in `seconds`.
        wait_seconds: how long it may wait for a child; default: for ever. Cancelling a call ends its child.

        Raises what the function raises: PermanentJobError and RetryableJobError with their message alone, since a child
        that a photo has taken over must not say who waits; anything else as a RetryableJobError whose cause has its
        type and text. SandboxLimit when a limit was reached or the child crashed: the attempt is spent.
        RetryableJobError(spends_attempt=False) when there was no child: none came free in time, or none can be started.
        """

    async def close(self) -> None:
        """End the children at once. The service does so too when it ends."""


class Sandbox(Protocol):
    """What the service lends its plugins to run work in processes that can be ended; the second argument of the
    `register_` hooks. No process is started before the first call.
    """

    async def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        seconds: float,
        cpu_seconds: float | None = None,
        wait_seconds: float | None = None,
    ) -> Any:
        """Return function(*args), called in the light child, which all plugins share: for short work only. See
        SandboxPool.run; one call may take DECODE_MEMORY_MB and 256 MB more.
        """

    def pool(
        self, name: str, *, setup: Callable[[], Any] | None = None, processes: int = 1, memory_mb: int = 1024
    ) -> SandboxPool:
        """Return children of the plugin's own, for long work and for what takes long to load.

        name: for the log. setup: called once by each child before its first call, to load models into its module, say;
        a function as those of run, without arguments. processes: how many calls run at once. memory_mb: what one call
        may take beside what its child had before.
        """

    async def reduce(
        self, content: bytes, long_side: int = 1600, *, seconds: float = 30, wait_seconds: float | None = None
    ) -> Picture:
        """Return the photo as pixels: upright, RGB on white, at most long_side (up to 1600) wide and high, the first
        frame of several. Takes what an upload may be, decoded in the light child.

        seconds, wait_seconds: see SandboxPool.run. Raises PermanentJobError when the bytes are no picture that can be
        read, or one that has more than 200 megapixels or needs more than DECODE_MEMORY_MB; SandboxLimit when decoding
        takes too long; RetryableJobError(spends_attempt=False) when no child was free in time.
        """

    async def reduce_to_jpeg(
        self,
        content: bytes,
        long_side: int = 1600,
        *,
        quality: int = 85,
        seconds: float = 30,
        wait_seconds: float | None = None,
    ) -> bytes:
        """Return the photo as a JPEG, reduced likewise, with nothing of what its file told beside the picture, such as
        the place. quality: 1 to 95.
        """

    async def close(self) -> None:
        """End all children; what built the sandbox does this, not a plugin."""


class Progress(Protocol):
    """Tells the owner of a photo how far its analysis is. An `analyze` gets it by a parameter named `progress`."""

    def __call__(self, share: float | None = None, **partial: Attribute) -> Awaitable[None]:
        """Report how much is done.

        share: from 0 to 1, None when it cannot be told.
        partial: what has been found so far, as `brand`, `model` and `colorway`; it is shown and not kept.
        An `async def` awaits the call, a plain `def` only makes it. Reports that come faster than two a second may be
        dropped. ValueError or TypeError when the arguments are not as above.
        """


class AIProvider(Protocol):
    """Names brand, model and colorway of the product in a photo.

    Optional attributes: `needs_image = True` to get the bytes in the request; `max_concurrency = n` to be given n
    threads of its own instead of 16 or more (plain `def` only); `sees = "..."`, one or two plain sentences for the
    owners of photos: what it can see and what it cannot (500 characters at most). Optional methods: `check()`, which
    raises when the provider cannot be reached (`run.py check` calls it), and `close()`.
    """

    def analyze(self, request: AnalyzeRequest) -> Analysis | Awaitable[Analysis]:
        """Return what is in the photo, within request.timeout_seconds.

        Raises RetryableJobError (try again later) or PermanentJobError (this image will never work); anything else
        that escapes is taken as retryable.
        """


class ReportingAIProvider(Protocol):
    """An AIProvider that tells how far it is. Everything else is as there."""

    def analyze(self, request: AnalyzeRequest, progress: Progress) -> Analysis | Awaitable[Analysis]:
        """Return what is in the photo, as AIProvider.analyze does; call `progress` on the way."""


class StorageBackend(Protocol):
    """Keeps images. A `public_id` is a path of lower-case letters, digits, "-" and "/", chosen by the pipeline.

    Optional attribute: `media_root: Path`, a folder the service then serves under /media, to whoever has the URL; with
    `media_links: MediaLinks` (pipeline.hooks.media_links) only while its signature holds. Optional methods: `close()`,
    `list(prefix)`, which `StorageListing` describes, `url(public_id, seconds)`, which `StorageLinking` describes, and
    `save_many(images)`, which `StorageBatches` describes. Every method raises DependencyUnavailable when the storage
    cannot be reached.
    """

    def save(self, public_id: str, file: BinaryIO, content_type: str) -> str | Awaitable[str]:
        """Store the file (read from its start) under public_id, replacing what was there, and return its URL.

        Of a storage without `url` this URL is shown as long as there is the image.
        """

    def open(self, public_id: str) -> BinaryIO | Awaitable[BinaryIO]:
        """Return the stored image as a readable binary file; FileNotFoundError when there is none. The caller closes
        it.
        """

    def delete(self, public_id: str) -> None | Awaitable[None]:
        """Remove the image; nothing happens when there is none."""

    def check(self) -> None | Awaitable[None]:
        """Return when the storage is usable; raise DependencyUnavailable otherwise. Called by /readyz."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image in a storage. stored_at: when it was saved, an aware datetime in UTC."""

    public_id: str
    stored_at: datetime


class StorageListing(Protocol):
    """The optional method of a StorageBackend. With it the service finds and removes images that no asset names."""

    def list(self, prefix: str) -> Iterable[StoredImage] | AsyncIterator[StoredImage]:
        """Yield every image whose public_id begins with the prefix, in any order; "" means all images.

        A generator, `def` or `async def`, so that a million images never are in memory; a plain one runs in the
        plugin's threads. The service takes some hundred images at a time, and each such step has the time of one call.
        Images that are saved or deleted meanwhile may be left out.
        """


@dataclass(frozen=True, slots=True)
class NewImage:
    """An image to be stored: the arguments of `save`."""

    public_id: str
    file: BinaryIO
    content_type: str


class StorageBatches(Protocol):
    """An optional method of a StorageBackend, where storing several small images costs little more than storing one."""

    def save_many(
        self, images: Sequence[NewImage]
    ) -> Sequence[str | Exception] | Awaitable[Sequence[str | Exception]]:
        """Store the images as `save` does each, and return for each, in their order, what `save` would return, or the
        exception that it would raise.

        Called instead of `save` for images of up to 128 KB, with those that came while earlier calls were under way:
        one where there was nothing else to do, a hundred at most. All of them have the time of one call.
        """


class StorageLinking(Protocol):
    """An optional method of a StorageBackend, for URLs that end or depend on settings."""

    def url(self, public_id: str, seconds: int) -> str | Awaitable[str]:
        """Return the URL under which others get the image from now on and for at least so many seconds, or for as long
        as the storage can.

        Asked whenever an image is shown, told to somebody or handed to a provider, for a hundred images in a row. So it
        does not look whether there is the image. An `async def` that only computes costs least; a plain `def` runs in
        the plugin's threads.
        """


class RoomPublisher(Protocol):
    """The one thing a notifier may do with rooms."""

    async def publish(self, room: str, event: Mapping[str, Any]) -> None:
        """Send the event to every socket in the room, on this process and on the others."""


@dataclass(frozen=True, slots=True)
class Notification:
    """An event for its owner.

    event: the payload of contracts/asset-processed-event.schema.json, not to be changed. delivery_id: the same for
    every repetition to one notifier. trace_context: what to send on as `traceparent`, or "". category: of the photo, ""
    when it is not known any more. job_id: of the job that made the result, "" when another has run since. claims: those
    of USER_CLAIMS that the token of the upload had, by name.
    """

    event: Mapping[str, Any]
    user_id: str
    rooms: RoomPublisher
    delivery_id: str = ""
    trace_context: str = ""
    category: str = ""
    job_id: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Notifier(Protocol):
    """Tells the owner, or somebody on the owner's behalf, that an asset is finished.

    Optional attribute: `durable = True` makes each event a job of a queue of its own, with retries over hours and dead
    letters; for whoever is told over a network. Without it an event gets one try. Optional methods: `close()`,
    `check()`, and `notify_many`, which BatchNotifier describes.
    """

    def notify(self, notification: Notification) -> str | None | Awaitable[str | None]:
        """Deliver the event; may be called again with the same event. An exception is logged, counted and harms nobody
        else. A durable notifier raises PermanentJobError when no further try can help, and may return what the receiver
        said, such as "HTTP 200", for the operators' list of deliveries.
        """


class BatchNotifier(Protocol):
    """An optional method of a Notifier, for receivers that take many events in one request. With it `notify` is not
    called by the service.

    Optional attributes: `batch_size`, how many one call takes at most (default 50); `batch_seconds`, how long the first
    of them waits for others (default 0.2). A durable notifier gets whole batches, however few slots there are.
    """

    def notify_many(
        self, notifications: Sequence[Notification]
    ) -> Sequence[None | str | Exception] | None | Awaitable[Sequence[None | str | Exception] | None]:
        """Deliver the events, within the time of one `notify`, and return for each in order what `notify` would return,
        or the exception that it would raise: a RetryableJobError there lets this delivery alone wait. None: all are
        delivered. An exception that is raised is about all of them.
        """


@dataclass(frozen=True, slots=True)
class UploadFacts:
    """What is known of an upload before it is taken.

    category: one of CATEGORIES. size_bytes, width, height: of the image, the latter in pixels. read:
    returns the image's bytes, up to MAX_UPLOAD_BYTES of them; it reads a file, so only a plain `def` should call it.
    The image is as it is stored: without metadata.
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

    at: when, UTC. attempt: from 1, 0 before the first. outcome: completed | failed | cancelled, only of job_finished.
    error: why an attempt or the job failed, as its owner is told, else "". delay_ms: until the next attempt. seconds:
    how long the attempt took, 0 before its end.
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
