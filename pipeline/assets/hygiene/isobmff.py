"""Cleans AVIF and HEIC: files of boxes (ISO base media). Pure.

The box `meta` lists the items of the file and the offset of each one's data, so nothing may move: `meta` is rewritten
at its own size (items.py), and all other data to be removed is overwritten with zeros. Of `mdat` only the data of the
pictures that stay is copied, so any other content there is removed. Boxes behind the last one that is needed are cut
off: motion photos have their film there. The orientation is a property of the picture and stays; readers ignore an
orientation in EXIF.
Sources: ISO/IEC 14496-12, 23008-12 (HEIF) and 23000-22 (MIAF).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipeline.assets.hygiene import items, tracks
from pipeline.assets.hygiene.source import Copy, Source

# Two hundred megapixels in tiles need a tenth of this; it is all in memory.
MAX_TABLE_BYTES = 4 * 1024 * 1024
NEEDED = {b"ftyp", b"meta", b"moov", b"mdat"}


class _Box(NamedTuple):
    """body: the offset of its content. end: the offset of the next box, at most the file's size."""

    kind: bytes
    start: int
    body: int
    end: int


def clean(source: Source) -> Copy:
    """Return the clean copy."""
    boxes = list(_boxes(source))
    tables = {box.kind: box for box in reversed(boxes)}
    if boxes[0].kind != b"ftyp" or b"meta" not in tables:
        raise ValueError("no AVIF or HEIC")
    meta, needed = items.clean(_content(source, tables[b"meta"]), source.count)
    moov = b""
    if b"moov" in tables:
        moov, of_tracks = tracks.clean(_content(source, tables[b"moov"]), source.count)
        needed = [*needed, *of_tracks]
    if not (ranges := _joined(needed, source.size)):
        raise ValueError("no picture")
    copy = Copy(source)
    last = max(number for number, box in enumerate(boxes) if box.kind in NEEDED)
    for box in boxes[: last + 1]:
        if box.kind == b"ftyp" and box is boxes[0]:
            copy.keep(box.start, box.end)
        elif box is tables[b"meta"]:
            copy.keep(box.start, box.body)
            copy.put(meta, box.body, box.end)
        elif box is tables.get(b"moov"):
            copy.keep(box.start, box.body)
            copy.put(moov, box.body, box.end)
        elif box.kind == b"mdat":
            copy.keep(box.start, box.body)
            _keep_ranges(copy, box, ranges)
        else:
            _blank(source, copy, box)
    if ranges:
        raise ValueError("a picture outside of the place for pictures")
    return copy


def _boxes(source: Source) -> Iterator[_Box]:
    at = 0
    while len(head := source.take(at, 16)) >= 8:
        source.count()
        size, body = int.from_bytes(head[:4]), at + 8
        if size == 1:
            size, body = int.from_bytes(head[8:]), at + 16
        end = at + size if size else source.size
        if end < body:
            # Invalid data behind the picture is cut off; before the picture, the file is refused.
            return
        yield _Box(head[4:8], at, body, min(end, source.size))
        at = end


def _content(source: Source, box: _Box) -> bytes:
    if box.end - box.body > MAX_TABLE_BYTES:
        raise ValueError("larger tables than any picture has")
    return source.take(box.body, box.end - box.body)


def _joined(ranges: Iterable[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Return the ranges from last to first, as (start, end), cut at size; ranges that touch are joined."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        end = min(end, size)
        if start >= end:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined[::-1]


def _keep_ranges(copy: Copy, box: _Box, ranges: list[tuple[int, int]]) -> None:
    """Copy the ranges within the box, and remove them from the list; the rest of the box becomes zeros."""
    at = box.body
    while ranges and at <= ranges[-1][0] and ranges[-1][1] <= box.end:
        start, end = ranges.pop()
        copy.blank(at, start)
        copy.keep(start, end)
        at = end
    copy.blank(at, box.end)


def _blank(source: Source, copy: Copy, box: _Box) -> None:
    copy.keep(box.start, box.start + 4)
    copy.put(b"free", box.start + 4, box.start + 8)
    copy.keep(box.start + 8, box.body)
    copy.blank(box.body, box.end)
