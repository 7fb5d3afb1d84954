"""What the use cases need of the storage of images; hooks/manager.py has it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import BinaryIO, Protocol

from pipeline.hooks import StoredImage, UploadFacts


class StoredImages(Protocol):
    """What is needed of the storage to find and remove images."""

    async def delete(self, public_id: str) -> None:
        """Remove the image, if there is one."""

    @property
    def can_list(self) -> bool:
        """True when list_images may be called."""

    def list_images(self, prefix: str, at_once: int) -> AsyncIterator[Sequence[StoredImage]]:
        """Return the stored images whose public_id begins with the prefix, in parts of at most so many."""

    async def save(self, public_id: str, file: BinaryIO, content_type: str) -> str:
        """Store the image and return its URL."""


class ImageStorage(StoredImages, Protocol):
    """What is needed to take uploads in."""

    @property
    def has_upload_filters(self) -> bool:
        """True when some plugin wants to see uploads."""

    async def validate_upload(self, upload: UploadFacts) -> None:
        """Return when no filter refuses the upload; else its ValidationError."""
