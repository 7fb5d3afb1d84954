"""Assets store names of images, not addresses: moves, restarts and expired URLs break no picture."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.fake_cloudinary import FakeCloudinary
from tests.moto_server import MotoServer
from tests.service import WAIT_SECONDS, AiService, Service


def finished_asset(service: Service) -> dict[str, Any]:
    """Return an asset just uploaded, once it is finished."""
    reply = service.upload()
    assert reply.status_code == 202, reply.text
    return wait_finished(service, reply.json()["data"]["assetId"])


def wait_finished(service: Service, asset_id: str) -> dict[str, Any]:
    """Return the asset once it is finished."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (asset := service.asset(asset_id))["finishedAt"] is None:
        assert time.monotonic() < deadline, asset
        time.sleep(0.02)
    return asset


def original(service: Service, asset_id: str) -> str:
    """Return the URL of the asset's original."""
    return str(service.asset(asset_id)["images"]["original"]["url"])


def delete(service: Service, asset_id: str) -> None:
    reply = httpx.delete(f"{service.url}/api/assets/{asset_id}", headers=service.headers(), timeout=WAIT_SECONDS)
    assert reply.status_code == 204, reply.text


def plugins(service: Service) -> list[dict[str, Any]]:
    """Return the plugins as readiness shows them."""
    found: list[dict[str, Any]] = httpx.get(f"{service.url}/readyz?verbose").json()["data"]["plugins"]
    return found


@pytest.mark.fault("U12")
@pytest.mark.parametrize("first", ["local", "object"])
def test_image_is_shown_and_removed_in_its_own_storage(
    tmp_path: Path, ai_service: AiService, moto: MotoServer, bucket: str, in_s3: dict[str, str], first: str
) -> None:
    """After a change of STORAGE_BACKEND, old images are in the old storage, and new images in the new one."""
    second = {"local": "object", "object": "local"}[first]
    with Service(tmp_path, ai_service.url, STORAGE_BACKEND=first, **in_s3) as service:
        old = finished_asset(service)["id"]
    with Service(tmp_path, ai_service.url, STORAGE_BACKEND=second, **in_s3) as service, moto.unchecked():
        new = finished_asset(service)["id"]
        for asset_id in (old, new):
            shown = httpx.get(original(service, asset_id))
            assert shown.status_code == 200 and shown.headers["Content-Type"] == "image/jpeg"
    with Service(tmp_path, ai_service.url, STORAGE_BACKEND=second, **in_s3) as service:
        assert moto.keys(bucket) and list(tmp_path.glob("media/*/*"))
        delete(service, old)
        left_in_s3, left_here = moto.keys(bucket), [str(path) for path in tmp_path.glob("media/*/*")]
        assert bool(left_in_s3) == (second == "object") and bool(left_here) == (second == "local")
        delete(service, new)
        assert moto.keys(bucket) == [] and list(tmp_path.glob("media/*/*")) == []


@pytest.mark.fault("U12")
def test_old_public_images_are_found_when_new_ones_are_private(
    tmp_path: Path, ai_service: AiService, cloudinary: FakeCloudinary
) -> None:
    """The two delivery types of Cloudinary are two storages: each image is shown and removed in its own."""
    account = {"CLOUDINARY_URL": cloudinary.cloudinary_url}
    with Service(tmp_path, ai_service.url, STORAGE_BACKEND="cloudinary", **account) as service:
        old = finished_asset(service)["id"]
    with Service(tmp_path, ai_service.url, **account) as service:
        new = finished_asset(service)["id"]
        assert (len(cloudinary.images), len(cloudinary.private)) == (1, 1)
        assert httpx.get(original(service, old)).status_code == 200
        url = original(service, new)
        assert httpx.get(url).status_code == 200 and "expires_at" in parse_qs(urlsplit(url).query)
        delete(service, old)
        assert (len(cloudinary.images), len(cloudinary.private)) == (0, 1)
        delete(service, new)
        assert cloudinary.private == {}


@pytest.mark.fault("U12")
def test_storage_that_is_not_configured_is_named(
    tmp_path: Path, ai_service: AiService, in_s3: dict[str, str]
) -> None:
    """Assets with images in it can be read, and readiness names the missing storage."""
    with Service(tmp_path, ai_service.url, STORAGE_BACKEND="object", **in_s3) as service:
        asset_id = finished_asset(service)["id"]
    with Service(tmp_path, ai_service.url, STORAGE_BACKEND="local") as service:
        (missing,) = [service.wait_log("storage_missing", backend="object")]
        (named,) = [each for each in plugins(service) if each["state"] == "missing"]
        assert (named["name"], named["kind"]) == ("object", "storage") and named["reason"]
        assert service.asset(asset_id)["id"] == asset_id
        service.remove_lines(missing)


@pytest.mark.fault("U13")
def test_urls_follow_port_and_public_url(tmp_path: Path, ai_service: AiService) -> None:
    """After a restart at another address, as after a restore, images are shown under the new address."""
    with Service(tmp_path, ai_service.url) as service:
        asset_id = finished_asset(service)["id"]
        first = original(service, asset_id)
        assert first.startswith(service.url) and httpx.get(first).status_code == 200
    with Service(tmp_path, ai_service.url) as service:
        second = original(service, asset_id)
        assert second.startswith(service.url) and httpx.get(second).status_code == 200
        assert urlsplit(second).path == urlsplit(first).path
        stored = f"{service.url}{urlsplit(first).path}.jpg"
        assert httpx.get(stored).status_code == 200  # the address that version 0.1 stored
    with Service(tmp_path, ai_service.url, PUBLIC_URL="https://photos.example") as service:
        assert original(service, asset_id) == f"https://photos.example{urlsplit(first).path}"


@pytest.mark.fault("U16")
def test_expired_url_is_replaced_by_a_valid_one(tmp_path: Path, ai_service: AiService) -> None:
    """A later request gets a valid URL, and so does the provider when the job is started much later."""
    ai_service.configure(replies=[{"status": 422}])
    with Service(tmp_path, ai_service.url, MEDIA_URL_SECONDS="1") as service:
        asset_id = finished_asset(service)["id"]
        url = original(service, asset_id)
        deadline = time.monotonic() + WAIT_SECONDS
        while (ended := httpx.get(url)).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)  # no signal announces the end of a second
        assert ended.status_code == 403 and ended.json()["error"]["code"] == "FORBIDDEN"
        while httpx.get(original(service, asset_id)).status_code != 200:
            assert time.monotonic() < deadline
        path = f"{service.url}/api/assets/{asset_id}/retry"
        assert httpx.post(path, headers=service.headers(), timeout=WAIT_SECONDS).status_code == 202
        assert wait_finished(service, asset_id)["status"] == "active"
        first, second = (request["body"]["imageUrl"] for request in ai_service.state()["requests"])
        assert httpx.get(second).status_code == 200 and first != second


@pytest.mark.fault("U16")
def test_private_storage_signs_whenever_an_image_is_shown(
    tmp_path: Path, ai_service: AiService, in_s3: dict[str, str]
) -> None:
    """The URL in the document is not used; the shown URL is signed now, for the time of the setting."""
    settings = {"STORAGE_BACKEND": "object", "MEDIA_URL_SECONDS": "300"} | in_s3
    with Service(tmp_path, ai_service.url, **settings) as service:
        asset_id = finished_asset(service)["id"]
        first = parse_qs(urlsplit(original(service, asset_id)).query)
        assert first["X-Amz-Expires"] == ["300"]
    with Service(tmp_path, ai_service.url, **(settings | {"MEDIA_URL_SECONDS": "600"})) as service:
        second = parse_qs(urlsplit(original(service, asset_id)).query)
        assert second["X-Amz-Expires"] == ["600"]
        assert second["X-Amz-Signature"] != first["X-Amz-Signature"]
