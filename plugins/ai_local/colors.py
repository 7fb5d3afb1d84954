"""Names the colours of the subject as a person would. Pure: pixels in, words out.

Pixels are compared in CIE Lab, where distances are close to what the eye sees. Before that the picture's white is
brightened, because a phone's photo of a white shoe in a dim room is grey. confidence = share of the subject that the
named colours cover x how close its pixels are to the samples of these names x how reliable the mask is.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.hooks import UNKNOWN, Attribute

Pixels = NDArray[Any]  # of uint8
Mask = NDArray[np.float32]

PALETTE = {
    "Black": [(22, 22, 24), (48, 48, 50)],
    "Gray": [(95, 95, 97), (140, 140, 142)],
    "Silver": [(185, 186, 190)],
    "White": [(222, 222, 220), (252, 252, 252)],
    "Red": [(200, 25, 30), (150, 20, 25), (115, 15, 18), (225, 60, 50)],
    "Burgundy": [(85, 10, 40)],
    "Orange": [(235, 110, 30), (215, 80, 30)],
    "Brown": [(110, 65, 35), (75, 45, 25), (150, 95, 55)],
    "Beige": [(215, 195, 160), (190, 165, 125)],
    "Cream": [(240, 226, 188)],
    "Peach": [(250, 205, 175)],
    "Yellow": [(245, 210, 40), (225, 185, 30), (248, 236, 165)],
    "Olive": [(105, 105, 45)],
    "Green": [(40, 140, 55), (90, 170, 60), (20, 90, 45)],
    "Sage": [(172, 188, 160)],
    "Mint": [(150, 185, 180), (165, 220, 200), (190, 230, 215)],
    "Teal": [(0, 130, 130)],
    "Turquoise": [(70, 200, 190)],
    "Light Blue": [(150, 200, 235), (110, 185, 232), (180, 208, 234)],
    "Blue": [(15, 60, 120), (30, 80, 190), (35, 120, 205), (60, 140, 215)],
    "Navy": [(20, 28, 70)],
    "Purple": [(110, 50, 150), (75, 30, 105)],
    "Lavender": [(200, 180, 220), (218, 205, 236), (165, 140, 195)],
    "Pink": [(240, 150, 185), (225, 60, 135), (240, 190, 195), (246, 210, 216)],
}
SAMPLE_PIXELS = 160  # long side at which colours are counted
MIN_SHARE = 0.12  # of the subject; less is a detail, not its colour
MAX_COLORS = 3
WHITE_LEVEL = 235.0
MAX_GAIN = 1.5  # a picture darker than this may well be of something dark
NEAR, FAR = 8.0, 32.0  # Lab units: a colour within NEAR has its name for sure, a colour beyond FAR hardly
HARDLY = 0.3
TRUST_IN_MASK = 0.9
TRUST_IN_CENTER = 0.4  # without a mask the middle of the picture stands for the subject

_NAMES = [name for name, samples in PALETTE.items() for _ in samples]
_SAMPLES = np.array([sample for samples in PALETTE.values() for sample in samples], dtype=np.uint8)


def name_colorway(pixels: Pixels, subject: Mask | None) -> Attribute:
    """Return up to three colours, the largest first, like "White/Red"; UNKNOWN when no colour stands out.

    pixels: RGB.
    subject: 0 to 1 for each pixel, None when it could not be separated from the background.
    """
    size = _sample_size(pixels)
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    inside = _center(small) if subject is None else cv2.resize(subject, size, interpolation=cv2.INTER_AREA) > 0.9
    if inside.sum() < 50:
        return UNKNOWN
    gain = min(MAX_GAIN, max(1.0, WHITE_LEVEL / max(1.0, float(np.percentile(small.max(axis=2), 99)))))
    shares = _shares(np.clip(small[inside] * gain, 0, 255).astype(np.uint8))
    named = [color for color in shares if color[1] >= MIN_SHARE][:MAX_COLORS]
    if not named:
        return UNKNOWN
    trust = TRUST_IN_CENTER if subject is None else TRUST_IN_MASK
    return Attribute("/".join(name for name, _, _ in named), round(trust * sum(sure for _, _, sure in named), 3))


def _shares(colors: Pixels) -> list[tuple[str, float, float]]:
    """Return (name, share, share weighted by how close its pixels are to the samples) of each colour, largest first."""
    distances = np.linalg.norm(_lab(colors)[:, None, :] - _lab(_SAMPLES)[None, :, :], axis=2)
    nearest = distances.argmin(axis=1)
    sure = np.clip(1 - (distances.min(axis=1) - NEAR) / (FAR - NEAR), HARDLY, 1)
    shares: dict[str, tuple[float, float]] = {}
    for index in np.unique(nearest):
        chosen = nearest == index
        share, weight = shares.get(_NAMES[index], (0.0, 0.0))
        shares[_NAMES[index]] = share + float(chosen.mean()), weight + float(sure[chosen].sum()) / len(colors)
    return sorted(((name, *values) for name, values in shares.items()), key=lambda color: -color[1])


def _lab(colors: Pixels) -> NDArray[np.float32]:
    lab = cv2.cvtColor((colors[None] / 255).astype(np.float32), cv2.COLOR_RGB2LAB)[0]
    # Shading changes lightness far more than hue, and a shaded red is still red.
    return np.asarray(lab * np.array((0.6, 1, 1), dtype=np.float32))


def _center(pixels: Pixels) -> NDArray[np.bool_]:
    height, width = pixels.shape[:2]
    inside = np.zeros((height, width), dtype=bool)
    inside[height // 4 : -height // 4, width // 4 : -width // 4] = True
    return inside


def _sample_size(pixels: Pixels) -> tuple[int, int]:
    scale = SAMPLE_PIXELS / max(pixels.shape[:2])
    return max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
