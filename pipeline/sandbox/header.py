"""Header: the header of a picture of any format. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Header:
    """One picture's header.

    format: JPEG, PNG, GIF, WEBP, AVIF or HEIF.
    mode: Pillow's mode of the decoded picture.
    width, height: in pixels, neither turned nor cropped.
    depth: bits of a sample.
    is_progressive: of a JPEG.
    samples: of a JPEG, for each pixel: 1.5 with colours at half the size.
    """

    format: str
    mode: str
    width: int
    height: int
    depth: int = 8
    is_progressive: bool = False
    samples: float = 3


def header_of(image: Any) -> Header:
    """Return the header of a picture that Pillow has opened."""
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    samples = 3.0
    if layers := getattr(image, "layer", None):
        # Each is (id, horizontal sampling, vertical sampling, table).
        most = max(layer[1] for layer in layers) * max(layer[2] for layer in layers)
        samples = sum(layer[1] * layer[2] for layer in layers) / most
    is_progressive = kind == "JPEG" and "progressive" in image.info
    depth = image.info.get("bit_depth", 8)
    return Header(kind, image.mode, image.width, image.height, depth, is_progressive, samples)
