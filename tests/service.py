"""The service as its users run it: a real process of run.py, with real sockets.

Tests wait for its log lines, which are JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from pipeline.settings import REMOVED
from tests.constants import command_with
from tests.factories import SECRET, make_image, make_token

ROOT = Path(__file__).parents[1]
WAIT_SECONDS = 60.0


def inherited() -> dict[str, str]:
    """Return the environment variables that processes of tests inherit: none of them is a setting."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}


class Service:
    """One process of the service with one data directory; `with` starts it and ends it.

    Many methods because it has the process, the log and an HTTP client: almost every test uses all three.
    """

    command: Sequence[str] = ("run.py",)
    checkout, python = ROOT, sys.executable

    def __init__(self, data_dir: Path, ai_service_url: str = "", **environment: str) -> None:
        """Start nothing yet.

        environment: the settings of the process, and constants of tests/constants.py by their names.
        """
        assert not environment.keys() & REMOVED.keys(), "a removed setting has no effect"
        self.data_dir = data_dir
        self.environment = (
            inherited()
            | {"PORT": "0", "DATA_DIR": str(data_dir), "JWT_SECRET": SECRET, "LOG_FORMAT": "json"}
            # Previews would change the counts of images and child processes in many tests.
            | {"AI_SERVICE_URL": ai_service_url, "PREVIEW_PROCESSES": "0"}
            # Tests and benchmarks send far more requests than people do, most of them as one user.
            | {"UPLOADS_PER_MINUTE_PER_USER": "0", "REQUESTS_PER_MINUTE_PER_USER": "0"}
            | environment
        )
        self._lines: list[dict[str, Any]] = []
        self._received_bytes = 0
        self._arrived = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_running:
            self.stop()
        if kind is None:
            assert self.errors() == [], "the service logged unexpected errors"

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process and wait until it accepts requests."""
        self.launch()
        self.url = self.wait_log("service_started")["address"]

    def launch(self) -> None:
        """Start the process and do not wait."""
        assert not self.is_running, "the process runs already"
        self._lines, self._received_bytes = [], 0
        constants = {name: value for name, value in self.environment.items() if "." in name}
        environment = {name: value for name, value in self.environment.items() if name not in constants}
        command = [self.python, *command_with(constants, self.command)]
        self._process = subprocess.Popen(command, cwd=self.checkout, env=environment, stderr=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def kill(self) -> None:
        """Kill the process with -9."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """End the process with SIGTERM and return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send the signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait until the process has ended and its log is read; return the exit code."""
        assert self._process is not None and self._reader is not None
        code = self._process.wait(WAIT_SECONDS)
        self._reader.join(WAIT_SECONDS)
        assert self._process.stderr is not None
        self._process.stderr.close()
        return code

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All log lines that the process has written so far, for example before its answer to a request."""
        with self._arrived:
            if self._process is not None and self._reader is not None and self._reader.is_alive():
                wanted = self._received_bytes + _unread_bytes(self._process)
                self._arrived.wait_for(lambda: self._received_bytes >= wanted, WAIT_SECONDS)
            return list(self._lines)

    def remove_lines(self, *removed: dict[str, Any]) -> None:
        """Remove these log lines; without an argument remove all."""
        with self._arrived:
            self._lines = [line for line in self.lines if removed and line not in removed]

    def wait_log(self, event: str, count: int = 1, **fields: Any) -> dict[str, Any]:
        """Return the count-th log line of that event with these fields; wait for it."""
        deadline = time.monotonic() + WAIT_SECONDS
        with self._arrived:
            while len(found := self.find(event, **fields)) < count:
                assert self._process is not None
                if self._process.poll() is not None and not (self._reader and self._reader.is_alive()):
                    raise AssertionError(f"the service ended before {event!r}: {self.lines[-5:]}")
                if not self._arrived.wait(min(1, max(0, deadline - time.monotonic()))) and time.monotonic() > deadline:
                    raise AssertionError(f"no {event!r} {fields} in the log: {self.lines[-5:]}")
        return found[count - 1]

    def find(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the log lines so far of that event with these fields."""
        wanted = {"event": event} | fields
        return [line for line in self.lines if wanted.items() <= line.items()]

    def errors(self) -> list[dict[str, Any]]:
        """Return the log lines at error level or worse."""
        return [line for line in self.lines if line.get("level") in ("error", "critical")]

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        descriptor, rest, chunk = process.stderr.fileno(), b"", b"-"
        while chunk:
            select.select([descriptor], [], [])
            with self._arrived:
                chunk = os.read(descriptor, 65536)
                self._received_bytes += len(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                self._lines += map(_parsed, lines if chunk or not rest else [rest])
                self._arrived.notify_all()

    def headers(self, sub: str = "user-1", **claims: Any) -> dict[str, str]:
        """Return the Authorization header of a user."""
        return {"Authorization": f"Bearer {make_token(sub, **claims)}"}

    def upload(
        self,
        sub: str = "user-1",
        *,
        category: str = "sneaker",
        image: bytes | None = None,
        headers: Mapping[str, str] = {},
        client: httpx.Client | None = None,
    ) -> httpx.Response:
        """Upload an image as that user."""
        return (client or httpx).post(  # type: ignore[union-attr]
            f"{self.url}/api/assets/analyze-queue",
            headers=self.headers(sub) | dict(headers),
            files={"image": ("photo.jpg", image or make_image(), "image/jpeg")},
            data={"category": category},
            timeout=WAIT_SECONDS,
        )

    def get(self, path: str, sub: str = "user-1", **params: Any) -> httpx.Response:
        """GET a path as that user."""
        return httpx.get(self.url + path, headers=self.headers(sub), params=params, timeout=WAIT_SECONDS)

    def wait_status(self, **counts: Any) -> dict[str, Any]:
        """Wait until the queue status has these counts and return it.

        A job may still be active after its last log line.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            status: dict[str, Any] = self.get("/api/assets/queue-status").json()["data"]
            if counts.items() <= status.items():
                return status
            assert time.monotonic() < deadline, f"{counts} not in {status}"
            time.sleep(0.01)

    def asset(self, asset_id: str, sub: str = "user-1") -> dict[str, Any]:
        """Return the asset as its owner sees it."""
        data: dict[str, Any] = self.get(f"/api/assets/{asset_id}", sub).json()["data"]
        return data


def _unread_bytes(process: subprocess.Popen[bytes]) -> int:
    assert process.stderr is not None
    (count,) = struct.unpack("i", fcntl.ioctl(process.stderr, termios.FIONREAD, bytes(4)))
    return int(count)


def _parsed(text: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        line = json.loads(text)
        if isinstance(line, dict):
            return line
    return {"event": "not JSON", "level": "error", "text": text.decode(errors="replace")}


class AiService:
    """The scriptable AI service of fake_ai_service.py in its own process."""

    def __init__(self, **behavior: Any) -> None:
        self._behavior = behavior
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> AiService:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the process; after `kill` it has the same address as before."""
        port = self.url.rpartition(":")[2] or "0"
        behavior = ("--behavior", json.dumps(self._behavior))
        command = [sys.executable, "-m", "tests.fake_ai_service", "--port", port, *behavior]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def kill(self) -> None:
        """Kill the process with -9."""
        assert self._process is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def configure(self, **behavior: Any) -> None:
        """Change the answers, for example replies=[{"status": 503, "times": 2}]; all names: fake_ai_service.py."""
        httpx.post(f"{self.url}/_script", json=behavior).raise_for_status()

    def calls(self) -> dict[str, int]:
        """Return the number of calls for each asset since the last start."""
        calls: dict[str, int] = httpx.get(f"{self.url}/_calls").json()
        return calls

    def state(self) -> dict[str, Any]:
        """Return {"calls", "active", "peak", "limited", "requests"}."""
        state: dict[str, Any] = httpx.get(f"{self.url}/_state").json()
        return state
