"""An AI service that records the time of each call and can answer 429 to a call that comes too early.

PLUGIN is the plugin that calls it; the settings of the service decide which limits the plugin declares.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.packages import install

PLUGIN = """
import json, os
from pipeline.errors import RetryableJobError
from pipeline.hooks import Analysis, Attribute, Rate, hookimpl

API_VERSION = 2

class Paced:
    if "PACED_RATE" in os.environ:
        rate = Rate(*json.loads(os.environ["PACED_RATE"]))
    if "PACED_AT_ONCE" in os.environ:
        max_in_flight = int(os.environ["PACED_AT_ONCE"])

    async def start(self, context):
        self.http = context.http

    async def analyze(self, request):
        async with self.http.post(os.environ["PACED_URL"], json={"assetId": request.asset_id}) as answer:
            if answer.status == 429:
                raise RetryableJobError("Slow down", retry_after_seconds=float(answer.headers["Retry-After"]))
            answer.raise_for_status()
        return Analysis(Attribute("Leica", 0.9), Attribute("M6", 0.9))

class Free:
    async def analyze(self, request):
        return Analysis(Attribute("Lego", 0.9), Attribute("42083", 0.9))

@hookimpl
def register_ai_providers(settings):
    yield "paced", Paced
    yield "free", Free
"""


class PacedAi:
    """The AI service: a real server in a thread.

    every_seconds: the shortest time between two calls that it accepts.
    seconds: the time that it needs for a call.
    called_at: the times of the accepted calls.
    refused: the number of answers with 429.
    running: the number of calls that it answers now.
    most_running: the highest value of `running`.
    assets: the asset of each accepted call.
    """

    def __init__(self, every_seconds: float = 0, seconds: float = 0) -> None:
        self.called_at: list[float] = []
        self.refused = self.running = self.most_running = 0
        self.assets: list[str] = []
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:  # noqa: N802
                content = self.rfile.read(int(self.headers["Content-Length"]))
                is_accepted = service._accept(json.loads(content)["assetId"], every_seconds)
                if is_accepted:
                    time.sleep(seconds)
                with service._lock:
                    service.running -= 1
                self.send_response(200 if is_accepted else 429)
                self.send_header("Retry-After", str(every_seconds))
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: Any) -> None:
                """Do not log requests."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """Do not print: a service that stops may close its connections at any time."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def _accept(self, asset_id: str, every_seconds: float) -> bool:
        now = time.monotonic()
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            if self.called_at and now - self.called_at[-1] < every_seconds:
                self.refused += 1
                return False
            self.called_at.append(now)
            self.assets.append(asset_id)
            return True

    def __enter__(self) -> PacedAi:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def settings(self, folder: Path, **limits: Any) -> dict[str, str]:
        """Return the settings of a service whose plugin calls it.

        folder: gets the plugin.
        limits: rate=(calls, per_seconds), at_once=calls.
        """
        declared = {f"PACED_{name.upper()}": json.dumps(value) for name, value in limits.items()}
        return install(folder, paced=PLUGIN) | {"AI_PROVIDER": "paced", "PACED_URL": self.url} | declared

    def most_in(self, seconds: float) -> int:
        """Return the highest number of calls within that many seconds."""
        times = sorted(self.called_at)
        return max(sum(first <= each < first + seconds for each in times) for first in times)
