"""Texts with terminal control characters, from a plugin or a server: none reaches an asset, an event or a screen."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.client import Client
from tests.factories import make_image, make_token
from tests.packages import install
from tests.service import ROOT, Service

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Control characters for colours, title, screen and direction, between the words that must be shown.
UNSAFE = "one \x1b[31m\x1b]0;owned\x07two\x1b[2J \x9b31mthree\r\x08\u202efour"
WORDS = "one two three four"
PLUGIN = f"""
from pipeline.errors import DependencyUnavailable, PermanentJobError, RetryableJobError
from pipeline.hooks import Analysis, Attribute, hookimpl

UNSAFE = {UNSAFE!r}

class Unsafe:
    def analyze(self, request):
        if request.category == "lego":
            raise PermanentJobError(UNSAFE)
        if request.category == "camera":
            raise RetryableJobError(UNSAFE, max_attempts=1)
        if request.category == "other":
            raise ValueError(UNSAFE)
        return Analysis(*[Attribute(UNSAFE, 0.9)] * 3)

    def check(self):
        raise DependencyUnavailable(UNSAFE) from OSError(UNSAFE)

class UnsafeStorage:
    def save(self, public_id, file, content_type):
        return "https://images.example/" + public_id

    def open(self, public_id):
        raise FileNotFoundError(public_id)

    def delete(self, public_id):
        pass

    def check(self):
        raise DependencyUnavailable(UNSAFE) from OSError(UNSAFE)

@hookimpl
def register_ai_providers(settings):
    yield "unsafe", Unsafe
    yield UNSAFE, Unsafe

@hookimpl
def register_storage_backends(settings):
    yield "unsafe", UnsafeStorage
"""
BROKEN = f"raise RuntimeError({UNSAFE!r})"


@pytest.fixture
def unsafe(tmp_path: Path) -> dict[str, str]:
    """The settings of a service whose plugins return such texts."""
    packages = install(tmp_path / "packages", unsafe=PLUGIN, broken=BROKEN)
    return packages | {"AI_PROVIDER": "unsafe", "STORAGE_BACKEND": "unsafe", "JOB_ATTEMPTS": "1"}


def run(*arguments: str, **environment: str) -> str:
    """Return all that a command prints, in a window wide enough for tables."""
    command = [sys.executable, "run.py", *arguments]
    ran = subprocess.run(command, cwd=ROOT, env=os.environ | {"COLUMNS": "400"} | environment, capture_output=True)
    return (ran.stdout + ran.stderr).decode()


def assert_plain(text: str) -> None:
    """Check that the text has no control characters."""
    assert (found := CONTROL.search(text)) is None, repr(text[max(0, found.start() - 60) : found.end() + 60])


async def events_of_categories(service: Service) -> dict[str, Any]:
    """Upload a photo of each category and return its event."""
    async with Client(service.url, make_token()) as client:
        await client.listen()
        events, found = client.events(), {}
        for category in ("sneaker", "lego", "camera", "other"):
            await asyncio.to_thread(service.upload, category=category)
            found[category] = await asyncio.wait_for(anext(events), 20)
        return found


@pytest.mark.fault("P11")
def test_texts_of_plugins_have_no_control_characters(tmp_path: Path, unsafe: dict[str, str]) -> None:
    """Assets, events, /readyz, dead letters and the output of commands have plain words only."""
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(make_image())
    with Service(tmp_path / "data", **unsafe) as service:
        events = asyncio.run(events_of_categories(service))
        assert {events["sneaker"]["aiMetadata"][name]["value"] for name in ("brand", "model", "colorway")} == {WORDS}
        assert events["lego"]["error"] == WORDS
        assert events["camera"]["error"] == f"{WORDS} after 1 attempt"
        assert events["other"]["error"] == "AI service failed after 1 attempt"
        for event in events.values():
            assert_plain(json.dumps(service.asset(event["assetId"]), ensure_ascii=False).replace("\\", "\x00"))
        ready = httpx.get(f"{service.url}/readyz").text
        assert WORDS in ready and "\\u00" not in ready

        reached = {"PIPELINE_URL": service.url}
        as_admin = reached | {"PIPELINE_ADMIN_TOKEN": make_token("boss", role="admin")}
        as_user = reached | {"PIPELINE_TOKEN": make_token()}
        shown = {
            "failed ls": run("failed", "ls", **as_admin),
            "submit, refused": run("submit", str(photo), "--category", "lego", "--watch", **as_user),
            "submit, found": run("submit", str(photo), "--category", "sneaker", "--watch", "--json", **as_user),
            "plugins": run("plugins", **service.environment),
            "check": run("check", "--analyze", **service.environment),
            "check, JSON": run("check", "--json", **service.environment),
            "wrong name": run("check", **service.environment | {"AI_PROVIDER": "unsaffe"}),
        }
        for command, output in shown.items():
            assert WORDS in output, (command, output)
            assert_plain(output)


REFUSING = f"""
import os
from pipeline.errors import NotFound, PipelineError, ValidationError
from pipeline.hooks import hookimpl

UNSAFE = {UNSAFE!r}
DETAIL = {{"field": UNSAFE, "message": UNSAFE}}

class Odd(PipelineError):
    http_status = 302

@hookimpl
def validate_upload(upload):
    details = {{"lego": [DETAIL, 1, {{"field": "image"}}], "camera": UNSAFE}}.get(upload.category)
    raise ValidationError(None if upload.category == "camera" else UNSAFE, details=details)

@hookimpl
def register_routes(routes):
    routes.add("GET", "/gone", gone, role="public")
    routes.add("GET", "/odd", odd, role="public")

async def gone(request):
    raise NotFound(UNSAFE, details=[DETAIL])

async def odd(request):
    raise Odd(UNSAFE)
"""


@pytest.mark.fault("P11")
def test_refusals_of_plugins_follow_the_contract(tmp_path: Path) -> None:
    """The errors of a filter or a route reach the client as plain words in the envelope, whatever the plugin raises."""
    error, detail = {"code": "VALIDATION_ERROR", "message": WORDS}, {"field": WORDS, "message": WORDS}
    packages = install(tmp_path / "packages", refusing=REFUSING)
    with Service(tmp_path / "data", "http://127.0.0.1:1", **packages) as service:
        assert service.upload(category="sneaker").json()["error"] == error
        assert service.upload(category="lego").json()["error"] == error | {"details": [detail]}
        assert service.upload(category="camera").json()["error"] == error | {"message": "Bad Request"}
        gone = httpx.get(f"{service.url}/plugins/refusing/gone")
        assert gone.json() == {"success": False, "error": {"code": "NOT_FOUND", "message": WORDS, "details": [detail]}}
        odd = httpx.get(f"{service.url}/plugins/refusing/odd")
        assert (odd.status_code, odd.json()["error"]["code"]) == (500, "INTERNAL_ERROR")


@contextmanager
def unsafe_server() -> Iterator[str]:
    """Yield the address of a server that answers like the service, with control characters in every text."""
    job = dict.fromkeys(("jobId", "assetId", "reason", "notifier", "attempts", "failedAt"), UNSAFE)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {"success": True, "data": {"items": [job], "nextCursor": None}})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            detail = {"field": UNSAFE, "message": UNSAFE}
            self.answer(400, {"success": False, "error": {"code": "X", "message": UNSAFE, "details": [detail]}})

        do_DELETE = do_POST

        def answer(self, status: int, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.fault("P11")
def test_commands_print_no_control_characters_of_a_server(tmp_path: Path) -> None:
    """The answers of the server at any address are printed without them, and so are names of files."""
    photo = tmp_path / "a\x1b[31m\u202eb.jpg"
    photo.write_bytes(make_image())
    with unsafe_server() as url:
        reached = {"PIPELINE_URL": url, "PIPELINE_TOKEN": make_token(), "PIPELINE_ADMIN_TOKEN": make_token()}
        for command in (
            ("failed", "ls"),
            ("failed", "ls", "--json"),
            ("failed", "retry", UNSAFE.replace("\x00", "")),
            ("queue", "pause"),
            ("submit", str(photo), "--category", "lego"),
        ):
            output = run(*command, **reached)
            assert "four" in output, (command, output)
            assert_plain(output)
