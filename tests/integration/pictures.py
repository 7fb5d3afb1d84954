"""Test pictures, encoded in a format, and the pixels of an encoded picture."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    """Return the picture as a file of this format."""
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def smooth(size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Return a picture in which every pixel has another colour than its neighbours."""
    across = np.linspace(0, 255, size[0])[None, :].repeat(size[1], 0)
    down = np.linspace(0, 255, size[1])[:, None].repeat(size[0], 1)
    return Image.fromarray(np.dstack([across, down, 255 - across]).astype(np.uint8))


def pixels(content: bytes) -> np.ndarray[Any, Any]:
    """Return the pixels of an encoded picture, in RGB."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).astype(int)
