"""Clients whose user sends more photos than allowed: they wait, continue by themselves, and lose no photo."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipeline.client import Client
from tests.browser.photo_page import choose, photo_page, photos, until_rows
from tests.factories import make_token
from tests.scripts import node
from tests.service import ROOT, AiService, Service, inherited

# Twelve in a minute: 24 at once, and then one every five seconds.
PER_MINUTE, COUNT = 12, 25


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("limited")
    with AiService() as ai, Service(folder, ai.url, UPLOADS_PER_MINUTE_PER_USER=str(PER_MINUTE)) as service:
        yield service


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return photos(tmp_path_factory.mktemp("photos"), COUNT)


def count_assets(service: Service, sub: str) -> int:
    """Return how many assets the user has."""
    reply = httpx.get(f"{service.url}/api/assets?limit=100", headers=service.headers(sub), timeout=30)
    return len(reply.json()["data"]["items"])


async def send_at_once(service: Service, files: list[Path]) -> list[str]:
    """Send all files with one Python client, and return its notices."""
    notices: list[str] = []
    async with Client(service.url, make_token("python"), on_notice=notices.append) as client:
        receipts = await asyncio.gather(*(client.upload(path, "lego") for path in files))
    assert len({receipt["assetId"] for receipt in receipts}) == COUNT
    return notices


async def submit(service: Service, files: list[Path]) -> str:
    """Send all files with the command `submit`, and return what it prints."""
    command = [sys.executable, "run.py", "submit", *map(str, files), "--category", "lego"]
    environment = inherited() | {"PIPELINE_URL": service.url, "PIPELINE_TOKEN": make_token("command")}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe)
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    return (stdout + stderr).decode()


async def send_from_node(service: Service, files: list[Path]) -> int:
    """Send all files with one JavaScript client, and return how many different assets it got."""
    names = [str(path) for path in files]
    async with node() as script:
        code = f"""
          const {{ readFile }} = await import("node:fs/promises");
          const blobs = await Promise.all({names}.map(async (name) => new Blob([await readFile(name)])));
          globalThis.client = new PipelineClient({{ url: "{service.url}", token: "{make_token('node')}" }});
          const sent = blobs.map((blob) => client.upload(blob, {{ category: "lego" }}));
          return new Set((await Promise.all(sent)).map(({{ assetId }}) => assetId)).size;
        """
        return int(await script._run(code))


@pytest.mark.fault("O19")
@pytest.mark.gen_test(timeout=120)
async def test_programs_wait_and_lose_no_photo(service: Service, files: list[Path]) -> None:
    """The Python client and `submit` say that they wait. They and the JavaScript client send all photos."""
    notices, printed, sent = await asyncio.gather(
        send_at_once(service, files), submit(service, files), send_from_node(service, files)
    )
    assert notices == ["Too many uploads in a short time: waiting until the limit allows the next upload"]
    assert notices[0] in printed and sent == COUNT
    assert [await asyncio.to_thread(count_assets, service, sub) for sub in ("python", "command", "node")] == [COUNT] * 3
    limited = {line["userId"] for line in service.find("rate_limited", limit="uploads")}
    assert limited == {"python", "command", "node"}


@pytest.mark.gen_test(timeout=120)
async def test_page_shows_waiting_photos_and_sends_them(service: Service, files: list[Path]) -> None:
    """Photos over the limit are "Waiting", with the reason and the time, and are sent without a click."""
    async with photo_page(service.url, "page") as page:
        await choose(page, *files)
        # Only rows near the screen are there; the last photos are the ones that wait.
        reason = "Too many uploads in a short time."
        waits = f"rows.some(({{badge, text}}) => badge === 'Waiting' && text.startsWith('{reason}'))"
        await until_rows(page, f"(scrollTo(0, document.documentElement.scrollHeight), {waits})")
        while await asyncio.to_thread(count_assets, service, "page") < COUNT:
            await asyncio.sleep(0.5)  # the page has nothing to show for an upload alone
        assert page.problems and all("429 (Too Many Requests)" in each for each in page.problems)
        page.problems.clear()
