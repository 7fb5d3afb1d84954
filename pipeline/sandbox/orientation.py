"""How a picture has to be turned to be upright, told as browsers tell it (tried with Chromium).

They heed EXIF in a JPEG, and in a PNG where it stands before the picture; in AVIF and HEIC a property of the picture,
which decoding applies; none in WebP and GIF; and none that only XMP tells.
"""

from __future__ import annotations

from typing import BinaryIO

from PIL import ExifTags, Image

UPRIGHT = 1
SIDEWAYS = (5, 6, 7, 8)  # those that swap width and height
# Pillow tells the property of an AVIF as EXIF; what an AVIF has of its own does not count.
WITH_EXIF = ("JPEG", "PNG", "AVIF")
MAX_CHUNKS = 10_000
MAX_EXIF_BYTES = 1024 * 1024


def orientation_of(format: str, exif: bytes) -> int:
    """Return the EXIF orientation, 1 to 8, of a picture of that format. exif: what it has, or b""."""
    if format not in WITH_EXIF or not exif:
        return UPRIGHT
    found = Image.Exif()
    try:
        found.load(exif)
        orientation = found.get(ExifTags.Base.Orientation)
    except Exception:  # broken EXIF in an otherwise good photo is common, and no reason to refuse it
        return UPRIGHT
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else UPRIGHT


def png_exif(file: BinaryIO) -> bytes:
    """Return the EXIF that stands before the picture of a PNG, b"" when there is none."""
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
