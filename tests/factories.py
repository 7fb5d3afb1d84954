"""Builds the input of tests: real images, real tokens, multipart bodies. Pure: no server, no settings, no fixtures."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import jwt
from PIL import Image
from pillow_heif import register_heif_opener

from pipeline.assets.asset import Asset, AssetStatus, ImageRef
from pipeline.assets.asset_ids import new_asset_id
from pipeline.clock import utc_now

register_heif_opener()

SECRET = "a secret for tests of thirty-two bytes and more"
BOUNDARY = "----boundary7f3a9c"


def make_image(format: str = "JPEG", size: tuple[int, int] = (64, 48), seed: int = 0) -> bytes:
    """Return the bytes of a real image; the same arguments give the same image.

    format: a Pillow name: JPEG, PNG, WEBP, GIF, AVIF, HEIF, MPO (two frames), TIFF, BMP...
    size: (width, height) in pixels.
    """
    source = random.Random(seed)
    tile = Image.frombytes("RGB", (16, 16), source.randbytes(16 * 16 * 3))
    picture = tile.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    if format == "MPO":
        picture.save(buffer, format, save_all=True, append_images=[picture.rotate(180)])
    else:
        picture.save(buffer, format)
    return buffer.getvalue()


def make_noise_image(size_bytes: int, seed: int = 0) -> bytes:
    """Return a real PNG of size_bytes minus a few kilobytes, which no compression makes smaller."""
    width = 1024
    height = max(1, (size_bytes - 4096) // (width * 3 + 8))
    picture = Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(width * height * 3))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def make_asset(user_id: str = "user-1", *, created_at: datetime | None = None, **fields: Any) -> Asset:
    """Return an asset as an upload creates it, except for these fields."""
    asset_id = new_asset_id()
    now = created_at or utc_now()
    return replace(
        Asset(
            id=asset_id,
            user_id=user_id,
            category="sneaker",
            status=AssetStatus.PROCESSING,
            original=ImageRef(
                backend="memory",
                public_id=f"{asset_id}/original-0",
                url=f"https://images.example/{asset_id}.jpg",
                sha256="0" * 64,
                bytes=1234,
                width=64,
                height=48,
                content_type="image/jpeg",
            ),
            processing_job_id=f"ai-processing:{asset_id}",
            created_at=now,
            updated_at=now,
        ),
        **fields,
    )


def make_token(
    sub: str = "user-1", secret: str = SECRET, role: str | None = None, expires_in: float = 7200, **claims: object
) -> str:
    """Return a signed HS256 token.

    expires_in: seconds from now, negative for an expired token. The default is longer than a test run, because the
        parameters of tests are built when the run begins.
    """
    payload: dict[str, object] = {"sub": sub, "exp": int(time.time() + expires_in)}
    if role is not None:
        payload["role"] = role
    return jwt.encode(payload | claims, secret, algorithm="HS256")


def make_multipart(
    fields: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    files: Sequence[tuple[str, str, str, bytes]] = (),
    boundary: str = BOUNDARY,
) -> tuple[bytes, str]:
    """Return (body, value of the Content-Type header).

    fields: name and text of each.
    files: name, filename, content type and content of each; they follow the fields.
    """
    pairs = fields.items() if isinstance(fields, Mapping) else fields
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{text}'.encode() for name, text in pairs]
    for name, filename, content_type, content in files:
        disposition = f'Content-Disposition: form-data; name="{name}"; filename="{filename}"'
        parts.append(f"{disposition}\r\nContent-Type: {content_type}\r\n\r\n".encode() + content)
    body = b"".join(b"--" + boundary.encode() + b"\r\n" + part + b"\r\n" for part in parts)
    return body + b"--" + boundary.encode() + b"--\r\n", f"multipart/form-data; boundary={boundary}"


def make_upload(image: bytes | None = None, category: str = "sneaker") -> tuple[bytes, str]:
    """Return (body, value of the Content-Type header) of a valid upload, by default of a small JPEG."""
    content = make_image() if image is None else image
    return make_multipart({"category": category}, [("image", "photo.jpg", "image/jpeg", content)])
