"""Pictures with private metadata, like those of cameras, phones and programs. Pure: bytes only.

Every text that must be removed contains SECRET.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Any

from PIL import ExifTags, Image, ImageCms

from tests.pictures import box, encode, gradient, riff

SECRET = b"SECRET"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SIZE = (96, 64)
COLORS = ("red", "lime", "blue", "white")


def corners() -> Image.Image:
    """Return a picture with another colour in each quarter, so that its orientation can be seen."""
    picture = Image.new("RGB", SIZE)
    width, height = SIZE[0] // 2, SIZE[1] // 2
    for number, color in enumerate(COLORS):
        left, top = number % 2 * width, number // 2 * height
        picture.paste(color, (left, top, left + width, top + height))
    return picture


def exif(orientation: int = 6) -> bytes:
    """Return EXIF data of a camera: position, owner, serial number, maker note, thumbnail and orientation."""
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    tags[ExifTags.Base.Make] = "SECRET make"
    tags[ExifTags.Base.Artist] = "SECRET owner"
    tags[ExifTags.Base.ImageDescription] = "SECRET description"
    details = tags.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.BodySerialNumber] = "SECRET serial number"
    details[ExifTags.Base.CameraOwnerName] = "SECRET owner's name"
    details[ExifTags.Base.MakerNote] = b"SECRET maker note" * 20
    details[ExifTags.Base.UserComment] = b"ASCII\0\0\0SECRET comment"
    position = tags.get_ifd(ExifTags.IFD.GPSInfo)
    position[ExifTags.GPS.GPSAreaInformation] = b"SECRET street and town"
    position[ExifTags.GPS.GPSDateStamp] = "SECRET day"
    return tags.tobytes() + b"\xff\xd8SECRET thumbnail\xff\xd9"


def tiff(orientation: int, *, order: str = "<", kind: int = 3, count: int = 1, tag: int = 0x0112) -> bytes:
    """Return the shortest EXIF data with one tag, without the head `Exif`."""
    value = struct.pack(order + ("I" if kind == 4 else "H"), orientation).ljust(4, b"\0")
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "IHHHI", 8, 1, tag, kind, count) + value + bytes(4)


def xmp(orientation: int = 6) -> bytes:
    """Return XMP with the orientation and the creator."""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/" '
        f'tiff:Orientation="{orientation}" dc:creator="SECRET creator"/></rdf:RDF></x:xmpmeta>'
    ).encode()


def film() -> bytes:
    """Return the beginning of a film like those inside motion photos."""
    return box(b"ftyp", b"mp42" + bytes(4)) + box(b"moov", b"SECRET film") + box(b"mdat", b"SECRET pictures" * 50)


def segment(code: int, content: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, code, 2 + len(content)) + content


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """Return the JPEG with these segments after its first one."""
    at = 4 + int.from_bytes(jpeg[4:6])
    return jpeg[:at] + b"".join(segments) + jpeg[at:]


def jpeg(*, progressive: bool = False, quality: int = 90) -> bytes:
    """Return a JPEG with every known kind of metadata."""
    plain = encode(corners(), "JPEG", quality=quality, progressive=progressive, icc_profile=PROFILE, subsampling=0)
    second = encode(gradient((32, 32)), "JPEG", comment=b"SECRET second picture")
    thumbnail = b"SECRET thumbnail".ljust(48, b"\0")
    jfif = segment(0xE0, b"JFIF\0\1\2\1\0\x48\0\x48\4\4" + thumbnail)
    plain = plain[:2] + jfif + plain[4 + int.from_bytes(plain[4:6]) :]
    return with_segments(
        plain,
        segment(0xE0, b"JFXX\0\x10SECRET thumbnail"),
        segment(0xE1, b"Exif\0\0" + exif().removeprefix(b"Exif\0\0")),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp()),
        segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0SECRET more of it"),
        segment(0xE2, b"MPF\0MM\0*SECRET second picture"),
        segment(0xE2, b"FPXR\0SECRET"),
        segment(0xEB, b"JP\0\1SECRET content credentials"),
        segment(0xEC, b"DuckySECRET"),
        segment(0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\0\0\0\x0aSECRET IPTC"),
        segment(0xEF, b"SECRET of a camera"),
        segment(0xFE, b"SECRET comment"),
    ) + second + b"SECRET trailer" + film()


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(png: bytes, before: Iterable[bytes] = (), after: Iterable[bytes] = ()) -> bytes:
    """Return the PNG with these chunks before and after its picture."""
    start, end = png.index(b"IDAT") - 4, png.rindex(b"IEND") - 4
    return png[:start] + b"".join(before) + png[start:end] + b"".join(after) + png[end:]


def png() -> bytes:
    """Return a PNG with every known kind of metadata."""
    texts = [
        chunk(b"tEXt", b"Author\0SECRET author"),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"SECRET")),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp()),
        chunk(b"tIME", struct.pack(">HBBBBB", 2026, 11, 28, 12, 0, 0)),
        chunk(b"caBX", b"SECRET content credentials"),
        chunk(b"vpAg", b"SECRET of a program"),
    ]
    plain = encode(corners(), "PNG", icc_profile=PROFILE)
    full = with_chunks(plain, [*texts, chunk(b"eXIf", exif().removeprefix(b"Exif\0\0"))], texts)
    return full + b"SECRET trailer" + plain


def webp(*, moving: bool = False) -> bytes:
    """Return a WebP with every known kind of metadata, also in its frames."""
    pictures = [corners(), corners().rotate(180)]
    options: dict[str, Any] = {}
    if moving:
        options = {"save_all": True, "append_images": pictures[1:], "duration": 70, "loop": 3}
    plain = encode(pictures[0], "WEBP", lossless=True, icc_profile=PROFILE, **options)
    chunks = list(_riff_chunks(plain, 12))
    if moving:
        secret = b"SECR" + struct.pack("<I", 6) + SECRET
        chunks = [(kind, data + secret if kind == b"ANMF" else data) for kind, data in chunks]
    (kind, canvas), *others = chunks
    assert kind == b"VP8X"
    more = [(b"EXIF", exif()), (b"XMP ", xmp()), (b"SECR", b"SECRET chunk")]
    return riff((kind, bytes([canvas[0] | 0x0C]) + canvas[1:]), *others, *more) + b"SECRET trailer"


def _riff_chunks(content: bytes, at: int) -> Iterable[tuple[bytes, bytes]]:
    while at < len(content):
        (size,) = struct.unpack_from("<I", content, at + 4)
        yield content[at : at + 4], content[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def gif() -> bytes:
    """Return an animated GIF with every known kind of metadata."""
    frames = [corners(), corners().rotate(180)]
    plain = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=70, loop=3)
    at = plain.index(b"!\xff\x0bNETSCAPE2.0")
    pieces = [PROFILE[start : start + 255] for start in range(0, len(PROFILE), 255)]
    profile = b"".join(bytes([len(piece)]) + piece for piece in pieces)
    more = [
        b"!\xfe\x0eSECRET comment\0",
        b"!\xff\x0bXMP DataXMP" + xmp() + b"\x01" + bytes(range(255, -1, -1)) + b"\0",
        b"!\xff\x0bSECRETPROG1\x06SECRET\0",
        b"!\x01\x0c" + bytes(12) + b"\x06SECRET\0",
        b"!\xff\x0bICCRGBG1012" + profile + b"\0",
    ]
    return plain[:at] + b"".join(more) + plain[at:] + b"SECRET trailer"


def mpo() -> bytes:
    """Return a JPEG with a second picture after the first, and the index of both."""
    return encode(corners(), "MPO", save_all=True, append_images=[gradient((96, 64))], exif=exif(), icc_profile=PROFILE)


def heif(format: str, *, moving: bool = False) -> bytes:
    """Return a HEIC or AVIF with every known kind of metadata.

    format: a Pillow name.
    """
    options: dict[str, Any] = {"exif": exif(), "xmp": xmp(), "icc_profile": PROFILE}
    if moving:
        del options["exif"]  # crashes the encoder
        options |= {"save_all": True, "append_images": [corners().rotate(180).convert("RGBA")], "duration": 70}
    if format == "HEIF":
        options["thumbnails"] = [32]
    more = [box(b"uuid", b"SECRET" * 4), box(b"udta", b"SECRET"), box(b"mpvd", film()), box(b"sefd", b"SECRET")]
    plain = encode(corners().convert("RGBA"), format, quality=95, **options)
    return plain + b"".join(more)


PRIVATE: dict[str, tuple[bytes, str]] = {
    "jpeg": (jpeg(), "image/jpeg"),
    "progressive jpeg": (jpeg(progressive=True), "image/jpeg"),
    "two jpegs": (mpo(), "image/jpeg"),
    "png": (png(), "image/png"),
    "webp": (webp(), "image/webp"),
    "moving webp": (webp(moving=True), "image/webp"),
    "gif": (gif(), "image/gif"),
    "avif": (heif("AVIF"), "image/avif"),
    "moving avif": (heif("AVIF", moving=True), "image/avif"),
    "heic": (heif("HEIF"), "image/heic"),
}
