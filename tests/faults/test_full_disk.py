"""The filesystem of DATA_DIR is full: uploads are refused with 503, readiness names the disk, nothing accepted is lost.

Each test has a real filesystem of 16 MB.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.plugins.storage_local.durable_files import INCOMING
from tests.constants import RECONCILE_AGE_SECONDS, RECONCILE_SECONDS
from tests.factories import make_noise_image
from tests.faults.disks import Disk, mounted
from tests.faults.processes import wait_until
from tests.faults.uploads import accept, statuses
from tests.packages import install
from tests.service import AiService, Service

pytestmark = pytest.mark.fault("E27")

DISK_MB = 16
LARGEST_UPLOAD = 2 * 1024 * 1024
LARGE_IMAGE = make_noise_image(LARGEST_UPLOAD - 100_000)
SMALL_IMAGE = make_noise_image(100_000)
SETTINGS = {"MAX_UPLOAD_BYTES": str(LARGEST_UPLOAD), RECONCILE_SECONDS: "0.5", RECONCILE_AGE_SECONDS: "0"}
CUTTER = '''
import asyncio
import os
from io import BytesIO
from pathlib import Path

from PIL import Image

from pipeline.hooks import Analysis, Attribute, ProcessedImage, hookimpl


class Cutter:
    async def analyze(self, request):
        gate = Path(os.environ["GATE"])
        (gate / "reached").touch()
        while not (gate / "open").exists():
            await asyncio.sleep(0.01)
        sure = Attribute("Nike", 0.9)
        file = BytesIO()
        Image.frombytes("RGB", (500, 334), os.urandom(501_000)).save(file, "PNG")
        return Analysis(sure, sure, sure, processed_image=ProcessedImage(file.getvalue(), "image/png"))


@hookimpl
def register_ai_providers(settings):
    yield "cutter", Cutter
'''


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk", DISK_MB) as disk:
        yield disk


def put_elsewhere(folder: Path, other: Path) -> None:
    """Move that part of DATA_DIR to another filesystem."""
    (other / folder.name).mkdir()
    folder.symlink_to(other / folder.name)


def assert_unavailable(reply: httpx.Response) -> None:
    """Check for the answer that the contract has for a request that may soon be repeated."""
    assert reply.status_code == 503, reply.text
    assert reply.json()["error"]["code"] == "UNAVAILABLE"
    assert int(reply.headers["Retry-After"]) > 0
    assert "Traceback" not in reply.text and "Errno" not in reply.text


def images(data_dir: Path) -> list[Path]:
    return [path for path in (data_dir / "media").rglob("*") if path.is_file()]


def count_assets(data_dir: Path) -> int:
    with closing(sqlite3.connect(data_dir / "assets.sqlite")) as connection:
        ((count,),) = connection.execute("SELECT count(*) FROM assets")
    return int(count)


def readiness(service: Service) -> dict[str, str]:
    """Return what is not ready, by name."""
    reply = service.get("/readyz")
    details: list[dict[str, Any]] = reply.json().get("error", {}).get("details", [])
    assert (reply.status_code == 503) == bool(details)
    return {each["field"]: each["message"] for each in details}


@pytest.mark.parametrize("image", [LARGE_IMAGE, SMALL_IMAGE], ids=["spooled while it arrives", "in memory"])
def test_upload_to_a_full_disk_is_refused_and_leaves_nothing(
    disk: Disk, ai_service: AiService, redis_url: str, image: bytes
) -> None:
    """The answer is 503 with Retry-After; with free space the upload is accepted, and its image is the only file."""
    with Service(disk.folder, ai_service.url, REDIS_URL=redis_url, **SETTINGS) as service:
        disk.fill()
        for _ in range(3):
            assert_unavailable(service.upload(image=image))
        assert images(disk.folder) == []
        assert list((disk.folder / "media" / INCOMING).glob("*")) == []
        (cause,) = (line["error"] for line in service.find("dependency_unavailable"))
        assert "No space left on device" in cause
        disk.clear()
        ids = [service.upload(image=image).json()["data"]["assetId"]]
        service.wait_log("asset_finished")
        assert statuses(service, ids) == {"active"}
        assert len(images(disk.folder)) == count_assets(disk.folder) == 1
        assert {path.name for path in disk.folder.iterdir()} <= {
            *("media", "assets.sqlite", "assets.sqlite-wal", "assets.sqlite-shm", "service.json", "services")
        }


def test_upload_that_the_store_cannot_take_is_refused_and_its_image_removed(
    disk: Disk, tmp_path: Path, ai_service: AiService, redis_url: str
) -> None:
    """The images are on another filesystem, so only SQLite finds the disk full."""
    put_elsewhere(disk.folder / "media", tmp_path)
    with Service(disk.folder, ai_service.url, REDIS_URL=redis_url, **SETTINGS) as service:
        disk.fill()
        # SQLite can still write to the space that its log has reserved.
        replies = [service.upload() for _ in range(20)]
        refused = [reply for reply in replies if reply.status_code != 202]
        assert refused
        for reply in refused:
            assert_unavailable(reply)
        assert all("disk is full" in line["error"] for line in service.find("dependency_unavailable"))
        disk.clear()
        ids = [reply.json()["data"]["assetId"] for reply in replies if reply.status_code == 202] + accept(service, 1)
        service.wait_log("asset_finished", count=len(ids))
        assert statuses(service, ids) == {"active"}
        wait_until(lambda: len(images(disk.folder)) == count_assets(disk.folder) == len(ids))


def test_readiness_names_the_disk_until_there_is_space(disk: Disk, ai_service: AiService, redis_url: str) -> None:
    """The process is not ready without space for the largest upload, but stays live."""
    with Service(disk.folder, ai_service.url, REDIS_URL=redis_url, **SETTINGS) as service:
        assert readiness(service) == {}
        disk.fill()
        found = readiness(service)
        assert "No space left on device" in found["disk"]
        assert found.keys() <= {"disk", "storage"}
        assert service.get("/livez").status_code == 200
        disk.clear()
        assert readiness(service) == {}
        disk.fill(left_bytes=LARGEST_UPLOAD // 2)
        assert readiness(service).keys() == {"disk"}


def test_results_wait_for_space_in_the_store(
    disk: Disk, tmp_path: Path, ai_service: AiService, redis_url: str
) -> None:
    """Photos accepted before the disk was full all finish with free space; the AI service gets each photo once."""
    put_elsewhere(disk.folder / "media", tmp_path)
    long = {"value": "x" * 1000, "confidence": 0.9}
    body = {"brand": long, "model": long, "colorway": long}
    ai_service.configure(paused=True, replies=[{"body": body, "times": 1000}])
    settings = SETTINGS | {"REDIS_URL": redis_url, "CONCURRENCY": "16"}
    with Service(disk.folder, ai_service.url, **settings) as service:
        ids = accept(service, 16)
        wait_until(lambda: ai_service.state()["active"] == 16)
        disk.fill()
        # The store uses the space that its log has reserved. Sixteen long results need more than an upload.
        wait_until(lambda: service.upload().status_code == 503)
        ai_service.configure(paused=False)
        assert "disk is full" in service.wait_log("commit_deferred")["cause"]
        disk.clear()
        wait_until(lambda: statuses(service, ids) == {"active"})
        assert {count for asset_id, count in ai_service.calls().items() if asset_id in ids} == {1}


def test_processed_image_without_space_postpones_the_job(disk: Disk, tmp_path: Path, redis_url: str) -> None:
    """No attempt is spent: with one attempt allowed the job succeeds once there is space for images."""
    gate, data_dir = tmp_path / "gate", tmp_path / "data"
    gate.mkdir()
    data_dir.mkdir()
    (disk.folder / "media").mkdir()
    (data_dir / "media").symlink_to(disk.folder / "media")
    settings = SETTINGS | {"AI_PROVIDER": "cutter", "GATE": str(gate), "JOB_ATTEMPTS": "1", "REDIS_URL": redis_url}
    packages = install(tmp_path / "packages", cutter=CUTTER)
    with Service(data_dir, **packages, **settings) as service:
        ids = accept(service, 1)
        wait_until(lambda: (gate / "reached").exists())
        disk.fill()
        (gate / "open").touch()
        assert "No space left on device" in service.wait_log("job_postponed")["cause"]
        assert len(images(disk.folder)) == 1
        disk.clear()
        service.wait_log("asset_finished")
        assert statuses(service, ids) == {"active"}
        assert len(images(disk.folder)) == 2
        assert not service.find("job_failed")


def test_embedded_redis_without_space_delays_jobs_only(disk: Disk, tmp_path: Path, ai_service: AiService) -> None:
    """Only its files are on the full disk: Redis refuses writes (MISCONF), and uploads are accepted."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "redis").symlink_to(disk.folder)
    with Service(data_dir, ai_service.url, **SETTINGS) as service:
        ids = accept(service, 1)
        service.wait_log("asset_finished")
        disk.fill()
        ids += accept(service, 1)
        wait_until(lambda: ids.extend(accept(service, 1)) or service.find("enqueue_deferred"))
        ids += accept(service, 5)
        assert "MISCONF" in service.find("enqueue_deferred")[0]["cause"]
        disk.clear()
        service.wait_log("asset_finished", count=len(ids))
        assert statuses(service, ids) == {"active"}


def test_everything_embedded_on_one_full_disk_recovers(disk: Disk, ai_service: AiService) -> None:
    """With Redis, store and images on it, accepted photos are finished and other uploads get 503."""
    ai_service.configure(paused=True)
    with Service(disk.folder, ai_service.url, **SETTINGS) as service:
        ids = accept(service, 8)
        disk.fill()
        for _ in range(5):
            assert_unavailable(service.upload(image=SMALL_IMAGE))
        assert "disk" in readiness(service)
        ai_service.configure(paused=False)
        disk.clear()
        ids += accept(service, 2)
        service.wait_log("asset_finished", count=10)
        assert statuses(service, ids) == {"active"}
        assert readiness(service) == {}


def test_service_killed_on_a_full_disk_finishes_all_with_space(disk: Disk, ai_service: AiService) -> None:
    """While the disk is full, a start ends with one line; with free space all photos finish."""
    ai_service.configure(paused=True)
    service = Service(disk.folder, ai_service.url, **SETTINGS)
    service.start()
    ids = accept(service, 5)
    disk.fill()
    service.kill()
    service.launch()
    assert service.wait() == 2
    assert "No space left on device" in service.lines[-1]["text"]
    disk.clear()
    ai_service.configure(paused=False)
    with service:
        service.wait_log("asset_finished", count=5)
        assert statuses(service, ids) == {"active"}
