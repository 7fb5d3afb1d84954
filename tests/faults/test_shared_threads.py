"""Plugins hang in their own threads: the service does not wait for these threads."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.factories import make_image
from tests.faults.uploads import statuses_of, upload
from tests.packages import install
from tests.slowdown import slowdown
from tests.redis_server import RedisServer
from tests.service import Service

READS_HANG = """
import asyncio, time
from pathlib import Path
from pipeline.hooks import Analysis, Attribute, hookimpl

class File:
    def __init__(self, file, folder):
        self.file, self.folder = file, folder

    def read(self, size=-1):
        while not (self.folder / "released").exists():
            time.sleep(0.02)
        return self.file.read(size)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

class Storage:
    def __init__(self, folder):
        self.folder = folder

    def path(self, public_id):
        return self.folder / public_id.replace("/", "-")

    def save(self, public_id, file, content_type):
        self.path(public_id).write_bytes(file.read())
        return "https://images.example/" + public_id

    def open(self, public_id):
        return File(self.path(public_id).open("rb"), self.folder)

    def delete(self, public_id):
        self.path(public_id).unlink(missing_ok=True)

    def check(self):
        pass

class Looks:
    needs_image = True

    async def analyze(self, request):
        return Analysis(Attribute("Leica", 0.9), Attribute("M6", 0.9))

class UsesTheLoopsThreads:
    def __init__(self, folder):
        self.file = File(None, folder)

    async def analyze(self, request):
        try:
            await asyncio.to_thread(self.file.read)
        except AttributeError:
            return Analysis(Attribute("Leica", 0.9), Attribute("M6", 0.9))

@hookimpl
def register_storage_backends(settings):
    yield "reads-hang", lambda: Storage(settings.data_dir)

@hookimpl
def register_ai_providers(settings):
    yield "looks", Looks
    yield "fills-threads", lambda: UsesTheLoopsThreads(settings.data_dir)
"""


@pytest.mark.fault("E13")
@pytest.mark.parametrize("provider", ["looks", "fills-threads"], ids=["storage", "provider"])
def test_upload_is_answered_while_plugins_hang_in_their_threads(tmp_path: Path, provider: str) -> None:
    """Reads of a storage, or calls in the threads of the event loop, hang: an upload is answered at once.

    The upload has an Idempotency-Key, so its photo is hashed in a thread.
    """
    packages = install(tmp_path / "packages", reads_hang=READS_HANG)
    settings = packages | {"AI_PROVIDER": provider, "STORAGE_BACKEND": "reads-hang"}
    more = {"CONCURRENCY": "40"}  # the event loop has at most 32 threads
    with Service(tmp_path / "data", **settings, **more) as service:
        ids = upload(service, 40, "anna")
        service.wait_log("job_claimed", 40)
        started_at = time.monotonic()
        answered = service.upload("ben", headers={"Idempotency-Key": "k-1"}, image=make_image(seed=1))
        assert answered.status_code == 202 and time.monotonic() - started_at < 2 * slowdown()
        (tmp_path / "data" / "released").touch()
        service.wait_log("job_completed", 41)
        assert statuses_of("anna", service, ids) == {"active"}


@pytest.mark.fault("E13")
def test_redis_is_reconnected_while_plugins_hang_in_the_loops_threads(tmp_path: Path) -> None:
    """The name of Redis is resolved in a thread that no plugin can block: jobs of other providers continue."""
    packages = install(tmp_path / "packages", reads_hang=READS_HANG)
    settings = packages | {"AI_PROVIDER": "looks", "AI_PROVIDER_BY_CATEGORY": "lego=fills-threads"}
    settings |= {"CONCURRENCY": "45", "LEASE_SECONDS": "60"}
    with RedisServer() as redis:
        url = f"redis://localhost:{redis.port}/0"
        with Service(tmp_path / "data", REDIS_URL=url, **settings) as service:
            hanging = upload(service, 40, "anna", category="lego")
            service.wait_log("job_claimed", 40)
            redis.kill()
            redis.start()
            other = service.upload("ben", category="camera").json()["data"]["assetId"]
            service.wait_log("asset_finished", assetId=other)
            assert statuses_of("anna", service, hanging) == {"processing"}
            # The hanging calls do not keep the service from ending.
            assert service.stop() == 0
