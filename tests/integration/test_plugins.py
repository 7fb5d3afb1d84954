"""The built-in plugins pass the suites for plugin authors, with real servers and files; faulty plugins fail them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from pipeline.hooks import AIProvider, Notification, Notifier, StorageBackend
from pipeline.testing import AIProviderSuite, Call, NotifierSuite, StorageBackendSuite
from pipeline.plugins.ai_http import HttpProvider
from pipeline.plugins.storage_cloudinary import CloudinaryStorage, PrivateCloudinaryStorage
from pipeline.plugins.storage_local import LocalStorage
from tests.fake_cloudinary import FakeCloudinary
from tests.integration.built_in_storages import cloudinary_storage, local_storage

__all__ = ["cloudinary_storage", "local_storage"]  # fixtures


@pytest.fixture(scope="module")
def ai_service_url() -> Iterator[str]:
    """The URL of a fake AI service in a new process."""
    command = [sys.executable, "-m", "tests.fake_ai_service", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


class TestHttpProvider(AIProviderSuite):
    """The built-in provider `http`."""

    @pytest.fixture
    def provider(self, ai_service_url: str) -> AIProvider:
        return HttpProvider(ai_service_url, "imageUrl")


class TestLocalStorage(StorageBackendSuite):
    """The built-in storage `local`."""

    @pytest.fixture
    def storage(self, local_storage: LocalStorage) -> StorageBackend:
        return local_storage


class TestCloudinaryStorage(StorageBackendSuite):
    """The built-in storage `cloudinary`."""

    @pytest.fixture
    def storage(self, cloudinary_storage: CloudinaryStorage) -> StorageBackend:
        return cloudinary_storage

    def test_url_shows_the_saved_bytes(self, storage: StorageBackend, call: Call) -> None:
        """The URLs of `save` never expire, so there is no `url`. The test of the suite would skip, which CI forbids."""
        assert not hasattr(storage, "url")


class TestPrivateCloudinaryStorage(StorageBackendSuite):
    """The built-in storage `cloudinary_private`."""

    @pytest.fixture
    def storage(self, cloudinary: FakeCloudinary) -> StorageBackend:
        return PrivateCloudinaryStorage(cloudinary.cloudinary_url, budget_seconds=5, connections=16)

    def fetch(self, url: str) -> bytes | None:
        return httpx.get(url).raise_for_status().content


class Publishing:
    """The smallest asynchronous notifier that an author can write."""

    async def notify(self, notification: Notification) -> None:
        await notification.rooms.publish(f"user:{notification.user_id}", notification.event)


class Counting:
    """A notifier with plain methods, with batches and a close method."""

    calls = 0

    def notify(self, notification: Notification) -> None:
        self.calls += 1

    def notify_many(self, notifications: Sequence[Notification]) -> Sequence[str]:
        self.calls += len(notifications)
        return [f"number {self.calls}" for _ in notifications]

    def close(self) -> None:
        self.calls = 0


class TestPublishingNotifier(NotifierSuite):
    """An asynchronous notifier passes the suite."""

    @pytest.fixture
    def notifier(self) -> Notifier:
        return Publishing()


class TestCountingNotifier(NotifierSuite):
    """A notifier with plain methods passes the suite."""

    @pytest.fixture
    def notifier(self) -> Notifier:
        return Counting()


FAULTY_PLUGINS = """
    import pytest
    from pipeline.hooks import Analysis, Attribute
    from pipeline.testing import AIProviderSuite, NotifierSuite, StorageBackendSuite

    class Routed:
        def register_routes(self, routes): routes.add("GET", "/{id}", self.show)
        def show(self, request):
            assert request.path_params["id"] != "../" * 12 + "etc/passwd"
            assert request.user_id != "user-4"

    class TestProvider(AIProviderSuite):
        @pytest.fixture
        def provider(self):
            class WrongConfidence(Routed):
                max_concurrency = -1
                def check(self): return False
                def analyze(self, request):
                    if request.image == b"not an image":
                        raise ValueError("a stray error")
                    return Analysis(brand=Attribute("Nike", 93))
            return WrongConfidence()

    class TestStorage(StorageBackendSuite):
        @pytest.fixture
        def storage(self):
            class Faulty(Routed):
                def save(self, public_id, file, content_type): return "/media/x"
                def open(self, public_id): raise KeyError(public_id)
                def delete(self, public_id): raise KeyError(public_id)
                def check(self): return True
                def list(self, prefix): return ["suite/65f5/original-1"]
                def url(self, public_id, seconds): return "/media/x"
                def save_many(self, images): return "/media/x"
            return Faulty()

    class TestNotifier(NotifierSuite):
        @pytest.fixture
        def notifier(self):
            class ChangesEvents(Routed):
                def check(self): return False
                def notify_many(self, notifications): return []
                async def notify(self, notification):
                    assert notification.user_id != "user-19"
                    notification.event["seen"] = True
                    await notification.rooms.publish("user:all", notification.event)
            return ChangesEvents()
"""


def test_every_test_of_the_suites_can_fail(tmp_path: Path) -> None:
    """Plugins that break each promise fail each test. The suites need no Redis, MongoDB or Tornado."""
    absent = "import sys\nfor name in ('redis', 'motor', 'pymongo', 'tornado'): sys.modules[name] = None\n"
    (tmp_path / "test_faulty.py").write_text(absent + textwrap.dedent(FAULTY_PLUGINS))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:tornado", "-p", "no:cacheprovider", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.stdout.splitlines()[-1].startswith("30 failed in"), run.stdout[-2000:]
