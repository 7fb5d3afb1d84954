"""Uploads with common HTTP clients to the real service: each client sends a photo and reads the reply.

Clients in other languages are programs that tests/clients/install builds; docs/clients.md has the table.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests
import urllib3

from tests import requirements
from tests.chromium import BROWSER, browsing
from tests.factories import make_image, make_token
from tests.requirements import require
from tests.service import ROOT, Service

UPLOAD = "/api/assets/analyze-queue"
FILENAME = "schöner Schuh 👟 100%.png"
NO_CATEGORY = "-"
PNG = make_image("PNG")


@dataclass(frozen=True)
class Case:
    """One upload and the reply to it.

    size: of the photo in bytes, or 0 for a small one.
    reason: the text that the client must be able to read in the reply.
    """

    size: int
    category: str
    has_good_token: bool
    status: int
    reason: str


CASES = {
    "a photo with an odd name": Case(0, "lego", True, 202, '"status": "processing"'),
    "9 MB": Case(9 * 1024 * 1024, "camera", True, 202, '"status": "processing"'),
    "no category": Case(0, NO_CATEGORY, True, 400, "Must be one of: sneaker, lego, camera, other"),
    "11 MB": Case(11 * 1024 * 1024, "lego", True, 400, "Maximum file size is 10MB"),
    "30 MB": Case(30 * 1024 * 1024, "lego", True, 400, "Maximum file size is 10MB"),
    "9 MB with a bad token": Case(9 * 1024 * 1024, "lego", False, 401, "Invalid token"),
}


@dataclass(frozen=True)
class Sent:
    """One upload as a client gets it to send."""

    client: str
    url: str
    token: str
    category: str
    file: Path

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def fields(self) -> dict[str, str]:
        return {} if self.category == NO_CATEGORY else {"category": self.category}


Answer = tuple[int, str]
Client = Callable[[list[Sent]], list[Answer]]


def program(name: str) -> Client:
    """Return a client that is a program of tests/clients; one process sends all uploads."""

    def send_all(uploads: list[Sent]) -> list[Answer]:
        command = requirements.program(name, hint="tests/clients/install FOLDER builds it")
        lines = [
            "\t".join([sent.client, sent.url, sent.token, sent.category, str(sent.file), FILENAME]) for sent in uploads
        ]
        standard_input = "".join(f"{line}\n" for line in lines).encode()
        ran = subprocess.run([command], input=standard_input, capture_output=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        printed = [line.split("\t", 3) for line in ran.stdout.decode().splitlines()]
        return [(int(status), body) for _client, _version, status, body in printed]

    return send_all


def each(send: Callable[[Sent], Answer]) -> Client:
    """Return a client that sends one upload after the other."""
    return lambda uploads: [send(sent) for sent in uploads]


def curl(*options: str, is_form: bool = True) -> Client:
    """Return curl with these options, which sends its own form, or one that the test makes."""

    def send(sent: Sent) -> Answer:
        command = [requirements.program("curl"), "--silent", "--show-error", "--noproxy", "*", *options]
        command += ["--write-out", "\n%{http_code}"]
        command += ["--header", f"Authorization: Bearer {sent.token}"]
        standard_input = b""
        if is_form:
            for name, value in sent.fields.items():
                command += ["--form", f"{name}={value}"]
            command += ["--form", f'image=@{sent.file};type=image/png;filename="{FILENAME}"']
        else:
            command += ["--header", "Content-Type: multipart/form-data; boundary=by-hand"]
            standard_input = form_by_hand(sent, "by-hand")
        ran = subprocess.run([*command, sent.url], input=standard_input, capture_output=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        body, _, status = ran.stdout.decode().rpartition("\n")
        return int(status), body

    return each(send)


def form_by_hand(sent: Sent, boundary: str, *, is_dio: bool = False) -> bytes:
    """Return a form as a script writes it, or as the HTTP client dio of Flutter writes it: in small letters."""
    disposition, kind = ("content-disposition", "content-type") if is_dio else ("Content-Disposition", "Content-Type")
    body = b""
    for name, value in sent.fields.items():
        body += f'--{boundary}\r\n{disposition}: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    body += f'--{boundary}\r\n{disposition}: form-data; name="image"; filename="{FILENAME}"\r\n'.encode()
    body += f"{kind}: image/png\r\n\r\n".encode() + sent.file.read_bytes()
    return body + f"\r\n--{boundary}--\r\n".encode()


def dio(sent: Sent) -> Answer:
    boundary = "--dio-boundary-0123456789"
    headers = sent.headers | {"content-type": f"multipart/form-data; boundary={boundary}"}
    reply = httpx.post(sent.url, headers=headers, content=form_by_hand(sent, boundary, is_dio=True), timeout=30)
    return reply.status_code, reply.text


def with_requests(sent: Sent) -> Answer:
    with sent.file.open("rb") as photo:
        files = {"image": (FILENAME, photo, "image/png")}
        reply = requests.post(sent.url, headers=sent.headers, data=sent.fields, files=files, timeout=30)
    return reply.status_code, reply.text


def with_httpx(sent: Sent) -> Answer:
    with sent.file.open("rb") as photo:
        files = {"image": (FILENAME, photo, "image/png")}
        reply = httpx.post(sent.url, headers=sent.headers, data=sent.fields, files=files, timeout=30)
    return reply.status_code, reply.text


def with_urllib3(sent: Sent) -> Answer:
    fields: dict[str, Any] = {**sent.fields, "image": (FILENAME, sent.file.read_bytes(), "image/png")}
    with urllib3.PoolManager(retries=False) as pool:
        reply = pool.request("POST", sent.url, headers=sent.headers, fields=fields)
        return reply.status, reply.data.decode()


def with_aiohttp(sent: Sent) -> Answer:
    sockets: list[socket.socket] = []

    def make_socket(info: Any) -> socket.socket:
        sockets.append(socket.socket(*info[:3]))
        return sockets[-1]

    async def send() -> Answer:
        form = aiohttp.FormData(sent.fields)
        photo = BytesIO(sent.file.read_bytes())
        form.add_field("image", photo, filename=FILENAME, content_type="image/png")
        connector = aiohttp.TCPConnector(socket_factory=make_socket)
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.post(sent.url, headers=sent.headers, data=form) as reply:
                answer = reply.status, await reply.text()
        # A connection whose request was refused before its end is closed a little later than its session.
        while any(each.fileno() != -1 for each in sockets):
            await asyncio.sleep(0.01)
        return answer

    return asyncio.run(send())


def with_chromium(uploads: list[Sent]) -> list[Answer]:
    """Upload from a page of the service, with `File` objects as `<input type=file>` makes them."""
    require(BROWSER is not None, "needs Chromium")
    scripts = [
        f"""(async () => {{
            const form = new FormData();
            for (const [name, value] of Object.entries({json.dumps(sent.fields)})) form.append(name, value);
            const bytes = new Uint8Array({sent.file.stat().st_size});
            bytes.set({list(PNG)});
            form.append("image", new File([bytes], {json.dumps(FILENAME)}, {{ type: "image/png" }}));
            const headers = {json.dumps(sent.headers)};
            const reply = await fetch("{sent.url}", {{ method: "POST", headers, body: form }});
            return [reply.status, await reply.text()];
        }})()"""
        for sent in uploads
    ]

    async def send_all() -> list[Answer]:
        async with browsing(uploads[0].url.removesuffix(UPLOAD) + "/") as page:
            return [tuple(await page.evaluate(script)) for script in scripts]

    return asyncio.run(send_all())


CLIENTS: dict[str, Client] = {
    "curl": curl(),
    "curl, HTTP/1.0": curl("--http1.0"),
    "curl, Expect": curl("--header", "Expect: 100-continue"),
    "curl, chunked": curl("--header", "Transfer-Encoding: chunked"),
    "curl, form by hand": curl("--data-binary", "@-", is_form=False),
    "curl, form by hand, chunked": curl("--upload-file", "-", "--request", "POST", is_form=False),
    "Chromium": with_chromium,
    **dict.fromkeys(
        ("node fetch", "undici", "axios", "axios with form-data", "form-data over http, chunked"),
        program("photo-client-node"),
    ),
    **dict.fromkeys(
        ("Java HttpClient", "Java HttpClient, expectContinue", "OkHttp", "Retrofit"), program("photo-client-java")
    ),
    **dict.fromkeys(("Go net/http", "Go net/http, Expect"), program("photo-client-go")),
    "Python requests": each(with_requests),
    "Python httpx": each(with_httpx),
    "Python aiohttp": each(with_aiohttp),
    "Python urllib3": each(with_urllib3),
    "Flutter dio (its bytes)": each(dio),
}

# Java's client, at least to version 17, waits for "100 Continue" without end when the reply is a refusal instead.
HANGS = {("Java HttpClient, expectContinue", "30 MB"), ("Java HttpClient, expectContinue", "9 MB with a bad token")}


def cases_of(client: str) -> dict[str, Case]:
    return {name: case for name, case in CASES.items() if (client, name) not in HANGS}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, silent_ai_service: str) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service"), silent_ai_service) as service:
        yield service
        service.kill()  # a stop would wait for its jobs, which the AI service never answers


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A photo of each size."""
    folder = tmp_path_factory.mktemp("photos")
    photos = {size: folder / f"{size}.png" for size in {case.size for case in CASES.values()}}
    for size, file in photos.items():
        file.write_bytes(PNG.ljust(size, b"\0"))
    return photos


@pytest.mark.fault("U2")
@pytest.mark.fault("U3")
@pytest.mark.fault("U8")
@pytest.mark.parametrize("client", CLIENTS)
def test_client_uploads_and_reads_its_answers(service: Service, photos: dict[int, Path], client: str) -> None:
    """Small and large photos are accepted; after a refusal the client reads the reason and has no connection error."""
    uploads = []
    for case in cases_of(client).values():
        token = make_token() if case.has_good_token else "not.a.token"
        uploads.append(Sent(client, service.url + UPLOAD, token, case.category, photos[case.size]))

    answers = dict(zip(cases_of(client), CLIENTS[client](uploads), strict=True))

    shown = {name: (status, CASES[name].reason in body or body[:300]) for name, (status, body) in answers.items()}
    assert shown == {name: (case.status, True) for name, case in cases_of(client).items()}


def test_table_of_clients_matches_these_tests() -> None:
    """docs/clients.md has a row for each client, a column for each case, and the status that is asserted here."""
    lines = [line for line in (ROOT / "docs" / "clients.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    heading, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert heading[2:] == list(CASES)
    assert {row[0]: row[2:] for row in rows} == {
        client: [str(case.status) if name in cases_of(client) else "hangs" for name, case in CASES.items()]
        for client in CLIENTS
    }


@pytest.mark.fault("U10")
def test_socket_of_an_old_version_gets_a_426_in_the_envelope(service: Service) -> None:
    """A WebSocket handshake with a draft version gets a 426 that names the version of the service."""
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg=="}
    reply = httpx.get(service.url + "/ws", headers=headers | {"Sec-WebSocket-Version": "8"})
    assert (reply.status_code, reply.headers["Sec-WebSocket-Version"]) == (426, "13")
    assert reply.json() == {"success": False, "error": {"code": "VALIDATION_ERROR", "message": "Upgrade Required"}}
