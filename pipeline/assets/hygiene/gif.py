"""Cleans GIF. Pure.

A file is a screen, then pictures and extensions up to a trailer. Delays and transparency, the number of repetitions
and a colour profile stay; comments, texts and data of programs are removed.
Source: GIF89a specification; the NETSCAPE2.0 and ICCRGBG1012 extensions.
"""

from __future__ import annotations

from pipeline.assets.hygiene.source import Copy, Source

IMAGE, EXTENSION, TRAILER, PADDING = b",", b"!", b";", b"\0"
CONTROL, APPLICATION = b"\xf9", b"\xff"
REPETITIONS = (b"\x0bNETSCAPE2.0", b"\x0bANIMEXTS1.0")
PROFILE = b"\x0bICCRGBG1012"


def clean(source: Source) -> Copy:
    """Return the clean copy."""
    head = source.take(0, 13)
    if head[:6] not in (b"GIF87a", b"GIF89a") or len(head) < 13:
        raise ValueError("no GIF")
    copy = Copy(source)
    at, has_picture = 13 + _table_bytes(head[10]), False
    copy.keep(0, at)
    while kind := source.take(at, 1):
        source.count()
        start = at
        if kind == IMAGE:
            descriptor = source.take(at, 10)
            # The tables, and a byte with the width of the codes.
            at = _after_blocks(source, at + 11 + _table_bytes(descriptor[-1]))
            copy.keep(start, at)
            has_picture = True
        elif kind == EXTENSION:
            at = _after_blocks(source, at + 2)
            _keep_extension(source, copy, start, at)
        elif kind == PADDING:
            at += 1
        else:
            if kind == TRAILER:
                copy.keep(at, at + 1)
            break  # a decoder stops at anything else
    if not has_picture:
        raise ValueError("no picture")
    return copy


def _keep_extension(source: Source, copy: Copy, start: int, end: int) -> None:
    label, name, rest = source.take(start + 1, 1), source.take(start + 2, 12), source.take(start + 14, 4)
    if label == CONTROL and name[:1] == b"\4":
        copy.put(source.take(start, 7) + b"\0", start, end)
    elif label == APPLICATION and name in REPETITIONS and rest[:2] == b"\3\1":
        copy.put(source.take(start, 18) + b"\0", start, end)
    elif label == APPLICATION and name == PROFILE:
        copy.keep(start, end)


def _table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(source: Source, at: int) -> int:
    """Return the end of the blocks that begin at `at`: each has its length before it, the last is empty."""
    while at < source.size:
        block, start = source.block(at)
        index, blocks = at - start, 0
        while index < len(block) and (length := block[index]):
            index += length + 1
            blocks += 1
        source.count(blocks)
        at = start + index
        if index < len(block):
            return at + 1
    return source.size
