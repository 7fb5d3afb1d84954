"""Previews have the colours that a browser shows, for photos with any colour profile or none."""

from __future__ import annotations

import io
import struct
from typing import Any

import pillow_heif
import pytest
from PIL import Image

from pipeline.sandbox import photo
from pipeline.sandbox.colours import display_p3
from tests.pictures import encode

LIMITS = (200_000_000, 1024)
WHITE_D50 = (0.9642, 1.0, 0.8249)


def icc(space: bytes, connection: bytes, **tags: bytes) -> bytes:
    """Return a colour profile.

    space: the colour space of its numbers.
    connection: `XYZ ` or `Lab `.
    tags: the content of each tag by its name.
    """
    table, data = b"", b""
    start = 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name.encode() + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(">I4sI4s4s4s", 128 + len(body), b"lcms", 0x02400000, b"prtr", space, connection)
    head += bytes(12) + b"acsp" + bytes(28) + xyz(WHITE_D50)[8:]
    return head.ljust(128, b"\0") + body


def xyz(numbers: tuple[float, float, float]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256)) + bytes(2)


def green_ink() -> bytes:
    """Return a profile of a press whose first ink is not cyan but a middle grey-green: Lab 50, -40, 40."""
    grid = b""
    for number in range(16):  # C changes slowest, K fastest; without ink the paper is white.
        cyan, black = number >> 3, number & 1
        grid += bytes((0, 128, 128)) if black else bytes((128, 88, 168)) if cyan else bytes((255, 128, 128))
    line = bytes(range(256))
    matrix = b"".join(struct.pack(">i", 65536 if row == column else 0) for row in range(3) for column in range(3))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + line * 4 + grid + line * 3
    return icc(b"CMYK", b"Lab ", wtpt=xyz(WHITE_D50), A2B0=lut)


def shown(content: bytes) -> tuple[int, ...]:
    """Return the pixel in the middle of the preview."""
    (made,) = photo.previews(content, [320], *LIMITS)
    with Image.open(io.BytesIO(made[3])) as image:
        found = image.getpixel((image.width // 2, image.height // 2))
        assert isinstance(found, tuple)
        return tuple(found)


def plain(mode: str, color: Any) -> Image.Image:
    return Image.new(mode, (64, 48), color)


def heic_of(nclx: tuple[int, int], color: tuple[int, int, int]) -> bytes:
    """Return a HEIC that names its colours by numbers.

    nclx: the numbers of the primaries and of the curve.
    """
    file = io.BytesIO()
    picture = pillow_heif.from_pillow(plain("RGB", color))
    picture.save(file, quality=-1, color_primaries=nclx[0], transfer_characteristics=nclx[1], matrix_coefficients=6)
    return file.getvalue()


P3_ORANGE, SRGB_ORANGE = (220, 120, 60), (233, 117, 43)
LINEAR_GREY = icc(b"GRAY", b"XYZ ", wtpt=xyz(WHITE_D50), kTRC=gamma(1.0))
CASES: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "P3 jpeg": (encode(plain("RGB", P3_ORANGE), "JPEG", quality=98, icc_profile=display_p3()), SRGB_ORANGE),
    "P3 png": (encode(plain("RGB", P3_ORANGE), "PNG", icc_profile=display_p3()), SRGB_ORANGE),
    "P3 palette png": (encode(plain("RGB", P3_ORANGE).quantize(4), "PNG", icc_profile=display_p3()), SRGB_ORANGE),
    "P3 webp": (encode(plain("RGB", P3_ORANGE), "WEBP", lossless=True, icc_profile=display_p3()), SRGB_ORANGE),
    "P3 avif": (encode(plain("RGB", P3_ORANGE), "AVIF", quality=98, icc_profile=display_p3()), SRGB_ORANGE),
    "P3 heic": (encode(plain("RGB", P3_ORANGE), "HEIF", quality=98, icc_profile=display_p3()), SRGB_ORANGE),
    "P3 heic by numbers": (heic_of((12, 13), P3_ORANGE), SRGB_ORANGE),
    "sRGB heic by numbers": (heic_of((1, 13), P3_ORANGE), P3_ORANGE),
    "transparent P3 png": (
        encode(plain("RGBA", (*P3_ORANGE, 128)), "PNG", icc_profile=display_p3()),
        (*SRGB_ORANGE, 128),
    ),
    "linear grey jpeg": (encode(plain("L", 55), "JPEG", quality=98, icc_profile=LINEAR_GREY), (127, 127, 127)),
    "linear grey png": (encode(plain("L", 55), "PNG", icc_profile=LINEAR_GREY), (127, 127, 127)),
    "linear grey png of 16 bits": (encode(plain("I;16", 55 * 257), "PNG", icc_profile=LINEAR_GREY), (127, 127, 127)),
    "transparent grey png": (encode(plain("LA", (55, 128)), "PNG", icc_profile=LINEAR_GREY), (127, 127, 127, 128)),
    "CMYK jpeg": (
        encode(plain("CMYK", (255, 0, 0, 0)), "JPEG", quality=98, icc_profile=green_ink()),
        (53, 137, 45),
    ),
    "CMYK jpeg without profile": (encode(plain("CMYK", (255, 0, 0, 0)), "JPEG", quality=98), (0, 255, 255)),
    "CMYK profile in RGB": (encode(plain("RGB", P3_ORANGE), "JPEG", quality=98, icc_profile=green_ink()), P3_ORANGE),
    "RGB profile in CMYK": (
        encode(plain("CMYK", (255, 0, 0, 0)), "JPEG", quality=98, icc_profile=display_p3()),
        (0, 255, 255),
    ),
    "grey profile in RGB": (encode(plain("RGB", P3_ORANGE), "JPEG", quality=98, icc_profile=LINEAR_GREY), P3_ORANGE),
    "profile that is cut off": (
        encode(plain("RGB", P3_ORANGE), "JPEG", quality=98, icc_profile=display_p3()[:200]),
        P3_ORANGE,
    ),
    "CMYK profile that is cut off": (
        encode(plain("CMYK", (255, 0, 0, 0)), "JPEG", quality=98, icc_profile=green_ink()[:200]),
        (0, 255, 255),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_preview_has_the_colours_of_the_profile(name: str) -> None:
    """A profile of the picture's colour space is applied; a profile of another space or a damaged one is ignored."""
    content, expected = CASES[name]
    found = shown(content)
    assert len(found) == len(expected)
    assert all(abs(one - other) <= 6 for one, other in zip(found, expected)), found


def test_providers_see_the_colours_of_previews() -> None:
    """A photo that is decoded for the offline provider has the same colours as its preview."""
    width, height, pixels = photo.reduce(CASES["P3 jpeg"][0], 320, *LIMITS)
    middle = (height // 2 * width + width // 2) * 3
    assert all(abs(one - other) <= 6 for one, other in zip(pixels[middle : middle + 3], SRGB_ORANGE))


def test_numbers_of_an_avif_name_its_colours() -> None:
    """An AVIF without a profile whose numbers name Display P3 is converted to sRGB."""
    content = encode(plain("RGB", P3_ORANGE), "AVIF", quality=98)
    at = content.index(b"colrnclx") + 8
    assert all(
        abs(one - other) <= 6
        for one, other in zip(shown(content[:at] + struct.pack(">HH", 12, 13) + content[at + 4 :]), SRGB_ORANGE)
    )
    # Hybrid log-gamma cannot be converted: the preview is made without an error.
    shown(content[:at] + struct.pack(">HH", 9, 18) + content[at + 4 :])
