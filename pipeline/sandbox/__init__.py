"""Child processes that can be ended, in which photos are decoded and read. Light to import: each child imports it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preview:
    """A small picture of a photo.

    side: the largest width and height allowed, in pixels.
    width, height: its actual size, in pixels.
    content: WebP.
    """

    side: int
    width: int
    height: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Picture:
    """Decoded pixels. rgb: three bytes for each pixel, row by row from the top left."""

    width: int
    height: int
    rgb: bytes
