"""Cleans the box `meta` of AVIF and HEIC: the tables of items, their kinds and their offsets. Pure.

The primary item stays, with its tiles and layers and its transparency. All others are removed: EXIF, XMP, thumbnails,
depth and gain maps, further pictures of a burst. Their entries are removed from the tables; a box `free` fills the room
of these.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from pipeline.assets.containers import ALPHA
from pipeline.assets.hygiene import boxes
from pipeline.assets.hygiene.boxes import Count

# The kinds of items that decode to pixels.
PICTURES = {b"hvc1", b"hev1", b"av01", b"avc1", b"vvc1", b"j2k1", b"unci", b"grid", b"iden", b"iovl", b"mski"}
# The properties that decoding, colours, size and orientation need; a description, a date or a name is not among them.
PROPERTIES = {
    *(b"ispe", b"pixi", b"colr", b"irot", b"imir", b"clap", b"pasp", b"auxC", b"clli", b"mdcv", b"cclv", b"amve"),
    *(b"hvcC", b"lhvC", b"av1C", b"avcC", b"vvcC", b"jpgC", b"j2kH", b"a1op", b"a1lx", b"lsel", b"oinf", b"tols"),
    *(b"cmpd", b"uncC", b"cmpC", b"icef", b"cpat", b"snuc", b"splz", b"sbpm", b"cloc", b"mskC"),
}
OWN_FILE = 28  # the size of a `dinf` that only says that the data is in this file
IN_FILE, IN_TABLE = 0, 1


class _Location(NamedTuple):
    """entry: its bytes in the table. where: IN_FILE, IN_TABLE (the box `idat`) or other. extents: (start, end)."""

    entry: bytes
    where: int
    extents: Sequence[tuple[int, int]]


def clean(meta: bytes, count: Count) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the cleaned content of `meta`, at the same size, and the ranges of the file with the pictures."""
    children = list(boxes.read(meta, 4, count))
    found = dict(reversed(children))
    version, pitm = found[b"pitm"][0], found[b"pitm"]
    kinds = {item: kind for item, kind, _ in _infos(found[b"iinf"], count)}
    locations = dict(_locations(found[b"iloc"], count))
    properties, associations = _properties(found[b"iprp"], count)
    references = list(_references(found.get(b"iref", b""), count))
    alphas = {number for number, (kind, content) in enumerate(properties, 1) if kind == b"auxC" and _is_alpha(content)}
    primary = int.from_bytes(pitm[4:8] if version else pitm[4:6])
    kept = _needed(primary, kinds, references, {item for item, its in associations.items() if alphas & set(its)})
    if primary not in kept or primary not in locations:
        raise ValueError("no picture")
    places: list[tuple[int, int]] = []
    in_table: list[tuple[int, int]] = []
    for item in kept & locations.keys():
        location = locations[item]
        if location.where not in (IN_FILE, IN_TABLE):
            raise ValueError("a picture in a place that no encoder uses")
        (places if location.where == IN_FILE else in_table).extend(location.extents)
    cleaned: dict[bytes, Callable[[bytes], bytes | None]] = {
        b"hdlr": boxes.nameless,
        b"pitm": lambda content: content,
        b"iinf": lambda content: _clean_infos(content, kept, count),
        b"iloc": lambda content: _clean_locations(content, kept, count),
        b"iref": lambda content: _clean_references(content, kept, count),
        b"iprp": lambda content: _clean_properties(content, kept, associations, count),
        b"idat": lambda content: _clean_data(content, in_table),
        b"free": lambda content: bytes(len(content)),
        b"dinf": lambda content: content if len(content) == OWN_FILE else None,
    }
    left = []
    for kind, content in children:
        if kind in cleaned and (rest := cleaned[kind](content)) is not None:
            left.append((kind, rest))
    return _filled(meta[:4], left, len(meta)), places


def _filled(head: bytes, children: list[tuple[bytes, bytes]], size: int) -> bytes:
    """Return the content of `meta`, filled up to its size."""
    missing = size - len(head) - sum(8 + len(content) for _, content in children)
    if missing < 0:
        raise ValueError("grew")
    if missing >= 8:
        children = [*children, boxes.blank(missing - 8)]
    elif missing:
        # Too little for a box: the empty name of the handler is made longer.
        handler = next(number for number, (kind, _) in enumerate(children) if kind == b"hdlr")
        children[handler] = (b"hdlr", children[handler][1] + bytes(missing))
    return head + b"".join(boxes.write(*child) for child in children)


def _needed(
    primary: int, kinds: dict[int, bytes], references: list[tuple[bytes, int, list[int]]], alphas: Collection[int]
) -> set[int]:
    """Return the primary item and the items that it is made of."""
    parts: dict[int, list[int]] = defaultdict(list)
    for kind, item, others in references:
        if kind == b"dimg":
            parts[item] += others
        elif kind == b"auxl" and item in alphas:
            for other in others:
                parts[other].append(item)
    needed: set[int] = set()
    waiting = [primary]
    while waiting:
        item = waiting.pop()
        if item not in needed and kinds.get(item) in PICTURES:
            needed.add(item)
            waiting += parts[item]
    return needed


# each table: read, then cleaned


def _infos(iinf: bytes, count: Count) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield number, kind and entry of each item, the entry without the item's name."""
    for kind, content in boxes.read(iinf, 8 if iinf[0] else 6, count):
        version = content[0]
        if kind != b"infe" or version not in (2, 3):
            yield -1, b"", content  # older than HEIC
            continue
        head = 12 if version == 2 else 14
        entry = content[:head] + bytes(len(content) - head)
        yield int.from_bytes(content[4 : head - 6]), content[head - 4 : head], entry


def _clean_infos(iinf: bytes, kept: set[int], count: Count) -> bytes:
    entries = [boxes.write(b"infe", entry) for item, _, entry in _infos(iinf, count) if item in kept]
    return iinf[:4] + len(entries).to_bytes(4 if iinf[0] else 2) + b"".join(entries)


def _locations(iloc: bytes, count: Count) -> Iterator[tuple[int, _Location]]:
    version, sizes = iloc[0], iloc[4:6]
    offset_bytes, length_bytes, base_bytes = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4
    index_bytes = sizes[1] & 15 if version else 0
    id_bytes = 4 if version == 2 else 2
    at = 6 + id_bytes
    for _ in range(int.from_bytes(iloc[6:at])):
        start, fields = at, iloc[at : at + 20]
        where = int.from_bytes(fields[id_bytes : id_bytes + 2]) & 15 if version else IN_FILE
        at += id_bytes + (4 if version else 2) + base_bytes + 2
        base = int.from_bytes(iloc[at - 2 - base_bytes : at - 2])
        extents = int.from_bytes(iloc[at - 2 : at])
        count(1 + extents)
        places = []
        for _ in range(extents):
            middle = at + index_bytes + offset_bytes
            offset, length = int.from_bytes(iloc[at + index_bytes : middle]), iloc[middle : middle + length_bytes]
            places.append((base + offset, base + offset + int.from_bytes(length)))
            at = middle + length_bytes
        if at > len(iloc):
            raise ValueError("a table that ends elsewhere")
        yield int.from_bytes(fields[:id_bytes]), _Location(iloc[start:at], where, places)


def _clean_locations(iloc: bytes, kept: set[int], count: Count) -> bytes:
    entries = [location.entry for item, location in _locations(iloc, count) if item in kept]
    return iloc[:6] + len(entries).to_bytes(4 if iloc[0] == 2 else 2) + b"".join(entries)


def _references(iref: bytes, count: Count) -> Iterator[tuple[bytes, int, list[int]]]:
    """Yield the kind of each reference, its item and the items it refers to."""
    for kind, content in boxes.read(iref, 4, count):
        width = 4 if iref[0] else 2
        many = int.from_bytes(content[width : width + 2])
        count(many)
        numbers = struct.unpack_from(f">{many}{'I' if width == 4 else 'H'}", content, width + 2)
        yield kind, int.from_bytes(content[:width]), list(numbers)


def _clean_references(iref: bytes, kept: set[int], count: Count) -> bytes | None:
    form = "I" if iref[0] else "H"
    entries = []
    for kind, item, others in _references(iref, count):
        others = [other for other in others if other in kept]
        if item in kept and others and kind in (b"dimg", b"auxl", b"prem"):
            entries.append(boxes.write(kind, struct.pack(f">{form}H{len(others)}{form}", item, len(others), *others)))
    return iref[:4] + b"".join(entries) if entries else None


def _properties(iprp: bytes, count: Count) -> tuple[list[tuple[bytes, bytes]], dict[int, list[int]]]:
    """Return all properties, and for each item the numbers of its own, from 1."""
    properties: list[tuple[bytes, bytes]] = []
    associations: dict[int, list[int]] = defaultdict(list)
    for kind, content in boxes.read(iprp, 0, count):
        if kind == b"ipco":
            properties += boxes.read(content, 0, count)
        elif kind == b"ipma":
            for item, _, indices in _associations(content, count):
                associations[item] += (index for index, _ in indices)
    return properties, associations


def _associations(ipma: bytes, count: Count) -> Iterator[tuple[int, bytes, list[tuple[int, bytes]]]]:
    """Yield each item, the head of its entry and its properties: number, and its bytes."""
    id_bytes, index_bytes = (4 if ipma[0] else 2), (2 if ipma[3] & 1 else 1)
    at = 8
    for _ in range(int.from_bytes(ipma[4:8])):
        head, at = ipma[at : at + id_bytes + 1], at + id_bytes + 1
        count(1 + head[id_bytes])
        # The highest bit says that a reader must know the property.
        end = at + head[id_bytes] * index_bytes
        written = [ipma[place : place + index_bytes] for place in range(at, end, index_bytes)]
        at = end
        mask = 0x7FFF if index_bytes == 2 else 0x7F
        yield int.from_bytes(head[:id_bytes]), head, [(int.from_bytes(each) & mask, each) for each in written]


def _clean_properties(iprp: bytes, kept: set[int], associations: dict[int, list[int]], count: Count) -> bytes:
    """Return the cleaned box. Properties keep their numbers: a removed one leaves an empty box and entries of 0."""
    used = {index for item in kept for index in associations.get(item, [])}
    known: set[int] = set()
    out = []
    for kind, content in boxes.read(iprp, 0, count):
        if kind == b"ipco":
            each = []
            for number, (name, value) in enumerate(boxes.read(content, 0, count), 1):
                is_kept = name in PROPERTIES and number in used
                known |= {number} if is_kept else set()
                each.append(boxes.write(*((name, value) if is_kept else boxes.blank(len(value)))))
            out.append(boxes.write(kind, b"".join(each)))
        elif kind == b"ipma":
            entries = [
                head + b"".join(each if index in known else bytes(len(each)) for index, each in indices)
                for item, head, indices in _associations(content, count)
                if item in kept
            ]
            out.append(boxes.write(kind, content[:4] + struct.pack(">I", len(entries)) + b"".join(entries)))
    return b"".join(out)


def _is_alpha(auxiliary: bytes) -> bool:
    return auxiliary[4:].startswith(ALPHA)


def _clean_data(idat: bytes, places: list[tuple[int, int]]) -> bytes:
    clean = bytearray(len(idat))
    for start, end in places:
        clean[start : min(end, len(idat))] = idat[start:end]
    return bytes(clean)
