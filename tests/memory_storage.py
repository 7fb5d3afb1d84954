"""A storage in memory with the interface that the use cases need; a test can make it fail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime
from typing import BinaryIO

from pipeline.clock import utc_now
from pipeline.errors import DependencyUnavailable, ValidationError
from pipeline.hooks import StoredImage, UploadFacts
from pipeline.images import ImageName, SavedImage


class MemoryStorage:
    """The storage.

    images: content by public_id.
    saved_at: the time at which each image was saved, by public_id.
    deleted: the public_id of each call of delete.
    refused: the public_ids for which delete fails.
    is_away: makes every call fail.
    refuses_images: makes every save fail with a refusal.
    host: of the URLs.
    """

    has_upload_filters = False

    backends: Sequence[str] = ("memory",)

    def __init__(self, *, can_list: bool = True) -> None:
        self.is_listable = can_list
        self.images: dict[str, bytes] = {}
        self.saved_at: dict[str, datetime] = {}
        self.deleted: list[str] = []
        self.refused: set[str] = set()
        self.is_away = False
        self.refuses_images = False
        self.host = "images.example"

    def put(self, *public_ids: str, at: datetime | None = None) -> None:
        """Add these images.

        at: the time at which they were saved, by default now.
        """
        for public_id in public_ids:
            self.images[public_id] = b"image"
            self.saved_at[public_id] = at or utc_now()

    async def validate_upload(self, upload: UploadFacts) -> None:
        raise AssertionError("there is no filter")

    async def can_list(self, backend: str) -> bool:
        return self.is_listable

    async def makes_urls(self, backend: str) -> bool:
        return True

    async def urls(self, names: Collection[ImageName], seconds: int) -> Mapping[ImageName, str]:
        return {name: f"https://{self.host}/{name.public_id}" for name in names}

    async def save(self, public_id: str, file: BinaryIO, content_type: str) -> SavedImage:
        self._answer()
        if self.refuses_images:
            raise ValidationError.of("image", "The image storage refused this image")
        self.put(public_id)
        self.images[public_id] = file.read()
        return SavedImage("memory", f"https://{self.host}/{public_id}")

    async def read(self, name: ImageName) -> bytes:
        public_id = name.public_id
        if public_id not in self.images:
            raise FileNotFoundError(public_id)
        return self.images[public_id]

    async def delete(self, name: ImageName) -> None:
        public_id = name.public_id
        self.deleted.append(public_id)
        self._answer()
        if public_id in self.refused:
            raise DependencyUnavailable("Image storage unavailable")
        self.images.pop(public_id, None)

    async def list_images(self, backend: str, prefix: str, at_once: int) -> AsyncIterator[Sequence[StoredImage]]:
        assert self.is_listable
        self._answer()
        names = [name for name in self.images if name.startswith(prefix)]
        for start in range(0, len(names), at_once):
            self._answer()
            part = names[start : start + at_once]
            yield [StoredImage(name, self.saved_at[name]) for name in part if name in self.images]

    def _answer(self) -> None:
        if self.is_away:
            raise DependencyUnavailable("Image storage unavailable")
