"""Reads the headers of WebP, AVIF and HEIC, whose libraries must not read an upload in the service process: for the
headers of small hostile files libavif takes minutes and libwebp gigabytes. Pure.

Reads only the parts it needs, in at most MAX_PIECES pieces. A file that violates its format raises ValueError,
ArithmeticError, LookupError or struct.error.
Sources: developers.google.com/speed/webp/docs/riff_container; ISO/IEC 14496-12 and 23008-12.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.sandbox.header import Header

HEAD_BYTES = 30
MAX_PIECES = 10_000  # a photo of 200 megapixels in tiles has a thousand
WEBP_ALPHA = 0x10
ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")


class CutOff(ValueError):
    """The file is shorter than it says."""


def read_webp(file: BinaryIO) -> Header:
    """Return the header of a WebP."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if int.from_bytes(head[4:8], "little") + 8 > file.seek(0, os.SEEK_END):
        raise CutOff
    kind, content = head[12:16], head[20:]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(content[at : at + 3], "little") for at in (4, 7))
        return Header("WEBP", "RGBA" if content[0] & WEBP_ALPHA else "RGB", width, height)
    if kind == b"VP8L" and content[0] == 0x2F:
        bits = int.from_bytes(content[1:5], "little")
        return Header("WEBP", "RGBA", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if kind == b"VP8 " and content[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", content, 6)
        return Header("WEBP", "RGB", width & 0x3FFF, height & 0x3FFF)
    raise ValueError("no WebP")


def read_heif(file: BinaryIO) -> tuple[Header, tuple[int, int]]:
    """Return the header of an AVIF or HEIC, and the width and height at which it is shown."""
    meta = _meta(file)
    boxes = dict(_boxes(meta, 4))
    properties = list(_boxes(dict(_boxes(boxes[b"iprp"]))[b"ipco"]))
    associations = dict(_boxes(boxes[b"iprp"]))[b"ipma"]
    primary = int.from_bytes(boxes[b"pitm"][4 : 6 if boxes[b"pitm"][0] == 0 else 8])
    mine = dict(properties[index - 1] for index in _property_indices(associations, primary) if index)
    width, height = struct.unpack_from(">II", mine[b"ispe"], 4)
    is_grey = b"pixi" in mine and mine[b"pixi"][4] == 1
    has_alpha = any(kind == b"auxC" and content[4:].startswith(ALPHA) for kind, content in properties)
    mode = "L" if is_grey and not has_alpha else "RGBA" if has_alpha else "RGB"
    depth = max((_depth(kind, content) for kind, content in properties), default=8)
    kind = "AVIF" if any(kind == b"av1C" for kind, _ in properties) else "HEIF"
    shown = _cropped(width, height, mine.get(b"clap", b"")) if kind == "HEIF" else (width, height)
    is_sideways = b"irot" in mine and mine[b"irot"][0] % 2 == 1
    return Header(kind, mode, width, height, depth), (shown[::-1] if is_sideways else shown)


def _meta(file: BinaryIO) -> bytes:
    """Return the content of the box `meta`, which lists the pictures."""
    end, at = file.seek(0, os.SEEK_END), 0
    meta = b""
    for _ in range(MAX_PIECES):
        file.seek(at)
        head = file.read(16)
        if not head:
            break
        size, start = int.from_bytes(head[:4]), 8
        if size == 1:
            size, start = int.from_bytes(head[8:]), 16
        size = size or end - at
        if len(head) < start or size < start or at + size > end:
            raise CutOff
        if head[4:8] == b"meta" and not meta:
            file.seek(at + start)
            meta = file.read(size - start)
        at += size
    return meta


def _boxes(content: bytes, at: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Yield the boxes that another one holds, as (type, content). at: where the first begins."""
    for _ in range(MAX_PIECES):
        if at + 8 > len(content):
            return
        size, kind = struct.unpack_from(">I4s", content, at)
        if size < 8 or at + size > len(content):
            raise ValueError("a box that ends elsewhere")
        yield kind, content[at + 8 : at + size]
        at += size
    raise ValueError("more pieces than any photo has")


def _property_indices(associations: bytes, item: int) -> list[int]:
    """Return which properties an item has, from 1 in the order of their box. associations: content of `ipma`."""
    version, wide = associations[0], associations[3] & 1
    count, at = int.from_bytes(associations[4:8]), 8
    id_bytes, index_bytes = (4 if version else 2), (2 if wide else 1)
    if count > MAX_PIECES:
        raise ValueError("more pieces than any photo has")
    for _ in range(count):
        found, many = int.from_bytes(associations[at : at + id_bytes]), associations[at + id_bytes]
        at += id_bytes + 1
        if found == item:
            each = (associations[at + n * index_bytes :][:index_bytes] for n in range(many))
            # The highest bit says that a reader must know the property.
            return [int.from_bytes(index) & (0x7FFF if wide else 0x7F) for index in each]
        at += many * index_bytes
    raise LookupError("the picture has no properties")


def _cropped(width: int, height: int, aperture: bytes) -> tuple[int, int]:
    """Return the size without the padding of the last blocks. aperture: content of `clap`, or b""."""
    if not aperture:
        return width, height
    across, by_across, down, by_down = struct.unpack_from(">IIII", aperture)
    return min(width, across // by_across), min(height, down // by_down)


def _depth(kind: bytes, content: bytes) -> int:
    """Return the bits of a sample that a property names, 8 when it names none."""
    if kind == b"pixi":
        return max(content[5:], default=8)
    return 8 + (content[17] & 7) if kind == b"hvcC" else 8
