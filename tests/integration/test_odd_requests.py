"""Upload forms that old and unusual clients send, on real sockets: which are accepted, and which are refused."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from pipeline.handlers.multipart import MultipartReader
from tests.factories import make_token, make_upload
from tests.integration.form_bodies import CATEGORY, FORM, GOOD, IMAGE, PNG, form
from tests.integration.http_border import (
    LIMIT,
    Border,
    border,
    head,
    make_part,
    receive_all,
    settings,
)

__all__ = ["border", "settings"]  # fixtures

ACCEPTED: dict[str, tuple[bytes, bytes]] = {
    # U2: parts that are texts
    **{
        f"category as {kind}": (b"", form((CATEGORY + b"\r\nContent-Type: " + kind.encode(), text), (IMAGE, PNG)))
        for kind, text in {
            "application/json": b"lego",
            "application/json; charset=UTF-8": b'"lego"',
            "text/html": b"lego",
            "multipart/form-data": b"lego",
            "application/octet-stream": b"lego",
            "text/plain; charset=ISO-8859-1": b"lego",
            'text/plain; charset="utf-16"': "lego".encode("utf-16"),
            "text/plain": b"\xef\xbb\xbflego\r\n",
        }.items()
    },
    "category with an empty filename": (b"", form((CATEGORY + b'; filename=""', b"lego"), (IMAGE, PNG))),
    "image without filename or type": (b"", form((CATEGORY, b"lego"), (IMAGE.partition(b"; file")[0], PNG))),
    "image as a text, then as a file": (
        b"",
        form((CATEGORY, b"lego"), (IMAGE.partition(b"; file")[0], b"photo.png"), (IMAGE, PNG)),
    ),
    # U8: unusual ways to write a part
    "extended filename alone": (b"", GOOD.replace(b'filename="a.png"', b"filename*=UTF-8''na%C3%AFve.png")),
    "preamble": (b"", b"This is a multi-part message.\r\nRead it well.\r\n" + GOOD),
    "epilogue": (b"", GOOD + b"--b\r\nleft over"),
    "no line end at the end": (b"", GOOD[:-2]),
    "folded headers": (b"", GOOD.replace(b"form-data; name", b"form-data;\r\n\t name")),
    "blanks after boundaries": (b"", GOOD.replace(b"--b\r\n", b"--b \t\r\n")),
    "header names in capitals": (b"", GOOD.replace(b"Content-Disposition", b"CONTENT-DISPOSITION")),
    "header names in small letters": (b"", GOOD.replace(b"Content-Disposition", b"content-disposition")),
    "names without quotes": (b"", GOOD.replace(b'"image"', b"image").replace(b'"category"', b"category")),
    "lines of LF alone": (b"", GOOD.replace(PNG, b"%").replace(b"\r\n", b"\n").replace(b"%", PNG)),
    "filename with quotes and semicolons": (b"", GOOD.replace(b"a.png", b'a \\"b\\"; name=\\"c\\".png')),
    "filename with percent signs": (b"", GOOD.replace(b"a.png", b"100%22%0A;name=x.png")),
    "filename with a folder of Windows": (b"", GOOD.replace(b"a.png", b"C:\\photos\\a.png")),
    "filename in UTF-8": (b"", GOOD.replace(b"a.png", "schöner Schuh 👟.png".encode())),
    "filename in Latin-1": (b"", GOOD.replace(b"a.png", "schön.png".encode("latin-1"))),
    "a part without anything": (b"", b"--b\r\n\r\n\r\n" + GOOD),
    "a part without a body": (b"", b"--b\r\nX-Odd: 1\r\n\r\n" + GOOD),
    # U9: encodings that forms should not have
    "base64": (
        b"",
        form((CATEGORY, b"lego"), (IMAGE + b"\r\nContent-Transfer-Encoding: BASE64", base64.encodebytes(PNG))),
    ),
    "quoted-printable": (
        b"",
        form((CATEGORY + b"\r\nContent-Transfer-Encoding: quoted-printable", b"=6Ceg=\r\no"), (IMAGE, PNG)),
    ),
    # U3: an expectation in upper and lower case
    "expectation": (b"Expect: 100-Continue\r\n", GOOD),
    # U10: unusual ways to write a request
    "length with zeros": (b"", GOOD),
    "headers of proxies": (b"Via: 1.0 old (squid)\r\nX-Forwarded-For: unknown, \r\nProxy-Connection: x\r\n", GOOD),
}


@pytest.mark.fault("U2")
@pytest.mark.fault("U3")
@pytest.mark.fault("U8")
@pytest.mark.fault("U9")
@pytest.mark.parametrize(("headers", "body"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_upload_of_an_unusual_client_is_accepted(border: Border, headers: bytes, body: bytes) -> None:
    """The service gets the photo and its category from each form that the standards allow."""
    lines = head(FORM, Content_Length=f"000{len(body)}", Connection="close")[:-2] + headers + b"\r\n"
    with border.connect() as connection:
        connection.sendall(lines + body)
        received = receive_all(connection)
    assert b"HTTP/1.1 202 " in received, received
    ((upload, content),) = border.submission.uploads
    assert (upload.category, content) == ("lego", PNG)


@pytest.mark.fault("U8")
@pytest.mark.fault("U9")
@pytest.mark.parametrize("length", [1, 7, 4096])
def test_upload_of_an_unusual_client_can_arrive_in_pieces_of_any_length(tmp_path: Path, length: int) -> None:
    """The network may split a body anywhere: in a boundary, a header, a line end or an encoded text."""
    for name, (_, body) in ACCEPTED.items():
        reader = MultipartReader(FORM, wanted=("category",), max_image_bytes=LIMIT, folder=tmp_path)
        for start in range(0, len(body), length):
            reader.feed(body[start : start + length])
        form = reader.finish()
        assert form.image is not None
        assert (form.fields["category"], form.image.read()) == ("lego", PNG), name
        reader.close()


@pytest.mark.fault("U8")
@pytest.mark.parametrize("boundary", ["'()+_,-./:=?", "a b", "----WebKitFormBoundary7MA4YWxk", "=_Part_1_2.3"])
def test_upload_with_an_unusual_boundary_is_accepted(border: Border, boundary: str) -> None:
    """A boundary in quotes may contain every character that RFC 2046 allows."""
    body = GOOD.replace(b"--b", b"--" + boundary.encode())
    assert border.post(body, f'multipart/form-data; charset=utf-8; boundary="{boundary}"').status == 202


@pytest.mark.fault("U3")
@pytest.mark.parametrize("expect", ["100-continue", "100-Continue", "100-CONTINUE "])
def test_upload_is_continued_only_when_it_will_be_read(border: Border, expect: str) -> None:
    """A client that sends Expect gets 100, in upper or lower case, but not with a bad token or a too long body."""
    body, content_type = make_upload()
    for token, length, status in (("bad", 9, 401), (make_token(), 10**9, 400), (make_token(), len(body), 100)):
        with border.connect() as connection:
            connection.sendall(head(content_type, token, Content_Length=length, Expect=expect, Connection="close"))
            assert int(connection.recv(65536).split()[1]) == status
            if status == 100:
                connection.sendall(body)
                assert b"HTTP/1.1 202 " in receive_all(connection)


@pytest.mark.fault("U3")
def test_upload_with_an_unknown_expectation_is_a_417(border: Border) -> None:
    """An unknown expectation is refused, as RFC 9110 requires."""
    answer = border.post(*make_upload(), Expect="200-ok")
    assert (answer.status, answer.json["error"]["message"]) == (417, "Expect: only 100-continue is known")


@pytest.mark.fault("U9")
@pytest.mark.parametrize("coding", ["gzip", "br", "gzip, identity"])
def test_upload_in_a_content_encoding_is_a_415(border: Border, coding: str) -> None:
    """The reply to a compressed body gives the reason."""
    answer = border.post(*make_upload(), **{"Content-Encoding": coding})
    detail = f"{coding} is not supported: send the form uncompressed"
    assert answer.status == 415
    assert answer.json["error"]["details"] == [{"field": "Content-Encoding", "message": detail}]


@pytest.mark.fault("U9")
def test_unknown_part_names_are_shown_clean_and_short(border: Border) -> None:
    """The reply names the parts without control characters and with a bounded length."""
    answer = border.post(*make_part('name="\x1b[31mfile' + "x" * 100 + '"; filename="a"', b"."))
    (_, body) = answer.json["error"]["details"][:2]
    assert body == {"field": "body", "message": "these parts came: file" + "x" * 36}
