"""The example plugins in a real service, each loaded as a plugin of one file."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import asyncssh
import httpx
import pytest

from tests.constants import BREAKER_FAILURES
from tests.factories import make_image
from tests.service import ROOT, WAIT_SECONDS, AiService, Service

EXAMPLES = ROOT / "examples"


class SftpServer:
    """A real SFTP server on a thread of its own.

    environment: the settings with which the example finds the server.
    """

    def __init__(self, folder: Path) -> None:
        (folder / "files").mkdir(parents=True)
        key, host_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
        key.write_private_key(folder / "key")
        key.write_public_key(folder / "authorized")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

        async def listen() -> asyncssh.SSHAcceptor:
            return await asyncssh.listen(
                "127.0.0.1",
                0,
                server_host_keys=[host_key],
                authorized_client_keys=str(folder / "authorized"),
                sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(folder / "files")),
            )

        self._server = asyncio.run_coroutine_threadsafe(listen(), self._loop).result(WAIT_SECONDS)
        port = self._server.get_port()
        (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key.export_public_key().decode()}")
        self.files = folder / "files"
        self.environment = {
            "PLUGIN_SFTP_HOST": "127.0.0.1",
            "PLUGIN_SFTP_PORT": str(port),
            "PLUGIN_SFTP_USER": "images",
            "PLUGIN_SFTP_KEY_FILE": str(folder / "key"),
            "PLUGIN_SFTP_KNOWN_HOSTS": str(folder / "known"),
        }

    def stop(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


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
    where = {"PLUGINS_DIR": str(plugins), "STORAGE_BACKEND": "sftp", "MEDIA_URL_SECONDS": "60"} | sftp.environment
    photo = make_image()
    with Service(tmp_path / "data", ai_service.url, **where) as service:
        asset_id = service.upload(image=photo).json()["data"]["assetId"]
        asset = service.get(f"/api/assets/{asset_id}", wait=30).json()["data"]
        assert asset["status"] == "active"
        url = asset["images"]["original"]["url"]
        shown = httpx.get(url)
        assert (shown.status_code, shown.headers["Content-Type"]) == (200, "image/jpeg")
        assert shown.content in [path.read_bytes() for path in sftp.files.rglob("original*")]
        assert httpx.get(url.replace("signature=", "signature=0")).status_code == 404
    with Service(tmp_path / "data", ai_service.url, **where) as service:
        newer = service.get(f"/api/assets/{asset_id}").json()["data"]["images"]["original"]["url"]
        assert httpx.get(newer).content == shown.content
        # The earlier process, with another port, signed this URL.
        assert httpx.get(service.url + url.removeprefix(url.split("/plugins")[0])).content == shown.content
        deleted = httpx.delete(f"{service.url}/api/assets/{asset_id}", headers=service.headers("user-1"))
        assert deleted.status_code == 204
        assert httpx.get(newer).status_code == 404


class ModerationService(ThreadingHTTPServer):
    """Replies with `score`; with None it replies 503."""

    score: float | None = 0.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ModerationHandler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.seen: list[tuple[str | None, bytes]] = []


class _ModerationHandler(BaseHTTPRequestHandler):
    server: ModerationService

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.headers["Authorization"], body))
        self.send_response(503 if self.server.score is None else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"score": self.server.score}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.fault("P1")
def test_moderation_that_is_away_refuses_all_uploads(
    tmp_path: Path, plugins: Path, ai_service: AiService
) -> None:
    """A flagged upload gets 400 with a reason; while the moderation is away uploads get 503, and later 202."""
    moderation = ModerationService()
    where = {
        "PLUGINS_DIR": str(plugins),
        "FILTERS_REQUIRED": "moderation",
        "PLUGIN_MODERATION_URL": f"http://127.0.0.1:{moderation.server_port}/",
        "PLUGIN_MODERATION_API_KEY": "a key",
        BREAKER_FAILURES: "2",
    }
    with Service(tmp_path / "data", ai_service.url, **where) as service:
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
