"""POST /api/assets/analyze-queue of a running service: each reply keeps the contract."""

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
def service(tmp_path_factory: pytest.TempPathFactory, silent_ai_service: str) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("data"), silent_ai_service, SHUTDOWN_SECONDS="0") as service:
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
    """An upload with a photo and a category gets 202 with ids, and the asset exists with the status processing."""
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
    """An upload without an image gets 400 with the message of the contract."""
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
def test_wrong_category_gets_the_list_of_categories(service: Service, data: dict[str, str]) -> None:
    """An upload with a wrong or missing category gets 400 with the list of categories."""
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
    """An image over 10 MB gets 400, and the client can read the reply after any size of body."""
    image = make_image()
    status, body = post(service, files=image_part(image + b"\0" * (size - len(image))), data={"category": "lego"})
    assert status == 400
    assert body["error"] == {
        "code": "VALIDATION_ERROR",
        "message": "File too large",
        "details": [{"field": "image", "message": "Maximum file size is 10MB"}],
    }


def test_file_of_ten_megabytes_is_accepted(service: Service) -> None:
    """An image of exactly 10 MB is accepted."""
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
def test_upload_without_a_valid_token_is_refused(service: Service, headers: dict[str, str], message: str) -> None:
    """An upload without a token or with a wrong one gets 401."""
    status, body = post(service, headers=headers, files=image_part(), data={"category": "lego"})
    assert (status, body["error"]) == (401, {"code": "UNAUTHORIZED", "message": message})


def test_expired_token_is_refused(service: Service) -> None:
    """A token is invalid after its `exp`."""
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
def test_broken_body_gets_a_validation_error(service: Service, content_type: str, body: bytes) -> None:
    """Each broken body gets JSON with a 4xx status and VALIDATION_ERROR, never a 500."""
    status, reply = post(service, headers=service.headers() | {"Content-Type": content_type}, content=body)
    assert 400 <= status < 500 and reply["error"]["code"] == "VALIDATION_ERROR"


def test_unknown_text_fields_are_ignored(service: Service) -> None:
    """A client may send text fields that the contract does not have."""
    assert post(service, files=image_part(), data={"category": "other", "note": "mine"})[0] == 202


def test_same_idempotency_key_gives_the_same_asset(service: Service) -> None:
    """The same upload with the same key gets the first answer; another image with this key gets 422.

    Another user may use the same key.
    """
    headers = service.headers() | {"Idempotency-Key": "key-1"}
    first = post(service, headers=headers, files=image_part(), data={"category": "lego"})
    assert post(service, headers=headers, files=image_part(), data={"category": "lego"}) == first
    other_image = image_part(make_image(seed=9))
    assert post(service, headers=headers, files=other_image, data={"category": "lego"})[0] == 422
    other_user = service.headers("user-2") | {"Idempotency-Key": "key-1"}
    assert post(service, headers=other_user, files=image_part(), data={"category": "lego"}) != first


def test_wrong_method_gets_the_allowed_methods(service: Service) -> None:
    """A wrong method gets 405 with the header Allow and an error reply."""
    response = httpx.put(service.url + PATH, headers=service.headers())
    assert response.status_code == 405 and "POST" in response.headers["Allow"]
    assert response.json()["success"] is False and response.json()["error"]["message"]


def test_client_that_reads_after_sending_gets_the_refusal(service: Service) -> None:
    """A client that sends 30 MB without a token before it reads gets the 401."""
    parts = urlsplit(service.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.request("POST", PATH, body=b"x" * 30 * MEGABYTE, headers={"Content-Type": "application/octet-stream"})
    response = connection.getresponse()
    assert response.status == 401 and b"Authentication required" in response.read()
