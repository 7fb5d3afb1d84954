"""Decodes whatever a phone sends into an upright RGB picture of bounded size. Runs in a child."""

from __future__ import annotations

import io
from typing import Any

import pillow_heif
from PIL import AvifImagePlugin, ExifTags, Image, ImageOps

from pipeline.errors import PermanentJobError
from pipeline.sandbox import limits
from pipeline.sandbox.cost import LONG_SIDE_PIXELS, find_fault, reduce_factor
from pipeline.sandbox.header import header_of

pillow_heif.register_heif_opener()
# What they need must not depend on how many cores there are; the cores are for OCR.
pillow_heif.options.DECODE_THREADS = AvifImagePlugin.DEFAULT_MAX_THREADS = 1

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "HEIF")
STRIP_ROWS = 64
# What a photo may take of the processor, lest one that hangs keep all others waiting for as long as the largest one
# may take: five to ten times what it takes on a machine of today.
OPEN_CPU_SECONDS, PIXEL_CPU_SECONDS = 3.0, 0.25e-6
BEHIND_TRANSPARENCY = (255, 255, 255)
Image.MAX_IMAGE_PIXELS = None  # find_fault knows better


def prepare() -> None:
    """Called by a child before its first photo, which would else pay with its time for the imports above."""


def reduce(content: bytes, long_side: int, max_pixels: int, max_mb: int) -> list[Any]:
    """Return width, height and RGB bytes of the photo. Arguments and errors: see read_photo."""
    photo = read_photo(content, long_side, max_pixels, max_mb)
    return [*photo.size, photo.tobytes()]


def reduce_to_jpeg(content: bytes, long_side: int, quality: int, max_pixels: int, max_mb: int) -> bytes:
    """Return the photo as a JPEG, without what else its file tells, such as the place. quality: 1 to 95."""
    file = io.BytesIO()
    read_photo(content, long_side, max_pixels, max_mb).save(file, "JPEG", quality=quality)
    return file.getvalue()


def read_photo(content: bytes, long_side: int, max_pixels: int, max_mb: int) -> Image.Image:
    """Return the picture in RGB, turned as its EXIF says, at most long_side wide and high.

    long_side: at most LONG_SIDE_PIXELS. max_pixels, max_mb: what it may have and need, see cost.find_fault.
    Of a picture with several frames the first counts. Raises PermanentJobError for bytes that are no picture, a damaged
    one, or one that has or needs more. A JPEG is decoded at reduced size; of other formats no second full-size copy is
    ever made, so 100 megapixels cost what their own pixels need.
    """
    limits.allow(OPEN_CPU_SECONDS)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if fault := find_fault(header_of(image), io.BytesIO(content), max_pixels, max_mb):
                raise PermanentJobError(f"The photo cannot be read: {fault[0].lower()}{fault[1:]}")
            limits.allow(OPEN_CPU_SECONDS + image.width * image.height * PIXEL_CPU_SECONDS)
            image.draft("RGB", (LONG_SIDE_PIXELS, LONG_SIDE_PIXELS))
            image.load()
            small = _reduce(image)
            small.getexif()[ExifTags.Base.Orientation] = _orientation(image)
    except (MemoryError, PermanentJobError):
        raise
    # The parsers raise nearly anything on damaged bytes: SyntaxError, struct.error, OverflowError, ...
    except Exception as error:
        raise PermanentJobError("The photo cannot be read: the file is damaged or not an image") from error
    for side in (LONG_SIDE_PIXELS, long_side):
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return ImageOps.exif_transpose(small)


def _reduce(image: Image.Image) -> Image.Image:
    """Return the picture in RGB at 1/n of its size, n as large as still leaves twice what is needed."""
    factor = reduce_factor(image.size)
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
