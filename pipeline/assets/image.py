"""The kind and size of an uploaded image, by its bytes, not by its name or the client's word.

Only headers are read, never pixels, so a small file that decodes to gigabytes does no harm here; the cost of decoding
is estimated from them (sandbox/cost.py). Blocking (parsing, disk): runs in the thread pool. Must not know where the
file came from.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import BinaryIO, cast

from PIL import Image

from pipeline.assets import containers
from pipeline.assets.truncation import has_first_pixels
from pipeline.assets.kinds import AVIF, HEAD_BYTES, HEIC, image_type
from pipeline.errors import ValidationError
from pipeline.sandbox import cost
from pipeline.sandbox.header import Header, header_of
from pipeline.sandbox.orientation import SIDEWAYS, orientation_of, png_exif

# Pillow's warnings are about files of clients, and Python remembers each new warning text for ever.
warnings.filterwarnings("ignore", module=r"PIL\.")

FORMATS = ("JPEG", "PNG", "GIF")  # the only parsers of Pillow's that see an upload here; they are written in Python
CONTENT_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
}
# Photos need a few hundred reads. For a file of a million tiny segments Pillow needs over a minute (it joins EXIF parts
# one by one) and blocks all other threads meanwhile.
MAX_READS = 10_000
NOT_WHOLE = "Must be a whole image: the file is shorter than it says"
CUT_OFF = "Must be a whole image: the file ends before its picture begins"


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image by its header.

    bytes: file size.
    width, height: pixels as a viewer shows them, orientation applied.
    """

    bytes: int
    width: int
    height: int
    content_type: str


def inspect(file: BinaryIO, max_pixels: int, decode_memory_mb: int) -> ImageInfo:
    """Return the image in the file and leave the file at its start.

    max_pixels: the largest width x height accepted.
    decode_memory_mb: the most memory that decoding may need.
    Raises ValidationError on field `image` for any other file, hostile bytes included.
    """
    # Pillow refuses twice this before it allocates anything and warns in between; our own check below is exact.
    Image.MAX_IMAGE_PIXELS = max_pixels
    size = file.seek(0, os.SEEK_END)
    try:
        header, (width, height) = _read_header(file)
        fault = cost.find_fault(header, file, max_pixels, decode_memory_mb)
        if not fault and not has_first_pixels(header, file):
            fault = CUT_OFF
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _invalid(cost.too_many_pixels(max_pixels)) from error
    except containers.CutOff as error:
        raise _invalid(NOT_WHOLE) from error
    # The parsers raise nearly anything on damaged bytes: SyntaxError, struct.error, OverflowError, MemoryError, ...
    except Exception as error:
        raise _invalid("Must be an image: JPEG, PNG, WebP, GIF, AVIF or HEIC") from error
    finally:
        file.seek(0)
    if fault:
        raise _invalid(fault)
    return ImageInfo(size, width, height, CONTENT_TYPES[header.format])


def _read_header(file: BinaryIO) -> tuple[Header, tuple[int, int]]:
    """Return the header, and width and height as a viewer shows the picture. Runs no C code but zlib's."""
    file.seek(0)
    kind = image_type(file.read(HEAD_BYTES))
    file.seek(0)
    if kind is None:
        raise ValueError("none of the accepted formats")
    if kind in (AVIF, HEIC):
        return containers.read_heif(file)
    if kind == "image/webp":
        header, exif = containers.read_webp(file), b""
    else:
        with Image.open(cast(BinaryIO, _Rationed(file)), formats=FORMATS) as image:
            header, exif = header_of(image), image.info.get("exif", b"")
        if header.format == "PNG":
            # Not image.getexif(): it decodes the picture to look for EXIF behind it.
            exif = png_exif(file)
    size = header.width, header.height
    return header, (size[::-1] if orientation_of(header.format, exif) in SIDEWAYS else size)


class _Rationed:
    """The three methods of a file that the parsers use, for at most MAX_READS reads."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._read = file.read
        self._reads_left = MAX_READS

    def read(self, size: int = -1) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ValueError("more pieces than any photo has")
        return self._read(size)


def _invalid(detail: str) -> ValidationError:
    return ValidationError.of("image", detail, "Invalid image")
