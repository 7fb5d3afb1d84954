"""Unusual and invalid HTTP requests on real sockets: each gets an answer or an end of its connection."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
from typing import Any

import pytest

from tests.factories import make_noise_image, make_token, make_upload
from tests.integration.form_bodies import FORM, GOOD
from tests.integration.http_border import (
    UPLOAD,
    Border,
    border,
    head,
    receive_all,
    settings,
)

__all__ = ["border", "settings"]  # fixtures


def reply_to(border: Border, request: bytes) -> tuple[int, dict[str, Any]]:
    """Send raw bytes; return the status and the body of the answer."""
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
def test_request_that_violates_http_is_answered(
    border: Border, request_bytes: bytes, status: int, reason: str
) -> None:
    """The answer is the usual error reply and names what is wrong."""
    answered, body = reply_to(border, request_bytes)
    assert (answered, body["success"], body["error"]["code"]) == (status, False, "VALIDATION_ERROR")
    assert reason in body["error"]["message"]


TOKEN = f"Authorization: Bearer {make_token()}\r\n".encode()
ODD_BYTES = [
    *(b"\r\n", b"\n", b"\r", b"\0", b"--b", b"--b--", b"%ff", b";", b'"', b"\\", b":", b" ", b"=", b"9" * 20, b"\xff"),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Host: b\r\n"),
    *(b"Content-Transfer-Encoding: base64\r\n", b"charset=utf-16", b"x" * 5000, b"HTTP/1.0", b"http://["),
]


def damage(request: bytes, source: random.Random) -> bytes:
    """Return the request with a few bytes changed, removed, doubled or inserted."""
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
def test_damaged_request_is_answered_or_its_connection_is_closed(border: Border, seed: int) -> None:
    """The service never answers 500, logs no traceback and leaves no connection open."""
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
def test_request_line_in_each_allowed_form_is_accepted(border: Border, request_line: bytes) -> None:
    """An upload with a full URL, with empty lines before it, or with HTTP/1.0 is accepted."""
    request = request_line + b"\r\nHost: test\r\n" + TOKEN + f"Content-Type: {FORM}\r\n".encode()
    status, body = reply_to(border, request + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD)
    assert (status, body["success"]) == (202, True)


@pytest.mark.fault("U10")
def test_upload_with_chunk_extensions_and_trailers_is_accepted(border: Border) -> None:
    """Extensions and trailers are ignored, and the next request on the connection is read."""
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
def test_client_that_closes_its_sending_side_gets_its_answer(border: Border, is_chunked: bool) -> None:
    """The client closes its sending side while its photo is stored: it gets the answer, and the connection ends."""
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
def test_connection_that_ends_within_a_body_is_closed(border: Border) -> None:
    """A body that ends too early is no half-closed client: the service closes the connection without an answer."""
    body, content_type = make_upload(make_noise_image(200_000))
    with border.connect() as connection:
        connection.sendall(head(content_type, Content_Length=len(body)) + body[:100_000])
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection) == b""
    assert border.wait_for(lambda thing: thing == "closed")
