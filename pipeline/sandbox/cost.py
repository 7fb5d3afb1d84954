"""What it costs to decode a picture, told from its header and its format. Pure.

The border refuses by it what no child may decode, and a child looks once more: storage may hold other photos. Measured
with photo.py in a child, as the most its address space grew by; 24, 49, 96 and 108 megapixels agree within a tenth.

| format | bytes per pixel | remark |
|---|---|---|
| JPEG, baseline | 0.5 to 2.9 | decoded at 1/2, 1/4 or 1/8 of its size |
| JPEG, several scans | 3.3 (4:2:0), 6.3 (4:4:4), 8.3 (CMYK) | all coefficients are kept, two bytes each |
| PNG 1 bit, grey, palette | 1 | 16 bits a channel and interlacing cost nothing more |
| PNG grey of 16 bits; others | 2; 4 | |
| GIF | 1.4 to 1.8 | only the first frame is decoded, here and below |
| WebP | 16, lossless 17 | two canvases and two copies beside the pixels, also for a still picture |
| AVIF grey; RGB; with alpha | 3.6; 9.2 to 11; 11.7 to 14.6 | 4:2:0; with 10 bits 4:4:4 needs 2.7 more |
| HEIC grey; RGB; with alpha | 3.7; 7.6 to 9.6; 8.6 to 12.6 | the more for 4:4:4 |
| HEIC of 10 or 12 bits, likewise | 5.7; 8.1 to 15.6; 20.6 | |

and, for all of them, 5.4 for each pixel of the copy that is made smaller, and two blocks of Pillow's.
"""

from __future__ import annotations

import math
import re
from typing import BinaryIO

from pipeline.sandbox.header import Header

MEGABYTE = 1024 * 1024
# Width x height of the largest photo: phones make 200 million pixels, bombs billions.
MAX_IMAGE_PIXELS = 200_000_000
LONG_SIDE_PIXELS = 1600  # enough to read a label on a box and to show the result on a screen
REDUCED_BYTES = 5.4
FIXED_MB = 32
COEFFICIENT_BYTES = 2  # each, until the last scan
OTHER = ""
# By format and Pillow's mode; OTHER is any mode that is not named.
BYTES_PER_PIXEL = {
    "JPEG": {"L": 1, OTHER: 4},
    "PNG": {"1": 1, "L": 1, "P": 1, "I;16": 2, OTHER: 4},
    "GIF": {OTHER: 2},
    "WEBP": {OTHER: 17},
    "AVIF": {"L": 4, "RGB": 14, OTHER: 18},
    "HEIF": {"L": 4, "RGB": 10, OTHER: 13},
    "HEIF 10": {"I;16": 6, "L": 6, "RGB": 16, OTHER: 21},
}
# A scan without content takes 0.75 ns a pixel: three seconds. A photo of 200 megapixels in ten scans is half of that.
MAX_SCANNED_PIXELS = 4_000_000_000
PIECE_BYTES = 1024 * 1024
# libjpeg goes on to the next of these, between segments and in the picture's data.
MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
SCAN, STOPS = 0xDA, (0xD8, 0xD9)
# Those that libjpeg reads a length of; the others end its work, or are passed over in the picture's data.
WITH_LENGTH = {*range(0xC0, 0xD0), *range(0xDA, 0xDE), *range(0xE0, 0xF0), 0xFE} - {0xC8}


def find_fault(header: Header, file: BinaryIO, max_pixels: int, max_mb: int) -> str:
    """Return why the picture must not be decoded, "" when it may be.

    file: its bytes; left anywhere. max_pixels: width x height. max_mb: of memory.
    """
    pixels = header.width * header.height
    if pixels > max_pixels:
        return too_many_pixels(max_pixels)
    has_scans = header.is_progressive
    if header.format == "JPEG":
        most_scans = MAX_SCANNED_PIXELS // pixels
        scans = count_scan_marks(file)
        if scans > most_scans or (scans > 1 and decode_mb(header, has_scans=True) > max_mb):
            scans = count_scans(file, most_scans)
        if scans > most_scans:
            return f"Must have at most {most_scans} scans at this size: save it as an ordinary JPEG"
        has_scans = has_scans or scans > 1
    needs_mb = decode_mb(header, has_scans=has_scans)
    if needs_mb <= max_mb:
        return ""
    return f"Needs {needs_mb} MB of memory to be decoded, more than {max_mb} MB: send it smaller, or as JPEG"


def too_many_pixels(max_pixels: int) -> str:
    """Return why a picture of more pixels is refused."""
    return f"Must have at most {max_pixels} pixels"


def decode_mb(header: Header, *, has_scans: bool = False) -> int:
    """Return about how much memory it takes to decode and reduce the picture. has_scans: it is a JPEG of several."""
    kind = "HEIF 10" if header.format == "HEIF" and header.depth > 8 else header.format
    size, kept = (header.width, header.height), 0.0
    if kind == "JPEG":
        kept = COEFFICIENT_BYTES * header.samples * header.width * header.height if has_scans else 0
        scale = draft_scale(size)
        size = -(-header.width // scale), -(-header.height // scale)
    table = BYTES_PER_PIXEL[kind]
    per_pixel = table.get(header.mode, table[OTHER]) + REDUCED_BYTES / reduce_factor(size) ** 2
    return math.ceil((kept + size[0] * size[1] * per_pixel) / MEGABYTE) + FIXED_MB


def draft_scale(size: tuple[int, int]) -> int:
    """Return to which fraction of its size, 1/n, Pillow's `draft` has a JPEG decoded that is to be reduced."""
    most = min(side // LONG_SIDE_PIXELS for side in size)
    return max(scale for scale in (8, 4, 2, 1) if scale <= max(1, most))


def reduce_factor(size: tuple[int, int]) -> int:
    """Return the n for which 1/n of the size is still twice what is needed, or more."""
    return max(1, max(size) // (2 * LONG_SIDE_PIXELS))


def count_scan_marks(file: BinaryIO) -> int:
    """Return how often the bytes that begin a scan stand anywhere in a JPEG: never fewer than it has scans.

    They may also stand in a thumbnail, a second picture or a film behind the first one.
    """
    file.seek(0)
    count, last = 0, b""
    while piece := file.read(PIECE_BYTES):
        count += (last + piece).count(bytes((0xFF, SCAN)))
        last = piece[-1:]
    return count


def count_scans(file: BinaryIO, enough: int) -> int:
    """Return how many scans the first picture of a JPEG has; no more are counted once they are more than enough."""
    file.seek(0)
    content = file.read()
    count, at = 0, 2
    while count <= enough and (found := MARKER.search(content, at)):
        marker, at = found[1][0], found.end()
        if marker in STOPS:
            break
        if marker == SCAN:
            count += 1
        if marker in WITH_LENGTH:
            at += int.from_bytes(content[at : at + 2])
    return count
