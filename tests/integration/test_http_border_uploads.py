"""Uploads at the HTTP border that are accepted, broken off or fail: their replies, and that no file is left."""

from __future__ import annotations

import gc
import errno
import io
from typing import Any

import pytest

from pipeline.errors import DependencyUnavailable
from pipeline.handlers import multipart
from tests.constants import BODY_SECONDS, BYTES_PER_SECOND
from tests.factories import make_image, make_multipart, make_noise_image, make_token, make_upload
from tests.integration.border_stand_ins import ASSET_ID
from tests.integration.http_border import (
    LIMIT,
    UPLOAD,
    Border,
    border,
    error,
    head,
    is_finished,
    open_temporary_files,
    read_answer,
    receive_all,
    settings,
)

__all__ = ["border", "settings"]  # fixtures


@pytest.mark.spec("T020")
def test_upload_is_accepted_and_submitted(border: Border) -> None:
    """A good upload gets 202 and reaches submission with its user, category, request id, key and image facts."""
    image = make_noise_image(300_000)
    body, content_type = make_upload(image, "lego")

    answer = border.post(body, content_type, **{"X-Request-Id": "request-7", "Idempotency-Key": "key-1"})

    assert answer.status == 202
    assert answer.json == {
        "success": True,
        "data": {
            "assetId": ASSET_ID,
            "jobId": f"ai-processing:{ASSET_ID}",
            "status": "processing",
            "message": "Asset queued for AI analysis",
        },
    }
    ((upload, content),) = border.submission.uploads
    assert content == image
    assert (upload.user_id, upload.category, upload.request_id) == ("user-1", "lego", "request-7")
    assert upload.idempotency_key == "key-1"
    assert (upload.image.bytes, upload.image.width, upload.image.content_type) == (len(image), 1024, "image/png")
    border.wait_for(lambda step: step == "over")
    assert upload.file.closed


def test_upload_chunked_and_twice_on_one_connection(border: Border) -> None:
    """A body without a length is accepted too, and the connection stays open for the next request."""
    body, content_type = make_upload(make_noise_image(200_000))
    headers = {"Content-Type": content_type, "Authorization": f"Bearer {make_token()}"}
    pieces = [body[start : start + 1000] for start in range(0, len(body), 1000)]
    client = border.client()

    for chunked in (iter(pieces), body):
        client.request("POST", UPLOAD, chunked, headers, encode_chunked=chunked is not body)
        assert read_answer(client.getresponse()).status == 202
        client.auto_open = 0  # the second request must not open a connection of its own
    client.close()

    assert len(border.submission.uploads) == 2


def test_upload_image_of_exactly_the_limit_is_accepted(border: Border) -> None:
    """An image of exactly 10 MB is accepted."""
    image = make_image() + bytes(LIMIT - len(make_image()))
    assert border.post(*make_upload(image)).status == 202
    # The bytes after the picture are not stored.
    assert border.submission.uploads[0][0].image.bytes == len(make_image())


def test_upload_extra_parts_are_ignored(border: Border) -> None:
    """Other text fields and files are accepted and dropped, whatever their names are."""
    files = [("other", "a.bin", "application/zip", bytes(100_000)), ("image", "p.jpg", "image/jpeg", make_image())]
    fields = [("userId", "other-user"), ("note", "x" * 20_000), ("category", "camera"), ("", "no name")]
    assert border.post(*make_multipart(fields, files)).status == 202
    assert border.submission.uploads[0][0].user_id == "user-1"


def test_upload_file_without_a_name_is_accepted(border: Border) -> None:
    """An image part that has a type and no file name is a file."""
    part = b'Content-Disposition: form-data; name="image"\r\nContent-Type: image/jpeg\r\n\r\n' + make_image()
    body = b'--b\r\nContent-Disposition: form-data; name="category"\r\n\r\nother\r\n--b\r\n' + part + b"\r\n--b--\r\n"
    assert border.post(body, "multipart/form-data; boundary=b").status == 202


def test_upload_is_accepted_after_the_client_left(border: Border) -> None:
    """After the complete body the photo is accepted, also when the client closes the connection before the reply."""
    border.submission.may_go_on.clear()
    body, content_type = make_upload(make_noise_image(200_000))
    with border.connect() as connection:
        connection.sendall(head(content_type, Content_Length=len(body)) + body)
        assert border.submission.entered.wait(10)
    border.submission.may_go_on.set()

    assert border.wait_for(is_finished) == ("finished", 202)
    assert len(border.submission.uploads) == 1


def test_upload_that_trickles_is_closed(border: Border, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not arrive in time ends the connection and leaves no file."""
    monkeypatch.setattr(BODY_SECONDS, 0.5)
    monkeypatch.setattr(BYTES_PER_SECOND, 1e9)
    body, content_type = make_upload(make_noise_image(500_000))
    with border.connect() as connection:
        connection.sendall(head(content_type, Content_Length=len(body)) + body[:400_000])
        border.wait_for(lambda step: step[0] == "body" and step[1] > multipart.SPOOL_BYTES)
        assert open_temporary_files() > 0
        assert receive_all(connection) == b""
    assert border.wait_for(lambda step: step == "closed")


def test_upload_abandoned_half_way_leaves_nothing(border: Border) -> None:
    """Clients that close in the middle of a body leave no file, no upload and no error line."""
    gc.collect()  # so that no file of an earlier test is closed during this test
    before = open_temporary_files()
    body, content_type = make_upload(make_noise_image(500_000))
    connections = [border.connect() for _ in range(10)]
    for connection in connections:
        connection.sendall(head(content_type, Content_Length=len(body)) + body[:400_000])
    for _ in connections:
        border.wait_for(lambda step: step[0] == "body" and step[1] == 400_000)
    assert open_temporary_files() == before + 10

    for connection in connections:
        connection.close()
    for _ in connections:
        border.wait_for(lambda step: step == "closed")

    # Fewer, if the garbage collector has closed files of earlier tests.
    assert open_temporary_files() <= before
    assert border.submission.uploads == []


def test_upload_unexpected_failure_is_a_500_without_details(border: Border) -> None:
    """An unexpected failure is logged once with its trace, and the client gets only the fixed text."""
    border.expects_errors = True
    border.submission.error = RuntimeError("secret path /etc/shadow")

    answer = border.post(*make_upload())

    assert (answer.status, answer.json) == (500, error("INTERNAL_ERROR", "Failed to queue asset for processing"))
    (entry,) = border.errors()
    assert (entry["event"], entry["requestId"]) == ("request_failed", answer.headers["X-Request-Id"])
    assert entry["exc_info"][1] is border.submission.error


def test_upload_with_a_dependency_down_is_a_503(border: Border) -> None:
    """A dependency that is down gives a 503 that says when to retry."""
    border.submission.error = DependencyUnavailable("Storage is not reachable", retry_after_seconds=7)

    answer = border.post(*make_upload())

    assert (answer.status, answer.headers["Retry-After"]) == (503, "7")
    assert answer.json == error("UNAVAILABLE", "Storage is not reachable")


def test_upload_on_a_full_disk_is_a_503(border: Border, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full while the body arrives gives a 503, like a dependency that is down."""

    class FullDisk(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(multipart, "nameless_file", lambda folder: FullDisk())

    answer = border.post(*make_upload(make_noise_image(2_000_000)))

    assert (answer.status, answer.json["error"]["code"]) == (503, "UNAVAILABLE")
    assert answer.headers["Retry-After"] == "5"
    assert border.errors() == []
