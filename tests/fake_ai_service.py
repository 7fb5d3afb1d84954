"""A scriptable AI service: a real HTTP server that answers POST /analyze by the contract, or as configured.

In a test's loop: `fake = FakeAiService(); fake.start(); ...; await fake.stop()`.
As a process: `python -m tests.fake_ai_service --port 0 --delay-ms 5` prints its base URL as first line and is
configured over HTTP: GET /_state gives {"calls", "active", "peak", "limited", "requests"}; POST /_script takes
{"replies": [{"status": 503, "times": 2}, ...], "delay_ms": 5, "paused": false, "numbered": true, "clear_replies": true,
"poison": "lego", "per_second": 20}, every property optional; GET /_calls gives the calls per asset. `paused`: answer no
call until it is false; `numbered`: see FakeAiService.is_numbered; `clear_replies`: remove the earlier replies.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

from tests.scripted_server import ScriptedServer, begin_reply, until_terminated

MAX_REQUESTS = 10_000
GOOD_BODY = {
    "brand": {"value": "Nike", "confidence": 0.93},
    "model": {"value": "Air Max 90", "confidence": 0.88},
    "colorway": {"value": "Infrared", "confidence": 0.71},
}


@dataclass(frozen=True, slots=True)
class Reply:
    """One scripted answer.

    body: a JSON value, bytes or text sent as they are, or None for the good answer (2xx) or an error body (others).
    delay_ms: added to the service's own delay.
    cut: close the connection instead of answering.
    times: the number of calls that get this answer.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_ms: float = 0
    cut: bool = False
    times: int = 1


@dataclass(frozen=True, slots=True)
class Recorded:
    """One call as it arrived.

    headers: names are spelled like X-Request-Id.
    client_port: one per connection.
    """

    body: Any
    headers: dict[str, str]
    client_port: int


class FakeAiService(ScriptedServer[Reply]):
    """Sends good answers unless `script`, `delay_ms` or `pause` says otherwise.

    calls: the number of all calls.
    active: the number of calls that are answered now.
    peak: the highest value of `active`.
    requests: the newest 10,000 calls.
    by_asset: the number of calls for each asset.
    is_numbered: each call gets another answer, so that a result identifies its call.
    poison: photos of this category are always answered with 500.
    per_second: the limit of calls in a second; the others get 429 and Retry-After; 0 for no limit.
    limited: the number of answers with 429.
    """

    def __init__(self, delay_ms: float = 0) -> None:
        handlers = {"/analyze": _Analyze, "/_state": _State, "/_calls": _Calls, "/_script": _Script}
        super().__init__([(path, handler, {"fake": self}) for path, handler in handlers.items()])
        self.delay_ms = delay_ms
        self.calls = self.active = self.peak = 0
        self.requests: deque[Recorded] = deque(maxlen=MAX_REQUESTS)
        self.by_asset: Counter[str] = Counter()
        self.is_numbered = False
        self.poison = ""
        self.per_second = 0
        self.limited = 0
        self._accepted_at: deque[float] = deque()
        self._changed = asyncio.Event()

    def clear_replies(self) -> None:
        """Remove the rest of the script: later calls get good answers."""
        self._script.clear()

    def configure(self, behavior: Mapping[str, Any]) -> None:
        """Change the answers. behavior: as POST /_script takes it."""
        if behavior.get("clear_replies"):
            self.clear_replies()
        self.script(*(Reply(**reply) for reply in behavior.get("replies", ())))
        self.delay_ms = behavior.get("delay_ms", self.delay_ms)
        self.is_numbered = behavior.get("numbered", self.is_numbered)
        self.poison = behavior.get("poison", self.poison)
        self.per_second = behavior.get("per_second", self.per_second)
        if "paused" in behavior:
            self.pause() if behavior["paused"] else self.resume()

    async def wait_for_calls(self, count: int, timeout_seconds: float = 10) -> None:
        """Return when that many calls have arrived; raises TimeoutError otherwise."""
        async with asyncio.timeout(timeout_seconds):
            while self.calls < count:
                self._changed.clear()
                await self._changed.wait()

    async def answer(self, request: HTTPServerRequest) -> Reply:
        """Record the call and return its reply once it is due."""
        client_port = request.connection.context.address[1]  # type: ignore[union-attr]
        try:
            body = json.loads(request.body)
        except ValueError:
            body = request.body
        self.requests.append(Recorded(body, dict(request.headers.get_all()), client_port))
        self.by_asset[request.headers.get("X-Asset-Id", "unknown")] += 1
        self.calls += 1
        self.active += 1
        self.peak = max(self.peak, self.active)
        self._changed.set()
        try:
            if self._is_over_the_limit():
                self.limited += 1
                return Reply(429, headers={"Retry-After": "1"})
            reply = self._next_reply()
            if self.poison and isinstance(body, dict) and body.get("category") == self.poison:
                reply = Reply(500)
            await self._open.wait()
            if self.delay_ms + reply.delay_ms:
                await asyncio.sleep((self.delay_ms + reply.delay_ms) / 1000)
            return reply
        finally:
            self.active -= 1

    def _is_over_the_limit(self) -> bool:
        now = time.monotonic()
        while self._accepted_at and self._accepted_at[0] <= now - 1:
            self._accepted_at.popleft()
        if not self.per_second or len(self._accepted_at) < self.per_second:
            self._accepted_at.append(now)
            return False
        return True

    def _next_reply(self) -> Reply:
        if not self._script:
            return Reply()
        reply = self._script.popleft()
        if reply.times > 1:
            self._script.appendleft(Reply(**{**asdict(reply), "times": reply.times - 1}))
        return reply


class _Analyze(RequestHandler):
    def initialize(self, fake: FakeAiService) -> None:
        self.fake = fake

    async def post(self) -> None:
        reply = await self.fake.answer(self.request)
        if not begin_reply(self, reply):
            return
        body = reply.body if reply.body is not None else self._default_body(reply.status)
        self.finish(body if isinstance(body, (bytes, str)) else json.dumps(body))

    def _default_body(self, status: int) -> dict[str, Any]:
        if status >= 300:
            return {"error": {"message": f"scripted {status}", "code": "SCRIPTED"}}
        asset_id = self.request.headers.get("X-Asset-Id", "unknown")
        if self.fake.is_numbered:
            model = {"value": f"call {secrets.token_hex(6)}", "confidence": 0.5}
            return GOOD_BODY | {"model": model}
        return GOOD_BODY | {"processedImageUrl": f"https://images.example/processed/{asset_id}.webp"}


class _State(RequestHandler):
    def initialize(self, fake: FakeAiService) -> None:
        self.fake = fake

    def get(self) -> None:
        fake = self.fake
        requests = [asdict(request) for request in fake.requests]
        counts = {"calls": fake.calls, "active": fake.active, "peak": fake.peak, "limited": fake.limited}
        self.finish(counts | {"requests": requests})


class _Calls(RequestHandler):
    def initialize(self, fake: FakeAiService) -> None:
        self.fake = fake

    def get(self) -> None:
        self.finish(dict(self.fake.by_asset))


class _Script(RequestHandler):
    def initialize(self, fake: FakeAiService) -> None:
        self.fake = fake

    def post(self) -> None:
        self.fake.configure(json.loads(self.request.body))
        self.set_status(204)


async def _serve(port: int, behavior: Mapping[str, Any]) -> None:
    fake = FakeAiService()
    fake.configure(behavior)
    print(fake.start(port), flush=True)
    await until_terminated()
    await fake.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.fake_ai_service")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-ms", type=float, default=0)
    parser.add_argument("--behavior", default="{}", help="as POST /_script takes it, set before the first call")
    options = parser.parse_args()
    asyncio.run(_serve(options.port, {"delay_ms": options.delay_ms} | json.loads(options.behavior)))
