"""The base of the fake vision endpoints: a real HTTP server that names the product in each photo, or as scripted.

The endpoints themselves: vision_fakes.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import RequestHandler

from tests.scripted_server import ScriptedServer, begin_reply

KEY = "sk-test-0123456789abcdefghijklmnop"
PRODUCT = {
    "brand": {"value": "Nike", "confidence": 0.93},
    "model": {"value": "Air Max 90", "confidence": 0.88},
    "colorway": {"value": "Infrared", "confidence": 0.71},
}


@dataclass(frozen=True, slots=True)
class Reply:
    """One scripted answer.

    body: a JSON value, or bytes sent as they are.
    cut: close the connection instead.
    trickles: send a space every 0.05 s instead, without an end.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    trickles: bool = False


@dataclass(frozen=True, slots=True)
class Recorded:
    """One call as it arrived.

    body: parsed JSON, None for a GET.
    image: the photo's bytes, b"" without one.
    client_port: one per connection.
    """

    method: str
    path: str
    body: Any
    headers: dict[str, str]
    image: bytes
    client_port: int


class FakeVision(ScriptedServer[Reply]):
    """Names the product in every photo unless `script` or `pause` says otherwise.

    requests: all calls.
    dropped: set once a client has closed its connection before the answer.
    key: the valid key, None to accept every key.
    product: the content of the good answers.
    """

    name = ""
    # The usage in a good answer: input and output tokens.
    tokens = (0, 0)

    def __init__(self, key: str | None = KEY) -> None:
        super().__init__([(f"{self.root}/(.*)", _Api, {"fake": self})])
        self.key = key
        self.product: Any = PRODUCT
        self.requests: list[Recorded] = []
        self.dropped = asyncio.Event()
        self._arrived = asyncio.Condition()

    async def wait_for_call(self) -> None:
        """Return when a call has arrived."""
        async with asyncio.timeout(10), self._arrived:
            await self._arrived.wait_for(lambda: self.requests)

    async def reply_to(self, recorded: Recorded) -> Reply:
        """Record the call and return its reply once it is due."""
        async with self._arrived:
            self.requests.append(recorded)
            self._arrived.notify_all()
        await self._open.wait()
        if self._script:
            return self._script.popleft()
        if (refusal := self.refused_key(recorded)) is not None:
            return refusal
        if recorded.method == "GET":
            return self.about_model(recorded)
        try:
            if fault := self.fault(recorded):
                return Reply(400, self.error(fault))
        except (KeyError, TypeError) as error:
            return Reply(400, self.error(f"Missing: {error!r}"))
        return Reply(body=self.completion(self.product))

    def completion(self, content: Any, **more: Any) -> dict[str, Any]:
        """Return a good answer.

        content: of the model: text as it is, anything else as JSON.
        """
        raise NotImplementedError

    def error(self, message: str, kind: str = "") -> dict[str, Any]:
        """Return the body of an error."""
        raise NotImplementedError

    def refused_key(self, recorded: Recorded) -> Reply | None:
        """Return the refusal of a wrong key."""
        raise NotImplementedError

    def about_model(self, recorded: Recorded) -> Reply:
        """Return the answer to a request for information about models."""
        raise NotImplementedError

    def fault(self, recorded: Recorded) -> str:
        """Return the reason for which the real endpoint would refuse this call, "" without one."""
        raise NotImplementedError

    def image_in(self, body: Any) -> bytes:
        """Return the photo in a call."""
        raise NotImplementedError


class _Api(RequestHandler):
    def initialize(self, fake: FakeVision) -> None:
        self.fake = fake

    def on_connection_close(self) -> None:
        self.fake.dropped.set()

    async def get(self, path: str) -> None:
        await self._answer(path, None)

    async def post(self, path: str) -> None:
        assert self.request.headers["Content-Type"] == "application/json"
        await self._answer(path, json.loads(self.request.body))

    async def _answer(self, path: str, body: Any) -> None:
        port = self.request.connection.context.address[1]  # type: ignore[union-attr]
        headers = dict(self.request.headers.get_all())
        image = b"" if body is None else self.fake.image_in(body)
        reply = await self.fake.reply_to(Recorded(self.request.method or "", path, body, headers, image, port))
        if not begin_reply(self, reply):
            return
        while reply.trickles and not self.fake.dropped.is_set():
            self.write(b" ")
            with suppress(StreamClosedError):
                await self.flush()
            await asyncio.sleep(0.05)  # the answer must be slow
        self.finish(reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body))
