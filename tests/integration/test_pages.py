"""How the pages are served, and how a user signs in. The tests of their contents are in tests/browser/."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline import pages
from pipeline.auth import make_token as sign
from pipeline.settings import Settings
from tests.contract import contracts
from tests.factories import SECRET, make_token
from tests.scripts import NODE
from tests.service import ROOT, AiService, Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with AiService() as ai_service, Service(tmp_path_factory.mktemp("pages"), ai_service.url) as service:
        yield service


def check_reply(reply: httpx.Response, expected: int = 200) -> Any:
    """Check the reply against the contract and return its data."""
    assert reply.status_code == expected, reply.text
    contracts.check_reply(reply.request.method, reply.request.url.path, expected, reply.json(), reply.headers)
    return reply.json().get("data")


def link(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command `link` with the settings of the service."""
    return subprocess.run(
        [sys.executable, "run.py", "link", *arguments],
        cwd=ROOT,
        env=service.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("path", ["/", "/console", "/console/jobs/ai-processing:0123"])
def test_pages_have_a_strict_content_security_policy(service: Service, path: str) -> None:
    """Only code of this service runs, no other page can frame it, and no link sends its address to another site."""
    reply = httpx.get(service.url + path)
    policy = reply.headers["Content-Security-Policy"]
    assert reply.status_code == 200 and reply.headers["Content-Type"] == "text/html; charset=UTF-8"
    assert "unsafe" not in policy and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy and "script-src 'self';" in policy
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    # A page that was opened at localhost also shows images at 127.0.0.1.
    assert f"img-src 'self' https: {service.url} blob: data:;" in policy


def test_page_files_are_cached_for_ever_and_compressed(service: Service) -> None:
    """A file of this version never changes. A page of another version gets the same file, without caching."""
    path = f"{service.url}/pages/{pages.version()}/index.js"
    plain = httpx.get(path, headers={"Accept-Encoding": "identity"})
    with httpx.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as packed:
        raw = b"".join(packed.iter_raw())
    assert gzip.decompress(raw) == plain.content == pages.files()["index.js"].content
    assert packed.headers["Content-Encoding"] == "gzip" and "Accept-Encoding" in plain.headers["Vary"]
    assert "immutable" in plain.headers["Cache-Control"]
    repeated = httpx.get(path, headers={"Accept-Encoding": "gzip", "If-None-Match": packed.headers["Etag"]})
    assert (repeated.status_code, repeated.content) == (304, b"")
    other = httpx.get(f"{service.url}/pages/0123456789ab/index.js")
    assert (other.content, other.headers["Cache-Control"]) == (plain.content, "no-cache")


def test_modules_are_served_without_comments(tmp_path: Path) -> None:
    """Each module has the lines of its source except the comments."""
    for path, file in pages.files().items():
        folder = "clients/js" if path.startswith("client/") else "pipeline/pages"
        source = ROOT / folder / path.removeprefix("client/")
        if not path.endswith(".js"):
            assert file.content == source.read_bytes()
            continue
        text, served = source.read_text(), file.content.decode()
        assert served.count("\n") == text.count("\n") and "/**" not in served, path
        code = [line for line in text.splitlines() if not re.match(r"\s*(/\*\*|\*|//)", line) and "/**" not in line]
        assert set(code) <= set(served.splitlines()), path
        (tmp_path / "module.mjs").write_text(served)
        if NODE:
            subprocess.run([NODE, "--check", tmp_path / "module.mjs"], check=True)


@pytest.mark.parametrize("path", ["x/../../settings.py", "x/%2e%2e/__init__.py", "x/index.html", "x/", "x/none.js"])
def test_other_files_are_not_served_as_page_files(service: Service, path: str) -> None:
    """No other file of the package or of the disk is served."""
    assert httpx.get(f"{service.url}/pages/{path}").status_code == 404


def test_link_makes_a_session_that_can_be_prolonged(service: Service) -> None:
    """The link has a token for minutes; the page exchanges it for one for hours. No token is in the log."""
    address = link(service, "--console").stdout.strip()
    token = address.removeprefix(f"{service.url}/console#token=")
    headers = {"Authorization": f"Bearer {token}"}
    shown = check_reply(httpx.get(f"{service.url}/api/session", headers=headers))
    made = check_reply(httpx.post(f"{service.url}/api/session", headers=headers))
    assert (made["userId"], made["role"], shown["token"]) == ("operator", "admin", token)
    assert made["expiresAt"] > shown["expiresAt"]
    prolonged = check_reply(
        httpx.post(f"{service.url}/api/session", headers={"Authorization": f"Bearer {made['token']}"})
    )
    assert prolonged["role"] == "admin"
    assert not any(text in json.dumps(service.lines) for text in (token, made["token"], prolonged["token"]))
    photos = link(service, "--photos").stdout.strip().partition("#token=")[2]
    of_photos = check_reply(httpx.get(f"{service.url}/api/session", headers={"Authorization": f"Bearer {photos}"}))
    assert (of_photos["userId"], of_photos["role"]) == ("demo", None)


def test_other_tokens_are_not_prolonged(service: Service) -> None:
    """A token that was not made for a page is not prolonged, and a page of another origin makes no session."""
    refused = httpx.post(f"{service.url}/api/session", headers={"Authorization": f"Bearer {make_token()}"})
    check_reply(refused, expected=409)
    of_page = sign(Settings(jwt_secret=SECRET), "ann", None, 60, is_of_page=True)
    headers = {"Authorization": f"Bearer {of_page}", "Origin": "https://evil.example"}
    check_reply(httpx.post(f"{service.url}/api/session", headers=headers), expected=403)
    check_reply(httpx.post(f"{service.url}/api/session"), expected=401)


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({}, "link"),
        ({"HOST": "0.0.0.0"}, "token"),
        ({"PUBLIC_URL": "https://photos.example.com"}, "token"),
        ({"LOGIN_URL": "https://login.example.com/in"}, "login"),
    ],
)
def test_about_names_the_way_to_sign_in(tmp_path: Path, environment: dict[str, str], kind: str) -> None:
    """Links are for a service on the own machine. A service for others names its login page or asks for a token."""
    with Service(tmp_path, "http://127.0.0.1:9", **environment) as service:
        about = check_reply(httpx.get(f"{service.url}/api/about"))
        printed = link(service)
    assert about["signIn"] == {"kind": kind, "loginUrl": environment.get("LOGIN_URL")}
    assert about["categories"] == ["sneaker", "lego", "camera", "other"]
    assert bool(re.search(r"/#token=\S+\n.*/console#token=\S+", printed.stdout)) == (printed.returncode == 0)
    assert (printed.returncode == 0) == (not environment.keys() & {"HOST", "PUBLIC_URL"})


def test_readers_may_read_but_not_change(service: Service) -> None:
    """A change with a token of the role operator-read is refused, and so is an admin's change from another origin."""
    reader = {"Authorization": f"Bearer {make_token(role='operator-read')}"}
    admin = {"Authorization": f"Bearer {make_token(role='admin')}", "Origin": "https://evil.example"}
    check_reply(httpx.get(f"{service.url}/api/queue/failed", headers=reader))
    for headers in (reader, admin):
        check_reply(httpx.post(f"{service.url}/api/queue/pause", headers=headers), expected=403)
    without_origin = {"Authorization": admin["Authorization"], "Sec-Fetch-Site": "cross-site"}
    check_reply(httpx.post(f"{service.url}/api/queue/pause", headers=without_origin), expected=403)
