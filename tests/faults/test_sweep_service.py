"""Images of uploads that a service did not finish are removed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import httpx
import pytest

from tests.factories import make_image
from tests.faults.sweeping import LONG_AGO
from tests.packages import install
from tests.redis_server import RedisServer
from tests.service import AiService, Service

SIGNALS = """
import time
from pathlib import Path
from pipeline.hooks import hookimpl
from pipeline.plugins.storage_local import LocalStorage

class Signals(LocalStorage):
    def __init__(self, folder):
        super().__init__(folder / "media", "http://127.0.0.1:8080")
        self.folder = folder

    def save(self, public_id, file, content_type):
        url = super().save(public_id, file, content_type)
        if (self.folder / "hang").exists():
            (self.folder / "saved").touch()
            while (self.folder / "hang").exists():
                time.sleep(0.02)
        return url

@hookimpl
def register_storage_backends(settings):
    yield "signals", lambda: Signals(settings.data_dir)
"""


class SweepingService(Service):
    """A service that checks at once and then often whether a sweep is due."""

    command = (
        "-c",
        "from pipeline.usecases import retention\n"
        "retention.FIRST_SECONDS = retention.LOOK_SECONDS = (0.1, 0.2)\n"
        "from pipeline.cli import main\n"
        "main(['serve'])",
    )


@pytest.mark.fault("E14")
def test_image_of_an_upload_killed_before_its_insert_is_swept(tmp_path: Path, ai_service: AiService) -> None:
    """After kill -9 between save and insert the image is removed when it is old; that of a good upload stays."""
    packages = install(tmp_path / "packages", signals=SIGNALS)
    data, media = tmp_path / "data", tmp_path / "data/media"
    with RedisServer() as redis:
        shared = packages | {"STORAGE_BACKEND": "signals", "REDIS_URL": redis.url}
        service = SweepingService(data, ai_service.url, **shared)
        with service:
            service.wait_log("storage_marked")
            good = service.upload().json()["data"]["assetId"]
            service.wait_log("job_completed")
            (data / "hang").touch()
            upload = threading.Thread(target=_upload_without_answer, args=(service,))
            upload.start()
            while not (data / "saved").exists():
                assert upload.is_alive()
                upload.join(0.02)
            service.kill()
            upload.join()
            (data / "hang").unlink()
            images = [path for path in media.glob("*/*") if path.is_file()]
            assert len([path for path in images if path.parent.name not in (good, "owner", ".incoming")]) == 1
            for path in images:
                os.utime(path, (LONG_AGO.timestamp(), LONG_AGO.timestamp()))
            redis.client().flushall()
            service.start()
            service.wait_log("images_swept", count=1)
            assert {path.parent.name for path in media.glob("*/*") if path.is_file()} == {good, "owner"}
            httpx.get(f"{service.url}/livez").raise_for_status()


def _upload_without_answer(service: Service) -> None:
    """Upload a photo to a service that is killed meanwhile."""
    with pytest.raises(httpx.TransportError):
        service.upload("ben", image=make_image(seed=1))


@pytest.mark.fault("E14")
def test_image_of_a_save_after_its_timeout_is_removed(tmp_path: Path, ai_service: AiService) -> None:
    """The client gets 503; the thread, which cannot be cancelled, stores the image later, and then it is removed."""
    packages = install(tmp_path / "packages", signals=SIGNALS)
    data = tmp_path / "data"
    settings = packages | {"STORAGE_BACKEND": "signals", "STORAGE_TIMEOUT_SECONDS": "0.5"}
    with Service(data, ai_service.url, **settings) as service:
        (data / "hang").touch()
        assert service.upload().status_code == 503
        assert len([path for path in (data / "media").glob("*/*") if path.is_file()]) == 1
        (data / "hang").unlink()
        while [path for path in (data / "media").glob("*/*") if path.is_file()]:
            assert service.get("/api/assets").status_code == 200
