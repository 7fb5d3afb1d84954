"""Separates the product from its background, and puts it on a clean one.

GrabCut (Rother et al. 2004, OpenCV) on a small copy of the picture; lettering counts as subject, the picture's edge as
background. The mask is a guess, and a picture with half of the product cut off is worse than one with a table in it, so
a mask that is doubtful in any way is dropped. A picture that was taken on white needs no mask. Runs in a child.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[Any]  # of uint8; OpenCV declares no closer type for what it returns
Mask = NDArray[np.float32]

WORK_PIXELS = 480  # long side at which the mask is made
MIN_WORK_PIXELS = 50  # short side; a narrower strip is no photo of a product
ROUNDS = 4
STANDS_OUT = 4.0  # multiples of the background's own unevenness
LEAST_UNEVENNESS = 3.0  # Lab units of 0 to 255: noise and JPEG blocks alone make as much
EDGE_SHARE = 0.03  # of the picture on each side is taken to be background
NEUTRAL = 128  # of the a and b channels of 8-bit Lab
DEEPEST_SHADOW = 0.3  # of the background's lightness
SHADOW_TINT = 10.0  # Lab units a shadow's colour may differ from dimmed background
LONG_CONTACT = 3.0  # times the root of its area, along which a shadow meets the background
SOFT_EDGE = 6.0  # Lab units per pixel of the small picture
MIN_AREA, MAX_AREA = 0.06, 0.8  # of the picture; outside this it is a detail or everything
MIN_FILL = 0.65  # of its own convex hull; a torn mask has less
MIN_TEXT_INSIDE = 0.85
# Lab units in daylight; a background with more contains other things, or half of the product. Tables and carpets have
# an even hue, streets and rooms do not.
MOST_UNEVENNESS = (24, 6, 6)
DAYLIGHT, MAX_GAIN = 235.0, 4.0  # the brightest pixel in daylight, and the most that a dim picture is brightened
MIN_LARGEST = 0.9  # of the mask: a product in two pieces has lost the part that joins them
MIN_COMPACTNESS = 0.12  # 4 pi area / outline^2: 1 for a disc, 0.3 for a chair, less for what is torn
MAX_BORDER = 0.04  # of the outline runs along the picture's edge; more is a product that goes on outside, or a wall
MIN_CONTRAST = 9.0  # Lab units between the two sides of the outline
MIN_CLEAR_OUTLINE = 0.85  # of it has that contrast
ACROSS = 4  # pixels to each side of the outline
WHITE = 232  # the darkest of a pixel's channels; a border of such pixels is a studio's
MIN_WHITE_BORDER = 0.9
OUTLINE_SMOOTHNESS = 2.0  # pixels of the small mask, whose steps would show otherwise
MARGIN_SHARE = 0.06  # of the subject's long side is left around it
BACKGROUND = 247  # nearly white, so that a white product still has an outline
WEBP_QUALITY = 85


def find_subject(pixels: Pixels, text_boxes: Sequence[NDArray[np.float32]]) -> Mask | None:
    """Return how much each pixel belongs to the product, 0 to 1; None in doubt.

    pixels: RGB.
    text_boxes: four corners each, in pixels.
    """
    scale = WORK_PIXELS / max(pixels.shape[:2])
    if min(pixels.shape[:2]) * scale < MIN_WORK_PIXELS:
        return None
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    if _is_on_white(small):
        return None
    text = np.zeros(small.shape[:2], dtype=np.uint8)
    for box in text_boxes:
        cv2.fillPoly(text, [(box * scale).astype(np.int32)], 1)
    edge = max(2, round(EDGE_SHARE * max(small.shape[:2])))
    flat, distance, shadow = _flatten(small, 2 * edge)
    gain = min(MAX_GAIN, max(1.0, DAYLIGHT / max(1.0, float(np.percentile(small.max(axis=2), 99)))))
    if not _is_even(flat[_ring(small, 2 * edge)], gain):  # also skips the pictures that take GrabCut ten seconds
        return None
    if flat.std(axis=(0, 1)).max() < LEAST_UNEVENNESS:  # one colour all over: GrabCut never ends on some of these
        return None
    mask = _solid(_without_shadow(_cut(flat, distance, text, edge), shadow, flat[..., 0]))
    if mask is None or not (_is_plausible(mask, text, flat, gain) and _is_sharp(mask, flat, edge)):
        return None
    return _soften(mask, (pixels.shape[1], pixels.shape[0]))


def find_on_white(pixels: Pixels) -> Mask | None:
    """Return the mask, 0 or 1, of a product that was photographed on white; None when the border is not white. Good
    enough to name its colours: parts that are as white as the paper may be missing.
    """
    if min(pixels.shape[:2]) < MIN_WORK_PIXELS:
        return None
    scale = WORK_PIXELS / max(pixels.shape[:2])
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    if not _is_on_white(small):
        return None
    _, pieces, _, _ = cv2.connectedComponentsWithStats((small.min(axis=2) >= WHITE).astype(np.uint8))
    outer = np.unique(np.concatenate((pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1])))
    product = (~np.isin(pieces, outer[outer > 0])).astype(np.uint8)
    product = cv2.morphologyEx(product, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)).astype(np.uint8)
    full = cv2.resize(product.astype(np.float32), (pixels.shape[1], pixels.shape[0]))
    return full.astype(np.float32) if product.any() else None


def _is_on_white(small: Pixels) -> bool:
    border = small[_ring(small, 4)].min(axis=1)
    return bool((border >= WHITE).mean() >= MIN_WHITE_BORDER)


def clean_background(pixels: Pixels, subject: Mask | None) -> bytes:
    """Return the picture as WebP: cut to the subject on a plain background, or as it is when there is no mask."""
    if subject is not None:
        pixels = (pixels * subject[..., None] + BACKGROUND * (1 - subject[..., None])).astype(np.uint8)
        pixels = _crop(pixels, subject)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=WEBP_QUALITY, method=4)
    return file.getvalue()


def _cut(flat: Pixels, distance: Mask, text: Pixels, edge: int) -> Pixels:
    labels = np.where(distance > STANDS_OUT, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    if not MIN_AREA <= np.mean(labels == cv2.GC_PR_FGD) <= MAX_AREA:
        labels[:] = cv2.GC_PR_FGD
    labels[text > 0] = cv2.GC_FGD
    labels[:edge], labels[-edge:], labels[:, :edge], labels[:, -edge:] = (cv2.GC_BGD,) * 4
    cv2.setRNGSeed(0)  # the same photo gives the same picture each time a job is run again
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(flat, labels, (0, 0, 0, 0), *models, ROUNDS, cv2.GC_INIT_WITH_MASK)
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)


def _flatten(small: Pixels, edge: int) -> tuple[Pixels, Mask, Pixels]:
    """Return the picture in Lab without the uneven light on its background; the distance of each pixel from that
    background, in multiples of its own unevenness; and 1 for pixels that may be the same background in shadow.

    The background along the edge is extrapolated into the picture as a surface of second degree: a lamp makes the
    middle of a table brighter than its edge, and by colour alone that patch would count as product.
    """
    lab = cv2.cvtColor(cv2.bilateralFilter(small, 7, 40, 7), cv2.COLOR_RGB2LAB).astype(np.float32)
    y, x = np.mgrid[-1 : 1 : complex(0, lab.shape[0]), -1 : 1 : complex(0, lab.shape[1])]
    terms = np.stack((np.ones_like(x), x, y, x * x, x * y, y * y), axis=-1).astype(np.float32)
    ring = _ring(small, edge)
    surface = np.linalg.lstsq(terms[ring], lab[ring], rcond=None)[0]
    background = terms @ surface
    rest = lab - background
    uneven = np.maximum(LEAST_UNEVENNESS, rest[ring].std(axis=0))
    distance = np.linalg.norm(rest / uneven, axis=-1).astype(np.float32)
    dimmed = lab[..., 0] / np.maximum(1, background[..., 0])
    tint = np.linalg.norm(lab[..., 1:] - NEUTRAL - dimmed[..., None] * (background[..., 1:] - NEUTRAL), axis=-1)
    shadow = (dimmed > DEEPEST_SHADOW) & (dimmed < 1) & (tint < SHADOW_TINT)
    return np.clip(rest + lab[ring].mean(axis=0), 0, 255).astype(np.uint8), distance, shadow.astype(np.uint8)


def _without_shadow(mask: Pixels, shadow: Pixels, lightness: Pixels) -> Pixels:
    """Return the mask without the shadows of the product: coloured like dimmed background, with a soft outer edge.

    A grey product on a white table has such a colour too, but its edge is sharp; a dim part of a pale product is soft,
    but not along the outline.
    """
    steps = cv2.GaussianBlur(lightness.astype(np.float32), (0, 0), 1)
    steepness = np.hypot(cv2.Sobel(steps, -1, 1, 0, scale=1 / 8), cv2.Sobel(steps, -1, 0, 1, scale=1 / 8))
    rim = (mask > 0) & (cv2.erode(mask, np.ones((5, 5), np.uint8)) == 0)
    shaded: Pixels = mask & shadow
    count, pieces = cv2.connectedComponents(cv2.morphologyEx(shaded, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)))
    without = mask.copy()
    for number in range(1, count):
        piece = pieces == number
        outer = rim & piece
        if outer.sum() > LONG_CONTACT * np.sqrt(piece.sum()) and steepness[outer].mean() < SOFT_EDGE:
            without[cv2.dilate(piece.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0] = 0
    return without


def _solid(mask: Pixels) -> Pixels | None:
    """Return the mask without holes and specks, None when it has several pieces or none."""
    opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(opened)
    if count < 2 or stats[1:, cv2.CC_STAT_AREA].max() < MIN_LARGEST * opened.sum():
        return None
    largest = (pieces == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    closed = cv2.morphologyEx(largest, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    outlines, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(mask), outlines, -1, 1, cv2.FILLED)


def _is_plausible(mask: Pixels, text: Pixels, flat: Pixels, gain: float) -> bool:
    outline = max(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0], key=cv2.contourArea)
    hull = cv2.contourArea(cv2.convexHull(outline))
    return bool(
        MIN_AREA <= mask.mean() <= MAX_AREA
        and mask.sum() >= MIN_FILL * hull
        and _is_even(flat[cv2.dilate(mask, np.ones((9, 9), np.uint8)) == 0], gain)
        and (not text.any() or mask[text > 0].mean() >= MIN_TEXT_INSIDE)
    )


def _is_sharp(mask: Pixels, flat: Pixels, edge: int) -> bool:
    """Return True when the outline is compact, inside the picture, and has different colours on its two sides."""
    outline = max(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)
    compactness = 4 * np.pi * cv2.contourArea(outline) / max(1.0, cv2.arcLength(outline, True)) ** 2
    height, width = mask.shape
    x, y = outline[:, 0, 0], outline[:, 0, 1]
    near = edge + 2
    is_border = (x < near) | (y < near) | (x >= width - near) | (y >= height - near)
    kernel = np.ones((2 * ACROSS + 1,) * 2, np.uint8)
    lab = flat.astype(np.float32)
    inside, outside = (_mean_within(lab, part) for part in (cv2.erode(mask, kernel), 1 - cv2.dilate(mask, kernel)))
    contrast = np.linalg.norm(inside[y, x] - outside[y, x], axis=-1)
    return bool(
        compactness >= MIN_COMPACTNESS
        and is_border.mean() <= MAX_BORDER
        and (contrast >= MIN_CONTRAST).mean() >= MIN_CLEAR_OUTLINE
    )


def _mean_within(lab: Mask, part: Pixels) -> Mask:
    """Return the mean colour of the pixels of that part around each pixel."""
    size = (4 * ACROSS + 1,) * 2
    weight = cv2.boxFilter(part.astype(np.float32), -1, size)
    total = cv2.boxFilter(lab * part[..., None].astype(np.float32), -1, size)
    return np.asarray(total / np.maximum(1e-6, weight)[..., None], dtype=np.float32)


def _ring(small: Pixels, edge: int) -> NDArray[np.bool_]:
    ring = np.ones(small.shape[:2], dtype=bool)
    ring[edge:-edge, edge:-edge] = False
    return ring


def _is_even(background: Pixels, gain: float) -> bool:
    """Return True for a background of one kind. gain: how much brighter the picture would be in daylight."""
    return len(background) > 0 and bool((background.astype(np.float32).std(axis=0) * gain <= MOST_UNEVENNESS).all())


def _soften(mask: Pixels, size: tuple[int, int]) -> Mask:
    """Return the mask at full size, its outline smooth, soft and slightly inside, so that no rim of table shows."""
    blurred = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), OUTLINE_SMOOTHNESS)
    full: Mask = cv2.resize(blurred, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    return np.asarray(np.clip((full - 0.5) / 0.2, 0, 1), dtype=np.float32)


def _crop(pixels: Pixels, subject: Mask) -> Pixels:
    rows, columns = np.flatnonzero((subject > 0.5).any(axis=1)), np.flatnonzero((subject > 0.5).any(axis=0))
    margin = round(MARGIN_SHARE * max(rows[-1] - rows[0], columns[-1] - columns[0]))
    top, left = max(0, rows[0] - margin), max(0, columns[0] - margin)
    return pixels[top : rows[-1] + margin + 1, left : columns[-1] + margin + 1]
