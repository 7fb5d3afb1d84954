"""What cameras write beside the picture is removed, and the picture stays as it is, bit for bit."""

from __future__ import annotations

import io
import random
import re
import struct
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, ImageFile, ImageSequence

from pipeline.assets.hygiene import boxes, clean, exif
from pipeline.assets.image import inspect
from pipeline.sandbox import photo
from pipeline.sandbox.orientation import orientation_in
from tests import pictures, private_pictures
from tests.pictures import box, encode, gradient, riff
from tests.private_pictures import PRIVATE, PROFILE, SECRET, chunk, segment, tiff, with_chunks, with_segments, xmp

TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "AVIF": "image/avif",
    "HEIF": "image/heic",
}


def cleaned(content: bytes, content_type: str) -> bytes:
    """Return the clean picture, which stays as it is when it is cleaned again."""
    source, target = io.BytesIO(content), io.BytesIO()
    source.seek(3)
    is_changed = clean(source, target, content_type)
    assert (source.tell(), target.tell()) == (0, 0)
    assert is_changed == bool(target.getvalue())
    result = target.getvalue() if is_changed else content
    assert not clean(io.BytesIO(result), io.BytesIO(), content_type)
    return result


def frames(content: bytes) -> list[tuple[str, tuple[int, int], bytes, Any, Any]]:
    """Return what decoding gives: of each frame its mode, size, pixels, time, and how often all are repeated."""
    with Image.open(io.BytesIO(content)) as image:
        return [
            (frame.mode, frame.size, frame.tobytes(), frame.info.get("duration"), frame.info.get("loop"))
            for frame in (ImageSequence.Iterator(image) if image.format in ("GIF", "WEBP", "PNG", "AVIF") else [image])
        ]


def profile(content: bytes) -> bytes | None:
    """Return the colour profile; of a GIF, which Pillow does not read, from its extension."""
    if content[:3] == b"GIF":
        return PROFILE if b"ICCRGBG1012" + b"\xff" + PROFILE[:255] in content else None
    with Image.open(io.BytesIO(content)) as image:
        found: bytes | None = image.info.get("icc_profile")
        return found


def orientation(content: bytes) -> int | None:
    """Return how the file says that it is to be turned."""
    with Image.open(io.BytesIO(content)) as image:
        return image.getexif().get(0x0112)


@pytest.mark.fault("U1")
@pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO")
@pytest.mark.parametrize("name", PRIVATE)
def test_nothing_private_is_left(name: str) -> None:
    """No planted text is in the copy, which shows the same picture in the same colours."""
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
def test_boxes_before_the_data_are_emptied_where_they_stand(content_type: str) -> None:
    """The table names places in the file, so that nothing may move."""
    format = {type: name for name, type in TYPES.items()}[content_type]
    options = {"exif": private_pictures.exif(), "xmp": xmp()}
    content = bytearray(encode(gradient((64, 48), "RGBA"), format, **options))
    hole = box(b"uuid", SECRET * 9)
    at = content.index(b"mdat") - 4
    # Everything moves by as much: the places are those of extents, two numbers of 32 bits each.
    for found in re.finditer(b"iloc", bytes(content[:at])):
        _move_places(content, found.start() + 4, len(hole))
    content[at:at] = hole
    copy = cleaned(bytes(content), content_type)
    assert frames(copy) == frames(bytes(content))
    assert SECRET not in copy and len(copy) == len(content)
    assert copy[at : at + len(hole)] == box(b"free", bytes(len(hole) - 8))


def _move_places(content: bytearray, iloc: int, by: int) -> None:
    """Let the places in the table be so many bytes later. Each item has one extent."""
    version, base_bytes = content[iloc], content[iloc + 5] >> 4
    assert content[iloc + 4] == 0x44 and version < 2
    at = iloc + 8
    for _ in range(int.from_bytes(content[iloc + 6 : iloc + 8])):
        where = at + (4 if version == 0 else 6) + base_bytes + 2
        if version == 0 or content[at + 3] == 0:
            (place,) = struct.unpack_from(">I", content, where)
            struct.pack_into(">I", content, where, place + by)
        at = where + 8


PLAIN_JPEG = encode(private_pictures.corners(), "JPEG")
PLAIN_PNG = encode(private_pictures.corners(), "PNG")
EXIF = b"Exif\0\0"
# remark: (file, the orientation that a browser shows; tests/integration/test_hygiene.py asks one)
TURNED: dict[str, tuple[bytes, int]] = {
    **{
        f"jpeg turned by {number}": (with_segments(PLAIN_JPEG, segment(0xE1, EXIF + tiff(number))), number)
        for number in range(1, 9)
    },
    "jpeg of the other byte order": (with_segments(PLAIN_JPEG, segment(0xE1, EXIF + tiff(6, order=">"))), 6),
    "jpeg with a head of its own": (with_segments(PLAIN_JPEG, segment(0xE1, b"Exif\0\xff" + tiff(6))), 6),
    "jpeg turned by 9": (with_segments(PLAIN_JPEG, segment(0xE1, EXIF + tiff(9))), 1),
    "jpeg turned by a LONG": (with_segments(PLAIN_JPEG, segment(0xE1, EXIF + tiff(6, kind=4))), 1),
    "jpeg turned by two numbers": (with_segments(PLAIN_JPEG, segment(0xE1, EXIF + tiff(6, count=2))), 1),
    "jpeg turned by XMP": (with_segments(PLAIN_JPEG, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp())), 1),
    "jpeg turned twice": (with_segments(PLAIN_JPEG, *(segment(0xE1, EXIF + tiff(number)) for number in (6, 3))), 6),
    "jpeg turned by the second": (
        with_segments(PLAIN_JPEG, segment(0xE1, EXIF + tiff(6, tag=0x0110)), segment(0xE1, EXIF + tiff(6))),
        1,
    ),
    "jpeg turned behind the picture": (PLAIN_JPEG[:-2] + segment(0xE1, EXIF + tiff(6)) + PLAIN_JPEG[-2:], 1),
    "png turned": (with_chunks(PLAIN_PNG, [chunk(b"eXIf", tiff(8))]), 8),
    "png turned twice": (with_chunks(PLAIN_PNG, [chunk(b"eXIf", tiff(6)), chunk(b"eXIf", tiff(3))]), 6),
    "png turned behind the picture": (with_chunks(PLAIN_PNG, [], [chunk(b"eXIf", tiff(6))]), 1),
    "png turned by XMP": (with_chunks(PLAIN_PNG, [chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp())]), 1),
    "webp turned": (encode(private_pictures.corners(), "WEBP", lossless=True, exif=EXIF + tiff(6)), 1),
    "gif turned by XMP": (private_pictures.gif(), 1),
    "avif turned": (encode(private_pictures.corners(), "AVIF", exif=private_pictures.exif(5)), 5),
}


def type_of(content: bytes) -> str:
    """Return the content type of a picture."""
    return inspect(io.BytesIO(content), 10**6, 100).content_type


@pytest.mark.fault("U7")
@pytest.mark.parametrize("name", TURNED)
def test_copy_is_turned_as_a_browser_shows_the_original(name: str) -> None:
    """What browsers heed stays, as the least EXIF there is; what they do not heed goes."""
    content, expected = TURNED[name]
    copy = cleaned(content, type_of(content))
    assert (orientation(copy) or 1) == expected
    is_sideways = expected > 4
    # Also of a file that keeps its metadata.
    for each in (content, copy) if name != "jpeg with a head of its own" else (copy,):
        info = inspect(io.BytesIO(each), 10**6, 100)
        (preview,) = photo.previews(each, [320], 10**6, 100)
        assert (info.width > info.height) != is_sideways
        assert preview[1:3] == [info.width, info.height]


def test_orientation_is_read_as_browsers_do() -> None:
    """Tables that end early or lie far away, and what is no EXIF."""
    other = struct.pack("<HHII", 0x0132, 4, 1, 5)
    entry = tiff(6)[10:22]
    assert orientation_in(tiff(6)[:-4]) == 6  # nothing behind the table
    assert orientation_in(b"II*\0\x08\0\0\0\x09\0" + entry) == 6  # says it has nine
    assert orientation_in(b"II*\0\x08\0\0\0\x02\0" + other + entry) == 6
    assert orientation_in(b"II*\0" + struct.pack("<I", 40) + bytes(32) + tiff(6)[8:]) == 6
    for broken in (b"", b"II*\0", b"II+\0" + tiff(6)[4:], tiff(6)[:20], b"II*\0\xff\xff\xff\xff", b"XX" * 20):
        assert orientation_in(broken) == 1
    for number in range(1, 9):
        assert orientation_in(exif.minimal(number)) == number


MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "P", "RGB", "LA", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L", "RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA", "L"),
    "HEIF": ("RGB", "RGBA", "L", "LA", "I;16"),
}
GENERATED = 200


def generated(number: int) -> tuple[bytes, str]:
    """Return one of the pictures, drawn by its number, with what its format can carry beside it; and its format."""
    source = random.Random(number)
    format = list(MODES)[number % len(MODES)]
    mode = MODES[format][number // len(MODES) % len(MODES[format])]
    size = (source.randint(1, 90), source.randint(1, 90))
    if format in ("AVIF", "HEIF"):
        size = (size[0] + 15, size[1] + 15)

    def drawn() -> Image.Image:
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
        options |= {"save_all": True, "append_images": [drawn() for _ in range(3)], "duration": 80, "loop": 2}
    content = encode(drawn(), format, **options)
    if format not in ("AVIF", "HEIF") and source.random() < 0.5:
        content += b"SECRET trailer"
    return content, format


@pytest.mark.fault("U1")
@pytest.mark.parametrize("format", MODES)
def test_pixels_stay_as_they_are(format: str) -> None:
    """Pictures of all formats and modes: same pixels, same profile, turned the same way, and nothing else."""
    mine = [picture for picture in map(generated, range(GENERATED)) if picture[1] == format]
    assert len(mine) > 30
    for content, _ in mine:
        copy = cleaned(content, TYPES[format])
        assert SECRET not in copy
        assert frames(copy) == frames(content)
        assert profile(copy) == profile(content)
        if format != "WEBP":  # which no browser turns
            assert (orientation(copy) or 1) == _heeded(content)


def _heeded(content: bytes) -> int:
    """Return the orientation in EXIF, or that of the properties of an AVIF; Pillow would take XMP's as well."""
    with Image.open(io.BytesIO(content)) as image:
        return orientation_in((image.info.get("exif") or b"").removeprefix(EXIF))


@pytest.mark.fault("U1")
def test_photo_in_tiles_keeps_its_tiles() -> None:
    """As iPhones write HEIC: the picture is a grid of others, and beside it are a thumbnail, a gain map and EXIF."""
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
    whole = dict(boxes.read(plain, 0, int))
    tables, tile = dict(boxes.read(whole[b"meta"], 4, int)), whole[b"mdat"]
    coding = dict(boxes.read(dict(boxes.read(tables[b"iprp"], 0, int))[b"ipco"], 0, int))[b"hvcC"]
    gain = b"\0\0\0\0urn:com:apple:photo:2020:aux:hdrgainmap\0"
    size = [box(b"ispe", bytes(4) + struct.pack(">II", width, 64)) for width in (64, 128)]
    properties = box(b"ipco", box(b"hvcC", coding) + b"".join(size) + box(b"auxC", gain))
    of_items = {1: b"\x81\2", 2: b"\x81\2", 3: b"\3", 5: b"\x81\2", 6: b"\x81\2\4"}
    associations = b"".join(struct.pack(">HB", item, len(its)) + its for item, its in of_items.items())
    exif_item = bytes(4) + private_pictures.exif().removeprefix(EXIF)
    grid = b"\0\0\0\1" + struct.pack(">HH", 128, 64)

    def meta(at: int) -> bytes:
        """at: where the data begins."""
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


@pytest.mark.parametrize("name", PRIVATE)
def test_file_that_is_cut_off_is_cleaned_as_far_as_it_goes(name: str) -> None:
    """Cut anywhere, a file is cleaned or refused, and nothing private is left; most of the picture stays."""
    content, content_type = PRIVATE[name]
    kept = 0
    for length in range(0, len(content), max(1, len(content) // 150)):
        target = io.BytesIO()
        try:
            is_changed = clean(io.BytesIO(content[:length]), target, content_type)
        except ValueError:
            continue
        kept += 1
        assert SECRET not in (target.getvalue() if is_changed else content[:length])
    assert kept > 5


@pytest.mark.parametrize(("format", "least"), [("JPEG", 0.8), ("PNG", 0.8), ("GIF", 0.8), ("WEBP", 0.8)])
def test_picture_that_is_cut_off_keeps_its_part(format: str, least: float) -> None:
    """Of a clean picture that ends early nothing goes but what belongs to nothing."""
    content = encode(pictures.gradient((300, 200)).convert("RGB").rotate(3), format)
    cut = content[: len(content) * 9 // 10]
    assert len(cleaned(cut, TYPES[format])) >= len(cut) * least


def test_damaged_scan_is_decoded_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands for a marker by chance in a damaged picture, decoders see the same."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    good = encode(gradient((128, 128)).rotate(7), "JPEG", restart_marker_blocks=3)
    start, source = good.index(b"\xff\xda") + 12, random.Random(1)
    for _ in range(1000):
        content = bytearray(good)
        at = source.randrange(start, len(content) - 4)
        content[at : at + 2] = bytes([0xFF, source.randrange(256)])
        assert frames(cleaned(bytes(content), "image/jpeg")) == frames(bytes(content))


def many_chunks(kind: bytes, size: int) -> bytes:
    """Return empty chunks of a PNG, of that size together."""
    return chunk(kind, b"") * (size // 12)


BIG = 10 * 1024 * 1024
# remark: (file, whether it is refused)
HOSTILE: dict[str, tuple[Callable[[], bytes], str, bool]] = {
    "jpeg of millions of segments": (
        lambda: b"\xff\xd8" + segment(0xE5, b"") * (BIG // 4) + PLAIN_JPEG[2:],
        "image/jpeg",
        True,
    ),
    "jpeg of millions of markers": (lambda: PLAIN_JPEG[:-2] + b"\xff\x01" * (BIG // 2), "image/jpeg", True),
    "jpeg of ten megabytes of FF": (lambda: PLAIN_JPEG[:-2] + b"\xff" * BIG, "image/jpeg", False),
    "jpeg of ten megabytes of nothing": (
        lambda: b"\xff\xd8\xff\xe0\0\x02" + bytes(BIG) + PLAIN_JPEG[2:],
        "image/jpeg",
        False,
    ),
    "jpeg of scans only": (
        lambda: PLAIN_JPEG[:-2] + segment(0xDA, b"\1\1\0\0\x3f\0") * (BIG // 10),
        "image/jpeg",
        True,
    ),
    "png of a million chunks": (lambda: with_chunks(PLAIN_PNG, [many_chunks(b"tEXt", BIG)]), "image/png", True),
    "png of a million pieces": (lambda: with_chunks(PLAIN_PNG, [many_chunks(b"IDAT", BIG)]), "image/png", True),
    "png that must be understood": (lambda: with_chunks(PLAIN_PNG, [chunk(b"CgBI", b"abcd")]), "image/png", True),
    "webp of a million chunks": (lambda: riff((b"VP8L", b"/1234"), *[(b"JUNK", b"")] * (BIG // 8)), "image/webp", True),
    "webp frame of a million chunks": (
        lambda: riff((b"VP8X", b"\2" + bytes(9)), (b"ANMF", bytes(16) + b"JUNK\0\0\0\0" * (BIG // 8))),
        "image/webp",
        True,
    ),
    "gif of millions of blocks": (lambda: _gif(b"!\xfe" + b"\1x" * (BIG // 2) + b"\0"), "image/gif", True),
    "gif of millions of extensions": (lambda: _gif(b"!\xfe\0" * (BIG // 3)), "image/gif", True),
    "gif of padding": (lambda: _gif(bytes(BIG)), "image/gif", True),
    "heic of a million boxes": (lambda: box(b"ftyp", b"heic") + box(b"free", b"") * (BIG // 8), "image/heic", True),
    "heic of 80,000 items": (lambda: pictures.many_items(b"heic", 80_000), "image/heic", True),
    "heic of ten megabytes of tables": (
        lambda: box(b"ftyp", b"heic") + box(b"meta", bytes(BIG)),
        "image/heic",
        True,
    ),
    "heic of a million associations": (lambda: _heic_of_associations(1_000_000), "image/heic", True),
    "heic of boxes in boxes": (
        lambda: private_pictures.heif("HEIF") + _nested(b"trak", 100_000) + box(b"mdat", b""),
        "image/heic",
        True,
    ),
    "avif of 2.5 million samples": (lambda: pictures.many_samples(2_500_000), "image/avif", True),
}


def _heic_of_associations(items: int) -> bytes:
    entries = bytes(4) + struct.pack(">I", items) + b"\0\2\1\1" * items
    size = box(b"ipco", box(b"ispe", bytes(4) + struct.pack(">II", 64, 48)))
    tables = [box(b"pitm", bytes(4) + b"\0\1"), box(b"iinf", bytes(6)), box(b"iloc", b"\0\0\0\0\x44" + bytes(3))]
    meta = box(b"meta", bytes(4) + b"".join(tables) + box(b"iprp", size + box(b"ipma", entries)))
    return box(b"ftyp", b"heic" + bytes(4)) + meta


def _nested(kind: bytes, depth: int) -> bytes:
    """Return a `moov` of boxes in boxes."""
    sizes = range(8 * depth, 0, -8)
    return box(b"moov", b"".join(struct.pack(">I", size) + kind for size in sizes))


def _gif(extensions: bytes) -> bytes:
    good = encode(Image.new("P", (8, 8)), "GIF")
    return good[:-1] + extensions + good[-1:]


@pytest.mark.fault("U1")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_soon(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is built of, a file is cleaned or refused after a bounded number of steps and reads."""
    make, content_type, is_refused = HOSTILE[name]
    content = make()
    source = _Counted(content)
    target = io.BytesIO()
    if is_refused:
        with pytest.raises(ValueError):
            clean(source, target, content_type)
        assert not target.getvalue()
    else:
        clean(source, target, content_type)
    # Blocks of 256 kB: to find the parts, and to copy them.
    assert source.reads < 2 * BIG // (256 * 1024) + 50


class _Counted(io.BytesIO):
    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        return super().read(size)


@pytest.mark.parametrize("name", PRIVATE)
def test_damaged_files_end_in_an_answer(name: str) -> None:
    """Whatever bytes are changed: a copy, or ValueError."""
    content, content_type = PRIVATE[name]
    source = random.Random(name)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(source.randint(1, 6)):
            damaged[source.randrange(min(len(damaged), 1500))] = source.randrange(256)
        target = io.BytesIO()
        try:
            clean(io.BytesIO(bytes(damaged)), target, content_type)
        except ValueError:
            assert not target.getvalue()


def test_other_files_are_refused() -> None:
    """A picture under another name, and types that nobody cleans."""
    for content, content_type in ((PLAIN_PNG, "image/jpeg"), (PLAIN_JPEG, "image/tiff"), (b"", "image/gif")):
        with pytest.raises(ValueError):
            clean(io.BytesIO(content), io.BytesIO(), content_type)
