"""Clients that users generate from /openapi.json, by the commands of docs/clients.md, against the real service.

tests/clients_generated/install installs the generators and compilers. The programs that use the generated clients are
in the same folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.factories import make_image, make_token
from tests.integration.foreign_programs import run, tool
from tests.requirements import program
from tests.service import ROOT, AiService, Service

SOURCES = ROOT / "tests/clients_generated"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with AiService() as ai_service, Service(tmp_path_factory.mktemp("service"), ai_service.url) as service:
        yield service


def generate(folder: Path, url: str, generator: str) -> None:
    """Run the command of docs/clients.md that has this generator."""
    section = (ROOT / "docs/clients.md").read_text("utf-8").partition("## Clients that are generated")[2]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    (command,) = [line for line in block[1].splitlines() if generator in line.split()]
    run(folder, program("bash"), "-c", command, PIPELINE_URL=url)


def check(printed: str, listener: str) -> None:
    """Check what a program printed.

    listener: the key that shows that the program received the event of its photo.
    """
    report: dict[str, Any] = json.loads(printed)
    asset_id = report["assetId"]
    assert (report["code"], report["status"], report["brand"]) == ("VALIDATION_ERROR", "active", "Nike")
    assert asset_id in report["listed"] and asset_id in report[listener]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Return a photo whose bytes differ from those of all other tests."""
    (tmp_path / "photo.jpg").write_bytes(make_image())
    return tmp_path / "photo.jpg"


@pytest.mark.fault("O4")
def test_python_client_uploads_lists_and_polls(service: Service, tmp_path: Path, photo: Path) -> None:
    """openapi-python-client: the photo is a File, replies and refusals are typed, a long poll returns the result."""
    python = tool("openapi-python-client").parent / "python"
    generate(tmp_path, service.url, "openapi-python-client")
    shutil.copy(SOURCES / "upload.py", tmp_path)
    check(run(tmp_path, python, "upload.py", service.url, make_token("python"), photo), "listed")


@pytest.mark.fault("O4")
def test_typescript_client_uploads_lists_and_streams(service: Service, tmp_path: Path, photo: Path) -> None:
    """openapi-typescript with openapi-fetch: the strict compiler takes the program, Node runs it."""
    modules = tool("tsc").parents[2]
    assert modules.name == "node_modules"
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    generate(tmp_path, service.url, "openapi-typescript")
    shutil.copy(SOURCES / "upload.ts", tmp_path)
    strict = ("--strict", "--noUncheckedIndexedAccess", "--skipLibCheck", "--types", "node")
    modern = ("--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler")
    run(tmp_path, tool("tsc"), *strict, *modern, "upload.ts")
    check(run(tmp_path, program("node"), "upload.js", service.url, make_token("typescript"), str(photo)), "streamed")


@pytest.mark.fault("O4")
def test_go_client_uploads_lists_and_streams(service: Service, tmp_path: Path, photo: Path) -> None:
    """oapi-codegen: what it generates compiles, and the program on it runs."""
    tool("oapi-codegen")
    program("go")
    for name in ("go.mod", "go.sum", "upload.go"):
        shutil.copy(SOURCES / name, tmp_path)
    (tmp_path / "photos").mkdir()
    generate(tmp_path, service.url, "oapi-codegen")
    caches = {name: os.environ[name] for name in ("GOPROXY", "GOFLAGS", "GOCACHE", "GOPATH") if name in os.environ}
    run(tmp_path, program("go"), "build", "-o", "upload", ".", **caches)
    check(run(tmp_path, "./upload", service.url, make_token("go"), photo), "streamed")
