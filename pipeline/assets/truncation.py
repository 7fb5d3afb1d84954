"""Says whether a truncated file has the beginning of its picture. Pure.

A JPEG, PNG or GIF is accepted from its first row on, because every viewer shows the rows that are there and grey or
nothing below. A truncated WebP, AVIF or HEIC cannot be decoded at all; containers.py refuses it.
"""

from __future__ import annotations

import zlib
from typing import BinaryIO

from pipeline.sandbox.header import Header

HEAD_BYTES = 1024 * 1024
MAX_PIECES = 10_000
# At most so many bytes of a PNG are decompressed, whatever its width.
ROW_BYTES = 64 * 1024
# Less than this of a scan is not yet a block of pixels.
LEAST_SCAN_BYTES = 64
MARKERS_WITHOUT_LENGTH = {*range(0xD0, 0xD8), 0x01}
SCAN, END = 0xDA, 0xD9
# Samples of a pixel by PNG's colour type.
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
GIF_IMAGE, GIF_EXTENSION = 0x2C, 0x21


def has_first_pixels(header: Header, file: BinaryIO) -> bool:
    """Return whether the file has at least its first pixels. file: its position changes."""
    look = {"JPEG": _jpeg_begins, "PNG": _png_begins, "GIF": _gif_begins}.get(header.format)
    return look is None or look(file)


def _jpeg_begins(file: BinaryIO) -> bool:
    at = 2
    for _ in range(MAX_PIECES):
        file.seek(at)
        head = file.read(4)
        if len(head) < 4:
            return False
        if head[0] != 0xFF or head[1] == 0xFF or head[1] in MARKERS_WITHOUT_LENGTH:
            at += 1 if head[0] != 0xFF or head[1] == 0xFF else 2
            continue
        if head[1] == END:
            return False
        at += 2 + int.from_bytes(head[2:])
        if head[1] == SCAN:
            file.seek(at)
            data = file.read(LEAST_SCAN_BYTES)
            # A tiny picture has few bytes, and then its end.
            return len(data) == LEAST_SCAN_BYTES or b"\xff\xd9" in data
    return True


def _png_begins(file: BinaryIO) -> bool:
    at, row, unpacked, unpack = 8, 0, 0, zlib.decompressobj()
    for _ in range(MAX_PIECES):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return False
        size, kind = int.from_bytes(head[:4]), head[4:]
        if kind == b"IHDR":
            ihdr = file.read(13)
            width, depth, color, interlaced = int.from_bytes(ihdr[:4]), ihdr[8], ihdr[9], ihdr[12]
            # The first pass of an interlaced picture has every eighth pixel of a row.
            pixels = -(-width // 8) if interlaced else width
            row = min(1 + -(-pixels * depth * PNG_SAMPLES.get(color, 1) // 8), ROW_BYTES)
        elif kind == b"IDAT":
            try:
                unpacked += len(unpack.decompress(file.read(min(size, HEAD_BYTES)), row - unpacked))
            except zlib.error:
                return True  # damaged, not truncated: decoding will find that
            if unpacked >= row:
                return True
        elif kind == b"IEND":
            return False
        at += 12 + size
    return True


def _gif_begins(file: BinaryIO) -> bool:
    file.seek(0)
    head = file.read(13)
    at = 13 + (3 << (head[10] & 7) + 1 if head[10] & 0x80 else 0)
    for _ in range(MAX_PIECES):
        file.seek(at)
        block = file.read(11)
        if len(block) < 2:
            return False
        if block[0] == GIF_IMAGE:
            if len(block) < 10:
                return False
            at += 11 + (3 << (block[9] & 7) + 1 if block[9] & 0x80 else 0)
            file.seek(at)
            size = file.read(1)
            return bool(size and size[0] and file.read(1))
        if block[0] != GIF_EXTENSION:
            return False
        at += 2
        for _ in range(MAX_PIECES):
            file.seek(at)
            size = file.read(1)
            if not size:
                return False
            at += 1 + size[0]
            if not size[0]:
                break
    return True
