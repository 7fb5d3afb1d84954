"""Cleans the box `moov` of a moving AVIF or HEIC: its tracks of pictures and of their transparency stay. Pure.

Films with sound, tracks of other data, names and times are removed. Nothing moves: a removed box becomes an empty one
of the same size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import accumulate

from pipeline.assets.hygiene import boxes
from pipeline.assets.hygiene.boxes import Count

# The boxes that contain others, and the box around each: no other nesting is followed.
HOLDERS = {b"trak": b"moov", b"mdia": b"trak", b"edts": b"trak", b"minf": b"mdia", b"stbl": b"minf"}
KEPT = {
    *(b"elst", b"tref", b"vmhd", b"nmhd", b"stsd", b"stts", b"ctts", b"cslg", b"stsc", b"stsz", b"stz2"),
    *(b"stco", b"co64", b"stss", b"stsh", b"sdtp", b"sgpd", b"sbgp"),
}
TIMED = {b"mvhd", b"tkhd", b"mdhd"}
OWN_FILE = 28
PICTURES = {b"pict", b"auxv"}


def clean(moov: bytes, count: Count) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the cleaned content of `moov`, at the same size, and the ranges of the file with its pictures."""
    places: list[tuple[int, int]] = []
    out = []
    for kind, content in boxes.read(moov, 0, count):
        if kind == b"trak" and _handler(content, count) in PICTURES:
            places += _places(_table(content, count), count)
        elif kind != b"mvhd":
            kind, content = boxes.blank(len(content))
        out.append(_cleaned(kind, content, b"moov", count))
    return b"".join(out), places


def _cleaned(kind: bytes, content: bytes, holder: bytes, count: Count) -> bytes:
    if HOLDERS.get(kind) == holder:
        inner = (_cleaned(*each, kind, count) for each in boxes.read(content, 0, count))
        return boxes.write(kind, b"".join(inner))
    if kind in TIMED:
        # The times of its creation and change.
        times = 16 if content[0] else 8
        content = content[:4] + bytes(times) + content[4 + times :]
    elif kind == b"hdlr":
        content = boxes.nameless(content)
    elif kind not in KEPT and not (kind == b"dinf" and len(content) == OWN_FILE):
        kind, content = boxes.blank(len(content))
    return boxes.write(kind, content)


def _handler(trak: bytes, count: Count) -> bytes:
    media = dict(boxes.read(dict(boxes.read(trak, 0, count))[b"mdia"], 0, count))
    return media[b"hdlr"][8:12]


def _table(trak: bytes, count: Count) -> dict[bytes, bytes]:
    content = trak
    for kind in (b"mdia", b"minf", b"stbl"):
        content = dict(boxes.read(content, 0, count))[kind]
    return dict(boxes.read(content, 0, count))


def _places(table: dict[bytes, bytes], count: Count) -> Iterator[tuple[int, int]]:
    """Yield the ranges of the samples of a track: chunk by chunk, each of some samples in a row."""
    sizes = table[b"stsz"]
    each, samples = struct.unpack_from(">II", sizes, 4)
    count(1 if each else samples)
    ends = [0, *accumulate(struct.unpack_from(f">{samples}I", sizes, 12))] if not each else []
    wide = b"co64" in table
    offsets = table[b"co64" if wide else b"stco"]
    chunks = int.from_bytes(offsets[4:8])
    count(chunks)
    starts = struct.unpack_from(f">{chunks}{'Q' if wide else 'I'}", offsets, 8)
    sample = 0
    for start, many in zip(starts, _samples_of_chunks(table[b"stsc"], chunks, count)):
        last = min(samples, sample + many)
        yield start, start + (each * (last - sample) if each else ends[last] - ends[sample])
        sample = last


def _samples_of_chunks(stsc: bytes, chunks: int, count: Count) -> Iterator[int]:
    """Yield how many samples each chunk has: the table names the first chunk of each run of equal ones."""
    runs = int.from_bytes(stsc[4:8])
    count(runs)
    entries = list(struct.iter_unpack(">III", stsc[8 : 8 + 12 * runs]))
    for (first, samples, _), following in zip(entries, [*(entry[0] for entry in entries[1:]), chunks + 1]):
        for _ in range(min(following, chunks + 1) - first):
            yield samples
