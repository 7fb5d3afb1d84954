"""The storage `object` with the settings of a test, and servers that it may be pointed at."""

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
    """No account of whoever runs the tests is used, and obstore is there."""
    require(importlib.util.find_spec("obstore") is not None, "needs obstore")
    for name in os.environ:
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)


@pytest.fixture
def own(moto: MotoServer, bucket: str) -> ObjectSettings:
    """The settings that lead to it."""
    return ObjectSettings(
        url=f"s3://{bucket}/some/prefix",
        endpoint=moto.url,
        access_key_id=SecretStr(moto.access_key_id),
        secret_access_key=SecretStr(moto.secret_access_key),
    )


@pytest.fixture
def object_storage(own: ObjectSettings) -> ObjectStorage:
    """The storage, at that bucket."""
    return ObjectStorage(own, budget_seconds=20)


def run(work: Awaitable[Any]) -> Any:
    """Return the result of the work, on a loop of its own."""

    async def awaited() -> Any:
        return await work

    return asyncio.run(awaited())


def changed(own: ObjectSettings, **values: Any) -> ObjectSettings:
    """Return the settings with some of them different, checked like any."""
    return ObjectSettings(**(dict(own) | values))


def save(storage: ObjectStorage, file: BinaryIO | None = None, content_type: str = "image/jpeg") -> str:
    """Return the URL of an image just saved."""
    return cast(str, run(storage.save(PUBLIC_ID, file or io.BytesIO(make_image()), content_type)))


def calls(storage: ObjectStorage) -> list[Callable[[], Any]]:
    """Return each of the four methods as a call."""
    return [
        lambda: run(storage.check()),
        lambda: save(storage),
        lambda: run(storage.open(PUBLIC_ID)),
        lambda: run(storage.delete(PUBLIC_ID)),
    ]


def fault_of(call: Callable[[], Any]) -> DependencyUnavailable:
    """Return the error of a call to a storage that is not usable."""
    with pytest.raises(DependencyUnavailable, match="^Image storage unavailable$") as caught:
        call()
    return caught.value


@contextmanager
def answering(status: int, body: str = "", **headers: str) -> Iterator[tuple[str, list[str]]]:
    """Run a server that answers every request alike; yield its address and the methods it was asked with."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(self.command)
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
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()
