"""A Cloudinary on a real socket: upload, destroy, download, list and ping of one account, with signatures checked.

In a test: `with running_in_thread() as fake: ...`; `fake.cloudinary_url` is what CLOUDINARY_URL is set to.
As a process: `python -m tests.fake_cloudinary --port 0` prints that URL as first line; POST /_script takes
{"replies": [{"status": 503, "message": "...", "times": 2}, ...]}.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

CLOUD, KEY, SECRET = "testcloud", "123456789012345", "abcdefghijklmnopqrstuvwxyz0"
UNSIGNED = {"file", "api_key", "signature", "resource_type", "cloud_name"}


class FakeCloudinary:
    """One account.

    images, private: content by public_id, of the types upload and authenticated.
    saved_at: when each was saved.
    calls: names of the actions in order of arrival.
    delay_ms: before each answer.
    byte_ms: before each byte of a public image.
    """

    def __init__(self) -> None:
        self.images: dict[str, bytes] = {}
        self.private: dict[str, bytes] = {}
        self.saved_at: dict[str, datetime] = {}
        self.calls: list[str] = []
        self.delay_ms: float = 0
        self.byte_ms: float = 0
        self.url = ""
        self.script: deque[tuple[int, str, Mapping[str, str]]] = deque()
        routes = [
            (f"/v1_1/{CLOUD}/image/(upload|destroy|download)", _Action, {"fake": self}),
            (f"/v1_1/{CLOUD}/(ping)", _Action, {"fake": self}),
            (f"/v1_1/{CLOUD}/(resources)/image/(upload|authenticated)", _Action, {"fake": self}),
            (f"/{CLOUD}/image/upload/v1/(.+)", _Delivery, {"fake": self}),
            ("/_script", _Script, {"fake": self}),
        ]
        self._server = HTTPServer(Application(routes, log_function=lambda handler: None))

    def of_type(self, kind: str) -> dict[str, bytes]:
        """Return the images of that type; two types may use the same name."""
        return {"upload": self.images, "authenticated": self.private}[kind]

    @property
    def cloudinary_url(self) -> str:
        """The value for CLOUDINARY_URL."""
        return f"cloudinary://{KEY}:{SECRET}@{CLOUD}?upload_prefix={self.url}"

    def start(self, port: int = 0) -> str:
        """Listen on 127.0.0.1 and return the base URL."""
        sockets = bind_sockets(port, "127.0.0.1")
        self._server.add_sockets(sockets)
        self.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        return self.url

    def fail(self, status: int, message: str = "scripted", times: int = 1, headers: Mapping[str, str] = {}) -> None:
        """Answer the next calls with this error."""
        self.script.extend([(status, message, headers)] * times)

    async def stop(self) -> None:
        """Stop listening and drop every connection."""
        self._server.stop()
        await self._server.close_all_connections()


@contextmanager
def running_in_thread() -> Iterator[FakeCloudinary]:
    """Run one on its own event loop in a thread, for tests that call the blocking SDK."""
    fake = FakeCloudinary()
    ready = Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        fake.start()
        ready.set()
        await stopped
        await fake.stop()

    stopped: asyncio.Future[None] = loop.create_future()
    thread = Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait(10)
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(stopped.set_result, None)
        thread.join(10)
        loop.close()


def sign(params: Mapping[str, str]) -> str:
    """Return Cloudinary's signature (version 2, SHA-1) of the parameters, written from its documentation."""
    signed = sorted(f"{name}={value}".replace("&", "%26") for name, value in params.items() if name not in UNSIGNED)
    return hashlib.sha1(("&".join(signed) + SECRET).encode()).hexdigest()


class _Action(RequestHandler):
    def initialize(self, fake: FakeCloudinary) -> None:
        self.fake = fake

    async def get(self, action: str, kind: str = "upload") -> None:
        self.kind = kind
        await self._answer(action)

    async def post(self, action: str) -> None:
        await self._answer(action)

    async def _answer(self, action: str) -> None:
        fake = self.fake
        fake.calls.append(action)
        await asyncio.sleep(fake.delay_ms / 1000)
        if fake.script:
            self._error(*fake.script.popleft())
        elif action in ("ping", "resources"):
            expected = "Basic " + base64.b64encode(f"{KEY}:{SECRET}".encode()).decode()
            if self.request.headers.get("Authorization") == expected:
                self.finish({"status": "ok"} if action == "ping" else self._resources())
            else:
                self._error(401, "unknown api_key")
        else:
            params = {name: self.get_argument(name) for name in self.request.arguments}
            if params.get("api_key") != KEY or params.get("signature") != sign(params):
                self._error(401, f"Invalid Signature {params.get('signature')}")
            else:
                getattr(self, f"_{action}")(params)

    def _upload(self, params: dict[str, str]) -> None:
        content = self.request.files["file"][0]["body"]
        if content.startswith(b"not an image"):
            self._error(400, "Invalid image file")
            return
        public_id, kind = params["public_id"], params.get("type", "upload")
        self.fake.of_type(kind)[public_id] = content
        self.fake.saved_at[public_id] = datetime.now(UTC)
        path = f"{CLOUD}/image/{kind}/v1/{public_id}.jpg"
        self.finish({"public_id": public_id, "secure_url": f"{self.fake.url}/{path}", "bytes": len(content)})

    def _destroy(self, params: dict[str, str]) -> None:
        found = self.fake.of_type(params.get("type", "upload")).pop(params["public_id"], None)
        self.finish({"result": "ok" if found is not None else "not found"})

    def _download(self, params: dict[str, str]) -> None:
        kind = params.get("type", "upload")
        content = self.fake.of_type(kind).get(params["public_id"])
        if content is None:
            self._error(404, "Resource not found")
            return
        if int(params.get("expires_at", "99999999999")) < time.time():
            self._error(404, "Link expired")
            return
        if kind == "authenticated":
            self.set_header("Content-Type", "image/jpeg")
            self.finish(content)
            return
        self.redirect(f"{self.fake.url}/{CLOUD}/image/upload/v1/{params['public_id']}.jpg")

    def _resources(self) -> dict[str, Any]:
        """Return a page of images; its cursor is the id of the last image."""
        prefix, after = self.get_argument("prefix", ""), self.get_argument("next_cursor", "")
        most = int(self.get_argument("max_results", "10"))
        names = sorted(name for name in self.fake.of_type(self.kind) if name.startswith(prefix) and name > after)
        times = {name: self.fake.saved_at[name].strftime("%Y-%m-%dT%H:%M:%SZ") for name in names[:most]}
        page = {"resources": [{"public_id": name, "created_at": at} for name, at in times.items()]}
        return page | ({"next_cursor": names[most - 1]} if len(names) > most else {})

    def _error(self, status: int, message: str, headers: Mapping[str, str] = {}) -> None:
        self.set_status(status)
        for name, value in headers.items():
            self.set_header(name, value)
        self.finish({"error": {"message": message}})


class _Delivery(RequestHandler):
    def initialize(self, fake: FakeCloudinary) -> None:
        self.fake = fake

    async def get(self, path: str) -> None:
        content = self.fake.images.get(path.rpartition(".")[0])
        if content is None:
            self.set_status(404)
            return
        self.set_header("Content-Type", "image/jpeg")
        if self.fake.byte_ms:
            with suppress(StreamClosedError):
                for byte in content:
                    self.write(bytes([byte]))
                    await self.flush()
                    await asyncio.sleep(self.fake.byte_ms / 1000)
            return
        self.finish(content)


class _Script(RequestHandler):
    def initialize(self, fake: FakeCloudinary) -> None:
        self.fake = fake

    def post(self) -> None:
        replies: list[dict[str, Any]] = json.loads(self.request.body)["replies"]
        for reply in replies:
            self.fake.fail(**reply)
        self.set_status(204)


async def _serve(port: int) -> None:
    fake = FakeCloudinary()
    fake.start(port)
    print(fake.cloudinary_url, flush=True)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await fake.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.fake_cloudinary")
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(_serve(parser.parse_args().port))
