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
