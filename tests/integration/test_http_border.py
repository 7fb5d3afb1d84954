"""The HTTP border on real sockets: what uploads may look like, how they are refused, and that nothing is left behind.

The server is Tornado's, in a thread of its own, so that blocking and misbehaving clients can be used as they are. Only
what lies behind the border (submission and store) is a stand-in.
"""

from __future__ import annotations

import asyncio
import gc
import base64
import contextlib
import errno
import http.client
import io
import json
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog
import tornado.netutil
import tornado.web

from pipeline.assets.asset import Asset, AssetStatus, ImageRef
from pipeline.auth import TokenVerifier
from pipeline.errors import Conflict, DependencyUnavailable, NotFound
from pipeline.handlers import access_log, assets, base, multipart, refusals
from pipeline.handlers.server import HttpServer
from pipeline.handlers.upload import UploadHandler
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.usecases.image_urls import ImageUrls
from pipeline.usecases.bounds import Quota
from pipeline.usecases.submission import Receipt
from pipeline.usecases.upload import Upload
from tests.constants import BODY_SECONDS, BYTES_PER_SECOND
from tests.factories import SECRET, make_image, make_multipart, make_noise_image, make_token, make_upload
from tests.memory_storage import MemoryStorage
from tests.requirements import program, require

UPLOAD = "/api/assets/analyze-queue"
ASSET_ID = "0123456789abcdef01234567"
RECEIPT = Receipt(ASSET_ID, f"ai-processing:{ASSET_ID}")
ORIGIN = "https://app.example"
LIMIT = 10 * 1024 * 1024


class StandInProgress:
    """Knows of no asset how it goes."""

    async def shown(self, assets: Sequence[Asset]) -> list[dict[str, Any]]:
        return [asset.to_json({}) for asset in assets]


class StandInSubmission:
    """Remembers what it was handed, and reads the file as storage would. error: raised instead."""

    def __init__(self) -> None:
        self.quota = Quota(cast(Any, SimpleNamespace(stored_bytes=None)), most_bytes=0)
        self.uploads: list[tuple[Upload, bytes]] = []
        self.calls: list[tuple[str, ...]] = []
        self.error: Exception | None = None
        self.entered = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    async def admit(self, user_id: str, idempotency_key: str | None) -> None:
        """Everybody has room."""

    async def submit(self, upload: Upload) -> Receipt:
        self.entered.set()
        await asyncio.to_thread(self.may_go_on.wait, 10)
        if self.error:
            raise self.error
        self.uploads.append((upload, upload.file.read()))
        return RECEIPT

    async def retry(self, asset_id: str, user_id: str, request_id: str) -> Receipt:
        if self.error:
            raise self.error
        self.calls.append(("retry", asset_id, user_id, request_id))
        return RECEIPT

    async def delete(self, asset_id: str, user_id: str) -> None:
        if self.error:
            raise self.error
        self.calls.append(("delete", asset_id, user_id))


class StandInStore:
    """Holds a list of assets and answers the three reads of the border."""

    def __init__(self) -> None:
        self.assets: list[Asset] = []

    async def get(self, asset_id: str) -> Asset | None:
        return next((asset for asset in self.assets if asset.id == asset_id), None)

    async def page(
        self, user_id: str, *, status: Any = None, category: Any = None, limit: int = 20, after: Any = None
    ) -> Sequence[Asset]:
        found = [
            asset
            for asset in sorted(self.assets, key=lambda asset: (asset.created_at, asset.id), reverse=True)
            if asset.user_id == user_id
            and status in (None, asset.status)
            and category in (None, asset.category)
            and (after is None or (asset.created_at, asset.id) < after)
        ]
        return found[:limit]

    async def finished_since(
        self, user_id: str, since: datetime, *, limit: int, after: Any = None
    ) -> Sequence[Asset]:
        found = [
            asset
            for asset in sorted(self.assets, key=lambda asset: (asset.finished_at or since, asset.id))
            if asset.user_id == user_id
            and asset.finished_at is not None
            and asset.finished_at >= since
            and (after is None or (asset.finished_at, asset.id) > after)
        ]
        return found[:limit]


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

    seen: what its upload handlers went through: ("body", bytes so far), "closed", ("finished", status).
    logged: a request id for each access line, once it is written and counted, which is after the reply was sent.
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
        """Send one request, with a good token unless headers say otherwise, and read the reply."""
        client = self.client()
        try:
            client.request(method, path, body, {"Authorization": f"Bearer {make_token()}"} | (headers or {}))
            return read_answer(client.getresponse())
        finally:
            client.close()

    def post(self, body: bytes, content_type: str, **headers: str) -> Answer:
        return self.call("POST", UPLOAD, body, {"Content-Type": content_type} | headers)

    def wait_for(self, is_it: Callable[[Any], bool]) -> Any:
        """Return the first thing seen that fits; fails after ten seconds."""
        while True:
            thing = self.seen.get(timeout=10)
            if is_it(thing):
                return thing

    def access_line(self) -> Any:
        """Return the access line of the one request there was."""
        self.logged.get(timeout=10)
        (line,) = (entry for entry in self.log if entry["event"] == "request_completed")
        return line

    def errors(self) -> list[Any]:
        return [entry for entry in self.log if entry["log_level"] in ("error", "critical")]


def read_answer(response: http.client.HTTPResponse) -> Answer:
    return Answer(response.status, response.headers, response.read())


def error(code: str, message: str, **details: str) -> dict[str, Any]:
    """Return the error envelope; details: field=message, with _ for -."""
    shown: dict[str, Any] = {"code": code, "message": message}
    if details:
        shown["details"] = [{"field": name.replace("_", "-"), "message": text} for name, text in details.items()]
    return {"success": False, "error": shown}


@pytest.fixture
def settings() -> Settings:
    return Settings(jwt_secret=SECRET, allowed_origins=(ORIGIN,))


@pytest.fixture
def border(settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Border]:
    """A server on a free port; at the end no temporary file is open and nothing was logged as an error unexpectedly."""
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
    # Fewer when what earlier tests have left was collected meanwhile.
    assert open_temporary_files() <= before
    if not border.expects_errors:
        assert border.errors() == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def application(border: Border, settings: Settings, pool: ThreadPoolExecutor) -> tornado.web.Application:
    """The routes as app.py has them, with an upload handler that tells what happens to it."""

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
            (UPLOAD, WatchedUpload, upload),
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
    """Return how many unlinked files this process holds open: what a forgotten spool would be."""
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
    """Return the raw head of an upload request; headers: name with _ for -."""
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Type: {content_type}"]
    lines.append(f"Authorization: Bearer {make_token() if token is None else token}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def receive_all(connection: socket.socket) -> bytes:
    """Return everything until the server closes, gently or not."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


def is_finished(thing: Any) -> bool:
    return thing[0] == "finished"


@pytest.mark.spec("T020")
def test_upload_is_accepted_and_handed_over(border: Border) -> None:
    """A proper upload is answered 202 and reaches submission with everything that is known about it."""
    image = make_noise_image(300_000)
    body, content_type = make_upload(image, "lego")

    answer = border.post(body, content_type, **{"X-Request-Id": "request-7", "Idempotency-Key": "key-1"})

    assert answer.status == 202
    assert answer.json == {
        "success": True,
        "data": {
            "assetId": ASSET_ID,
            "jobId": f"ai-processing:{ASSET_ID}",
            "status": "processing",
            "message": "Asset queued for AI analysis",
        },
    }
    ((upload, content),) = border.submission.uploads
    assert content == image
    assert (upload.user_id, upload.category, upload.request_id) == ("user-1", "lego", "request-7")
    assert upload.idempotency_key == "key-1"
    assert (upload.image.bytes, upload.image.width, upload.image.content_type) == (len(image), 1024, "image/png")
    border.wait_for(lambda thing: thing == "over")
    assert upload.file.closed


def test_upload_chunked_and_twice_on_one_connection(border: Border) -> None:
    """A body without a length is taken too, and the connection lives on for the next request."""
    body, content_type = make_upload(make_noise_image(200_000))
    headers = {"Content-Type": content_type, "Authorization": f"Bearer {make_token()}"}
    pieces = [body[start : start + 1000] for start in range(0, len(body), 1000)]
    client = border.client()

    for chunked in (iter(pieces), body):
        client.request("POST", UPLOAD, chunked, headers, encode_chunked=chunked is not body)
        assert read_answer(client.getresponse()).status == 202
        client.auto_open = 0  # the second request must not open a connection of its own
    client.close()

    assert len(border.submission.uploads) == 2


def test_upload_image_of_exactly_the_limit_is_accepted(border: Border) -> None:
    """10 MB to the byte is not too large."""
    image = make_image() + bytes(LIMIT - len(make_image()))
    assert border.post(*make_upload(image)).status == 202
    # What follows the picture is not stored.
    assert border.submission.uploads[0][0].image.bytes == len(make_image())


def test_upload_extra_parts_are_ignored(border: Border) -> None:
    """Text fields and files nobody asked for are accepted and dropped, whatever they are called."""
    files = [("other", "a.bin", "application/zip", bytes(100_000)), ("image", "p.jpg", "image/jpeg", make_image())]
    fields = [("userId", "somebody-else"), ("note", "x" * 20_000), ("category", "camera"), ("", "no name")]
    assert border.post(*make_multipart(fields, files)).status == 202
    assert border.submission.uploads[0][0].user_id == "user-1"


def test_upload_file_without_a_name_is_taken(border: Border) -> None:
    """An image part that names its type but no file is a file all the same."""
    part = b'Content-Disposition: form-data; name="image"\r\nContent-Type: image/jpeg\r\n\r\n' + make_image()
    body = b'--b\r\nContent-Disposition: form-data; name="category"\r\n\r\nother\r\n--b\r\n' + part + b"\r\n--b--\r\n"
    assert border.post(body, "multipart/form-data; boundary=b").status == 202


def test_upload_is_taken_although_the_client_left(border: Border) -> None:
    """Once the body is whole the photo is taken, also when the client hangs up before the answer."""
    border.submission.may_go_on.clear()
    body, content_type = make_upload(make_noise_image(200_000))
    with border.connect() as connection:
        connection.sendall(head(content_type, Content_Length=len(body)) + body)
        assert border.submission.entered.wait(10)
    border.submission.may_go_on.set()

    assert border.wait_for(is_finished) == ("finished", 202)
    assert len(border.submission.uploads) == 1


JPEG = ("image", "photo.jpg", "image/jpeg", make_image())
BAD_CATEGORY = "Must be one of: sneaker, lego, camera, other"
REQUIRED = "Image file is required"
UNKNOWN_CHARSET = "Its charset is not known: klingon; send UTF-8"


def missing(body: str, **details: str) -> dict[str, Any]:
    """Return the error for a missing image. body: what is known of the reason."""
    return error("VALIDATION_ERROR", REQUIRED, image=REQUIRED, body=body, **details)


def malformed(reason: str) -> dict[str, Any]:
    return error("VALIDATION_ERROR", "The multipart body is malformed", body=reason)


def make_part(disposition: str, content: bytes, *headers: str) -> tuple[bytes, str]:
    """Return a body of one part, and its Content-Type."""
    lines = "\r\n".join([f"Content-Disposition: form-data; {disposition}", *headers]).encode()
    return b"--b\r\n" + lines + b"\r\n\r\n" + content + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"


FAULTY_FORMS: dict[str, tuple[tuple[bytes, str], dict[str, Any]]] = {
    "no image": (make_multipart({"category": "lego"}), missing("these parts came: category")),
    "image is text": (
        make_multipart({"category": "lego", "image": "data:image/png;base64,AAAA"}),
        missing("image came as a text, without a filename"),
    ),
    "image is empty": (
        make_multipart({"category": "lego"}, [("image", "", "application/octet-stream", b"")]),
        missing("image came without a byte"),
    ),
    "image under another name": (
        make_multipart({"category": "lego"}, [("photo", "p.jpg", "image/jpeg", make_image())]),
        missing("these parts came: category, photo"),
    ),
    "image as a list": (
        make_multipart({"category": "lego"}, [("image[]", "p.jpg", "image/jpeg", make_image())]),
        missing("these parts came: category, image[]"),
    ),
    "bad category": (
        make_multipart({"category": "shoe"}, [JPEG]),
        error("VALIDATION_ERROR", "Invalid category", category=BAD_CATEGORY),
    ),
    "no category": (
        make_multipart({}, [JPEG]),
        error("VALIDATION_ERROR", "Invalid category", category=BAD_CATEGORY),
    ),
    "category in capitals": (
        make_multipart({"category": "LEGO"}, [JPEG]),
        error("VALIDATION_ERROR", "Invalid category", category=BAD_CATEGORY),
    ),
    "category is no text": (
        make_multipart([("category", "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"))], [JPEG]),
        error("VALIDATION_ERROR", "Invalid category", category=BAD_CATEGORY),
    ),
    "neither": (
        make_multipart({"category": "shoe"}),
        missing("these parts came: category", category=BAD_CATEGORY),
    ),
    "empty form": (
        (b"--b--\r\n", "multipart/form-data; boundary=b"),
        missing("no parts came", category=BAD_CATEGORY),
    ),
    "nothing at all": ((b"", "multipart/form-data; boundary=b"), missing("it is empty")),
    "two images": (
        make_multipart({"category": "lego"}, [JPEG, JPEG]),
        error("VALIDATION_ERROR", "Must be sent once", image="Must be sent once"),
    ),
    "two categories": (
        make_multipart([("category", "lego"), ("category", "camera")], [JPEG]),
        error("VALIDATION_ERROR", "Must be sent once", category="Must be sent once"),
    ),
    "endless category": (
        make_multipart({"category": "x" * 9000}, [JPEG]),
        error("VALIDATION_ERROR", "Must have at most 8192 bytes", category="Must have at most 8192 bytes"),
    ),
    "too many parts": (
        make_multipart([("note", "x")] * 21),
        error("VALIDATION_ERROR", "The multipart body has more than 20 parts"),
    ),
    "truncated": (
        (make_upload()[0][:-20], make_upload()[1]),
        error("VALIDATION_ERROR", "The multipart body is truncated"),
    ),
    "another boundary": (
        (make_upload()[0], "multipart/form-data; boundary=other"),
        malformed("No line of it is the boundary that Content-Type names"),
    ),
    "endless part header": (
        (b"--b\r\nX-Long: " + b"x" * 5000, "multipart/form-data; boundary=b"),
        malformed("A header of part 1 has more than 4096 bytes"),
    ),
    "many part headers": (
        (b"--b\r\n" + b"X-A: b\r\n" * 17 + b"\r\n", "multipart/form-data; boundary=b"),
        malformed("Part 1 has more than 16 headers"),
    ),
    "part header without a colon": (
        (b"--b\r\nContent-Disposition\r\n\r\nlego\r\n--b--", "multipart/form-data; boundary=b"),
        malformed("Part 1 has a header line without a name and a colon"),
    ),
    "coding nobody knows": (
        make_part('name="image"; filename="a.png"', b"...", "Content-Transfer-Encoding: uuencode"),
        malformed("A part has a Content-Transfer-Encoding that is not known: uuencode"),
    ),
    "base64 that is none": (
        make_part('name="image"; filename="a.png"', b"???", "Content-Transfer-Encoding: base64"),
        malformed("A part says that it is base64, and is not"),
    ),
    "category as a file": (
        make_multipart({}, [JPEG, ("category", "category.txt", "text/plain", b"lego")]),
        error(
            *("VALIDATION_ERROR", "Invalid category"),
            category=BAD_CATEGORY,
            body="category came as a file: send it as a text, without a filename",
        ),
    ),
    "category in a charset nobody knows": (
        make_part('name="category"', b"lego", "Content-Type: text/plain; charset=klingon"),
        error("VALIDATION_ERROR", UNKNOWN_CHARSET, category=UNKNOWN_CHARSET),
    ),
    "no image at all, only bytes": (
        make_upload(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        error("VALIDATION_ERROR", "Invalid image", image="Must be an image: JPEG, PNG, WebP, GIF, AVIF or HEIC"),
    ),
}
for _name, _content_type, _detail in (
    ("json", "application/json", ", not application/json"),
    ("mixed", "multipart/mixed; boundary=b", ", not multipart/mixed"),
    ("urlencoded", "application/x-www-form-urlencoded", ", not application/x-www-form-urlencoded"),
    ("no boundary", "multipart/form-data", ": leave this header to the library that makes the form"),
    ("empty boundary", "multipart/form-data; boundary=", ": leave this header to the library that makes the form"),
    ("endless boundary", f"multipart/form-data; boundary={'b' * 71}", " of at most 70 bytes"),
    ("no content type", "", ", not empty"),
):
    _details = {"image": REQUIRED, "Content_Type": f"Must be multipart/form-data with a boundary{_detail}"}
    FAULTY_FORMS[_name] = ((b"{}", _content_type), error("VALIDATION_ERROR", REQUIRED, **_details))


@pytest.mark.spec("T025")
@pytest.mark.parametrize(("form", "expected"), FAULTY_FORMS.values(), ids=FAULTY_FORMS.keys())
def test_upload_faulty_form_is_a_400_in_the_envelope(
    border: Border, form: tuple[bytes, str], expected: dict[str, Any]
) -> None:
    """Whatever is wrong with a form, the answer is a 400 in the one error shape that names what is wrong."""
    answer = border.post(*form)

    assert (answer.status, answer.json) == (400, expected)
    assert border.submission.uploads == []
    border.wait_for(is_finished)
    assert border.metrics.uploads.labels("rejected")._value.get() == 1


TOO_LARGE = error("VALIDATION_ERROR", "File too large", image="Maximum file size is 10MB")


@pytest.mark.parametrize("size", [LIMIT + 1, 2 * LIMIT])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_upload_too_large_is_refused(border: Border, size: int, is_chunked: bool) -> None:
    """One byte over the limit is too large, whether the length was declared or had to be counted."""
    body, content_type = make_upload(make_image() + bytes(size - len(make_image())))
    sent = iter([body[start : start + 65536] for start in range(0, len(body), 65536)]) if is_chunked else body

    answer = border.call("POST", UPLOAD, sent, {"Content-Type": content_type})

    assert (answer.status, answer.json) == (400, TOO_LARGE)
    assert border.submission.uploads == []


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Authorization": "Bearer no.good.token"}, "Invalid token"),
        ({"Authorization": "Basic YTpi"}, "Authentication required"),
    ],
)
@pytest.mark.parametrize("body", [b"", b"x" * 100], ids=["without a body", "with a body"])
def test_upload_without_a_good_token_is_a_401(
    border: Border, headers: dict[str, str], message: str, body: bytes
) -> None:
    """Without a good token the answer is 401, whatever the body."""
    answer = border.call("POST", UPLOAD, body, headers)

    assert (answer.status, answer.json) == (401, error("UNAUTHORIZED", message))
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_upload_refused_without_a_body_keeps_the_connection(border: Border) -> None:
    """A refusal that has nothing to drain leaves the connection usable."""
    client = border.client()
    client.request("POST", UPLOAD, headers={"Authorization": "Bearer no"})
    assert read_answer(client.getresponse()).status == 401
    client.auto_open = 0
    client.request("GET", "/api/assets", headers={"Authorization": f"Bearer {make_token()}"})
    assert read_answer(client.getresponse()).status == 200
    client.close()


@pytest.mark.parametrize(
    ("token", "length", "status", "expected"),
    [
        ("bad", 1000, 401, error("UNAUTHORIZED", "Invalid token")),
        ("bad", 10**12, 401, error("UNAUTHORIZED", "Invalid token")),
        (make_token(), 10**12, 400, TOO_LARGE),
    ],
)
def test_upload_is_refused_before_the_body(
    border: Border, token: str, length: int, status: int, expected: dict[str, Any]
) -> None:
    """The refusal is there before a body byte was sent, whole and with its end marked, and nothing follows it."""
    with border.connect() as connection:
        connection.sendall(head("multipart/form-data; boundary=b", token, Content_Length=length))
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.headers["Connection"]) == (status, "close")
        assert json.loads(answer.read()) == expected
        connection.sendall(bytes(1000))
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection) == b""


def test_upload_of_50_mb_with_a_bad_token_reads_its_401(border: Border) -> None:
    """A plain blocking client that sends its whole body first still gets the answer."""
    answer = border.post(bytes(50 * 1024 * 1024), "multipart/form-data; boundary=b", Authorization="Bearer bad")
    assert (answer.status, answer.json) == (401, error("UNAUTHORIZED", "Invalid token"))


@pytest.mark.parametrize("expect", ["Expect: 100-continue", "Expect:"], ids=["asks first", "sends at once"])
@pytest.mark.parametrize(("token", "status"), [("bad", 401), (make_token(), 400)])
def test_upload_of_50_mb_by_curl_reads_its_refusal(
    border: Border, tmp_path: Path, expect: str, token: str, status: int
) -> None:
    """curl gets the refusal of a far too large body, whether it waits for 100 Continue or not."""
    curl = program("curl")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(bytes(50 * 1024 * 1024))
    command = [curl, "-sS", "-m", "20", "-w", "\n%{http_code}", "-H", f"Authorization: Bearer {token}", "-H", expect]
    command += ["-F", f"image=@{photo};type=image/jpeg", "-F", "category=lego"]

    ran = subprocess.run(command + [f"http://127.0.0.1:{border.port}{UPLOAD}"], capture_output=True, timeout=30)

    body, _, code = ran.stdout.rpartition(b"\n")
    assert (ran.returncode, code) == (0, str(status).encode()), ran.stderr
    assert json.loads(body) == (error("UNAUTHORIZED", "Invalid token") if status == 401 else TOO_LARGE)


def test_upload_expecting_continue_is_refused_without_it(border: Border) -> None:
    """A client that asks first gets the refusal instead of 100 Continue, and the connection ends."""
    with border.connect() as connection:
        connection.sendall(head("multipart/form-data; boundary=b", "bad", Content_Length=9, Expect="100-continue"))
        received = receive_all(connection)
    assert received.startswith(b"HTTP/1.1 401 ")
    assert json.loads(received.partition(b"\r\n\r\n")[2]) == error("UNAUTHORIZED", "Invalid token")


def test_upload_expecting_continue_is_told_to_go_on(border: Border) -> None:
    """A client that asks first and may come in is told so, and then served."""
    body, content_type = make_upload()
    with border.connect() as connection:
        connection.sendall(head(content_type, Content_Length=len(body), Expect="100-continue", Connection="close"))
        assert connection.recv(12) == b"HTTP/1.1 100"
        connection.sendall(body)
        assert b"HTTP/1.1 202 " in receive_all(connection)


def test_upload_too_large_after_continue_reads_its_refusal(border: Border) -> None:
    """A client that was told to go on, and then sends too much, gets its answer like any other."""
    body, content_type = make_upload(bytes(2 * LIMIT))
    with border.connect() as connection:
        connection.sendall(head(content_type, Transfer_Encoding="chunked", Expect="100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        for start in range(0, len(body), 65536):
            piece = body[start : start + 65536]
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\n\r\n")
        received = receive_all(connection)
    assert json.loads(received.partition(b"\r\n\r\n")[2]) == TOO_LARGE


def test_upload_refused_is_logged_although_the_client_left(border: Border) -> None:
    """A client that reads its refusal and hangs up in the middle of its body still has its access line and count."""
    with border.connect() as connection:
        connection.sendall(head("multipart/form-data; boundary=b", "bad", Content_Length=1000))
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")
    assert border.access_line()["status"] == 401
    assert border.wait_for(is_finished) == ("finished", 401)


def test_upload_refused_stops_reading_after_a_while(border: Border, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that goes on sending for ever after its refusal is cut off by count."""
    monkeypatch.setattr(refusals, "DRAIN_BYTES", 1024 * 1024)
    sent = 0
    with border.connect() as connection:
        connection.sendall(head("multipart/form-data; boundary=b", "bad", Transfer_Encoding="chunked"))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while sent < 1024**3:
                sent += connection.send(b"10000\r\n" + bytes(65536) + b"\r\n")
    assert sent < 64 * 1024 * 1024  # what the bound and the buffers of both kernels take


def test_upload_refused_and_silent_is_closed(border: Border, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that neither sends the rest nor leaves after its refusal is closed by time."""
    monkeypatch.setattr(refusals, "DRAIN_SECONDS", 0.1)
    with border.connect() as connection:
        connection.sendall(head("multipart/form-data; boundary=b", "bad", Content_Length=1000))
        assert receive_all(connection).startswith(b"HTTP/1.1 401 ")


def test_upload_that_trickles_is_closed(border: Border, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not arrive within its time ends the connection and leaves no file."""
    monkeypatch.setattr(BODY_SECONDS, 0.5)
    monkeypatch.setattr(BYTES_PER_SECOND, 1e9)
    body, content_type = make_upload(make_noise_image(500_000))
    with border.connect() as connection:
        connection.sendall(head(content_type, Content_Length=len(body)) + body[:400_000])
        border.wait_for(lambda thing: thing[0] == "body" and thing[1] > multipart.SPOOL_BYTES)
        assert open_temporary_files() > 0
        assert receive_all(connection) == b""
    assert border.wait_for(lambda thing: thing == "closed")


def test_upload_abandoned_half_way_leaves_nothing(border: Border) -> None:
    """Clients that vanish in the middle of a body leave no file, no upload and no error line behind."""
    gc.collect()  # of what earlier tests have left nothing goes meanwhile
    before = open_temporary_files()
    body, content_type = make_upload(make_noise_image(500_000))
    connections = [border.connect() for _ in range(10)]
    for connection in connections:
        connection.sendall(head(content_type, Content_Length=len(body)) + body[:400_000])
    for _ in connections:
        border.wait_for(lambda thing: thing[0] == "body" and thing[1] == 400_000)
    assert open_temporary_files() == before + 10

    for connection in connections:
        connection.close()
    for _ in connections:
        border.wait_for(lambda thing: thing == "closed")

    # Fewer when what earlier tests have left was collected meanwhile.
    assert open_temporary_files() <= before
    assert border.submission.uploads == []


FRAMINGS = {
    "length and chunked": {"Content_Length": 5, "Transfer_Encoding": "chunked"},
    "negative length": {"Content_Length": -1},
    "length is no number": {"Content_Length": "five"},
    "absurd length": {"Content_Length": "9" * 5000},
    "lengths that differ": {"Content_Length": "5, 6"},
    "unknown encoding": {"Transfer_Encoding": "gzip"},
    "bad chunk": {"Transfer_Encoding": "chunked"},
}


@pytest.mark.parametrize("headers", FRAMINGS.values(), ids=FRAMINGS.keys())
@pytest.mark.parametrize("token", [make_token(), "bad"], ids=["good token", "bad token"])
def test_upload_with_broken_framing_is_refused(border: Border, headers: dict[str, object], token: str) -> None:
    """A body whose end cannot be known for sure is a 4xx, and nothing after it on the connection is read."""
    smuggled = b"GET /api/assets HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer " + make_token().encode() + b"\r\n\r\n"
    with border.connect() as connection:
        connection.sendall(head("multipart/form-data; boundary=b", token, **headers) + b"zzz\r\n\r\n" + smuggled)
        received = receive_all(connection)
    assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 "))
    assert b"HTTP/1.1 200" not in received
    assert border.submission.uploads == []


@pytest.mark.parametrize("key", ["", "k" * 256, "a b", "schlüssel"])
def test_upload_with_a_bad_idempotency_key_is_refused(border: Border, key: str) -> None:
    """An Idempotency-Key that is empty, long or not plain is a 400, never silently dropped."""
    body, content_type = make_upload()
    answer = border.post(body, content_type, **{"Idempotency-Key": key})
    text = "Must be 1 to 255 visible ASCII characters"
    assert (answer.status, answer.json) == (400, error("VALIDATION_ERROR", text, Idempotency_Key=text))


def test_upload_unexpected_failure_is_a_500_that_says_nothing(border: Border) -> None:
    """A failure nobody foresaw is logged once with its trace, and the client learns only the fixed text."""
    border.expects_errors = True
    border.submission.error = RuntimeError("secret path /etc/shadow")

    answer = border.post(*make_upload())

    assert (answer.status, answer.json) == (500, error("INTERNAL_ERROR", "Failed to queue asset for processing"))
    (entry,) = border.errors()
    assert (entry["event"], entry["requestId"]) == ("request_failed", answer.headers["X-Request-Id"])
    assert entry["exc_info"][1] is border.submission.error


def test_upload_with_a_dependency_down_is_a_503(border: Border) -> None:
    """A dependency that is down is a 503 that says when to come again."""
    border.submission.error = DependencyUnavailable("Storage is not reachable", retry_after_seconds=7)

    answer = border.post(*make_upload())

    assert (answer.status, answer.headers["Retry-After"]) == (503, "7")
    assert answer.json == error("UNAVAILABLE", "Storage is not reachable")


def test_upload_on_a_full_disk_is_a_503(border: Border, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full while the body arrives is one more part of ours that is away."""

    class FullDisk(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(multipart, "nameless_file", lambda folder: FullDisk())

    answer = border.post(*make_upload(make_noise_image(2_000_000)))

    assert (answer.status, answer.json["error"]["code"]) == (503, "UNAVAILABLE")
    assert answer.headers["Retry-After"] == "5"
    assert border.errors() == []


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing/here", 404, "NOT_FOUND"),
        ("OPTIONS", "/nothing/here", 404, "NOT_FOUND"),
        ("POST", "/api/assets/analyze", 405, "METHOD_NOT_ALLOWED"),
        ("PUT", "/api/assets", 405, "METHOD_NOT_ALLOWED"),
        ("GET", UPLOAD, 405, "METHOD_NOT_ALLOWED"),
        ("BREW", "/api/assets", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/api/assets?limit=%ff", 400, "VALIDATION_ERROR"),
        ("GET", "/api/assets/%ff", 400, "VALIDATION_ERROR"),
    ],
)
def test_reply_to_a_wrong_address_is_in_the_envelope(
    border: Border, method: str, path: str, status: int, code: str
) -> None:
    """Wrong paths, methods and query bytes are answered in the one error shape."""
    answer = border.call(method, path)

    assert (answer.status, answer.json["success"], answer.json["error"]["code"]) == (status, False, code)
    if status == 405:
        assert "OPTIONS" in answer.headers["Allow"]
    assert answer.headers["Content-Type"] == "application/json; charset=UTF-8"


def test_reply_to_a_head_request_has_no_body(border: Border) -> None:
    """HEAD is answered by status alone."""
    answer = border.call("HEAD", "/api/assets")
    assert (answer.status, answer.body) == (405, b"")


def test_reply_to_a_large_body_for_a_wrong_path_is_a_404(border: Border) -> None:
    """An upload to a path that does not exist is told so, and its body is dropped as it comes."""
    answer = border.call("POST", "/api/assets/analyse/it", bytes(30 * 1024 * 1024))
    assert (answer.status, answer.json["error"]["code"]) == (404, "NOT_FOUND")


def test_reply_to_an_endless_body_nobody_wants_is_a_400(border: Border, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that no handler reads is dropped up to a bound, then the connection ends."""
    monkeypatch.setattr(refusals, "DRAIN_BYTES", 100_000)
    with border.connect() as connection:
        connection.sendall(head("text/plain", path="/api/nothing", Content_Length=200_000) + bytes(150_000))
        assert receive_all(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", ["/api/assets", "/nothing"])
def test_reply_carries_security_headers(border: Border, path: str) -> None:
    """Every reply says: take my type as it is, keep no copy; and not what server this is."""
    answer = border.call("GET", path)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Date" in answer.headers
    assert "Server" not in answer.headers and "Etag" not in answer.headers


@pytest.mark.parametrize(("given", "is_kept"), [("abc-1.2_3", True), ("a" * 65, False), ("a b", False), ("", False)])
@pytest.mark.parametrize("path", ["/api/assets", "/nothing"])
def test_reply_echoes_a_proper_request_id(border: Border, given: str, is_kept: bool, path: str) -> None:
    """A proper X-Request-Id comes back and stands in the access line; any other is replaced by a new one."""
    answer = border.call("GET", path, headers={"X-Request-Id": given})

    assert (answer.headers["X-Request-Id"] == given) is is_kept
    assert border.access_line()["requestId"] == answer.headers["X-Request-Id"]
    assert answer.headers["X-Request-Id"]


def test_access_line_names_the_route_not_the_path(border: Border) -> None:
    """One line and one count per request, by route template, so that no id becomes a label."""
    border.call("GET", f"/api/assets/{ASSET_ID}")

    line = border.access_line()
    assert (line["method"], line["route"], line["status"]) == ("GET", "/api/assets/{id}", 404)
    assert line["durationMs"] > 0
    assert border.metrics.http_requests.labels("/api/assets/{id}", "GET", "404")._value.get() == 1


def test_cors_preflight_of_an_allowed_origin(border: Border) -> None:
    """A page of an allowed origin may send uploads, and read what a client needs of the reply's headers."""
    asks = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Authorization": ""}

    preflight = border.call("OPTIONS", UPLOAD, headers=asks)
    answer = border.call("GET", "/api/assets", headers={"Origin": ORIGIN, "Authorization": "Bearer bad"})

    assert (preflight.status, preflight.body) == (204, b"")
    assert preflight.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert "Idempotency-Key" in preflight.headers["Access-Control-Allow-Headers"]
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (401, ORIGIN)
    assert "X-Request-Id" in answer.headers["Access-Control-Expose-Headers"]
    assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", ORIGIN + ".evil.example"])
def test_cors_other_origins_get_nothing(border: Border, origin: str) -> None:
    """A page of any other origin gets no permission."""
    answer = border.call("OPTIONS", UPLOAD, headers={"Origin": origin})
    assert not [name for name in answer.headers if name.startswith("Access-Control")]


def make_asset(number: int, **changes: Any) -> Asset:
    instant = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number // 2)
    original = ImageRef("memory", "1/original", "https://img.example/1", "0" * 64, 10, 4, 3, "image/png")
    values: dict[str, Any] = {
        "id": f"{number:024x}",
        "user_id": "user-1",
        "category": "lego",
        "status": AssetStatus.ACTIVE,
        "original": original,
        "processing_job_id": f"ai-processing:{number:024x}",
        "created_at": instant,
        "updated_at": instant - timedelta(days=number),
        "finished_at": instant,
    }
    return Asset(**values | changes)


@pytest.mark.parametrize(("query", "is_newest_first"), [("", True), ("finishedSince=2026-01-01T00:00:02Z&", False)])
def test_assets_pages_hold_each_asset_once(border: Border, query: str, is_newest_first: bool) -> None:
    """Following nextCursor gives every asset once, in order, also where two have the same instant."""
    border.store.assets = [make_asset(number) for number in range(25)] + [make_asset(99, user_id="user-2")]
    seen, cursor = [], ""
    while True:
        data = border.call("GET", f"/api/assets?{query}limit=10{cursor}").json["data"]
        seen += [int(item["id"], 16) for item in data["items"]]
        if data["nextCursor"] is None:
            break
        cursor = f"&cursor={data['nextCursor']}"

    assert seen == (list(range(24, -1, -1)) if is_newest_first else list(range(4, 25)))


def test_assets_filters_reach_the_store(border: Border) -> None:
    """Status and category narrow the list."""
    border.store.assets = [make_asset(1), make_asset(2, status=AssetStatus.FAILED), make_asset(3, category="camera")]
    answer = border.call("GET", "/api/assets?status=active&category=lego")
    assert [item["id"] for item in answer.json["data"]["items"]] == [f"{1:024x}"]


def test_assets_faults_are_all_named(border: Border) -> None:
    """Every bad parameter is named in one answer."""
    answer = border.call("GET", "/api/assets?status=done&category=shoe&limit=101&cursor=!&finishedSince=yesterday")
    assert answer.status == 400
    names = [detail["field"] for detail in answer.json["error"]["details"]]
    assert names == ["status", "category", "limit", "cursor", "finishedSince"]


def encode(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).decode()


START = encode(b"1." + b"0" * 24)
FAR_FUTURE = encode(b"9" * 15 + b"." + b"0" * 24)
BAD_VALUES = [
    *(("limit", value) for value in ("0", "-1", "1.5", "", "1e2", "\u0661")),
    *(("cursor", value) for value in ("", "AAAA", "!" + START, FAR_FUTURE, "%00", "a%20b", "AA==")),
    *(("finishedSince", value) for value in ("2026-01-01", "2026-01-01T00:00:00", "0001-01-01T00:00:00%2B14:00", "5")),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_assets_bad_parameter_is_a_400(border: Border, name: str, value: str) -> None:
    """A parameter that cannot be understood is refused, never guessed."""
    answer = border.call("GET", "/api/assets?" + http_quote(name, value))
    assert answer.status == 400
    assert [detail["field"] for detail in answer.json["error"]["details"]] == [name]


def http_quote(name: str, value: str) -> str:
    return f"{name}=" + "".join(char if char.isascii() else "%D9%A1" for char in value)


def test_assets_finished_since_takes_the_date_of_a_reply(border: Border) -> None:
    """The Date header of an upload's reply is a good finishedSince, as it stands."""
    border.store.assets = [make_asset(1)]
    date = "Wed,%2031%20Dec%202025%2023:59:59%20GMT"
    assert len(border.call("GET", f"/api/assets?finishedSince={date}").json["data"]["items"]) == 1


def test_asset_is_shown_to_its_owner_only(border: Border) -> None:
    """The owner gets the asset; for anybody else it is not there."""
    border.store.assets = [make_asset(1), make_asset(2, user_id="user-2")]
    own, other = (border.call("GET", f"/api/assets/{number:024x}") for number in (1, 2))
    assert (own.status, own.json["data"]) == (200, make_asset(1).to_json({}))
    assert (other.status, other.json) == (404, error("NOT_FOUND", "Asset not found"))


def test_asset_delete_and_retry_act_for_the_caller(border: Border) -> None:
    """Delete answers 204, retry 202 with the new job; both hand on who asked."""
    deleted = border.call("DELETE", f"/api/assets/{ASSET_ID.upper()}")
    retried = border.call("POST", f"/api/assets/{ASSET_ID}/retry", headers={"X-Request-Id": "r1"})

    assert (deleted.status, deleted.body) == (204, b"")
    assert (retried.status, retried.json["data"]["jobId"]) == (202, RECEIPT.job_id)
    assert border.submission.calls == [("delete", ASSET_ID, "user-1"), ("retry", ASSET_ID, "user-1", "r1")]


@pytest.mark.parametrize(
    ("raised", "status"), [(NotFound("Asset not found"), 404), (Conflict("Only failed assets can be retried"), 409)]
)
def test_asset_retry_passes_refusals_on(border: Border, raised: Any, status: int) -> None:
    """What submission refuses is answered with its own code and text."""
    border.submission.error = raised
    answer = border.call("POST", f"/api/assets/{ASSET_ID}/retry")
    assert (answer.status, answer.json) == (status, error(raised.code, raised.message))


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/api/assets/xyz"), ("DELETE", "/api/assets/1"), ("POST", "/api/assets/%00/retry")]
)
def test_asset_malformed_id_is_a_400(border: Border, method: str, path: str) -> None:
    """An id that cannot be one is a 400 on field id."""
    answer = border.call(method, path)
    assert (answer.status, answer.json["error"]["details"][0]["field"]) == (400, "id")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/assets"), ("GET", f"/api/assets/{ASSET_ID}"), ("POST", f"/api/assets/{ASSET_ID}/retry")],
)
def test_asset_routes_need_a_token(border: Border, method: str, path: str) -> None:
    """No route of assets answers a caller it does not know."""
    assert border.call(method, path, headers={"Authorization": ""}).status == 401
