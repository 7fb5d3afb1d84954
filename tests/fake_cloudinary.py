"""A fake Cloudinary on a real socket: one account with upload, destroy, download, list and ping; it checks signatures.

In a test: `with running_in_thread() as fake: ...`; `fake.cloudinary_url` is the value for CLOUDINARY_URL.
As a process: `python -m tests.fake_cloudinary --port 0` prints that URL as first line; POST /_script takes
{"replies": [{"status": 503, "message": "...", "times": 2}, ...]}.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import RequestHandler

from tests.scripted_server import ScriptedServer, serving_in_thread, until_terminated

CLOUD, KEY, SECRET = "testcloud", "123456789012345", "abcdefghijklmnopqrstuvwxyz0"
# The parameters that the signature leaves out.
UNSIGNED = {"file", "api_key", "signature", "resource_type", "cloud_name"}
Failure = tuple[int, str, Mapping[str, str]]


class FakeCloudinary(ScriptedServer[Failure]):
    """One account.

    images: the content of the images of type upload, by public_id.
    private: the content of the images of type authenticated, by public_id.
    saved_at: the time at which each image was saved.
    calls: the names of the actions in order of arrival.
    delay_ms: the wait before each answer.
    byte_ms: the wait after each byte of a public image.
    """

    def __init__(self) -> None:
        self.images: dict[str, bytes] = {}
        self.private: dict[str, bytes] = {}
        self.saved_at: dict[str, datetime] = {}
        self.calls: list[str] = []
        self.delay_ms: float = 0
        self.byte_ms: float = 0
        routes = [
            (f"/v1_1/{CLOUD}/image/(upload|destroy|download)", _Action, {"fake": self}),
            (f"/v1_1/{CLOUD}/(ping)", _Action, {"fake": self}),
            (f"/v1_1/{CLOUD}/(resources)/image/(upload|authenticated)", _Action, {"fake": self}),
            (f"/{CLOUD}/image/upload/v1/(.+)", _Delivery, {"fake": self}),
            ("/_script", _Script, {"fake": self}),
        ]
        super().__init__(routes)

    def of_type(self, kind: str) -> dict[str, bytes]:
        """Return the images of that type; an image of each type may have the same name."""
        return {"upload": self.images, "authenticated": self.private}[kind]

    @property
    def cloudinary_url(self) -> str:
        """The value for CLOUDINARY_URL."""
        return f"cloudinary://{KEY}:{SECRET}@{CLOUD}?upload_prefix={self.url}"

    def fail(self, status: int, message: str = "scripted", times: int = 1, headers: Mapping[str, str] = {}) -> None:
        """Answer the next calls with this error."""
        self.script(*[(status, message, headers)] * times)

    def next_failure(self) -> Failure | None:
        """Return the scripted error of this call, None without one."""
        return self._script.popleft() if self._script else None


def running_in_thread() -> AbstractContextManager[FakeCloudinary]:
    """Run one on its own event loop in a thread, for tests that call the blocking SDK."""
    return serving_in_thread(FakeCloudinary)


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
        if failure := fake.next_failure():
            self._error(*failure)
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
    await until_terminated()
    await fake.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.fake_cloudinary")
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(_serve(parser.parse_args().port))
