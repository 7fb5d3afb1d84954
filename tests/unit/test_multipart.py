"""Multipart bodies read in pieces: the result is the same for all pieces, and every size is bounded."""

from __future__ import annotations

import base64
import random
import tempfile
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from itertools import chain, repeat
from pathlib import Path

import pytest

from pipeline.errors import ValidationError
from pipeline.handlers import multipart
from pipeline.handlers.multipart import Form, MultipartReader
from tests.factories import make_image, make_multipart, make_upload

LIMIT = 1024 * 1024


def make_reader(content_type: str, max_image_bytes: int = LIMIT) -> MultipartReader:
    """Return a reader that accepts the field `category` and one image."""
    folder = Path(tempfile.gettempdir())
    return MultipartReader(content_type, wanted=("category",), max_image_bytes=max_image_bytes, folder=folder)


def read(body: bytes, content_type: str, pieces: Iterator[int] | None = None) -> tuple[Form, bytes]:
    """Return the form and the bytes of the image.

    pieces: the lengths of the pieces of the body; default: one piece.
    """
    reader, rest = make_reader(content_type), body
    try:
        while rest:
            length = next(pieces) if pieces else len(rest)
            reader.feed(rest[:length])
            rest = rest[length:]
        form = reader.finish()
        return form, form.image.read() if form.image else b""
    finally:
        reader.close()


@pytest.mark.parametrize("seed", range(20))
def test_reader_result_does_not_depend_on_the_pieces(seed: int) -> None:
    """The fields and the image are the same for single bytes and for longer pieces."""
    source = random.Random(seed)
    # Bytes that look like the start of a boundary are the most likely ones to cause a fault.
    image = b"".join(source.choice([b"\r\n--", b"\r\n", b"-", b"----boundary7f3a9", b"x"]) for _ in range(300))
    body, content_type = make_upload(image, "camera")
    longest = source.choice((1, 2, 7, 100))

    form, content = read(body, content_type, iter(lambda: source.randint(1, longest), 0))

    assert content == image
    assert form.size == len(image)
    assert form.fields == {"category": "camera"}


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=b",
        'multipart/form-data; boundary="b"',
        "Multipart/Form-Data; charset=utf-8; BOUNDARY=b",
    ],
)
@pytest.mark.parametrize("preamble", [b"", b"\r\n"])
@pytest.mark.parametrize("epilogue", [b"", b"\r\n", b"\r\nleft over"])
def test_reader_accepts_every_valid_spelling(content_type: str, preamble: bytes, epilogue: bytes) -> None:
    """The reader accepts quoted boundaries, any case, an empty line before the body and any bytes after it."""
    body = preamble + b'--b\r\nCONTENT-DISPOSITION: form-data; NAME="category"\r\n\r\nlego\r\n--b--' + epilogue
    assert read(body, content_type)[0].fields == {"category": "lego"}


def test_reader_accepts_a_form_of_the_standard_library() -> None:
    """The reader accepts a form that email.message has built, not only those of the tests."""
    message = EmailMessage()
    message["Content-Type"] = "multipart/form-data; boundary=other"
    part = EmailMessage()
    part["Content-Disposition"] = "form-data"
    part.set_param("name", "image", header="Content-Disposition")
    part.set_param("filename", "naïve.png", header="Content-Disposition", charset="utf-8")
    part["Content-Type"] = "image/png"
    part.set_payload("payload")
    message.attach(part)
    body = message.as_bytes().partition(b"\n\n")[2].replace(b"\n", b"\r\n")

    assert read(body, "multipart/form-data; boundary=other")[1] == b"payload"


def test_reader_stores_at_most_the_spool_in_memory() -> None:
    """A large image is on disk, a small one only in memory; close() closes both."""
    for size, is_on_disk in ((multipart.SPOOL_BYTES, False), (multipart.SPOOL_BYTES + 1, True)):
        body, content_type = make_upload(bytes(size))
        reader = make_reader(content_type)
        reader.feed(body)
        image = reader.finish().image
        assert image is not None
        assert reader.is_spooled is is_on_disk
        reader.close()
        reader.close()
        assert image.closed


def test_reader_stops_at_the_first_byte_too_many() -> None:
    """The image limit applies while the body arrives, not only at its end."""
    body, content_type = make_upload(bytes(101))
    start = body.index(bytes(101))
    reader = make_reader(content_type, max_image_bytes=100)
    reader.feed(body[:start] + bytes(100))
    with pytest.raises(ValidationError, match="^File too large$"):
        # The parser delays bytes that could start a boundary; a NUL cannot start one.
        reader.feed(bytes(1))
    reader.close()


def test_reader_limits_the_body_with_its_ignored_parts() -> None:
    """The complete body has a limit too, also for ignored files, and the error names the body, not the image."""
    body, content_type = make_multipart({}, [("other", "o.bin", "application/zip", bytes(LIMIT))] * 3)
    with pytest.raises(ValidationError) as caught:
        read(body, content_type, iter(lambda: 65536, 0))
    assert caught.value.details == [{"field": "body", "message": "Must have at most 2.4MB"}]


def make_base64(text: bytes) -> bytes:
    """Return a body whose image is this text, declared as base64."""
    headers = b'Content-Disposition: form-data; name="image"; filename="a"\r\nContent-Transfer-Encoding: base64'
    return b"--b\r\n" + headers + b"\r\n\r\n" + text + b"\r\n--b--"


@pytest.mark.fault("U9")
@pytest.mark.parametrize("encode", [base64.encodebytes, base64.b64encode], ids=["in lines", "in one line"])
def test_reader_accepts_an_image_of_the_limit_in_base64(encode: Callable[[bytes], bytes]) -> None:
    """The limit counts the bytes of the image, not its base64 characters; one byte more is refused."""
    image = random.Random(1).randbytes(LIMIT)
    form, content = read(make_base64(encode(image)), "multipart/form-data; boundary=b", repeat(65536))
    assert (form.size, content) == (LIMIT, image)
    with pytest.raises(ValidationError, match="^File too large$"):
        read(make_base64(encode(image + b"x")), "multipart/form-data; boundary=b", repeat(65536))


@pytest.mark.parametrize("text", [b"QQ==QUJD", b"QQ==QQ==", b"QUI=\r\n\r\nQ", b"QQ==QQ", b"QQ=="])
def test_reader_refuses_base64_after_its_padding(text: bytes) -> None:
    """Padding ends the image, so text after it is refused, for all pieces of the body."""
    body, content_type = make_base64(text), "multipart/form-data; boundary=b"
    for length in range(1, len(body)):
        if text == b"QQ==":
            assert read(body, content_type, chain([length], repeat(len(body))))[1] == b"A"
            continue
        with pytest.raises(ValidationError, match="malformed"):
            read(body, content_type, chain([length], repeat(len(body))))


@pytest.mark.parametrize("length", range(0, 400, 7))
def test_reader_refuses_every_truncation(length: int) -> None:
    """A body without its complete final boundary is refused."""
    body, content_type = make_upload(b"x" * 100)
    cut = body[: min(length, len(body) - 4)]
    with pytest.raises(ValidationError):
        read(cut, content_type)


@pytest.mark.parametrize("seed", range(5))
def test_reader_accepts_or_refuses_damaged_bodies(seed: int) -> None:
    """For any bytes the result is a form or a ValidationError."""
    source = random.Random(seed)
    body, content_type = make_upload(make_image(size=(8, 8)))
    for _ in range(200):
        damaged = bytearray(body)
        for _ in range(source.randint(1, 10)):
            damaged[source.randrange(min(len(damaged), 400))] = source.choice(b'\r\n-:;"= \0\xffab')
        try:
            read(bytes(damaged), content_type, iter(lambda: source.randint(1, 50), 0))
        except ValidationError:
            pass


def test_reader_returns_no_form_after_close() -> None:
    """A reader that was closed, because the client disconnected, cannot be finished."""
    body, content_type = make_upload()
    reader = make_reader(content_type)
    reader.feed(body)
    reader.close()
    with pytest.raises(ValidationError, match="truncated"):
        reader.finish()
