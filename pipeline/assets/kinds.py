"""The kind of an image by the first bytes of its file. Pure.

assets/image.py reads further, and refuses a file that only begins as an image.
"""

from __future__ import annotations

# As many as an ordinary list of compatible brands needs; the first 12 are enough for all but an AVIF that calls itself
# `mif1`.
HEAD_BYTES = 64
STARTS = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}
AVIF, HEIC = "image/avif", "image/heic"
# The major brands that Pillow's openers take. The first two say only that it is made of boxes.
ANY_BRANDS = {b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}


def image_type(head: bytes) -> str | None:
    """Return the content type of an image whose file begins so, None for a kind that is not accepted.

    head: the first HEAD_BYTES, fewer of a shorter file; further bytes do not matter.
    """
    if head[4:8] == b"ftyp":
        return _type_of_boxes(head[:HEAD_BYTES])
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in STARTS.items() if head.startswith(start)), None)


def _type_of_boxes(head: bytes) -> str | None:
    major = head[8:12]
    if major in AVIF_BRANDS:
        return AVIF
    if major in HEIC_BRANDS:
        return HEIC
    if major not in ANY_BRANDS:
        return None
    compatible = {head[at : at + 4] for at in range(16, min(len(head), int.from_bytes(head[:4])), 4)}
    return AVIF if compatible & AVIF_BRANDS else HEIC
