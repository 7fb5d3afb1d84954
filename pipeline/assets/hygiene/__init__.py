"""Removes metadata from a picture's file: where and when it was taken, by whom, with which device.

The parts of the file are copied or left out; pixels are never decoded, so they stay as they are, bit for bit. Each
module, one for each family of formats, lists the parts that stay: all others are removed. Pure; blocking: runs
in the thread pool. docs/privacy.md says what is removed.

Hostile files: at most one block of the file and a few megabytes of tables are in memory, and the number of parts is
bounded (source.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import BinaryIO

from pipeline.assets.hygiene import gif, isobmff, jpeg, png, webp
from pipeline.assets.hygiene.source import Copy, Source, TooManyParts

__all__ = ["Copy", "TooManyParts", "clean", "find_clean", "write"]

FAMILIES: dict[str, Callable[[Source], Copy]] = {
    "image/jpeg": jpeg.clean,
    "image/png": png.clean,
    "image/webp": webp.clean,
    "image/gif": gif.clean,
    "image/avif": isobmff.clean,
    "image/heic": isobmff.clean,
    "image/heif": isobmff.clean,
}


def find_clean(source: BinaryIO, content_type: str, parts: int | None = None) -> Copy | None:
    """Return the picture without metadata, to be written while the source is open; None when it has no metadata.

    The source is left at its start.
    parts: see Source; TooManyParts.
    ValueError: the file violates its format, so that it may have any other content. A truncated file is accepted: the
    part that is there is cleaned.
    """
    family = FAMILIES.get(content_type)
    if family is None:
        raise ValueError(f"not a picture that can be cleaned: {content_type}")
    try:
        copy = family(Source(source, parts))
        return copy if copy.is_changed else None
    except (LookupError, struct.error, OverflowError) as error:
        raise ValueError("not built as its format says") from error
    finally:
        source.seek(0)


def clean(source: BinaryIO, target: BinaryIO, content_type: str) -> bool:
    """Write the picture without metadata to target and return True; False when it has none: then nothing is written.

    Both files are left at their start. ValueError: see find_clean.
    """
    copy = find_clean(source, content_type)
    if copy is None:
        return False
    write(copy, source, target)
    return True


def write(copy: Copy, source: BinaryIO, target: BinaryIO) -> None:
    """Write the copy that find_clean returned for the source to target; both are left at their start."""
    copy.write(target)
    target.seek(0)  # flushes the file's buffer
    source.seek(0)
