"""The storage `object` with the settings of a test, and servers that it can call."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO, cast

import pytest
from pydantic import SecretStr

from pipeline.errors import DependencyUnavailable
from pipeline.plugins.storage_object import ObjectSettings, ObjectStorage
from tests.factories import make_image
from tests.moto_server import MotoServer
from tests.requirements import require

WRONG_SECRET = "c29tZS1vdGhlci1zZWNyZXQ="
PUBLIC_ID = "65f0/original-1a2b3c4d"


@pytest.fixture(autouse=True)
def only_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the cloud credentials of the environment, and require obstore."""
    require(importlib.util.find_spec("obstore") is not None, "needs obstore")
    for name in os.environ:
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)


@pytest.fixture
def own(moto: MotoServer, bucket: str) -> ObjectSettings:
    """The settings of a storage in the test's bucket."""
    return ObjectSettings(
        url=f"s3://{bucket}/some/prefix",
        endpoint=moto.url,
        access_key_id=SecretStr(moto.access_key_id),
        secret_access_key=SecretStr(moto.secret_access_key),
    )


@pytest.fixture
def object_storage(own: ObjectSettings) -> ObjectStorage:
    """The storage in the test's bucket."""
    return ObjectStorage(own, budget_seconds=20)


def run(call: Awaitable[Any]) -> Any:
    """Run the coroutine on a new event loop and return its result."""

    async def awaited() -> Any:
        return await call

    return asyncio.run(awaited())


def changed(own: ObjectSettings, **values: Any) -> ObjectSettings:
    """Return the settings with some values changed; they are validated."""
    return ObjectSettings(**(dict(own) | values))


def save(storage: ObjectStorage, file: BinaryIO | None = None, content_type: str = "image/jpeg") -> str:
    """Save an image and return its URL."""
    return cast(str, run(storage.save(PUBLIC_ID, file or io.BytesIO(make_image()), content_type)))


def calls(storage: ObjectStorage) -> list[Callable[[], Any]]:
    """Return a call of each of the four methods."""
    return [
        lambda: run(storage.check()),
        lambda: save(storage),
        lambda: run(storage.open(PUBLIC_ID)),
        lambda: run(storage.delete(PUBLIC_ID)),
    ]


def fault_of(call: Callable[[], Any]) -> DependencyUnavailable:
    """Expect that the call fails with 'Image storage unavailable', and return the error."""
    with pytest.raises(DependencyUnavailable, match="^Image storage unavailable$") as caught:
        call()
    return caught.value


@contextmanager
def server_answering(status: int, body: str = "", **headers: str) -> Iterator[tuple[str, list[str]]]:
    """Run a server that gives each request the same answer; yield its address and the list of the request methods."""
    methods: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            methods.append(self.command)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", methods
        finally:
            server.shutdown()
            thread.join()
