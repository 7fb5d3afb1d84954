"""Decodes photos of all accepted formats into an upright RGB picture of bounded size. Runs in a child."""

from __future__ import annotations

import io
import os
from typing import Any

import pi_heif  # type: ignore[import-untyped]
from PIL import AvifImagePlugin, Image, ImageFile

from pipeline.errors import PermanentJobError
from pipeline.sandbox import limits
from pipeline.sandbox.colours import in_srgb, mode_of, profile_of
from pipeline.sandbox.cost import LONG_SIDE_PIXELS, find_fault, reduce_factor
from pipeline.sandbox.header import header_of
from pipeline.sandbox.orientation import orientation_of, png_exif

pi_heif.register_heif_opener()
# Their memory must not depend on the number of cores; the cores are for OCR.
pi_heif.options.DECODE_THREADS = AvifImagePlugin.DEFAULT_MAX_THREADS = 1

SHOWN_IN_PART = ("JPEG", "MPO", "PNG", "GIF")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "HEIF")
STRIP_ROWS = 64
# The CPU limit of a photo by its size: five to ten times its need on a machine of today. With one limit for all, a
# small photo that hangs would keep others waiting for as long as the largest photo may take.
OPEN_CPU_SECONDS, PIXEL_CPU_SECONDS = 3.0, 0.25e-6
# A lower priority would starve previews on a busy machine, and results wait for them.
NICE = 5
# Half the time of Pillow's default method for 2 % more bytes.
WEBP_QUALITY, WEBP_METHOD = 80, 2
BEHIND_TRANSPARENCY = {"RGB": (255, 255, 255), "CMYK": (0, 0, 0, 0)}
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
Image.MAX_IMAGE_PIXELS = None  # find_fault checks the size


def prepare() -> None:
    """Called by a child before its first photo, so that the imports above do not count as the time of that photo."""


def prepare_previews() -> None:
    """Called by a child that makes previews: they have a lower priority than other work of the machine."""
    os.nice(NICE)


def reduce(content: bytes, long_side: int, max_pixels: int, max_mb: int) -> list[Any]:
    """Return width, height and RGB bytes of the photo. Arguments and errors: see read_photo."""
    photo = read_photo(content, long_side, max_pixels, max_mb)
    return [*photo.size, photo.tobytes()]


def reduce_to_jpeg(content: bytes, long_side: int, quality: int, max_pixels: int, max_mb: int) -> bytes:
    """Return the photo as a JPEG without metadata, such as the place. quality: 1 to 95."""
    file = io.BytesIO()
    read_photo(content, long_side, max_pixels, max_mb).save(file, "JPEG", quality=quality)
    return file.getvalue()


def previews(content: bytes, sides: list[int], max_pixels: int, max_mb: int) -> list[Any]:
    """Return [side, width, height, WebP] for each side: the photo upright, in sRGB, at most that wide and high.

    Decoded once, no larger than necessary; never enlarged; with its transparency; without metadata. Other arguments and
    errors: see read_photo.
    """
    photo = read_photo(content, max(sides), max_pixels, max_mb, is_preview=True)
    made = []
    for side in sorted(sides, reverse=True):
        photo.thumbnail((side, side), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        photo.save(file, "WEBP", quality=WEBP_QUALITY, method=WEBP_METHOD, icc_profile=b"", exif=b"")
        made.append([side, *photo.size, file.getvalue()])
    return made


def read_photo(
    content: bytes, long_side: int, max_pixels: int, max_mb: int, *, is_preview: bool = False
) -> Image.Image:
    """Return the picture in sRGB, upright, at most long_side wide and high.

    long_side: at most LONG_SIDE_PIXELS.
    max_pixels, max_mb: the limits of the picture, see cost.find_fault.
    is_preview: a picture with transparency is returned in RGBA, otherwise on white; and a JPEG is decoded at the size
      for long_side, otherwise at that for LONG_SIDE_PIXELS, so that AI providers always see the same picture.
    Of a picture with several frames the first is read; of a truncated one the part that is there.
    Raises PermanentJobError for bytes that are no picture, a damaged one, or one beyond the limits. A JPEG is decoded
    at reduced size; of other formats no second full-size copy is made, so 100 megapixels cost only their own pixels.
    """
    limits.allow(OPEN_CPU_SECONDS)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if fault := find_fault(header_of(image), io.BytesIO(content), max_pixels, max_mb):
                raise PermanentJobError(f"The photo cannot be read: {fault[0].lower()}{fault[1:]}")
            limits.allow(OPEN_CPU_SECONDS + image.width * image.height * PIXEL_CPU_SECONDS)
            image.draft("RGB", _least(image.size, long_side) if is_preview else (LONG_SIDE_PIXELS, LONG_SIDE_PIXELS))
            # A truncated picture is shown as far as it goes, as in every viewer; pi_heif would show nothing at all.
            ImageFile.LOAD_TRUNCATED_IMAGES = image.format in SHOWN_IN_PART
            image.load()
            profile, is_grey = profile_of(image, content), image.mode in GREY
            small = _turned(_reduce(image, mode_of(image, profile), is_preview), image, content)
    except (MemoryError, PermanentJobError):
        raise
    # The parsers raise nearly anything on damaged bytes: SyntaxError, struct.error, OverflowError, ...
    except Exception as error:
        raise PermanentJobError("The photo cannot be read: the file is damaged or not an image") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    if is_preview:
        small.thumbnail((long_side, long_side), Image.Resampling.BICUBIC)
    else:
        for side in (LONG_SIDE_PIXELS, long_side):
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return in_srgb(small, profile, is_grey=is_grey)


def _least(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Return the least size that can be reduced to long_side, for Pillow's `draft`, which checks both sides."""
    return max(1, size[0] * long_side // max(size)), max(1, size[1] * long_side // max(size))


def _reduce(image: Image.Image, mode: str, keeps_alpha: bool) -> Image.Image:
    """Return the picture at 1/n of its size, with transparency in RGBA or on white.

    n is the largest number that leaves twice the size needed.
    """
    factor = reduce_factor(image.size)
    size = -(-image.width // factor), -(-image.height // factor)
    is_transparent = keeps_alpha and image.has_transparency_data
    small = Image.new("RGBA", size) if is_transparent else Image.new(mode, size, BEHIND_TRANSPARENCY[mode])
    step = factor * STRIP_ROWS
    # In strips: converting or reducing in one piece would hold the full-size pixels two or three times.
    for top in range(0, image.height, step):
        strip = _in_eight_bits(image.crop((0, top, image.width, min(top + step, image.height))))
        at = (0, top // factor)
        if strip.has_transparency_data:
            strip = strip.convert("RGBA").reduce(factor)
            small.paste(strip, at, mask=None if is_transparent else strip)
        else:
            small.paste(strip.convert(small.mode).reduce(factor), at)
    return small


def _in_eight_bits(strip: Image.Image) -> Image.Image:
    """Return the strip with samples of eight bits: Pillow would clip brighter samples."""
    if not strip.mode.startswith("I;16"):
        return strip
    transparent = strip.info.pop("transparency", None)
    grey = strip.point(lambda value: value * (1 / 256)).convert("L")
    if isinstance(transparent, int):
        grey.info["transparency"] = transparent >> 8
    return grey


def _turned(small: Image.Image, image: Image.Image, content: bytes) -> Image.Image:
    """Return the reduced picture upright.

    image: the full-size picture.
    content: its file.
    """
    exif = png_exif(io.BytesIO(content)) if image.format == "PNG" else image.info.get("exif", b"")
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    turn = TURNS.get(orientation_of(kind, exif))
    return small.transpose(turn) if turn is not None else small
