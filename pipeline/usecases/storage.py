"""The image storages as the use cases need them; hooks/manager.py has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import BinaryIO, Protocol

from pipeline.hooks import StoredImage, UploadFacts
from pipeline.images import ImageName, SavedImage


class StoredImages(Protocol):
    """Stores, finds and removes images.

    Images are saved in the current storage, and read and removed where they are. Every method raises
    DependencyUnavailable when a storage cannot be reached, or is not configured here.
    """

    @property
    def backends(self) -> Sequence[str]:
        """The names of the storages in use, the current one first; others are added when an image of them is used."""

    async def save(self, public_id: str, file: BinaryIO, content_type: str) -> SavedImage:
        """Store the image in the current storage."""

    async def read(self, name: ImageName) -> bytes:
        """Return the bytes of the stored image; FileNotFoundError when it is missing."""

    async def delete(self, name: ImageName) -> None:
        """Remove the image, if there is one."""

    async def urls(self, names: Collection[ImageName], seconds: int) -> Mapping[ImageName, str]:
        """Return URLs that work for so many seconds, of those images whose storage makes URLs and answers."""

    async def makes_urls(self, backend: str) -> bool:
        """Return whether the storage makes URLs on request; otherwise the URL of the stored document works for ever."""

    async def can_list(self, backend: str) -> bool:
        """Return whether the storage can list its images."""

    def list_images(self, backend: str, prefix: str, at_once: int) -> AsyncIterator[Sequence[StoredImage]]:
        """Return the stored images whose public_id begins with the prefix, in parts of at most so many."""


class ImageStorage(StoredImages, Protocol):
    """Stores uploads, and checks them with the upload filters."""

    @property
    def has_upload_filters(self) -> bool:
        """True when there are upload filters."""

    async def validate_upload(self, upload: UploadFacts) -> None:
        """Return when no filter refuses the upload; else raise the filter's ValidationError."""
