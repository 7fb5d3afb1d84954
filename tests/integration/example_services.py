"""The services that the example plugins need: an SFTP server and a moderation service."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import asyncssh

from tests.service import ROOT, WAIT_SECONDS

EXAMPLES = ROOT / "examples"


class SftpServer:
    """A real SFTP server on a thread of its own.

    environment: the settings with which the example finds the server.
    """

    def __init__(self, folder: Path) -> None:
        (folder / "files").mkdir(parents=True)
        key, host_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
        key.write_private_key(folder / "key")
        key.write_public_key(folder / "authorized")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

        async def listen() -> asyncssh.SSHAcceptor:
            return await asyncssh.listen(
                "127.0.0.1",
                0,
                server_host_keys=[host_key],
                authorized_client_keys=str(folder / "authorized"),
                sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(folder / "files")),
            )

        self._server = asyncio.run_coroutine_threadsafe(listen(), self._loop).result(WAIT_SECONDS)
        port = self._server.get_port()
        (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key.export_public_key().decode()}")
        self.files = folder / "files"
        self.environment = {
            "PLUGIN_SFTP_HOST": "127.0.0.1",
            "PLUGIN_SFTP_PORT": str(port),
            "PLUGIN_SFTP_USER": "images",
            "PLUGIN_SFTP_KEY_FILE": str(folder / "key"),
            "PLUGIN_SFTP_KNOWN_HOSTS": str(folder / "known"),
        }

    def stop(self) -> None:
        """Stop the server and its thread."""
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class ModerationService(ThreadingHTTPServer):
    """Replies with `score`; with None it replies 503."""

    score: float | None = 0.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ModerationHandler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.seen: list[tuple[str | None, bytes]] = []


class _ModerationHandler(BaseHTTPRequestHandler):
    server: ModerationService

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.headers["Authorization"], body))
        self.send_response(503 if self.server.score is None else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"score": self.server.score}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass
