"""The photos and the users of benchmarks/moving.py: small generated images in all accepted formats."""

from __future__ import annotations

from PIL import Image

from tests.pictures import encode

USERS = [f"user-{number}" for number in range(4)]
FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "AVIF": "avif", "HEIF": "heic"}
SIDES = (200, 320, 480)


def _draw(format: str, side: int) -> bytes:
    noise = [Image.effect_noise((side, side * 3 // 4), 40) for _ in range(3)]
    picture = Image.merge("RGB", noise).convert("P" if format == "GIF" else "RGB")
    return encode(picture, format)


# (file name, content type, content) of each photo.
PHOTOS = [
    (f"photo-{side}.{extension}", f"image/{format.lower()}", _draw(format, side))
    for side in SIDES
    for format, extension in FORMATS.items()
]
