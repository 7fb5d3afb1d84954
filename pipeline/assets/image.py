"""What an uploaded file really is: an image is what its bytes say, not what its name or the client says.

Only headers are read, never pixels, so a small file that unfolds into gigabytes stays small. Blocking (parsing, disk):
runs in the thread pool. Must not know where the file came from.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import BinaryIO, cast

from PIL import ExifTags, Image
from pillow_heif import register_heif_opener

from pipeline.errors import ValidationError

register_heif_opener()
# What Pillow has to say about a damaged file is the client's doing; each new text would also be remembered for ever.
warnings.filterwarnings("ignore", module=r"PIL\.")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "HEIF")  # the only parsers that ever see an upload
CONTENT_TYPES = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # Pillow's name for a JPEG with several pictures in it; phones make them
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
}
# Photos need a few hundred reads. A file of a million tiny segments takes Pillow over a minute (it joins EXIF parts one
# by one) and holds up every other thread meanwhile.
MAX_READS = 10_000
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the header says. bytes: file size. width, height: pixels as a viewer shows them, orientation applied."""

    bytes: int
    width: int
    height: int
    content_type: str


def inspect(file: BinaryIO, max_pixels: int) -> ImageInfo:
    """Return what image the file holds and leave the file at its start.

    max_pixels: largest width x height taken. Raises ValidationError on field `image` for everything else, hostile bytes
    included.
    """
    # Pillow refuses twice this before it allocates anything and warns in between; our own check below is exact.
    Image.MAX_IMAGE_PIXELS = max_pixels
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with Image.open(cast(BinaryIO, _Rationed(file)), formats=FORMATS) as image:
            width, height = image.size
            content_type = CONTENT_TYPES[image.format or ""]
            is_sideways = _orientation(image) in SIDEWAYS
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _invalid(f"Must have at most {max_pixels} pixels") from error
    # The parsers raise nearly anything on damaged bytes: SyntaxError, struct.error, OverflowError, MemoryError, ...
    except Exception as error:
        raise _invalid("Must be an image: JPEG, PNG, WebP, GIF, AVIF or HEIC") from error
    finally:
        file.seek(0)
    if width * height > max_pixels:
        raise _invalid(f"Must have at most {max_pixels} pixels")
    if is_sideways:
        width, height = height, width
    return ImageInfo(size, width, height, content_type)


class _Rationed:
    """The three methods of a file that the parsers use, good for MAX_READS reads."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._read = file.read
        self._reads_left = MAX_READS

    def read(self, size: int = -1) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ValueError("more pieces than any photo has")
        return self._read(size)


def _orientation(image: Image.Image) -> int | None:
    # Not image.getexif(): for a PNG it decodes the picture to look for EXIF behind it.
    raw = image.info.get("exif")
    if not raw:
        return None
    exif = Image.Exif()
    try:
        exif.load(raw)
        orientation = exif.get(ExifTags.Base.Orientation)
    except Exception:  # broken EXIF in an otherwise good photo is common, and no reason to refuse it
        return None
    return orientation if isinstance(orientation, int) else None


def _invalid(detail: str) -> ValidationError:
    return ValidationError.of("image", detail, "Invalid image")
