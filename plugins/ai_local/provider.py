"""LocalProvider: one photo in, one Analysis out.

Runs in the one thread the dispatcher gives it (`max_concurrency = 1`): models, OpenCV and the picture's pixels are
used by nobody else.
"""

from __future__ import annotations

import os
from time import monotonic

import cv2
import numpy as np

from pipeline.errors import PermanentJobError
from pipeline.hooks import Analysis, AnalyzeRequest
from plugins.ai_local.colors import name_colorway
from plugins.ai_local.lexicon import Lexicon
from plugins.ai_local.models import name_product
from plugins.ai_local.photo import read_photo
from plugins.ai_local.subject import clean_background, find_subject
from plugins.ai_local.text import TextReader, read_upright

ROTATION_SHARE = 0.5  # of the time budget; what is left must do for mask, colours and WebP


class LocalProvider:
    """Names brand, model and colorway from lettering and pixels; hands back an upright WebP on a clean background.

    Each confidence is a product of what was measured: how sure the OCR is of the letters, how well they match the
    lexicon, and how much the rule that picked them is worth (lexicon.py, models.py); for the colorway the share of the
    subject the named colours cover and how far the mask can be trusted (colors.py).
    """

    needs_image = True
    max_concurrency = 1

    def __init__(self, max_image_pixels: int) -> None:
        # One core is left to the event loop; more than four gain nothing on pictures of this size.
        threads = max(1, min(4, (os.cpu_count() or 1) - 1))
        cv2.setNumThreads(threads)
        self._max_image_pixels = max_image_pixels
        self._lexicon = Lexicon.load()
        self._reader = TextReader(threads)

    def analyze(self, request: AnalyzeRequest) -> Analysis:
        """Return what can be seen; PermanentJobError when the bytes are no picture."""
        deadline = monotonic() + request.timeout_seconds * ROTATION_SHARE
        if not request.image:
            raise PermanentJobError("The photo is empty")
        photo, lines = read_upright(read_photo(request.image, self._max_image_pixels), self._reader, deadline)
        brand, model = name_product(lines, request.category, self._lexicon)
        pixels = np.asarray(photo)
        subject = find_subject(pixels, [line.box for line in lines])
        return Analysis(
            brand=brand,
            model=model,
            colorway=name_colorway(pixels, subject),
            processed_image=clean_background(pixels, subject),
        )
