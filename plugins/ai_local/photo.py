"""Decodes whatever a phone sends into an upright RGB picture of bounded size. Runs in the provider's thread."""

from __future__ import annotations

import io

from PIL import ExifTags, Image, ImageOps
from pillow_heif import register_heif_opener

from pipeline.errors import PermanentJobError

register_heif_opener()

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "HEIF")
LONG_SIDE_PIXELS = 1600  # enough to read a label on a box and to show the result on a screen
STRIP_ROWS = 64
BEHIND_TRANSPARENCY = (255, 255, 255)


def read_photo(content: bytes, max_pixels: int) -> Image.Image:
    """Return the picture in RGB, turned as its EXIF says, at most LONG_SIDE_PIXELS wide and high.

    Of a picture with several frames the first counts. Raises PermanentJobError for bytes that are no picture, a damaged
    one, or one of more than max_pixels. A JPEG is decoded at reduced size; of other formats no second full-size copy is
    ever made, so 100 megapixels cost what their own pixels need.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise PermanentJobError(f"The photo has more than {max_pixels} pixels")
            image.draft("RGB", (LONG_SIDE_PIXELS, LONG_SIDE_PIXELS))
            image.load()
            small = _reduce(image)
            small.getexif()[ExifTags.Base.Orientation] = _orientation(image)
    except (MemoryError, PermanentJobError):
        raise
    # The parsers raise nearly anything on damaged bytes: SyntaxError, struct.error, OverflowError, ...
    except Exception as error:
        raise PermanentJobError("The photo cannot be read: the file is damaged or not an image") from error
    small.thumbnail((LONG_SIDE_PIXELS, LONG_SIDE_PIXELS), Image.Resampling.LANCZOS)
    return ImageOps.exif_transpose(small)


def _reduce(image: Image.Image) -> Image.Image:
    """Return the picture in RGB at 1/n of its size, n as large as still leaves twice what is needed."""
    factor = max(1, max(image.size) // (2 * LONG_SIDE_PIXELS))
    small = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)), BEHIND_TRANSPARENCY)
    step = factor * STRIP_ROWS
    # In strips: converting or reducing in one piece would hold the full-size pixels two or three times.
    for top in range(0, image.height, step):
        strip = image.crop((0, top, image.width, min(top + step, image.height)))
        if strip.has_transparency_data:
            strip = strip.convert("RGBA").reduce(factor)
            small.paste(strip, (0, top // factor), mask=strip)
        else:
            small.paste(strip.convert("RGB").reduce(factor), (0, top // factor))
    return small


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF in an otherwise good photo is common, and no reason to refuse it
        return 1
    return orientation if isinstance(orientation, int) else 1
