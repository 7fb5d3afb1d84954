"""How a picture has to be turned to be upright, decided as browsers do (tried with Chromium 156). Pure.

Browsers obey EXIF in a JPEG, and in a PNG where it is before the picture; in AVIF and HEIC a property of the picture,
which decoding applies; nothing in WebP and GIF; and never XMP.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

UPRIGHT = 1
ORIENTATION, SHORT = 0x0112, 3
EXIF_HEAD = b"Exif\0\0"
SIDEWAYS = (5, 6, 7, 8)  # those that swap width and height
# Pillow shows the property of an AVIF as EXIF; EXIF in the AVIF itself does not count.
WITH_EXIF = ("JPEG", "PNG", "AVIF")
MAX_CHUNKS = 10_000
MAX_EXIF_BYTES = 1024 * 1024


def orientation_of(format: str, exif: bytes) -> int:
    """Return the EXIF orientation, 1 to 8, of a picture of that format. exif: its EXIF data, or b""."""
    if format not in WITH_EXIF:
        return UPRIGHT
    return orientation_in(exif if format == "PNG" else exif.removeprefix(EXIF_HEAD))


def orientation_in(tiff: bytes) -> int:
    """Return the orientation, from 1 to 8, of EXIF data without its `Exif` head; 1 when it has none.

    A browser reads the tag only in the first table and as one SHORT; anything else counts as 1.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return UPRIGHT
    (table,) = struct.unpack_from(order + "I", tiff, 4)
    if table + 2 > len(tiff):
        return UPRIGHT
    (entries,) = struct.unpack_from(order + "H", tiff, table)
    for at in range(table + 2, min(table + 2 + entries * 12, len(tiff) - 11), 12):
        tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, at)
        if tag == ORIENTATION:
            return value if (kind, count) == (SHORT, 1) and 1 <= value <= 8 else UPRIGHT
    return UPRIGHT


def png_exif(file: BinaryIO) -> bytes:
    """Return the EXIF data before the picture of a PNG, b"" when there is none."""
    at = 8
    for _ in range(MAX_CHUNKS):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IDAT":
            return b""
        size = int.from_bytes(head[:4])
        if head[4:] == b"eXIf":
            return file.read(min(size, MAX_EXIF_BYTES))
        at += 12 + size
    return b""
