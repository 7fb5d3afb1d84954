"""The command `health` asks the service of this machine; a container engine or a supervisor runs it regularly."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.service import ROOT, AiService, Service, inherited
from tests.toxiproxy import free_port

Done = subprocess.CompletedProcess[str]
HEAVY = {"aiohttp", "cryptography", "jwt", "numpy", "PIL", "prometheus_client", "redis", "tornado"}


def health(environment: dict[str, str], *arguments: str) -> Done:
    command = [sys.executable, str(ROOT / "run.py"), "health", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("role", ["all", "worker"])
def test_health_finds_the_service_that_listens_on_all_addresses(
    role: str, tmp_path: Path, ai_service: AiService
) -> None:
    """With HOST=0.0.0.0 the loopback address is asked, for each role, also when a proxy is configured."""
    more = {"HOST": "0.0.0.0", "PORT": str(free_port()), "ROLE": role, "http_proxy": "http://127.0.0.1:1"}
    with Service(tmp_path / "data", ai_service.url, **more) as service:
        for arguments, word in (((), "alive"), (("--ready",), "ready")):
            done = health(service.environment, *arguments)
            assert (done.returncode, done.stdout, done.stderr) == (0, f"{word}\n", "")
    stopped = health(service.environment)
    assert stopped.returncode == 1 and stopped.stdout == ""
    assert stopped.stderr.startswith(f"No answer from 127.0.0.1 port {more['PORT']}: ConnectionRefusedError")


def test_health_finds_the_service_that_took_any_port(tmp_path: Path, ai_service: AiService) -> None:
    """With PORT=0 the service writes its port to a file; before the service runs, one line says that it does not."""
    service = Service(tmp_path / "data", ai_service.url)
    before = health(service.environment)
    assert before.returncode == 1 and "PORT is 0, and no service runs on" in before.stderr
    with service:
        assert health(service.environment).stdout == "alive\n"


@pytest.fixture
def answering() -> Iterator[ThreadingHTTPServer]:
    """A server that answers like a service that is alive and not ready."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            details = [{"field": "redis", "message": "Connection\x1b[31m refused"}]
            error = {"message": "Not ready: redis", "details": details}
            self.send_response(200 if self.path == "/livez" else 503)
            self.end_headers()
            self.wfile.write(json.dumps({"success": False, "error": error}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_health_names_what_is_not_ready(answering: ThreadingHTTPServer) -> None:
    """A process that cannot work is alive; --ready fails with the reasons that the service gives, in one line."""
    environment = inherited() | {"PORT": str(answering.server_port)}
    assert health(environment).returncode == 0
    done = health(environment, "--ready")
    assert (done.returncode, done.stderr) == (1, "Not ready: redis (redis: Connection refused)\n")


def test_health_gives_up_on_a_process_that_does_not_answer() -> None:
    """A process that hangs fails within the given time; a server that does not speak HTTP fails, too."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = inherited() | {"PORT": str(silent.getsockname()[1])}
        done = health(environment, "--timeout", "0.2")
        assert done.returncode == 1 and "TimeoutError" in done.stderr

        def answer() -> None:
            for _ in range(2):
                connection, _ = silent.accept()
                with connection:
                    connection.sendall(b"+PONG\r\n\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        done = health(environment)
        answering.join()
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1


def test_health_says_which_setting_is_wrong() -> None:
    """Wrong settings give exit code 1 here, because container engines reserve 2."""
    done = health(inherited() | {"HOST": "0.0.0.0", "PORT": "http"})
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "PORT" in done.stderr


def test_health_imports_nothing_heavy() -> None:
    """The command starts every half a minute, so it does not import the libraries of the service."""
    code = (
        "import sys\n"
        "from pipeline.start import main\n"
        "sys.argv = ['pipeline', 'health']\n"
        "try: main()\n"
        "except SystemExit: print(*sys.modules)"
    )
    environment = inherited() | {"PORT": str(free_port())}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "pipeline.commands.health" in done.stdout.split()
    assert HEAVY.isdisjoint(done.stdout.split())
