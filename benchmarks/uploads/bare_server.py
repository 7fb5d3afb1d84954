"""The cost of Tornado alone: a handler that reads the body, discards it and answers 202."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler, stream_request_body


class Livez(RequestHandler):
    """Answers 200."""

    def get(self) -> None:
        self.write({"status": "ok"})


@stream_request_body
class Upload(RequestHandler):
    """Answers 202 with a new number."""

    numbers = itertools.count()

    def data_received(self, chunk: bytes) -> None:
        pass

    def post(self) -> None:
        self.set_status(202)
        self.write(json.dumps({"data": {"assetId": str(next(self.numbers))}}))


async def main() -> None:
    (listener,) = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(Application([("/livez", Livez), ("/api/assets/analyze-queue", Upload)]))
    server.add_sockets([listener])
    print(listener.getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    logging.disable(logging.INFO)
    asyncio.run(main())
