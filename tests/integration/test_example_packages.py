"""The example plugins in a real service, each loaded as a plugin of one file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.constants import BREAKER_FAILURES
from tests.factories import make_image
from tests.integration.example_services import EXAMPLES, ModerationService, SftpServer
from tests.service import WAIT_SECONDS, AiService, Service


@pytest.fixture
def sftp(tmp_path: Path) -> Iterator[SftpServer]:
    """An SFTP server."""
    server = SftpServer(tmp_path / "sftp")
    yield server
    server.stop()


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A folder of plugins: both examples."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    for name, package in (("sftp", "pipeline-storage-sftp"), ("moderation", "pipeline-filter-moderation")):
        (module,) = (EXAMPLES / package / "src").glob("*/__init__.py")
        (folder / f"{name}.py").symlink_to(module)
    return folder


def test_images_on_an_sftp_server_are_shown_by_urls_that_end(
    tmp_path: Path, sftp: SftpServer, plugins: Path, ai_service: AiService
) -> None:
    """Each request for the asset returns a URL that is valid at that time, also from another process."""
    settings = {"PLUGINS_DIR": str(plugins), "STORAGE_BACKEND": "sftp", "MEDIA_URL_SECONDS": "60"} | sftp.environment
    photo = make_image()
    with Service(tmp_path / "data", ai_service.url, **settings) as service:
        asset_id = service.upload(image=photo).json()["data"]["assetId"]
        asset = service.get(f"/api/assets/{asset_id}", wait=30).json()["data"]
        assert asset["status"] == "active"
        url = asset["images"]["original"]["url"]
        shown = httpx.get(url)
        assert (shown.status_code, shown.headers["Content-Type"]) == (200, "image/jpeg")
        assert shown.content in [path.read_bytes() for path in sftp.files.rglob("original*")]
        assert httpx.get(url.replace("signature=", "signature=0")).status_code == 404
    with Service(tmp_path / "data", ai_service.url, **settings) as service:
        newer = service.get(f"/api/assets/{asset_id}").json()["data"]["images"]["original"]["url"]
        assert httpx.get(newer).content == shown.content
        # The earlier process, with another port, signed this URL.
        assert httpx.get(service.url + url.removeprefix(url.split("/plugins")[0])).content == shown.content
        deleted = httpx.delete(f"{service.url}/api/assets/{asset_id}", headers=service.headers("user-1"))
        assert deleted.status_code == 204
        assert httpx.get(newer).status_code == 404


@pytest.mark.fault("P1")
def test_moderation_that_is_away_refuses_all_uploads(
    tmp_path: Path, plugins: Path, ai_service: AiService
) -> None:
    """A flagged upload gets 400 with a reason; while the moderation is away uploads get 503, and later 202."""
    moderation = ModerationService()
    settings = {
        "PLUGINS_DIR": str(plugins),
        "FILTERS_REQUIRED": "moderation",
        "PLUGIN_MODERATION_URL": f"http://127.0.0.1:{moderation.server_port}/",
        "PLUGIN_MODERATION_API_KEY": "a key",
        BREAKER_FAILURES: "2",
    }
    with Service(tmp_path / "data", ai_service.url, **settings) as service:
        assert service.upload().status_code == 202
        assert moderation.seen[0][0] == "Bearer a key" and moderation.seen[0][1].startswith(b"\xff\xd8")
        moderation.score = 0.95
        refused = service.upload(image=make_image(size=(300, 200)))
        assert refused.status_code == 400
        (detail,) = refused.json()["error"]["details"]
        assert detail == {"field": "image", "message": "This picture cannot be accepted here"}
        moderation.score = None
        for _ in range(4):  # Two calls fail, then the moderation is held.
            away = service.upload()
            assert away.status_code == 503 and int(away.headers["Retry-After"]) >= 1
            assert away.json()["error"]["message"] == "Uploads cannot be checked now"
        moderation.score = 0.1
        until = time.monotonic() + WAIT_SECONDS
        while (back := service.upload()).status_code == 503 and time.monotonic() < until:
            time.sleep(0.1)
        assert back.status_code == 202
        metrics = httpx.get(f"{service.url}/metrics").text
        assert 'pipeline_plugin_moderation_checked_total{verdict="refused"} 1.0' in metrics
    moderation.shutdown()
    moderation.server_close()
