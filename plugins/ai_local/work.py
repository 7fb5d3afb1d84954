"""The functions that run in child processes: reading the lettering, cutting the product out, naming colours.

The service imports this file to name its functions, so the packages that only a child needs (OpenCV, models, 300 MB)
are imported inside them.
"""

from __future__ import annotations

import os
from functools import cache
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from .lexicon import Lexicon
    from .text import TextReader

# RapidOCR makes every strip 30 pixels high and pads it: one pixel high and 1600 long, it would take gigabytes.
LEAST_SIDE_PIXELS = 8


@cache
def load() -> tuple[TextReader, Lexicon]:
    """Return the OCR engine and the lexicon of this child. Each child calls this first."""
    import cv2

    from .lexicon import Lexicon
    from .text import TextReader

    # One core is left to the event loop; more than four gain nothing on pictures of this size.
    threads = max(1, min(4, (os.cpu_count() or 1) - 1))
    cv2.setNumThreads(threads)
    return TextReader(threads), Lexicon.load()


def is_loaded() -> bool:
    """Return True when this child has the models; it accepts no call before."""
    return load() is not None


def read(width: int, height: int, rgb: bytes, category: str, seconds: float) -> dict[str, Any]:
    """Return the results of the lettering.

    `brand` and `model`: each (value, confidence).
    `turn`: the rotation that brings the picture upright, a number of PIL.Image.Transpose or None.
    `boxes`: the places of lettering after it, four corners each.
    `text`: the surely legible texts, the largest first.

    seconds: after this time no further rotation is tried.
    """
    import numpy as np

    from .models import legible_texts, name_product
    from .screens import weigh_down
    from .text import read_upright

    if min(width, height) < LEAST_SIDE_PIXELS:
        return {"brand": ("", 0.0), "model": ("", 0.0), "turn": None, "boxes": [], "text": []}
    deadline = monotonic() + seconds
    reader, lexicon = load()
    photo = _photo(width, height, rgb)
    turn, lines = read_upright(photo, reader, deadline)
    upright = np.asarray(photo if turn is None else photo.transpose(turn))
    brand, model = name_product(weigh_down(lines, upright), category, lexicon)
    return {
        "brand": (brand.value, brand.confidence),
        "model": (model.value, model.confidence),
        "turn": turn,
        "boxes": [line.box.tolist() for line in lines],
        "text": legible_texts(lines),
    }


def finish(
    width: int, height: int, rgb: bytes, turn: int | None, boxes: list[Any], cuts_out: bool
) -> tuple[tuple[str, float], bytes | None]:
    """Return the colorway (value, confidence) and the processed image, a WebP, or None.

    No image when it would not be better: the picture is upright, and its product is not cut out.

    turn, boxes: as `read` returns them.
    cuts_out: False leaves the background unchanged.
    """
    import cv2
    import numpy as np
    from PIL.Image import Transpose

    from .colors import name_colorway
    from .subject import clean_background, find_on_white, find_subject

    cv2.setNumThreads(1)
    photo = _photo(width, height, rgb)
    pixels = np.asarray(photo if turn is None else photo.transpose(Transpose(turn)))
    subject = find_subject(pixels, [np.array(box, dtype=np.float32) for box in boxes]) if cuts_out else None
    colorway = name_colorway(pixels, find_on_white(pixels) if subject is None else subject)
    is_better = subject is not None or turn is not None
    return (colorway.value, colorway.confidence), clean_background(pixels, subject) if is_better else None


def _photo(width: int, height: int, rgb: bytes) -> Image:
    from PIL import Image

    return Image.frombytes("RGB", (width, height), rgb)
