"""Pictures in every format, and what their previews show."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def smooth(size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Return a picture of which no two places are alike."""
    across = np.linspace(0, 255, size[0])[None, :].repeat(size[1], 0)
    down = np.linspace(0, 255, size[1])[:, None].repeat(size[0], 1)
    return Image.fromarray(np.dstack([across, down, 255 - across]).astype(np.uint8))


def shown(content: bytes) -> np.ndarray[Any, Any]:
    """Return what a preview shows, in RGB."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).astype(int)
