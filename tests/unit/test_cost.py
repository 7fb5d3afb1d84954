"""The memory that decoding a picture takes, from its header, and the scans of a JPEG, counted as libjpeg reads them."""

from __future__ import annotations

import io
import random
from time import process_time
from typing import Any

import pytest
from PIL import Image

from pipeline.sandbox.cost import count_scan_marks, count_scans, decode_mb, draft_scale, find_fault, reduce_factor
from pipeline.sandbox.header import Header, header_of
from tests.factories import make_image
from tests.pictures import encode, endless_jpeg, gradient

MEGAPIXELS = 1_000_000
MOST_MB = 1024

# format, mode, width, height, other fields of the header, several scans or one, least and most MB, remark
COSTS: list[tuple[str, str, int, int, dict[str, Any], bool, int, int, str]] = [
    ("JPEG", "RGB", 12_000, 9_000, {}, False, 70, 130, "108 megapixels, decoded at a quarter of its sides"),
    ("JPEG", "RGB", 12_000, 9_000, {"samples": 1.5}, True, 336, 440, "libjpeg stores all coefficients"),
    ("JPEG", "RGB", 12_000, 9_000, {"samples": 3}, True, 644, 760, "4:4:4"),
    ("JPEG", "CMYK", 12_000, 9_000, {"samples": 4}, True, 850, 960, "four inks"),
    ("JPEG", "RGB", 60_000, 1_500, {}, False, 360, 450, "too narrow to be decoded smaller"),
    ("PNG", "RGB", 12_000, 9_000, {}, False, 484, 540, "also with 16 bits a channel"),
    ("PNG", "P", 12_000, 9_000, {}, False, 175, 220, "palette"),
    ("PNG", "I;16", 12_000, 9_000, {}, False, 278, 330, "16 bits of grey"),
    ("GIF", "P", 20_000, 10_000, {}, False, 258, 460, "a screen of 200 megapixels"),
    ("WEBP", "RGB", 6_000, 4_000, {}, False, 438, 560, "24 megapixels"),
    ("WEBP", "RGB", 10_000, 10_000, {}, False, 1526, 1720, "38 bytes"),
    ("AVIF", "RGB", 10_000, 5_000, {}, False, 442, 780, "1,010 bytes"),
    ("AVIF", "RGBA", 12_000, 8_000, {}, False, 1340, 1740, "10 bits and alpha"),
    ("HEIF", "RGB", 8_064, 6_048, {}, False, 447, 600, "a phone's 48 megapixels"),
    ("HEIF", "RGB", 8_064, 6_048, {"depth": 10}, False, 726, 860, "with 10 bits, 4:4:4"),
    ("HEIF", "RGBA", 8_064, 6_048, {"depth": 10}, False, 959, 1080, "and alpha"),
]


@pytest.mark.parametrize(("format", "mode", "width", "height", "more", "has_scans", "least", "most", "remark"), COSTS)
def test_cost_is_the_measured_one_or_little_more(
    format: str, mode: str, width: int, height: int, more: Any, has_scans: bool, least: int, most: int, remark: str
) -> None:
    """The estimate is never less than decoding took when it was measured, which is `least`."""
    assert least <= decode_mb(Header(format, mode, width, height, **more), has_scans=has_scans) <= most


@pytest.mark.parametrize(
    ("format", "accepted", "refused"),
    [("JPEG", 200, 201), ("PNG", 200, 201), ("WEBP", 56, 60), ("AVIF", 70, 75), ("HEIF", 60, 110)],
)
def test_default_budget_accepts_the_documented_megapixels(format: str, accepted: int, refused: int) -> None:
    """The default of DECODE_MEMORY_MB accepts the megapixels of each format that its description names."""
    for megapixels, is_accepted in ((accepted, True), (refused, False)):
        header = Header(format, "RGB", 10_000, megapixels * 100, depth=10 if is_accepted and format == "HEIF" else 8)
        assert (find_fault(header, io.BytesIO(), 200 * MEGAPIXELS, MOST_MB) == "") is is_accepted


@pytest.mark.parametrize("size", [(4032, 3024), (12_000, 9_000), (60_000, 1_500), (100, 100), (6_399, 6_399)], ids=str)
def test_sizes_are_those_of_pillow(size: tuple[int, int]) -> None:
    """Pillow decodes a JPEG at the size that the estimate expects."""
    scale = draft_scale(size)
    with Image.open(io.BytesIO(encode(Image.new("L", size), "JPEG"))) as image:
        image.draft("RGB", (1600, 1600))
        assert image.size == (-(-size[0] // scale), -(-size[1] // scale))
    assert max(size) / reduce_factor(size) < 6400


@pytest.mark.parametrize(
    ("options", "samples"),
    [({"subsampling": 0}, 3), ({"subsampling": 1}, 2), ({"subsampling": 2}, 1.5)],
    ids=["4:4:4", "4:2:2", "4:2:0"],
)
def test_header_of_a_jpeg_has_its_samples(options: dict[str, int], samples: float) -> None:
    """The number of samples that libjpeg stores for each pixel follows from the subsampling of the colours."""
    with Image.open(io.BytesIO(encode(gradient((64, 48)), "JPEG", progressive=True, **options))) as image:
        header = header_of(image)
    assert (header.samples, header.is_progressive) == (samples, True)


PROGRESSIVE = encode(gradient((640, 480)), "JPEG", progressive=True)
BASELINE = encode(gradient((640, 480)), "JPEG")
THUMBNAIL = encode(gradient((160, 120)), "JPEG", progressive=True)


def with_segment(content: bytes, marker: int, data: bytes) -> bytes:
    """Return the JPEG with one more segment at its start."""
    return content[:2] + bytes((0xFF, marker)) + (2 + len(data)).to_bytes(2) + data + content[2:]


SCANS: list[tuple[bytes, int, int, str]] = [
    (BASELINE, 1, 1, "baseline"),
    (PROGRESSIVE, 10, 10, "progressive"),
    (encode(gradient((640, 480), "L"), "JPEG", progressive=True), 6, 6, "grey"),
    (with_segment(PROGRESSIVE, 0xE1, b"Exif\0\0" + THUMBNAIL), 20, 10, "thumbnail in EXIF"),
    (BASELINE + PROGRESSIVE, 11, 1, "a second picture after the first"),
    (make_image("MPO", (64, 48)), 2, 1, "MPO"),
    (BASELINE + b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 500, 501, 1, "a film after the picture"),
    (encode(gradient((640, 480)), "JPEG", restart_marker_blocks=1), 1, 1, "restart markers"),
    (PROGRESSIVE.replace(b"\xff\xda", b"\xff\xff\xff\xff\xda"), 10, 10, "fill bytes"),
    (endless_jpeg(64, 40), 49, 49, "repeated"),
    (PROGRESSIVE[:-2], 10, 10, "without its end"),
    (with_segment(BASELINE, 0xFE, b"\xff\xd9"), 1, 1, "an end in a comment"),
    (b"", 0, 0, "nothing"),
]


@pytest.mark.parametrize(("content", "marks", "scans", "remark"), SCANS, ids=[case[3] for case in SCANS])
def test_scans_are_counted_as_libjpeg_reads_them(content: bytes, marks: int, scans: int, remark: str) -> None:
    """The scans of the first picture, up to its end, count; the quick count of marks may be larger, never smaller."""
    assert (count_scan_marks(io.BytesIO(content)), count_scans(io.BytesIO(content), 1000)) == (marks, scans)


def test_no_segment_hides_a_scan() -> None:
    """Scans after an unknown marker that looks like a long segment count: libjpeg skips only the marker."""
    one = endless_jpeg(64, 1)
    at = one.rindex(b"\xff\xda")
    hidden = one[:at] + b"".join(one[at:-2] + b"\xff\x02\xff\xf0" for _ in range(40)) + b"\xff\xd9"
    assert count_scans(io.BytesIO(hidden), 1000) >= 40


def test_counting_stops_at_the_limit() -> None:
    """A file with very many scans takes no longer to refuse than one with just too many."""
    assert count_scans(io.BytesIO(endless_jpeg(64, 5000)), 100) == 101


def test_scans_of_a_large_photo_are_counted_quickly() -> None:
    """Ten megabytes of noise take less than half a second, with a marker across the border of two blocks."""
    noise = random.Random(1).randbytes(10 * MEGAPIXELS).replace(b"\xff", b"\xff\0")
    photo = BASELINE[:-2] + noise[: 1024 * 1024 - len(BASELINE) + 1] + b"\xff\xda" + noise
    started_at = process_time()
    assert count_scan_marks(io.BytesIO(photo)) == 2
    assert process_time() - started_at < 0.5


@pytest.mark.fault("E3")
def test_endless_scans_are_refused_and_ordinary_ones_are_not() -> None:
    """The cost of a progressive JPEG is its scans times its pixels: too many are refused, those of a photo are not."""
    ordinary = Header("JPEG", "RGB", 16_320, 12_240, is_progressive=True, samples=1.5)
    assert find_fault(ordinary, io.BytesIO(PROGRESSIVE), 200 * MEGAPIXELS, MOST_MB) == ""
    endless = Header("JPEG", "RGB", 4000, 4000, is_progressive=True)
    fault = find_fault(endless, io.BytesIO(endless_jpeg()), 200 * MEGAPIXELS, MOST_MB)
    assert fault == "Must have at most 250 scans at this size: save it as an ordinary JPEG"


def test_scans_outside_the_picture_cost_nothing() -> None:
    """A baseline JPEG of 200 megapixels is accepted with a thumbnail and with scan marks after its end."""
    content = with_segment(BASELINE, 0xE1, b"Exif\0\0" + THUMBNAIL) + b"\xff\xda" * 1000
    header = Header("JPEG", "RGB", 16_320, 12_240, samples=3)
    assert find_fault(header, io.BytesIO(content), 200 * MEGAPIXELS, MOST_MB) == ""
