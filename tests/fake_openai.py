"""An OpenAI-compatible endpoint on a real socket: chat completions with a photo, the list of models, one key.

In a test's loop: `fake = FakeOpenAi(); fake.start(); ...; await fake.stop()`. As strict as the real one about what it
is sent, and worse in one thing: when it refuses a key it repeats it in full.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

KEY = "sk-test-0123456789abcdefghijklmnop"
PRODUCT = {
    "brand": {"value": "Nike", "confidence": 0.93},
    "model": {"value": "Air Max 90", "confidence": 0.88},
    "colorway": {"value": "Infrared", "confidence": 0.71},
}
SEEN_FORMATS = ("JPEG", "PNG", "GIF", "WEBP")
# What a strict schema may not have; some endpoints take a few of them, none takes all.
UNSUPPORTED = {"minimum", "maximum", "minLength", "maxLength", "pattern", "default", "oneOf", "not"}


@dataclass(frozen=True, slots=True)
class Reply:
    """One scripted answer.

    body: a JSON value, or bytes sent as they are. cut: close the connection instead. trickles: send a blank now and
    then for ever instead.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    trickles: bool = False


@dataclass(frozen=True, slots=True)
class Recorded:
    """One call as it arrived. image: the photo's bytes, b"" without one. client_port: one per connection."""

    path: str
    body: Any
    headers: dict[str, str]
    image: bytes
    client_port: int


def completion(content: Any, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """Return a chat completion. content: what the model says: text as it is, anything else as JSON."""
    text = content if isinstance(content, str) or content is None else json.dumps(content)
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": text, "refusal": None} | message,
    }
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "fake", "choices": [choice]}


def error_body(message: str, code: str | None = None, kind: str = "invalid_request_error") -> dict[str, Any]:
    """Return the body of an error as OpenAI writes it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class FakeOpenAi:
    """Names the product in every photo unless told otherwise with `script` or `hold`.

    requests: all calls. dropped: set once a caller went away without waiting for the answer. key: None to look at none.
    """

    def __init__(self, key: str | None = KEY) -> None:
        self.key = key
        self.url = ""
        self.requests: list[Recorded] = []
        self.dropped = asyncio.Event()
        self._script: deque[Reply] = deque()
        self._arrived = asyncio.Condition()
        self._open = asyncio.Event()
        self._open.set()
        routes = [("/v1/(chat/completions|models)", _Api, {"fake": self})]
        self._server = HTTPServer(Application(routes, log_function=lambda handler: None))

    def start(self) -> str:
        """Listen on 127.0.0.1 and return the base URL."""
        sockets = bind_sockets(0, "127.0.0.1")
        self._server.add_sockets(sockets)
        self.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/v1"
        return self.url

    async def stop(self) -> None:
        """Stop listening and drop every connection."""
        self._server.stop()
        self._open.set()
        await self._server.close_all_connections()

    def script(self, *replies: Reply) -> None:
        """Answer the next calls with these, in order; after them all is well again."""
        self._script.extend(replies)

    def hold(self) -> None:
        """Leave every call unanswered."""
        self._open.clear()

    def release(self) -> None:
        """Answer again."""
        self._open.set()

    async def wait_for_call(self) -> None:
        """Return when a call has arrived."""
        async with asyncio.timeout(10), self._arrived:
            await self._arrived.wait_for(lambda: self.requests)

    async def answer(self, recorded: Recorded) -> Reply:
        """Record the call and return its reply once it is due."""
        async with self._arrived:
            self.requests.append(recorded)
            self._arrived.notify_all()
        await self._open.wait()
        if self._script:
            return self._script.popleft()
        given = recorded.headers.get("Authorization")
        if self.key is not None and given != f"Bearer {self.key}":
            return Reply(401, error_body(f"Incorrect API key: {given}", "invalid_api_key"))
        if recorded.path == "models":
            return Reply(body={"object": "list", "data": [{"id": "fake", "object": "model"}]})
        if fault := _fault(recorded):
            return Reply(400, error_body(fault))
        return Reply(body=completion(PRODUCT))


class _Api(RequestHandler):
    def initialize(self, fake: FakeOpenAi) -> None:
        self.fake = fake

    def on_connection_close(self) -> None:
        self.fake.dropped.set()

    async def get(self, path: str) -> None:
        await self._answer(path, None)

    async def post(self, path: str) -> None:
        await self._answer(path, json.loads(self.request.body))

    async def _answer(self, path: str, body: Any) -> None:
        port = self.request.connection.context.address[1]  # type: ignore[union-attr]
        headers = dict(self.request.headers.get_all())
        reply = await self.fake.answer(Recorded(path, body, headers, _image(body), port))
        if reply.cut:
            self.request.connection.stream.close()  # type: ignore[union-attr]
            return
        self.set_status(reply.status)
        self.set_header("Content-Type", "application/json")
        for name, value in reply.headers.items():
            self.set_header(name, value)
        while reply.trickles and not self.fake.dropped.is_set():
            self.write(b" ")
            with suppress(StreamClosedError):
                await self.flush()
            await asyncio.sleep(0.05)  # slow is what it is meant to be
        self.finish(reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body))


def _image(body: Any) -> bytes:
    for message in (body or {}).get("messages", ()):
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image_url":
                head, _, data = part["image_url"]["url"].partition(";base64,")
                assert head.startswith("data:image/"), "the image was sent as an address"
                return base64.b64decode(data, validate=True)
    return b""


def _fault(recorded: Recorded) -> str:
    """Return what the real endpoint would not take in this call, "" when it is fine."""
    try:
        Image.open(io.BytesIO(recorded.image), formats=SEEN_FORMATS).load()
    except OSError:
        return "You uploaded an unsupported image"
    response_format = recorded.body["response_format"]
    if response_format["type"] == "json_object":
        says_json = "JSON" in json.dumps(recorded.body["messages"])
        return "" if says_json else "'messages' must contain the word 'json' in some form"
    return _schema_fault(response_format["json_schema"]["schema"])


def _schema_fault(schema: dict[str, Any]) -> str:
    if unsupported := UNSUPPORTED & set(schema):
        return f"Invalid schema: {unsupported} not permitted"
    if schema["type"] != "object":
        return ""
    if schema.get("additionalProperties") is not False or set(schema["required"]) != set(schema["properties"]):
        return "Invalid schema: additionalProperties must be false and every property required"
    return next(filter(None, map(_schema_fault, schema["properties"].values())), "")
