"""Hostile pictures, and large pictures of few bytes. Pure: bytes only."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    """Return the image's bytes."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def gradient(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Return a picture of that size that compresses well.

    mode: of Pillow; "I;16" has 16 bits.
    """
    grey = Image.linear_gradient("L").resize(size)
    if mode == "I;16":
        return Image.frombytes("I;16", size, bytes(byte for level in grey.tobytes() for byte in (0, level)))
    if mode in ("RGBA", "LA"):
        colors = grey.convert(mode[:-1])
        colors.putalpha(grey)
        return colors
    return grey.convert(mode)


def endless_jpeg(side: int = 4000, scans: int = 3000) -> bytes:
    """Return a progressive JPEG that repeats its last scan many times."""
    good = encode(Image.new("RGB", (side, side), "white"), "JPEG", progressive=True)
    at = good.rindex(b"\xff\xda")
    return good[:at] + good[at:-2] * scans + b"\xff\xd9"


def empty_webp(width: int = 10_000, height: int = 10_000) -> bytes:
    """Return a lossless WebP of one colour, which has 38 bytes for any size."""
    return encode(Image.new("RGB", (width, height), "white"), "WEBP", lossless=True, method=0, quality=0)


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP of these chunks."""
    parts = [kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks]
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def animated_webp(frames: int, canvas: tuple[int, int] = (64, 64)) -> bytes:
    """Return a WebP of that many frames of 64 x 64 pixels."""
    pictures = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    good = encode(pictures[0], "WEBP", save_all=True, append_images=pictures[1:], lossless=True)
    at = good.index(b"ANMF")
    size = struct.unpack_from("<I", good, at + 4)[0]
    frame = (b"ANMF", good[at + 8 : at + 8 + size])
    head = b"\x02\0\0\0" + b"".join(struct.pack("<I", side - 1)[:3] for side in canvas)
    return riff((b"VP8X", head), (b"ANIM", bytes(6)), *[frame] * frames)


def png(width: int, height: int, *, depth: int = 8, color: int = 2, interlaced: bool = False) -> bytes:
    """Return a PNG whose data are zeros.

    depth: the bits of each channel.
    color: as in the header of a PNG: 0 grey, 2 RGB, 6 RGBA.
    """
    bits = depth * {0: 1, 2: 3, 6: 4}[color]
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    packer, packed = zlib.compressobj(9), b""
    for left, top, across, down in passes if interlaced else [(0, 0, 1, 1)]:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0:
            for _ in range(max(0, rows)):
                packed += packer.compress(bytes(1 + -(-columns * bits // 8)))
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header), (b"IDAT", packed + packer.flush()), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def wide_gif(width: int, height: int) -> bytes:
    """Return a GIF with a small picture and a screen of that size."""
    good = encode(Image.new("P", (64, 64)), "GIF")
    return good[:6] + struct.pack("<HH", width, height) + good[10:]


def long_gif(frames: int) -> bytes:
    """Return a GIF of that many frames."""
    good = encode(Image.new("P", (64, 64)), "GIF")
    start = 13 + (3 << (good[10] & 7) + 1 if good[10] & 0x80 else 0)
    return good[:start] + good[start:-1] * frames + b";"


def box(kind: bytes, content: bytes) -> bytes:
    """Return one box, the unit of an AVIF or HEIC file."""
    return struct.pack(">I", 8 + len(content)) + kind + content


def many_items(brand: bytes, items: int) -> bytes:
    """Return an AVIF or HEIC that declares that many pictures: libavif compares each picture with each other one."""
    entries = b"".join(
        box(b"infe", b"\3\0\0\0" + struct.pack(">IH", number + 1, 0) + b"av01\0") for number in range(items)
    )
    locations = b"".join(struct.pack(">IHHHII", number + 1, 0, 0, 1, 0, 4) for number in range(items))
    meta = [
        box(b"hdlr", bytes(8) + b"pict" + bytes(13)),
        box(b"pitm", b"\1\0\0\0" + struct.pack(">I", 1)),
        box(b"iloc", b"\2\0\0\0\x44\0" + struct.pack(">I", items) + locations),
        box(b"iinf", b"\1\0\0\0" + struct.pack(">I", items) + entries),
        heif_properties((64, 48)),
    ]
    return box(b"ftyp", brand + bytes(4) + brand) + box(b"meta", bytes(4) + b"".join(meta))


def heif_properties(size: tuple[int, int], *more: bytes) -> bytes:
    """Return the box that gives item 1 this size and further properties."""
    properties = box(b"ipco", box(b"ispe", bytes(4) + struct.pack(">II", *size)) + b"".join(more))
    indices = bytes(range(1, 2 + len(more)))
    return box(b"iprp", properties + box(b"ipma", bytes(4) + struct.pack(">IHB", 1, 1, len(indices)) + indices))


def many_samples(samples: int) -> bytes:
    """Return an animated AVIF that declares that many frames of one byte: libavif allocates a record for each frame."""
    frames = [Image.new("RGB", (64, 48), color) for color in ("red", "blue")]
    content = bytearray(encode(frames[0], "AVIF", save_all=True, append_images=frames[1:]))
    struct.pack_into(">II", content, content.index(b"stsz") + 8, 1, samples)
    struct.pack_into(">I", content, content.index(b"stsc") + 16, samples)
    struct.pack_into(">I", content, content.index(b"stts") + 12, samples)
    return bytes(content) + bytes(samples)
