"""A picture that `clean` has cleaned, and what Pillow reads of a picture: frames, colour profile and orientation."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, ImageSequence

from pipeline.assets.hygiene import clean
from tests.private_pictures import PROFILE

TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
}


def cleaned(content: bytes, content_type: str) -> bytes:
    """Return the clean picture; a second cleaning must leave it unchanged."""
    source, target = io.BytesIO(content), io.BytesIO()
    source.seek(3)
    is_changed = clean(source, target, content_type)
    assert (source.tell(), target.tell()) == (0, 0)
    assert is_changed == bool(target.getvalue())
    result = target.getvalue() if is_changed else content
    assert not clean(io.BytesIO(result), io.BytesIO(), content_type)
    return result


def frames(content: bytes) -> list[tuple[str, tuple[int, int], bytes, Any, Any]]:
    """Return the decoded frames: the mode, size, pixels and duration of each, and the number of repetitions."""
    with Image.open(io.BytesIO(content)) as image:
        return [
            (frame.mode, frame.size, frame.tobytes(), frame.info.get("duration"), frame.info.get("loop"))
            for frame in (ImageSequence.Iterator(image) if image.format in ("GIF", "WEBP", "PNG", "AVIF") else [image])
        ]


def profile(content: bytes) -> bytes | None:
    """Return the colour profile; of a GIF from its extension, because Pillow does not read it."""
    if content[:3] == b"GIF":
        return PROFILE if b"ICCRGBG1012" + b"\xff" + PROFILE[:255] in content else None
    with Image.open(io.BytesIO(content)) as image:
        found: bytes | None = image.info.get("icc_profile")
        return found


def orientation(content: bytes) -> int | None:
    """Return the orientation in the EXIF data of the file."""
    with Image.open(io.BytesIO(content)) as image:
        return image.getexif().get(0x0112)
