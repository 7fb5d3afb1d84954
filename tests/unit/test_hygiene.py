"""Cleaning removes the metadata that cameras write, and leaves each pixel of the picture unchanged."""

from __future__ import annotations

import io
import random
import re
import struct
from typing import Any

import pytest
from PIL import Image

from pipeline.assets.hygiene import boxes
from pipeline.assets.image import inspect
from pipeline.sandbox.orientation import orientation_in
from tests import private_pictures
from tests.pictures import box, encode, gradient
from tests.private_pictures import PRIVATE, PROFILE, SECRET, xmp
from tests.turned_pictures import EXIF
from tests.unit.picture_cleaning import TYPES, cleaned, frames, orientation, profile

MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "P", "RGB", "LA", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L", "RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA", "L"),
    "HEIF": ("RGB", "RGBA", "L", "LA", "I;16"),
}
GENERATED = 200


@pytest.mark.fault("U1")
@pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO")
@pytest.mark.parametrize("name", PRIVATE)
def test_cleaning_removes_all_private_data(name: str) -> None:
    """The copy has none of the planted private texts and shows the same picture in the same colours."""
    content, content_type = PRIVATE[name]
    assert content.count(SECRET) > 3
    copy = cleaned(content, content_type)
    assert SECRET not in copy
    assert not re.search(rb"zTXt|tEXt|iTXt|tIME|XMP|MPF|xmpmeta|Photoshop|JFXX", copy)
    assert frames(copy) == frames(content)
    assert profile(copy) == profile(content) == PROFILE
    assert inspect(io.BytesIO(copy), 10**6, 100).content_type == content_type


@pytest.mark.fault("U1")
@pytest.mark.parametrize("content_type", ["image/avif", "image/heic"])
def test_boxes_before_the_picture_data_are_overwritten(content_type: str) -> None:
    """Cleaning overwrites these boxes with zeros: the table contains offsets in the file, so no byte may move."""
    format = {type: name for name, type in TYPES.items()}[content_type]
    options = {"exif": private_pictures.exif(), "xmp": xmp()}
    content = bytearray(encode(gradient((64, 48), "RGBA"), format, **options))
    private_box = box(b"uuid", SECRET * 9)
    at = content.index(b"mdat") - 4
    # All data moves by this length. Each offset is in an extent, which has two numbers of 32 bits.
    for found in re.finditer(b"iloc", bytes(content[:at])):
        _move_offsets(content, found.start() + 4, len(private_box))
    content[at:at] = private_box
    copy = cleaned(bytes(content), content_type)
    assert frames(copy) == frames(bytes(content))
    assert SECRET not in copy and len(copy) == len(content)
    assert copy[at : at + len(private_box)] == box(b"free", bytes(len(private_box) - 8))


def _move_offsets(content: bytearray, iloc: int, by: int) -> None:
    """Add a number of bytes to each offset in the table. Each item has one extent."""
    version, base_bytes = content[iloc], content[iloc + 5] >> 4
    assert content[iloc + 4] == 0x44 and version < 2
    at = iloc + 8
    for _ in range(int.from_bytes(content[iloc + 6 : iloc + 8])):
        position = at + (4 if version == 0 else 6) + base_bytes + 2
        if version == 0 or content[at + 3] == 0:
            (offset,) = struct.unpack_from(">I", content, position)
            struct.pack_into(">I", content, position, offset + by)
        at = position + 8


def generated(number: int) -> tuple[bytes, str]:
    """Return a generated picture with metadata that its format allows, and its format; the number seeds the drawing."""
    source = random.Random(number)
    format = list(MODES)[number % len(MODES)]
    mode = MODES[format][number // len(MODES) % len(MODES[format])]
    size = (source.randint(1, 90), source.randint(1, 90))
    if format in ("AVIF", "HEIF"):
        size = (size[0] + 15, size[1] + 15)

    def draw() -> Image.Image:
        if mode == "I;16":
            return Image.frombytes("I;16", size, source.randbytes(size[0] * size[1] * 2))
        noise = Image.frombytes("RGBA", (9, 9), source.randbytes(9 * 9 * 4)).resize(size, Image.Resampling.BICUBIC)
        return noise.convert("RGB").convert(mode) if mode in ("P", "CMYK", "1") else noise.convert(mode)

    options: dict[str, Any] = {"quality": source.choice((60, 90))} if format in ("JPEG", "WEBP", "AVIF", "HEIF") else {}
    if source.random() < 0.7 and format != "GIF":
        options["exif"] = private_pictures.exif(source.randint(1, 8))
    if source.random() < 0.5 and format in ("JPEG", "WEBP", "AVIF", "HEIF"):
        options["xmp"] = xmp(source.randint(1, 8))
    if source.random() < 0.5 and format != "GIF" and mode != "CMYK":
        options["icc_profile"] = PROFILE
    if source.random() < 0.5 and format in ("JPEG", "GIF"):
        options["comment"] = b"SECRET comment"
    if format == "JPEG":
        options |= {"progressive": source.random() < 0.5, "restart_marker_blocks": source.choice((0, 1, 7))}
    if format == "WEBP":
        options["lossless"] = source.random() < 0.5
    if format in ("PNG", "GIF", "WEBP") and mode not in ("1", "I;16", "LA") and source.random() < 0.4:
        options |= {"save_all": True, "append_images": [draw() for _ in range(3)], "duration": 80, "loop": 2}
    content = encode(draw(), format, **options)
    if format not in ("AVIF", "HEIF") and source.random() < 0.5:
        content += b"SECRET trailer"
    return content, format


@pytest.mark.fault("U1")
@pytest.mark.parametrize("format", MODES)
def test_cleaning_leaves_pixels_unchanged(format: str) -> None:
    """The copy has the same pixels, profile and orientation and no private data, in all formats and modes."""
    chosen = [picture for picture in map(generated, range(GENERATED)) if picture[1] == format]
    assert len(chosen) > 30
    for content, _ in chosen:
        copy = cleaned(content, TYPES[format])
        assert SECRET not in copy
        assert frames(copy) == frames(content)
        assert profile(copy) == profile(content)
        if format != "WEBP":  # no browser turns a WebP
            assert (orientation(copy) or 1) == _orientation_of_browsers(content)


def _orientation_of_browsers(content: bytes) -> int:
    """Return the orientation in EXIF or in the properties of an AVIF; Pillow also reads XMP, browsers do not."""
    with Image.open(io.BytesIO(content)) as image:
        return orientation_in((image.info.get("exif") or b"").removeprefix(EXIF))


@pytest.mark.fault("U1")
def test_cleaning_of_a_tiled_photo_leaves_its_tiles() -> None:
    """In a HEIC of an iPhone the tiles of the grid stay; cleaning removes the thumbnail, the gain map and EXIF."""
    content = tiled_heic()
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (128, 64) and image.info["thumbnails"] and image.info["exif"]
    copy = cleaned(content, "image/heic")
    assert frames(copy) == frames(content)
    assert SECRET not in copy and b"thmb" not in copy and b"Exif" not in copy and b"gainmap" not in copy
    with Image.open(io.BytesIO(copy)) as image:
        assert not image.info["thumbnails"] and not image.info["exif"]


def tiled_heic() -> bytes:
    """Return a HEIC of two tiles (items 1 and 2) in a grid (3), with EXIF (4), a thumbnail (5) and a gain map (6)."""
    plain = encode(gradient((64, 64)), "HEIF")
    top_boxes = dict(boxes.read(plain, 0, int))
    tables, tile = dict(boxes.read(top_boxes[b"meta"], 4, int)), top_boxes[b"mdat"]
    coding = dict(boxes.read(dict(boxes.read(tables[b"iprp"], 0, int))[b"ipco"], 0, int))[b"hvcC"]
    gain = b"\0\0\0\0urn:com:apple:photo:2020:aux:hdrgainmap\0"
    size = [box(b"ispe", bytes(4) + struct.pack(">II", width, 64)) for width in (64, 128)]
    properties = box(b"ipco", box(b"hvcC", coding) + b"".join(size) + box(b"auxC", gain))
    of_items = {1: b"\x81\2", 2: b"\x81\2", 3: b"\3", 5: b"\x81\2", 6: b"\x81\2\4"}
    associations = b"".join(struct.pack(">HB", item, len(its)) + its for item, its in of_items.items())
    exif_item = bytes(4) + private_pictures.exif().removeprefix(EXIF)
    grid = b"\0\0\0\1" + struct.pack(">HH", 128, 64)

    def meta(at: int) -> bytes:
        """Return the `meta` box of a file whose picture data begins at this offset."""
        places = {1: (0, at, len(tile)), 2: (0, at, len(tile)), 3: (1, 0, len(grid)), 5: (0, at, len(tile))}
        places |= {4: (0, at + len(tile), len(exif_item)), 6: (0, at + len(tile) + len(exif_item), len(tile))}
        entries = [struct.pack(">HHHHII", item, where, 0, 1, *rest) for item, (where, *rest) in places.items()]
        kinds = {1: b"hvc1", 2: b"hvc1", 3: b"grid", 4: b"Exif", 5: b"hvc1", 6: b"hvc1"}
        infos = [
            box(b"infe", b"\2\0\0\0" + struct.pack(">HH", item, 0) + kind + SECRET + b"\0")
            for item, kind in kinds.items()
        ]
        references = [(b"dimg", 3, 1, 2), (b"cdsc", 4, 3), (b"thmb", 5, 3), (b"auxl", 6, 3)]
        iref = [box(kind, struct.pack(f">HH{len(to)}H", item, len(to), *to)) for kind, item, *to in references]
        children = [
            box(b"hdlr", tables[b"hdlr"]),
            box(b"pitm", bytes(4) + b"\0\3"),
            box(b"iloc", b"\1\0\0\0\x44\0" + struct.pack(">H", len(entries)) + b"".join(entries)),
            box(b"iinf", bytes(4) + struct.pack(">H", len(infos)) + b"".join(infos)),
            box(b"iref", bytes(4) + b"".join(iref)),
            box(b"iprp", properties + box(b"ipma", bytes(4) + struct.pack(">I", len(of_items)) + associations)),
            box(b"idat", grid),
        ]
        return box(b"meta", bytes(4) + b"".join(children))

    head = box(b"ftyp", b"heic" + bytes(4) + b"mif1heic")
    at = len(head) + len(meta(0)) + 8
    return head + meta(at) + box(b"mdat", tile + exif_item + tile)
