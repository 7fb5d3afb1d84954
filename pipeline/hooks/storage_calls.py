"""Calls one storage: each call within its time, each exception as an error of the service. Runs on the event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from io import BytesIO
from itertools import islice
from typing import Any, BinaryIO, cast

import structlog

from pipeline.errors import DependencyUnavailable, PipelineError, asked_seconds
from pipeline.grouped import WriteGroups
from pipeline.hooks.bound_plugin import BoundPlugin
from pipeline.hooks.checks import is_web_url
from pipeline.hooks.storage_protocol import READ_AT_MOST_BYTES, NewImage, StoredImage
from pipeline.logs import ThrottledLog
from pipeline.texts import cause_of
from pipeline.tracing import Tracing

log = structlog.get_logger(__name__)

UNAVAILABLE = "Image storage unavailable"
PIECE_BYTES = 16 * 1024 * 1024
SAVE_MANY = "save_many"
# An upload up to this size stays in memory. Larger images take too long to write, so they are not stored in groups.
SMALL_BYTES = 128 * 1024


class StorageCalls:
    """The calls of one storage plugin."""

    def __init__(self, storage: BoundPlugin, seconds: float, tracing: Tracing) -> None:
        """seconds: how long one call of the plugin may take."""
        self.storage = storage
        self._seconds = seconds
        self._tracing = tracing
        self._throttled_log = ThrottledLog()
        # The tasks that remove images whose `save` was given up and has ended later.
        self._removals: set[asyncio.Task[None]] = set()
        self._groups: WriteGroups[NewImage, object] | None = None
        if SAVE_MANY in storage.methods and not _has_newer_save(storage.plugin):
            # One call at a time: two threads would compete for the interpreter's lock.
            self._groups = WriteGroups(
                self._save_many, lambda image: self._remove_later(image.public_id), calls_at_once=1
            )

    async def save(self, public_id: str, file: BinaryIO, content_type: str) -> str:
        """Store the image and return its URL; DependencyUnavailable, or the storage's own PipelineError.

        A save that is given up, because its time is over or the caller was cancelled, may still store the image in its
        thread. When it ends, the image is removed.
        """
        remove = partial(self._remove_later, public_id)
        # The file was read before, to compute its hash.
        file.seek(0)
        with self._tracing.call(self.storage.kind, self.storage.name, "save"):
            if self._groups is not None and _is_small(file):
                image = NewImage(public_id, file, content_type)
                url = await _guarded(self._within_time(self._groups.add(image)))
            else:
                saving = self.storage.call("save", self._seconds, public_id, file, content_type, on_late_end=remove)
                url = await _guarded(saving)
        if not is_web_url(url):
            remove()
            raise DependencyUnavailable(UNAVAILABLE) from ValueError(f"save returned {url!r}")
        return cast(str, url)

    async def _within_time(self, saving: Awaitable[object]) -> object:
        """Return the result; TimeoutError when other images before it use up its time."""
        async with asyncio.timeout(self._seconds):
            return await saving

    async def _save_many(self, images: Sequence[NewImage]) -> Sequence[object | Exception]:
        """Return the URL or the exception of each image; raise an exception that concerns all of them."""

        def remove() -> None:
            for image in images:
                self._remove_later(image.public_id)

        answers = await self.storage.call(SAVE_MANY, self._seconds, images, on_late_end=remove)
        if not isinstance(answers, Sequence) or isinstance(answers, (str, bytes)) or len(answers) != len(images):
            remove()
            raise TypeError(f"{SAVE_MANY} returned no list of {len(images)} answers")
        for _ in filter(lambda answer: isinstance(answer, Exception), answers):
            self.storage.count_error(SAVE_MANY)
        return answers

    async def read(self, public_id: str) -> bytes:
        """Return the bytes of the stored image; FileNotFoundError when there is none."""
        with self._tracing.call(self.storage.kind, self.storage.name, "open"):
            opening = self.storage.call("open", self._seconds, public_id)
            file = await _guarded(opening, FileNotFoundError)
            # In the plugin's threads: the `read` of the file may be the plugin's code too.
            reading = self.storage.run_in_thread("open", _read, self._seconds, file)
            return cast(bytes, await _guarded(reading, FileNotFoundError))

    async def delete(self, public_id: str) -> None:
        """Remove the image if it is there."""
        await self._call("delete", public_id)

    @property
    def can_list(self) -> bool:
        """True when the storage has `list`."""
        return "list" in self.storage.methods

    @property
    def makes_urls(self) -> bool:
        """True when the storage has `url`."""
        return "url" in self.storage.methods

    async def urls(self, public_ids: Sequence[str], seconds: int) -> Mapping[str, str]:
        """Return the URLs of the images, valid for so many seconds. Only if makes_urls is true.

        All URLs have the time of one call together; later ones are left out. DependencyUnavailable when there are none.
        """
        url = self.storage.function("url")
        made: dict[str, object] = {}
        if inspect.iscoroutinefunction(url):
            making = self.storage.run_on_loop("url", _make_urls_async, self._seconds, url, public_ids, seconds, made)
        else:
            making = self.storage.run_in_thread("url", _make_urls, self._seconds, url, public_ids, seconds, made)
        try:
            await _guarded(making)
        except PipelineError as error:
            # The URLs that were made are valid, even if one fails or takes too long.
            if not made:
                raise
            missing = len(public_ids) - len(made)
            cause = cause_of(error)
            backend = self.storage.name
            self._throttled_log.write(log.warning, "urls_not_made", cause, backend=backend, count=missing, cause=cause)
        return {public_id: cast(str, each) for public_id, each in [*made.items()] if is_web_url(each)}

    async def list_images(self, prefix: str, at_once: int) -> AsyncIterator[Sequence[StoredImage]]:
        """Yield the stored images whose public_id begins with the prefix, in parts of at most `at_once`.

        Only if can_list is true. Each part has the time of one call; DependencyUnavailable when it fails.
        """
        listing = await self._call("list", prefix)
        if hasattr(listing, "__aiter__"):
            listing = aiter(listing)
            take = partial(self.storage.run_on_loop, "list", _take_async)
        else:
            listing = await _guarded(self.storage.run_in_thread("list", iter, self._seconds, listing))
            take = partial(self.storage.run_in_thread, "list", _take)
        while images := await _guarded(take(self._seconds, listing, at_once)):
            yield images

    async def check(self) -> None:
        """Return when the storage is usable; DependencyUnavailable otherwise."""
        if await self._call("check") is False:
            raise DependencyUnavailable("Storage unavailable") from ValueError("check returned False")

    async def close(self) -> None:
        """Close the plugin."""
        for removal in self._removals:
            removal.cancel()
        await self.storage.close()

    async def _call(self, method: str, *args: Any) -> Any:
        with self._tracing.call(self.storage.kind, self.storage.name, method):
            return await _guarded(self.storage.call(method, self._seconds, *args))

    def _remove_later(self, public_id: str) -> None:
        removal = asyncio.create_task(self._remove(public_id), name=f"remove {public_id}")
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)

    async def _remove(self, public_id: str) -> None:
        try:
            await self.delete(public_id)
        except PipelineError as error:
            log.warning("image_left_behind", publicId=public_id, cause=cause_of(error))


async def _guarded(call: Awaitable[Any], *expected: type[Exception]) -> Any:
    """Return the result of the call; DependencyUnavailable for an unexpected exception.

    expected: the exceptions that are passed on, beside PipelineError.
    """
    try:
        return await call
    except Exception as error:
        if isinstance(error, (PipelineError, *expected)):
            raise
        raise DependencyUnavailable(UNAVAILABLE, retry_after_seconds=asked_seconds(error)) from error


def _has_newer_save(plugin: object) -> bool:
    """True when a subclass overrides `save` but inherits `save_many`: then only `save` is right."""
    classes = type(plugin).__mro__
    save, save_many = (
        next((depth for depth, each in enumerate(classes) if name in vars(each)), 0) for name in ("save", SAVE_MANY)
    )
    return save < save_many


def _is_small(file: BinaryIO) -> bool:
    return isinstance(file, BytesIO) and file.getbuffer().nbytes <= SMALL_BYTES


def _read(file: BinaryIO) -> bytes:
    """Return the content of the file; TypeError if it is no file or gives no bytes, ValueError if it does not end."""
    if not hasattr(file, "read"):
        raise TypeError(f"open returned {type(file).__name__}, not a file")
    content = bytearray()
    with file:
        while piece := file.read(PIECE_BYTES):
            if not isinstance(piece, bytes):
                raise TypeError(f"the file that open returned gives {type(piece).__name__}, not bytes")
            content += piece
            if len(content) > READ_AT_MOST_BYTES:
                raise ValueError(f"the file that open returned has more than {READ_AT_MOST_BYTES} bytes")
    return bytes(content)


def _make_urls(url: Callable[..., str], public_ids: Sequence[str], seconds: int, made: dict[str, object]) -> None:
    """Add the URLs to `made`; at the end raise the last exception, if there was one."""
    fault: Exception | None = None
    for public_id in public_ids:
        try:
            made[public_id] = url(public_id, seconds)
        except Exception as error:  # one image must not affect the others
            fault = error
    if fault is not None:
        raise fault


async def _make_urls_async(
    url: Callable[..., Awaitable[str]], public_ids: Sequence[str], seconds: int, made: dict[str, object]
) -> None:
    """The same as _make_urls, all at the same time."""

    async def make(public_id: str) -> None:
        made[public_id] = await url(public_id, seconds)

    if len(public_ids) == 1:
        await make(public_ids[0])
        return
    ended = await asyncio.gather(*map(make, public_ids), return_exceptions=True)
    if fault := next((each for each in ended if each is not None), None):
        raise fault


def _take(listing: Iterator[StoredImage], at_once: int) -> Sequence[StoredImage]:
    return [_checked(image) for image in islice(listing, at_once)]


async def _take_async(listing: AsyncIterator[StoredImage], at_once: int) -> Sequence[StoredImage]:
    images: list[StoredImage] = []
    while len(images) < at_once and (image := await anext(listing, None)) is not None:
        images.append(_checked(image))
    return images


def _checked(image: object) -> StoredImage:
    """Return a valid item of `list`, TypeError otherwise: images are removed because of these items."""
    if not (isinstance(image, StoredImage) and isinstance(image.public_id, str)):
        raise TypeError(f"list yielded {image!r}, not a StoredImage")
    if not isinstance(image.stored_at, datetime) or image.stored_at.utcoffset() is None:
        raise TypeError(f"list yielded {image!r}, whose stored_at is no aware datetime")
    return image
