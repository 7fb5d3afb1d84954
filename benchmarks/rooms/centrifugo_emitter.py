"""Emits into Centrifugo from outside: python -m benchmarks.rooms.centrifugo_emitter API_PORT KEY

Prints its port; GET /emit?count=&rate=&users= emits by POST /api/batch, one for each slice of events.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

from benchmarks.rooms.emission import emit, make_event, room_of

SLICE = 1000
PARALLEL = 3


class EmitHandler(BaseHTTPRequestHandler):
    """Emits, and answers when Centrifugo has confirmed every batch."""

    api_port: int
    key: str

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        count, rate, users = (int(query[name][0]) for name in ("count", "rate", "users"))
        headers = {"X-API-Key": self.key, "Content-Type": "application/json"}
        # While Centrifugo works on one batch, the next one is built and sent.
        free = deque(HTTPConnection("127.0.0.1", self.api_port) for _ in range(PARALLEL))
        busy: deque[HTTPConnection] = deque()

        def finish_one() -> None:
            reply = busy[0].getresponse()
            text = reply.read()
            if reply.status != 200 or b'"error"' in text:
                raise RuntimeError(text)
            free.append(busy.popleft())

        async def send_slice(numbers: range) -> None:
            commands = [{"publish": {"channel": room_of(each, users), "data": make_event(each)}} for each in numbers]
            body = json.dumps({"commands": commands, "parallel": True}, separators=(",", ":"))
            if not free:
                finish_one()
            free[0].request("POST", "/api/batch", body, headers)
            busy.append(free.popleft())

        asyncio.run(emit(send_slice, count, rate, SLICE))
        while busy:
            finish_one()
        for api in free:
            api.close()
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Do not log requests."""


def main(api_port: str, key: str) -> None:
    EmitHandler.api_port, EmitHandler.key = int(api_port), key
    server = HTTPServer(("127.0.0.1", 0), EmitHandler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
