"""A storage: its methods and the data they get and return. Pure. How methods are written: provider_protocol.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Protocol

# Of a stored image: more than any photo has. An endless file must not fill the memory. MAX_UPLOAD_BYTES may have been
# larger when the image was stored.
READ_AT_MOST_BYTES = 256 * 1024 * 1024


class StorageBackend(Protocol):
    """Stores images. A `public_id` is a path of lower-case letters, digits, "-" and "/", chosen by the service.

    Optional attribute: `media_root: Path`, a folder that the service then serves under /media to every client that has
    the URL; with `media_links: MediaLinks` (pipeline.hooks.media_links) only while the URL's signature is valid.
    Optional methods: `close()`, `list(prefix)` (see StorageListing), `url(public_id, seconds)` (see StorageLinking) and
    `save_many(images)` (see StorageBatches). Every method raises DependencyUnavailable when the storage cannot be
    reached.
    """

    def save(self, public_id: str, file: BinaryIO, content_type: str) -> str | Awaitable[str]:
        """Store the file (read from its start) under public_id, replacing what was there, and return its URL.

        If the storage has no method `url`, this URL is shown as long as the image exists.
        """

    def open(self, public_id: str) -> BinaryIO | Awaitable[BinaryIO]:
        """Return the stored image as a readable binary file; FileNotFoundError when there is none. The caller closes
        it.
        """

    def delete(self, public_id: str) -> None | Awaitable[None]:
        """Remove the image; do nothing when there is none."""

    def check(self) -> None | Awaitable[None]:
        """Return when the storage is usable; raise DependencyUnavailable otherwise. /readyz calls it."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image in a storage.

    stored_at: when it was saved, an aware datetime in UTC.
    """

    public_id: str
    stored_at: datetime


class StorageListing(Protocol):
    """An optional method of a StorageBackend. With it the service finds and removes images that no asset names."""

    def list(self, prefix: str) -> Iterable[StoredImage] | AsyncIterator[StoredImage]:
        """Yield every image whose public_id begins with the prefix, in any order; "" means all images.

        Write a generator, `def` or `async def`, so that a million images are never in memory together; a plain one runs
        in the plugin's threads. The service takes some hundred images at a time, and each such step has the time of one
        call. Images that are saved or deleted meanwhile may be left out.
        """


@dataclass(frozen=True, slots=True)
class NewImage:
    """An image to be stored: the arguments of `save`."""

    public_id: str
    file: BinaryIO
    content_type: str


class StorageBatches(Protocol):
    """An optional method of a StorageBackend that stores several small images for little more than the cost of one."""

    def save_many(
        self, images: Sequence[NewImage]
    ) -> Sequence[str | Exception] | Awaitable[Sequence[str | Exception]]:
        """Store each image as `save` does. Return for each, in their order, the URL that `save` would return or the
        exception that it would raise.

        Called instead of `save` for images of up to 128 KB, with all those that arrived during the previous call: from
        one to a hundred. All of them together have the time of one call.
        """


class StorageLinking(Protocol):
    """An optional method of a StorageBackend, for URLs that expire or depend on settings."""

    def url(self, public_id: str, seconds: int) -> str | Awaitable[str]:
        """Return a URL at which others get the image from now on, for at least so many seconds or for as long as the
        storage can.

        The service calls it whenever it shows an image, puts it into an event or gives it to a provider, for a hundred
        images in a row. So do not look whether the image exists. An `async def` that only computes costs least; a plain
        `def` runs in the plugin's threads.
        """
