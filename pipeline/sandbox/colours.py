"""Converts pictures to sRGB, the colours of the web, by the profile in their file. Runs in a child.

A profile that is damaged, or for another colour space than that of the picture, is ignored, as in browsers.
"""

from __future__ import annotations

import io
from functools import cache

from PIL import Image, ImageCms

SRGB = ImageCms.createProfile("sRGB")
# Colours of an AVIF or HEIC without a profile: two numbers of ITU-T H.273 behind this mark.
NCLX = b"colrnclx"
DISPLAY_P3, BT709_CURVE, SRGB_CURVE = 12, 1, 13
READ_BYTES = 1024 * 1024  # the tables are at the beginning
# Red, green and blue of Display P3, as X, Y and Z under the white of profiles (D50). Source: SMPTE EG 432-1.
P3_COLORANTS = {
    b"rXYZ": (0.51512, 0.24120, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.15710, 0.06657, 0.78407),
}


def profile_of(image: Image.Image, content: bytes) -> bytes:
    """Return the colour profile of a picture, b"" when it has none. content: its file."""
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and profile:
        return profile
    at = content.find(NCLX, 0, READ_BYTES) if image.format in ("AVIF", "HEIF") else -1
    numbers = content[at + len(NCLX) :][:4]
    primaries, curve = int.from_bytes(numbers[:2]), int.from_bytes(numbers[2:])
    return display_p3() if at >= 0 and primaries == DISPLAY_P3 and curve in (BT709_CURVE, SRGB_CURVE) else b""


@cache
def display_p3() -> bytes:
    """Return the profile of Display P3: that of sRGB, with other primary colours."""
    profile = bytearray(ImageCms.ImageCmsProfile(SRGB).tobytes())
    for number in range(int.from_bytes(profile[128:132])):
        entry = 132 + 12 * number
        if colorant := P3_COLORANTS.get(bytes(profile[entry : entry + 4])):
            at = int.from_bytes(profile[entry + 4 : entry + 8]) + 8
            profile[at : at + 12] = b"".join(round(part * 65536).to_bytes(4, signed=True) for part in colorant)
    return bytes(profile)


def mode_of(image: Image.Image, profile: bytes) -> str:
    """Return the mode in which the picture is to be reduced: RGB, or CMYK when its profile is for CMYK."""
    return "CMYK" if image.mode == _space(profile) == "CMYK" else "RGB"


def in_srgb(picture: Image.Image, profile: bytes, *, is_grey: bool) -> Image.Image:
    """Return the picture in sRGB: RGB, or RGBA with the same transparency.

    picture: RGB, RGBA, or CMYK as mode_of says.
    is_grey: it was of one sample a pixel, red, green and blue are equal.
    """
    space = _space(profile)
    if space != ("CMYK" if picture.mode == "CMYK" else "RGB") and not (is_grey and space == "GRAY"):
        return picture
    alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
    colours = picture.getchannel(0) if space == "GRAY" else picture.convert("RGB") if alpha else picture
    colours = _converted(colours, profile).convert("RGB")
    if alpha:
        colours.putalpha(alpha)
    return colours


def _converted(colours: Image.Image, profile: bytes) -> Image.Image:
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        made = ImageCms.profileToProfile(colours, embedded, SRGB, ImageCms.Intent.PERCEPTUAL, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return colours
    return made or colours


def _space(profile: bytes) -> str:
    """Return the colour space of the profile, as its header says: RGB, GRAY, CMYK or another; "" without a profile."""
    return profile[16:20].decode("latin-1").strip() if profile[36:40] == b"acsp" else ""
