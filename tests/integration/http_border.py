"""The HTTP border on a real port, for blocking and misbehaving clients.

The server is Tornado's, in a thread of its own. Only what is behind the border is a stand-in.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import queue
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import tornado.netutil
import tornado.web

from pipeline.auth import TokenVerifier
from pipeline.handlers import access_log, assets, base
from pipeline.handlers.server import HttpServer
from pipeline.handlers.upload import UploadHandler
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.usecases.image_urls import ImageUrls
from tests.factories import SECRET, make_token
from tests.integration.border_stand_ins import StandInProgress, StandInStore, StandInSubmission
from tests.memory_storage import MemoryStorage
from tests.requirements import require

UPLOAD = "/api/assets/analyze-queue"
ORIGIN = "https://app.example"
LIMIT = 10 * 1024 * 1024


@dataclass
class Answer:
    """One HTTP reply, read to its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Border:
    """A running server.

    seen: the steps of its upload handlers: ("body", bytes so far), "over", "closed", ("finished", status).
    logged: a request id for each access line that is written and counted, which happens after the reply.
    """

    submission: StandInSubmission
    store: StandInStore
    metrics: Metrics
    port: int
    seen: queue.Queue[Any] = field(default_factory=queue.Queue)
    logged: queue.Queue[str] = field(default_factory=queue.Queue)
    log: list[Any] = field(default_factory=list)
    expects_errors: bool = False

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def client(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Send one request, with a good token unless the headers have another one, and read the reply."""
        client = self.client()
        try:
            client.request(method, path, body, {"Authorization": f"Bearer {make_token()}"} | (headers or {}))
            return read_answer(client.getresponse())
        finally:
            client.close()

    def post(self, body: bytes, content_type: str, **headers: str) -> Answer:
        return self.call("POST", UPLOAD, body, {"Content-Type": content_type} | headers)

    def wait_for(self, is_wanted: Callable[[Any], bool]) -> Any:
        """Return the first wanted step; fail after ten seconds."""
        while True:
            step = self.seen.get(timeout=10)
            if is_wanted(step):
                return step

    def access_line(self) -> Any:
        """Return the access line of the only request."""
        self.logged.get(timeout=10)
        (line,) = (entry for entry in self.log if entry["event"] == "request_completed")
        return line

    def errors(self) -> list[Any]:
        return [entry for entry in self.log if entry["log_level"] in ("error", "critical")]


def read_answer(response: http.client.HTTPResponse) -> Answer:
    return Answer(response.status, response.headers, response.read())


def error(code: str, message: str, **details: str) -> dict[str, Any]:
    """Return the error envelope.

    details: field=message, with _ for -.
    """
    shown: dict[str, Any] = {"code": code, "message": message}
    if details:
        shown["details"] = [{"field": name.replace("_", "-"), "message": text} for name, text in details.items()]
    return {"success": False, "error": shown}


@pytest.fixture
def settings() -> Settings:
    return Settings(jwt_secret=SECRET, allowed_origins=(ORIGIN,))


@pytest.fixture
def border(settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Border]:
    """A server on a free port; at the end no temporary file is open and no unexpected error was logged."""
    settings = settings.model_copy(update={"data_dir": tmp_path})
    before = open_temporary_files()
    sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
    border = Border(StandInSubmission(), StandInStore(), Metrics(), sockets[0].getsockname()[1])
    stop, started = asyncio.Event(), threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        with ThreadPoolExecutor(2) as pool:
            server = HttpServer(application(border, settings, pool), metrics=border.metrics)
            server.add_sockets(sockets)
            loops.append(asyncio.get_running_loop())
            started.set()
            await stop.wait()
            server.stop()
            await server.close_all_connections()

    caplog.set_level(logging.INFO)
    with structlog.testing.capture_logs() as border.log:
        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        started.wait(10)
        yield border
        border.submission.may_go_on.set()
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(10)
    assert not thread.is_alive()
    # Fewer, if the garbage collector has closed files of earlier tests.
    assert open_temporary_files() <= before
    if not border.expects_errors:
        assert border.errors() == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def watched_upload(border: Border) -> type[UploadHandler]:
    """Return an upload handler that puts its steps into border.seen."""

    class WatchedUpload(UploadHandler):
        received = 0

        def data_received(self, chunk: bytes) -> Awaitable[None] | None:
            taken = super().data_received(chunk)
            self.received += len(chunk)
            border.seen.put(("body", self.received))
            return taken

        async def post(self) -> None:
            await super().post()
            border.seen.put("over")

        def on_connection_close(self) -> None:
            super().on_connection_close()
            border.seen.put("closed")

        def on_finish(self) -> None:
            super().on_finish()
            border.seen.put(("finished", self.get_status()))

    return WatchedUpload


def application(border: Border, settings: Settings, pool: ThreadPoolExecutor) -> tornado.web.Application:
    """Return the routes of app.py, with the upload handler of `watched_upload`."""

    def log_request(handler: tornado.web.RequestHandler) -> None:
        access_log.log_request(handler)
        border.logged.put(getattr(handler, "request_id", ""))

    common = {
        "verifier": TokenVerifier(settings),
        "metrics": border.metrics,
        "allowed_origins": settings.page_origins,
    }
    admission = SimpleNamespace(is_draining=False)
    upload = common | {"submission": border.submission, "settings": settings, "pool": pool}
    upload |= {"store": border.store, "admission": admission, "urls": ImageUrls(MemoryStorage())}
    with_assets = common | {"store": border.store, "submission": border.submission} | {
        "progress": StandInProgress(),
        "admission": admission,
    }
    return tornado.web.Application(
        [
            (UPLOAD, watched_upload(border), upload),
            ("/api/assets", assets.AssetsHandler, with_assets | {"categories": settings.categories}),
            (
                "/api/assets/([^/]+)",
                assets.AssetHandler,
                with_assets | {"removing": border.submission, "corrections": None},
            ),
            ("/api/assets/([^/]+)/retry", assets.RetryHandler, with_assets),
        ],
        default_handler_class=base.NotFoundHandler,
        default_handler_args=common,
        log_function=log_request,
    )


def open_temporary_files() -> int:
    """Return how many unlinked files this process has open: a forgotten spool file would be one."""
    require(sys.platform == "linux", "open files are counted in /proc, which only Linux has")
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(link)
        except FileNotFoundError:
            continue  # the descriptor that lists the folder
        count += target.endswith("(deleted)")
    return count


def head(content_type: str, token: str | None = None, path: str = UPLOAD, **headers: object) -> bytes:
    """Return the raw head of an upload request.

    headers: name=value, with _ for - in the name.
    """
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Type: {content_type}"]
    lines.append(f"Authorization: Bearer {make_token() if token is None else token}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def receive_all(connection: socket.socket) -> bytes:
    """Return everything until the server closes or resets the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


def is_finished(step: Any) -> bool:
    return step[0] == "finished"


def make_part(disposition: str, content: bytes, *headers: str) -> tuple[bytes, str]:
    """Return a body of one part, and its Content-Type."""
    lines = "\r\n".join([f"Content-Disposition: form-data; {disposition}", *headers]).encode()
    return b"--b\r\n" + lines + b"\r\n\r\n" + content + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"
