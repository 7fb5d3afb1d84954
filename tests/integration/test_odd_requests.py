"""Requests as old and odd clients send them, on real sockets: those that are taken, and those that are told why not."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import random
import socket
from pathlib import Path
from typing import Any

import pytest

from pipeline.handlers.multipart import MultipartReader
from tests.factories import make_image, make_noise_image, make_token, make_upload
from tests.integration.http_border import (
    LIMIT,
    UPLOAD,
    Border,
    border,
    head,
    make_part,
    receive_all,
    settings,
)

__all__ = ["border", "settings"]  # fixtures

FORM = "multipart/form-data; boundary=b"
IMAGE = b'Content-Disposition: form-data; name="image"; filename="a.png"'
CATEGORY = b'Content-Disposition: form-data; name="category"'
PNG = make_image()


def form(*parts: tuple[bytes, bytes]) -> bytes:
    """Return a body. parts: headers and content."""
    return b"".join(b"--b\r\n" + headers + b"\r\n\r\n" + content + b"\r\n" for headers, content in parts) + b"--b--\r\n"


GOOD = form((CATEGORY, b"lego"), (IMAGE, PNG))
TAKEN: dict[str, tuple[bytes, bytes]] = {
    # U2: what makes a text
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
    # U8: how parts are written
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
    # U9: codings that forms should not have
    "base64": (
        b"",
        form((CATEGORY, b"lego"), (IMAGE + b"\r\nContent-Transfer-Encoding: BASE64", base64.encodebytes(PNG))),
    ),
    "quoted-printable": (
        b"",
        form((CATEGORY + b"\r\nContent-Transfer-Encoding: quoted-printable", b"=6Ceg=\r\no"), (IMAGE, PNG)),
    ),
    # U3: an expectation in any case
    "expectation": (b"Expect: 100-Continue\r\n", GOOD),
    # U10: how requests are written
    "length with zeros": (b"", GOOD),
    "headers of proxies": (b"Via: 1.0 old (squid)\r\nX-Forwarded-For: unknown, \r\nProxy-Connection: x\r\n", GOOD),
}


@pytest.mark.fault("U2")
@pytest.mark.fault("U3")
@pytest.mark.fault("U8")
@pytest.mark.fault("U9")
@pytest.mark.parametrize(("headers", "body"), TAKEN.values(), ids=TAKEN.keys())
def test_upload_as_odd_clients_send_it_is_taken(border: Border, headers: bytes, body: bytes) -> None:
    """Whatever a lawful client may write, the photo and its category arrive."""
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
def test_upload_as_odd_clients_send_it_is_read_however_it_is_cut(tmp_path: Path, length: int) -> None:
    """The network cuts a body where it likes: within a boundary, a header, a line end or a coding."""
    for name, (_, body) in TAKEN.items():
        reader = MultipartReader(FORM, wanted=("category",), max_image_bytes=LIMIT, folder=tmp_path)
        for start in range(0, len(body), length):
            reader.feed(body[start : start + length])
        form = reader.finish()
        assert form.image is not None
        assert (form.fields["category"], form.image.read()) == ("lego", PNG), name
        reader.close()


@pytest.mark.fault("U8")
@pytest.mark.parametrize("boundary", ["'()+_,-./:=?", "a b", "----WebKitFormBoundary7MA4YWxk", "=_Part_1_2.3"])
def test_upload_with_an_odd_boundary_is_taken(border: Border, boundary: str) -> None:
    """Every character that RFC 2046 allows may stand in a boundary, in quotes."""
    body = GOOD.replace(b"--b", b"--" + boundary.encode())
    assert border.post(body, f'multipart/form-data; charset=utf-8; boundary="{boundary}"').status == 202


@pytest.mark.fault("U3")
@pytest.mark.parametrize("expect", ["100-continue", "100-Continue", "100-CONTINUE "])
def test_upload_is_continued_only_when_it_will_be_read(border: Border, expect: str) -> None:
    """A client that asks first hears 100 in any case, but not without a good token or with too long a body."""
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
    """An expectation that nobody knows is refused, as RFC 9110 wants it."""
    answer = border.post(*make_upload(), Expect="200-ok")
    assert (answer.status, answer.json["error"]["message"]) == (417, "Expect: only 100-continue is known")


@pytest.mark.fault("U9")
@pytest.mark.parametrize("coding", ["gzip", "br", "gzip, identity"])
def test_upload_in_a_content_encoding_is_a_415(border: Border, coding: str) -> None:
    """A compressed body is refused with its reason."""
    answer = border.post(*make_upload(), **{"Content-Encoding": coding})
    detail = f"{coding} is not supported: send the form uncompressed"
    assert answer.status == 415
    assert answer.json["error"]["details"] == [{"field": "Content-Encoding", "message": detail}]


def spoken(border: Border, request: bytes) -> tuple[int, dict[str, Any]]:
    """Return status and body of the last answer to raw bytes."""
    with border.connect() as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        body = answer.read()
        assert answer.headers["Content-Type"].startswith("application/json"), body
        return answer.status, json.loads(body)


BROKEN = {
    "no request": (b"hello\r\n\r\n", 400, "Malformed HTTP request line"),
    "HTTP/2": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400, "Unexpected HTTP version"),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "Missing Host header"),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "host"),
    "folded header": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400, "folding not supported"),
    "no colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400, "no colon"),
    "70 kB of headers": (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431, "more than 64 KB"),
    "length and chunks": (head(FORM, Content_Length=1, Transfer_Encoding="chunked"), 400, "both"),
    "chunks in HTTP/1.0": (
        head(FORM, Transfer_Encoding="chunked", Connection="keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"),
        *(400, "HTTP/1.0 has no Transfer-Encoding"),
    ),
    "unknown transfer": (head(FORM, Transfer_Encoding="gzip"), 400, "Unsupported Transfer-Encoding gzip"),
    "length is no number": (head(FORM, Content_Length="five"), 400, "Only integer Content-Length"),
    "chunk without a size": (head(FORM, Transfer_Encoding="chunked") + b"x\r\n", 400, "size of a chunk"),
    "chunk longer than it says": (head(FORM, Transfer_Encoding="chunked") + b"1\r\nabc\r\n", 400, "does not end"),
    "endless trailers": (
        *(head(FORM, Transfer_Encoding="chunked") + b"0\r\n" + b"X: y\r\n" * 65 + b"\r\n", 431),
        "more than 64 trailers",
    ),
}


@pytest.mark.fault("U9")
@pytest.mark.fault("U10")
@pytest.mark.parametrize(("request_bytes", "status", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_request_that_breaks_the_protocol_is_answered(
    border: Border, request_bytes: bytes, status: int, reason: str
) -> None:
    """The answer is in the envelope and names what is wrong; then the connection ends."""
    answered, body = spoken(border, request_bytes)
    assert (answered, body["success"], body["error"]["code"]) == (status, False, "VALIDATION_ERROR")
    assert reason in body["error"]["message"]


TOKEN = f"Authorization: Bearer {make_token()}\r\n".encode()
ODD_BYTES = [
    *(b"\r\n", b"\n", b"\r", b"\0", b"--b", b"--b--", b"%ff", b";", b'"', b"\\", b":", b" ", b"=", b"9" * 20, b"\xff"),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Host: b\r\n"),
    *(b"Content-Transfer-Encoding: base64\r\n", b"charset=utf-16", b"x" * 5000, b"HTTP/1.0", b"http://["),
]


def damage(request: bytes, source: random.Random) -> bytes:
    """Return the request with a few bytes changed, lost, doubled or put in between."""
    damaged = bytearray(request)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(min(len(damaged), 700))
        match source.randrange(4):
            case 0:
                damaged[at] = source.randrange(256)
            case 1:
                damaged[at:at] = source.choice(ODD_BYTES)
            case 2:
                del damaged[at : at + source.choice((1, 5, 50))]
            case _:
                damaged[at:at] = damaged[at : at + source.randint(1, 60)]
    return bytes(damaged)


@pytest.mark.fault("U9")
@pytest.mark.fault("U10")
@pytest.mark.parametrize("seed", range(4))
def test_request_damaged_anywhere_ends_in_an_answer_or_an_end(border: Border, seed: int) -> None:
    """Never a 500, a trace in the log or a connection that hangs."""
    source = random.Random(seed)
    requests = [
        head(FORM, Content_Length=len(GOOD)) + GOOD,
        head(FORM, Transfer_Encoding="chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD),
        head(FORM, Content_Length=len(GOOD), Expect="100-continue", X_Request_Id="r", Idempotency_Key="k") + GOOD,
        b"GET /api/assets?limit=3&cursor=abc HTTP/1.1\r\nHost: a\r\n" + TOKEN + b"\r\n",
    ]
    for _ in range(100):
        request = damage(source.choice(requests), source)
        with border.connect() as connection:
            with contextlib.suppress(OSError):
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
            assert b"HTTP/1.1 5" not in receive_all(connection), request


@pytest.mark.fault("U10")
@pytest.mark.parametrize(
    "request_line",
    [
        b"POST http://test" + UPLOAD.encode() + b" HTTP/1.1",
        b"POST HTTP://user@test:80" + UPLOAD.encode() + b"?x=1 HTTP/1.1",
        b"\r\nPOST " + UPLOAD.encode() + b" HTTP/1.1",
        b"\r\n\r\n\r\nPOST " + UPLOAD.encode() + b" HTTP/1.1",
        b"POST " + UPLOAD.encode() + b" HTTP/1.0",
    ],
)
def test_request_line_in_every_form_is_read(border: Border, request_line: bytes) -> None:
    """An address instead of a path, empty lines before, HTTP/1.0: the upload is taken."""
    request = request_line + b"\r\nHost: test\r\n" + TOKEN + f"Content-Type: {FORM}\r\n".encode()
    status, body = spoken(border, request + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD)
    assert (status, body["success"]) == (202, True)


@pytest.mark.fault("U10")
def test_upload_chunked_with_extensions_and_trailers_is_taken(border: Border) -> None:
    """What may stand beside the chunks is passed over, and the next request on the connection is read."""
    chunks = b"".join(b'%X;a=b;c="d"\r\n%c\r\n' % (1, byte) for byte in GOOD)
    request = head(FORM, Transfer_Encoding="Chunked", Trailer="Digest") + chunks + b"000\r\nDigest: x\r\nY: z\r\n\r\n"
    with border.connect() as connection:
        for _ in range(2):
            connection.sendall(request)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert (answer.status, json.loads(answer.read())["success"]) == (202, True)
    assert len(border.submission.uploads) == 2


@pytest.mark.fault("U10")
@pytest.mark.parametrize("is_chunked", [False, True])
def test_client_that_ends_its_sending_side_reads_its_answer(border: Border, is_chunked: bool) -> None:
    """Half-closed while its photo is stored, the connection still carries the answer, and then ends."""
    body, content_type = make_upload(make_noise_image(500_000))
    framing: dict[str, object] = {"Transfer_Encoding": "chunked"} if is_chunked else {"Content_Length": len(body)}
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if is_chunked else body
    border.submission.may_go_on.clear()
    with border.connect() as connection:
        connection.sendall(head(content_type, **framing) + sent)
        connection.shutdown(socket.SHUT_WR)
        assert border.submission.entered.wait(10)
        border.submission.may_go_on.set()
        assert receive_all(connection).startswith(b"HTTP/1.1 202 ")


@pytest.mark.fault("U10")
def test_client_that_ends_within_its_body_is_let_go(border: Border) -> None:
    """A body that ends too early is no half-closed client: nothing is kept for it."""
    body, content_type = make_upload(make_noise_image(200_000))
    with border.connect() as connection:
        connection.sendall(head(content_type, Content_Length=len(body)) + body[:100_000])
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection) == b""
    assert border.wait_for(lambda thing: thing == "closed")


@pytest.mark.fault("U9")
def test_part_names_of_strangers_are_shown_clean_and_short(border: Border) -> None:
    """What came is named without control characters and in bounded length."""
    answer = border.post(*make_part('name="\x1b[31mfile' + "x" * 100 + '"; filename="a"', b"."))
    (_, body) = answer.json["error"]["details"][:2]
    assert body == {"field": "body", "message": "these parts came: file" + "x" * 36}
