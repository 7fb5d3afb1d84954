"""The Python client as a separate distribution, installed in an environment without the service."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.factories import make_image, make_token
from tests.requirements import require
from tests.service import AiService, Service

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "clients/python"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
# The client, aiohttp and the packages that aiohttp requires; typing_extensions only with old versions of Python.
ALLOWED = {
    *("ai_queue_pipeline_client", "aiohttp", "aiohappyeyeballs", "aiosignal", "attrs", "frozenlist", "idna"),
    *("multidict", "propcache", "typing_extensions", "yarl"),
}
PROGRAM = '''
"""Uploads a photo and prints its event: with asyncio when the last argument is "async"."""
import asyncio
import sys
from pathlib import Path

from pipeline_client import BlockingClient, Client

url, token, photo, way = sys.argv[1:]


async def with_asyncio() -> None:
    async with Client(url, token) as client:
        await client.listen()
        receipt = await client.upload(Path(photo), "camera")
        async for event in client.events():
            if event["assetId"] == receipt["assetId"]:
                print(event["status"], client.transport)
                return


def without() -> None:
    with BlockingClient(url, token) as client:
        client.listen()
        receipt = client.upload(photo, "camera")
        for event in client.events(timeout_seconds=60):
            if event["assetId"] == receipt["assetId"]:
                print(event["status"], client.transport)
                return


if way == "async":
    asyncio.run(with_asyncio())
else:
    without()
'''


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has only the client.

    The wheel is built from the sdist, and the sdist from a copy of clients/python alone.
    """
    folder = tmp_path_factory.mktemp("client")
    unwanted = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(SOURCES, folder / "sources", ignore=unwanted)
    build = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"
    run = [sys.executable, "-c", build, str(folder)]
    subprocess.run(run, cwd=folder / "sources", check=True, stdout=subprocess.DEVNULL)
    (sdist,) = folder.glob("*.tar.gz")
    make = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(sdist)]
    subprocess.run(make, check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv/bin/python"
    install = [*PIP, "--python", str(python), "install", "--retries", "1", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True)
    require(done.returncode == 0, f"needs a package index for aiohttp: {done.stderr[-300:]}")
    return python


@pytest.mark.fault("O11")
def test_client_installs_only_the_packages_it_needs(python: Path) -> None:
    """An environment with the client has no packages except the client, aiohttp and its requirements."""
    names = [sys.executable, "-m", "pip", "--python", str(python), "list", "--format", "json"]
    listed = subprocess.run(names, capture_output=True, check=True)
    assert {each["name"].replace("-", "_") for each in json.loads(listed.stdout)} <= ALLOWED


@pytest.mark.fault("O11")
@pytest.mark.parametrize("way", ["async", "blocking"])
def test_installed_client_gets_the_event(python: Path, tmp_path: Path, ai_service: AiService, way: str) -> None:
    """A user's program, with asyncio and without, uploads a photo to the real service and gets its event."""
    program, photo = tmp_path / "program.py", tmp_path / "photo.jpg"
    program.write_text(PROGRAM)
    photo.write_bytes(make_image())
    with Service(tmp_path / "data", ai_service.url) as service:
        command = [str(python), "-W", "error", str(program), service.url, make_token(), str(photo), way]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("active socket\n", "")


@pytest.mark.fault("O11")
def test_installed_client_is_typed(python: Path, tmp_path: Path) -> None:
    """A user's program passes mypy in strict mode, and a program with a type error does not."""
    (tmp_path / "good.py").write_text(PROGRAM)
    (tmp_path / "bad.py").write_text("from pipeline_client import Client\nClient(1, 'a token')\n")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "--cache-dir", str(tmp_path)]
    good = subprocess.run([*mypy, "good.py"], cwd=tmp_path, capture_output=True, text=True)
    assert good.returncode == 0, good.stdout
    bad = subprocess.run([*mypy, "bad.py"], cwd=tmp_path, capture_output=True, text=True)
    assert "[arg-type]" in bad.stdout, bad.stdout


@pytest.mark.parametrize("path", sorted((SOURCES / "pipeline_client").glob("*.py")), ids=lambda path: path.name)
def test_client_imports_nothing_of_the_service(path: Path) -> None:
    """The client imports only the standard library, aiohttp and its own files, by relative names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1
            continue
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            assert str(name).split(".")[0] in {*sys.stdlib_module_names, "aiohttp"}, name


def test_service_uses_the_files_of_the_client() -> None:
    """`pipeline.client` is a link to the files of the client, not a copy."""
    assert (ROOT / "pipeline/client").resolve() == SOURCES / "pipeline_client"
    assert (SOURCES / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
