"""Pictures with an orientation in their metadata, and the orientation that a browser shows."""

from __future__ import annotations

import io

from pipeline.assets.image import inspect
from tests import private_pictures
from tests.pictures import encode
from tests.private_pictures import chunk, segment, tiff, with_chunks, with_segments, xmp

PLAIN_JPEG = encode(private_pictures.corners(), "JPEG")
PLAIN_PNG = encode(private_pictures.corners(), "PNG")
EXIF = b"Exif\0\0"
# The value is the file and the orientation that a browser shows; tests/integration/test_hygiene.py checks it in a
# browser.
TURNED: dict[str, tuple[bytes, int]] = {
    **{
        f"jpeg turned by {number}": (with_segments(PLAIN_JPEG, segment(0xE1, EXIF + tiff(number))), number)
        for number in range(1, 9)
    },
    "jpeg of the other byte order": (with_segments(PLAIN_JPEG, segment(0xE1, EXIF + tiff(6, order=">"))), 6),
    "jpeg with another EXIF header": (with_segments(PLAIN_JPEG, segment(0xE1, b"Exif\0\xff" + tiff(6))), 6),
    "jpeg turned by 9": (with_segments(PLAIN_JPEG, segment(0xE1, EXIF + tiff(9))), 1),
    "jpeg turned by a LONG": (with_segments(PLAIN_JPEG, segment(0xE1, EXIF + tiff(6, kind=4))), 1),
    "jpeg turned by two numbers": (with_segments(PLAIN_JPEG, segment(0xE1, EXIF + tiff(6, count=2))), 1),
    "jpeg turned by XMP": (with_segments(PLAIN_JPEG, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp())), 1),
    "jpeg turned twice": (with_segments(PLAIN_JPEG, *(segment(0xE1, EXIF + tiff(number)) for number in (6, 3))), 6),
    "jpeg turned by the second": (
        with_segments(PLAIN_JPEG, segment(0xE1, EXIF + tiff(6, tag=0x0110)), segment(0xE1, EXIF + tiff(6))),
        1,
    ),
    "jpeg turned behind the picture": (PLAIN_JPEG[:-2] + segment(0xE1, EXIF + tiff(6)) + PLAIN_JPEG[-2:], 1),
    "png turned": (with_chunks(PLAIN_PNG, [chunk(b"eXIf", tiff(8))]), 8),
    "png turned twice": (with_chunks(PLAIN_PNG, [chunk(b"eXIf", tiff(6)), chunk(b"eXIf", tiff(3))]), 6),
    "png turned behind the picture": (with_chunks(PLAIN_PNG, [], [chunk(b"eXIf", tiff(6))]), 1),
    "png turned by XMP": (with_chunks(PLAIN_PNG, [chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp())]), 1),
    "webp turned": (encode(private_pictures.corners(), "WEBP", lossless=True, exif=EXIF + tiff(6)), 1),
    "gif turned by XMP": (private_pictures.gif(), 1),
    "avif turned": (encode(private_pictures.corners(), "AVIF", exif=private_pictures.exif(5)), 5),
}


def type_of(content: bytes) -> str:
    """Return the content type of a picture."""
    return inspect(io.BytesIO(content), 10**6, 100).content_type
