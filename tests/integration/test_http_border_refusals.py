"""Uploads that the HTTP border refuses: when the client gets the refusal, and when the connection ends."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.handlers import refusals
from tests.factories import make_image, make_token, make_upload
from tests.integration.http_border import (
    LIMIT,
    UPLOAD,
    Border,
    border,
    error,
    head,
    is_finished,
    read_answer,
    receive_all,
    settings,
)
from tests.requirements import program

__all__ = ["border", "settings"]  # fixtures
TOO_LARGE = error("VALIDATION_ERROR", "File too large", image="Maximum file size is 10MB")


@pytest.mark.parametrize("size", [LIMIT + 1, 2 * LIMIT])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_upload_too_large_is_refused(border: Border, size: int, is_chunked: bool) -> None:
    """One byte over the limit is too large, whether the length was declared or the body is chunked."""
    body, content_type = make_upload(make_image() + bytes(size - len(make_image())))
    sent = iter([body[start : start + 65536] for start in range(0, len(body), 65536)]) if is_chunked else body

    answer = border.call("POST", UPLOAD, sent, {"Content-Type": content_type})

    assert (answer.status, answer.json) == (400, TOO_LARGE)
    assert border.submission.uploads == []


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Authorization": "Bearer no.good.token"}, "Invalid token"),
        ({"Authorization": "Basic YTpi"}, "Authentication required"),
    ],
)
@pytest.mark.parametrize("body", [b"", b"x" * 100], ids=["without a body", "with a body"])
def test_upload_without_a_good_token_is_a_401(
    border: Border, headers: dict[str, str], message: str, body: bytes
) -> None:
    """Without a good token the reply is 401, with a body and without one."""
    answer = border.call("POST", UPLOAD, body, headers)

    assert (answer.status, answer.json) == (401, error("UNAUTHORIZED", message))
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_upload_refused_without_a_body_keeps_the_connection(border: Border) -> None:
    """After a refusal of a request without a body the connection stays usable."""
    client = border.client()
    client.request("POST", UPLOAD, headers={"Authorization": "Bearer no"})
    assert read_answer(client.getresponse()).status == 401
    client.auto_open = 0
    client.request("GET", "/api/assets", headers={"Authorization": f"Bearer {make_token()}"})
    assert read_answer(client.getresponse()).status == 200
    client.close()


@pytest.mark.parametrize(
    ("token", "length", "status", "expected"),
    [
        ("bad", 1000, 401, error("UNAUTHORIZED", "Invalid token")),
        ("bad", 10**12, 401, error("UNAUTHORIZED", "Invalid token")),
        (make_token(), 10**12, 400, TOO_LARGE),
    ],
)
def test_upload_is_refused_before_the_body(
    border: Border, token: str, length: int, status: int, expected: dict[str, Any]
) -> None:
    """The complete refusal comes before a body byte was sent, with its length, and nothing follows it."""
    with border.connect() as connection:
        connection.sendall(head("multipart/form-data; boundary=b", token, Content_Length=length))
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.headers["Connection"]) == (status, "close")
        assert json.loads(answer.read()) == expected
        connection.sendall(bytes(1000))
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection) == b""


def test_upload_of_50_mb_with_a_bad_token_reads_its_401(border: Border) -> None:
    """A blocking client that sends all of its body first still gets the reply."""
    answer = border.post(bytes(50 * 1024 * 1024), "multipart/form-data; boundary=b", Authorization="Bearer bad")
    assert (answer.status, answer.json) == (401, error("UNAUTHORIZED", "Invalid token"))


@pytest.mark.parametrize("expect", ["Expect: 100-continue", "Expect:"], ids=["asks first", "sends at once"])
@pytest.mark.parametrize(("token", "status"), [("bad", 401), (make_token(), 400)])
def test_upload_of_50_mb_by_curl_reads_its_refusal(
    border: Border, tmp_path: Path, expect: str, token: str, status: int
) -> None:
    """curl gets the refusal of a much too large body, whether it waits for 100 Continue or not."""
    curl = program("curl")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(bytes(50 * 1024 * 1024))
    command = [curl, "-sS", "-m", "20", "-w", "\n%{http_code}", "-H", f"Authorization: Bearer {token}", "-H", expect]
    command += ["-F", f"image=@{photo};type=image/jpeg", "-F", "category=lego"]

    ran = subprocess.run(command + [f"http://127.0.0.1:{border.port}{UPLOAD}"], capture_output=True, timeout=30)

    body, _, code = ran.stdout.rpartition(b"\n")
    assert (ran.returncode, code) == (0, str(status).encode()), ran.stderr
    assert json.loads(body) == (error("UNAUTHORIZED", "Invalid token") if status == 401 else TOO_LARGE)


def test_upload_expecting_continue_is_refused_without_it(border: Border) -> None:
    """A client that waits for 100 Continue gets the refusal instead, and the connection ends."""
    with border.connect() as connection:
        connection.sendall(head("multipart/form-data; boundary=b", "bad", Content_Length=9, Expect="100-continue"))
        received = receive_all(connection)
    assert received.startswith(b"HTTP/1.1 401 ")
    assert json.loads(received.partition(b"\r\n\r\n")[2]) == error("UNAUTHORIZED", "Invalid token")


def test_upload_expecting_continue_gets_it(border: Border) -> None:
    """A client with a good token gets 100 Continue, and then the reply to its upload."""
    body, content_type = make_upload()
    with border.connect() as connection:
        connection.sendall(head(content_type, Content_Length=len(body), Expect="100-continue", Connection="close"))
        assert connection.recv(12) == b"HTTP/1.1 100"
        connection.sendall(body)
        assert b"HTTP/1.1 202 " in receive_all(connection)


def test_upload_too_large_after_continue_reads_its_refusal(border: Border) -> None:
    """A client that got 100 Continue and then sends too much gets the refusal."""
    body, content_type = make_upload(bytes(2 * LIMIT))
    with border.connect() as connection:
        connection.sendall(head(content_type, Transfer_Encoding="chunked", Expect="100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        for start in range(0, len(body), 65536):
            piece = body[start : start + 65536]
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\n\r\n")
        received = receive_all(connection)
    assert json.loads(received.partition(b"\r\n\r\n")[2]) == TOO_LARGE


def test_upload_refused_is_logged_after_the_client_left(border: Border) -> None:
    """A client that closes the connection in the middle of its body still gets an access line and is counted."""
    with border.connect() as connection:
        connection.sendall(head("multipart/form-data; boundary=b", "bad", Content_Length=1000))
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")
    assert border.access_line()["status"] == 401
    assert border.wait_for(is_finished) == ("finished", 401)


def test_upload_refused_stops_reading_after_a_while(border: Border, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that never stops sending after its refusal is cut off after a number of bytes."""
    monkeypatch.setattr(refusals, "DRAIN_BYTES", 1024 * 1024)
    sent = 0
    with border.connect() as connection:
        connection.sendall(head("multipart/form-data; boundary=b", "bad", Transfer_Encoding="chunked"))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while sent < 1024**3:
                sent += connection.send(b"10000\r\n" + bytes(65536) + b"\r\n")
    assert sent < 64 * 1024 * 1024  # the bound and the buffers of both kernels are smaller


def test_upload_refused_and_silent_is_closed(border: Border, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its refusal a client that neither sends the rest nor closes is disconnected after a time."""
    monkeypatch.setattr(refusals, "DRAIN_SECONDS", 0.1)
    with border.connect() as connection:
        connection.sendall(head("multipart/form-data; boundary=b", "bad", Content_Length=1000))
        assert receive_all(connection).startswith(b"HTTP/1.1 401 ")


FRAMINGS = {
    "length and chunked": {"Content_Length": 5, "Transfer_Encoding": "chunked"},
    "negative length": {"Content_Length": -1},
    "length is no number": {"Content_Length": "five"},
    "absurd length": {"Content_Length": "9" * 5000},
    "lengths that differ": {"Content_Length": "5, 6"},
    "unknown encoding": {"Transfer_Encoding": "gzip"},
    "bad chunk": {"Transfer_Encoding": "chunked"},
}


@pytest.mark.parametrize("headers", FRAMINGS.values(), ids=FRAMINGS.keys())
@pytest.mark.parametrize("token", [make_token(), "bad"], ids=["good token", "bad token"])
def test_upload_with_broken_framing_is_refused(border: Border, headers: dict[str, object], token: str) -> None:
    """A body whose end is not certain gets a 4xx, and nothing after it on the connection is read."""
    smuggled = b"GET /api/assets HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer " + make_token().encode() + b"\r\n\r\n"
    with border.connect() as connection:
        connection.sendall(head("multipart/form-data; boundary=b", token, **headers) + b"zzz\r\n\r\n" + smuggled)
        received = receive_all(connection)
    assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 "))
    assert b"HTTP/1.1 200" not in received
    assert border.submission.uploads == []


@pytest.mark.parametrize("key", ["", "k" * 256, "a b", "schlüssel"])
def test_upload_with_a_bad_idempotency_key_is_refused(border: Border, key: str) -> None:
    """An Idempotency-Key that is empty, too long or not visible ASCII is a 400, never silently dropped."""
    body, content_type = make_upload()
    answer = border.post(body, content_type, **{"Idempotency-Key": key})
    text = "Must be 1 to 255 visible ASCII characters"
    assert (answer.status, answer.json) == (400, error("VALIDATION_ERROR", text, Idempotency_Key=text))
