"""Finds lit displays: the lettering on them belongs to a page, not to the product. Pure. Runs in a child.

A display is a bright rectangle in a thin dark frame. A white label on a dark product is no display, because its dark
surroundings are wide. A dark page is not recognized.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .line import Line

Pixels = NDArray[Any]  # of uint8

ON_SCREEN = 0.45  # the factor for lettering on a display: too low for a model
WORK_PIXELS = 480
BRIGHT, DARK = 150, 90  # of the brightest of a pixel's three channels
MIN_AREA = 0.03  # of the picture
MIN_FILL = 0.85  # of its own tilted rectangle
MIN_DARK_FRAME = 0.85  # of the pixels just outside
MIN_BRIGHT_BEYOND = 0.35  # of the pixels outside the frame
FRAME, BEYOND = 0.02, 0.14  # of its short side: how far outside these two lie


def weigh_down(lines: list[Line], pixels: Pixels) -> list[Line]:
    """Return the lines, those on a display with less than half their score."""
    screens = _find(pixels) if lines else []
    scale = WORK_PIXELS / max(pixels.shape[:2])
    weighed = []
    for line in lines:
        x, y = (line.box.mean(axis=0) * scale).astype(int)
        is_shown = any(screen[min(y, screen.shape[0] - 1), min(x, screen.shape[1] - 1)] for screen in screens)
        weighed.append(replace(line, score=line.score * ON_SCREEN) if is_shown else line)
    return weighed


def _find(pixels: Pixels) -> list[Pixels]:
    """Return a mask of each display, at the working size."""
    scale = WORK_PIXELS / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    level = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).max(axis=2)
    outlines, _ = cv2.findContours((level >= BRIGHT).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    found = []
    for outline in outlines:
        (_, sides, _), area = cv2.minAreaRect(outline), cv2.contourArea(outline)
        if area < MIN_AREA * level.size or area < MIN_FILL * sides[0] * sides[1]:
            continue
        mask = cv2.drawContours(np.zeros_like(level), [outline], -1, 1, cv2.FILLED)
        if not mask[[0, -1]].any() and not mask[:, [0, -1]].any() and _is_framed(mask, level, min(sides)):
            found.append(mask)
    return found


def _is_framed(mask: Pixels, level: Pixels, side: float) -> bool:
    near, frame = _grown(mask, 2), _grown(mask, 2 + max(2, FRAME * side))
    inner, outer = _grown(mask, BEYOND * side), _grown(mask, BEYOND * side + 6)
    around, beyond = level[(frame > 0) & (near == 0)], level[(outer > 0) & (inner == 0)]
    return bool(
        len(around) and len(beyond) and (around < DARK).mean() >= MIN_DARK_FRAME
        and (beyond >= DARK).mean() >= MIN_BRIGHT_BEYOND
    )


def _grown(mask: Pixels, by: float) -> Pixels:
    return cv2.dilate(mask, np.ones((2 * round(by) + 1,) * 2, np.uint8))
