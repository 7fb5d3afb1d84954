"""What the use cases need of the storages of images; hooks/manager.py has it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import BinaryIO, Protocol

from pipeline.hooks import StoredImage, UploadFacts
from pipeline.images import ImageName, SavedImage


class StoredImages(Protocol):
    """What is needed of the storages to keep, find and remove images.

    Images are saved in the current storage, and read and removed where they are. Every method raises
    DependencyUnavailable when a storage cannot be reached, or is not configured here.
    """

    @property
    def backends(self) -> Sequence[str]:
        """The names of the storages in use, the current one first; others as soon as an image in them is asked for."""

    async def save(self, public_id: str, file: BinaryIO, content_type: str) -> SavedImage:
        """Store the image in the current storage."""

    async def read(self, name: ImageName) -> bytes:
        """Return the bytes of the stored image; FileNotFoundError when there is none."""

    async def delete(self, name: ImageName) -> None:
        """Remove the image, if there is one."""

    async def urls(self, names: Collection[ImageName], seconds: int) -> Mapping[ImageName, str]:
        """Return the URLs, good for so many seconds, of those images whose storage makes any and answers."""

    async def makes_urls(self, backend: str) -> bool:
        """Return whether the storage makes URLs when asked; otherwise the one of the time an image was stored lasts."""

    async def can_list(self, backend: str) -> bool:
        """Return whether list_images may be called for that storage."""

    def list_images(self, backend: str, prefix: str, at_once: int) -> AsyncIterator[Sequence[StoredImage]]:
        """Return the stored images whose public_id begins with the prefix, in parts of at most so many."""


class ImageStorage(StoredImages, Protocol):
    """What is needed to take uploads in."""

    @property
    def has_upload_filters(self) -> bool:
        """True when some plugin wants to see uploads."""

    async def validate_upload(self, upload: UploadFacts) -> None:
        """Return when no filter refuses the upload; else its ValidationError."""
