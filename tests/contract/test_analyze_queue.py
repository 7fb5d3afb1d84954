"""POST /api/assets/analyze-queue on the running service, held against its contract."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.contract.contracts import check_reply
from tests.factories import make_image, make_noise_image
from tests.service import Service

PATH = "/api/assets/analyze-queue"
MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, held_ai_service: str) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("data"), held_ai_service, SHUTDOWN_SECONDS="0") as service:
        yield service


def post(service: Service, **options: Any) -> tuple[int, dict[str, Any]]:
    options.setdefault("headers", service.headers())
    response = httpx.post(service.url + PATH, timeout=60, **options)
    body = response.json()
    check_reply("POST", PATH, response.status_code, body)
    return response.status_code, body


def image_part(content: bytes | None = None) -> dict[str, Any]:
    return {"image": ("photo.jpg", content or make_image(), "image/jpeg")}


@pytest.mark.spec("T013")
def test_upload_is_accepted_at_once(service: Service) -> None:
    """A photo and a category give 202 with ids, and the asset is there as processing."""
    status, body = post(service, files=image_part(), data={"category": "lego"})
    assert status == 202
    data = body["data"]
    assert data["status"] == "processing" and data["message"] == "Asset queued for AI analysis"
    assert data["jobId"] == f"ai-processing:{data['assetId']}"
    asset = service.asset(data["assetId"])
    assert (asset["status"], asset["category"], asset["processingJobId"]) == ("processing", "lego", data["jobId"])
    assert httpx.get(asset["images"]["original"]["url"]).content == make_image()


@pytest.mark.spec("T014")
def test_missing_image_is_named(service: Service) -> None:
    """No image: 400 with the contract's words."""
    status, body = post(service, files={"other": ("x.txt", b"x")}, data={"category": "lego"})
    assert status == 400
    assert body["error"] == {
        "code": "VALIDATION_ERROR",
        "message": "Image file is required",
        "details": [
            {"field": "image", "message": "Image file is required"},
            {"field": "body", "message": "these parts came: category, other"},
        ],
    }


@pytest.mark.spec("T015")
@pytest.mark.parametrize("data", [{"category": "shoe"}, {"category": ""}, {}])
def test_wrong_category_lists_what_there_is(service: Service, data: dict[str, str]) -> None:
    """A wrong or missing category: 400 with the list of categories."""
    status, body = post(service, files=image_part(), data=data)
    assert status == 400
    assert body["error"] == {
        "code": "VALIDATION_ERROR",
        "message": "Invalid category",
        "details": [{"field": "category", "message": "Must be one of: sneaker, lego, camera, other"}],
    }


@pytest.mark.spec("T016")
@pytest.mark.parametrize("size", [10 * MEGABYTE + 1, 11 * MEGABYTE, 40 * MEGABYTE])
def test_file_over_ten_megabytes_is_refused(service: Service, size: int) -> None:
    """One byte over 10 MB is too much, and the client can read so however much it sends."""
    image = make_image()
    status, body = post(service, files=image_part(image + b"\0" * (size - len(image))), data={"category": "lego"})
    assert status == 400
    assert body["error"] == {
        "code": "VALIDATION_ERROR",
        "message": "File too large",
        "details": [{"field": "image", "message": "Maximum file size is 10MB"}],
    }


def test_file_of_ten_megabytes_is_accepted(service: Service) -> None:
    """Exactly 10 MB is allowed."""
    image = make_noise_image(9 * MEGABYTE)
    image += b"\0" * (10 * MEGABYTE - len(image))
    assert post(service, files=image_part(image), data={"category": "camera"})[0] == 202


@pytest.mark.spec("T017")
@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "Authentication required"),
        ({"Authorization": "Basic dXNlcjpwYXNz"}, "Authentication required"),
        ({"Authorization": "Bearer nonsense"}, "Invalid token"),
    ],
)
def test_caller_without_a_valid_token_is_refused(service: Service, headers: dict[str, str], message: str) -> None:
    """No token or a bad one: 401, before the body is looked at."""
    status, body = post(service, headers=headers, files=image_part(), data={"category": "lego"})
    assert (status, body["error"]) == (401, {"code": "UNAUTHORIZED", "message": message})


def test_expired_token_is_refused(service: Service) -> None:
    """A token past its exp is invalid."""
    headers = service.headers(expires_in=-60)
    status, body = post(service, headers=headers, files=image_part(), data={"category": "lego"})
    assert (status, body["error"]["message"]) == (401, "Invalid token")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x--\r\n"),
        ("multipart/form-data; boundary=x", b""),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\nabc",
        ),
        ("multipart/form-data; boundary=x", b"no multipart at all"),
        ("application/json", b"{}"),
        ("", b"abc"),
    ],
    ids=["no boundary", "empty", "truncated", "garbage", "json", "no type"],
)
def test_broken_body_gets_a_400_in_the_envelope(service: Service, content_type: str, body: bytes) -> None:
    """Whatever arrives, the answer is JSON with a 4xx, never a 500."""
    status, reply = post(service, headers=service.headers() | {"Content-Type": content_type}, content=body)
    assert 400 <= status < 500 and reply["error"]["code"] == "VALIDATION_ERROR"


def test_unknown_text_fields_are_ignored(service: Service) -> None:
    """A client may send more than we ask for."""
    assert post(service, files=image_part(), data={"category": "other", "note": "mine"})[0] == 202


def test_same_idempotency_key_gives_the_same_asset(service: Service) -> None:
    """Uploading again with the key returns the first answer; with another picture it is refused."""
    headers = service.headers() | {"Idempotency-Key": "key-1"}
    first = post(service, headers=headers, files=image_part(), data={"category": "lego"})
    assert post(service, headers=headers, files=image_part(), data={"category": "lego"}) == first
    other = image_part(make_image(seed=9))
    assert post(service, headers=headers, files=other, data={"category": "lego"})[0] == 422
    stranger = service.headers("user-2") | {"Idempotency-Key": "key-1"}
    assert post(service, headers=stranger, files=image_part(), data={"category": "lego"}) != first


def test_other_methods_name_what_is_allowed(service: Service) -> None:
    """A wrong method is 405 with Allow, in the envelope."""
    response = httpx.put(service.url + PATH, headers=service.headers())
    assert response.status_code == 405 and "POST" in response.headers["Allow"]
    assert response.json()["success"] is False and response.json()["error"]["message"]


def test_refusal_reaches_a_client_that_reads_only_after_sending(service: Service) -> None:
    """A blocking client that sends 30 MB without a token before it looks up still reads the 401."""
    parts = urlsplit(service.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.request("POST", PATH, body=b"x" * 30 * MEGABYTE, headers={"Content-Type": "application/octet-stream"})
    response = connection.getresponse()
    assert response.status == 401 and b"Authentication required" in response.read()
