"""Names of stored images, and their content types. Pure."""

from __future__ import annotations

from typing import NamedTuple


class ImageName(NamedTuple):
    """One image of one storage.

    backend: the storage plugin's name.
    """

    backend: str
    public_id: str


class SavedImage(NamedTuple):
    """The place where an image was stored.

    url: the address that the storage returned then.
    """

    backend: str
    url: str


SIGNATURES = ((b"\xff\xd8", "image/jpeg"), (b"\x89PNG", "image/png"), (b"GIF8", "image/gif"), (b"RIFF", "image/webp"))


def content_type_of(content: bytes) -> str:
    """Return the content type of an image, by its first bytes. The image was checked before: it is of a known type."""
    for signature, content_type in SIGNATURES:
        if content.startswith(signature):
            return content_type
    return "image/avif" if content[8:12] in (b"avif", b"avis") else "image/heic"
