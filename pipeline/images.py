"""How images are named between the parts of the service. Pure."""

from __future__ import annotations

from typing import NamedTuple


class ImageName(NamedTuple):
    """Which image in which storage. backend: the storage plugin's name."""

    backend: str
    public_id: str


class SavedImage(NamedTuple):
    """Where an image was stored. url: its address, as the storage told it then."""

    backend: str
    url: str


SIGNATURES = ((b"\xff\xd8", "image/jpeg"), (b"\x89PNG", "image/png"), (b"GIF8", "image/gif"), (b"RIFF", "image/webp"))


def content_type_of(content: bytes) -> str:
    """Return the content type of an image that an upload or a provider's check let in before, by its first bytes."""
    for head, content_type in SIGNATURES:
        if content.startswith(head):
            return content_type
    return "image/avif" if content[8:12] in (b"avif", b"avis") else "image/heic"
