"""The Python client without an event loop: it works from any thread, and a closed client stays closed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.client import BlockingClient, ClientError
from tests.factories import make_image, make_token
from tests.service import ROOT, AiService, Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with an AI service that replies at once."""
    with AiService() as ai_service, Service(tmp_path_factory.mktemp("data"), ai_service.url) as service:
        yield service


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(make_image())
    return path


def test_blocking_client_uploads_waits_and_watches(service: Service, photo: Path) -> None:
    """Each method returns its result; the iterator of events ends after a second without an event."""
    transports: list[str] = []
    with BlockingClient(service.url, lambda: make_token("sync-1"), on_transport=transports.append) as client:
        assert client.transport is None and client.since is None
        assert client.listen() == "user:sync-1"
        ids = [client.upload(str(photo), "lego")["assetId"] for _ in range(3)]
        finished = [client.wait(asset_id, timeout_seconds=60) for asset_id in ids]
        assert [asset["status"] for asset in finished] == ["active"] * 3
        events = list(client.events(timeout_seconds=1))
        assert sorted(event["assetId"] for event in events) == sorted(ids)
        assert client.since is not None and client.since <= max(event["timestamp"] for event in events)
        assert (client.transport, transports) == ("socket", ["socket"])
        client.delete(ids[0])
        with pytest.raises(ClientError, match="not found"):
            client.asset(ids[0])


def test_blocking_client_serves_many_threads(service: Service, photo: Path) -> None:
    """Eight threads upload and wait at the same time with one client."""
    with BlockingClient(service.url, make_token("sync-2")) as client, ThreadPoolExecutor(8) as pool:

        def work(_: int) -> str:
            asset_id: str = client.upload(photo, "lego")["assetId"]
            assert client.wait(asset_id)["status"] == "active"
            return asset_id

        assert len(set(pool.map(work, range(16)))) == 16


def test_wait_of_a_blocking_client_has_a_timeout(tmp_path: Path, silent_ai_service: str, photo: Path) -> None:
    """Wait raises TimeoutError when the asset is not finished in time."""
    with Service(tmp_path / "data", silent_ai_service, SHUTDOWN_SECONDS="1") as service:
        with BlockingClient(service.url, make_token()) as client:
            asset_id = client.upload(photo, "lego")["assetId"]
            with pytest.raises(TimeoutError):
                client.wait(asset_id, timeout_seconds=0.5)


def test_closed_blocking_client_ends_waiting_calls(service: Service) -> None:
    """A call that waits in another thread and each later call raise an error; close may be called twice."""
    client = BlockingClient(service.url, make_token("sync-3"))
    client.listen()
    errors: list[BaseException] = []

    def watch() -> None:
        try:
            next(client.events())
        except ClientError as error:
            errors.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    client.close()
    client.close()
    thread.join(30)
    assert [str(error) for error in errors] == ["This client is closed"]
    with pytest.raises(ClientError, match="closed"):
        client.listen()
    assert not [each for each in threading.enumerate() if each.name == "pipeline client"]


def test_callback_of_a_blocking_client_cannot_call_the_client(service: Service) -> None:
    """Such a call would wait for itself for ever; it raises an error at once."""
    errors: list[str] = []

    def call_client(transport: str) -> None:
        try:
            client.listen()
        except ClientError as error:
            errors.append(str(error))

    with BlockingClient(service.url, make_token("sync-4"), on_transport=call_client) as client:
        client.listen()
    assert errors == ["A function that the client calls must not use the client"]


def test_program_that_does_not_close_its_client_ends(service: Service) -> None:
    """The program ends and prints no warning, with one client that is no longer referenced and one that still is."""
    code = f"""
from pipeline.client import BlockingClient
def unreferenced():
    BlockingClient({service.url!r}, {make_token("sync-5")!r}).listen()
unreferenced()
client = BlockingClient({service.url!r}, {make_token("sync-5")!r})
client.listen()
print(client.transport)
"""
    # Not -X dev: it also warns when the machine is slow.
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "socket\n", "")
