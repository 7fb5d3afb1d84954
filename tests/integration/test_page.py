"""What a person sees in a browser: the front page, and an event arriving on a socket. In a real Chromium."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.factories import make_token
from tests.parts import require
from tests.service import AiService, Service

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture
def service(tmp_path: Path, ai_service: AiService) -> Iterator[Service]:
    require(BROWSER is not None, "needs Chromium")
    with Service(tmp_path, ai_service.url) as service:
        yield service


class Page:
    """A tab, driven over the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._calls = 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a DevTools method and return its result."""
        self._calls += 1
        await self._socket.send_json({"id": self._calls, "method": method, "params": params})
        while (reply := await self._socket.receive_json()).get("id") != self._calls:
            pass
        assert "error" not in reply, reply
        result: dict[str, Any] = reply["result"]
        return result

    async def evaluate(self, script: str) -> Any:
        """Run JavaScript in the page, awaiting a promise, and return its JSON value."""
        result = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")


@asynccontextmanager
async def browsing(url: str) -> AsyncIterator[Page]:
    """Give a tab that has loaded the address."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        switches = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        switches += ["--disable-component-update", "--disable-sync", "--remote-debugging-port=0"]
        process = subprocess.Popen(
            [str(BROWSER), *switches, f"--user-data-dir={profile}", url], stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        try:
            port = await asyncio.to_thread(_debugging_port, process)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json") as response:
                    (tab,) = [each for each in await response.json() if each["type"] == "page"]
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    page = Page(socket)
                    while await page.evaluate("document.readyState + location.href") != f"complete{url}":
                        await asyncio.sleep(0.05)
                    yield page
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


def _debugging_port(process: subprocess.Popen[str]) -> int:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"DevTools listening on ws://127\.0\.0\.1:(\d+)/", line):
            return int(found[1])
    raise AssertionError("the browser did not start")


@pytest.mark.gen_test(timeout=60)
async def test_front_page_says_what_runs(service: Service) -> None:
    """The page shows version, provider, storage and store, links to the contract, and loads without an error."""
    async with browsing(f"{service.url}/") as page:
        text = await page.evaluate("document.body.innerText")
        links = await page.evaluate("[...document.links].map(link => link.getAttribute('href'))")
        width = await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert "http" in text and "local" in text and "0.1.0" in text
    assert {"/openapi.json", "/metrics", "/readyz"} <= set(links)
    assert width


@pytest.mark.gen_test(timeout=60)
async def test_browser_gets_the_event_by_the_readme(service: Service) -> None:
    """The README's lines for a browser, run in one: token as subprotocol, then the event of an upload from the page."""
    (snippet,) = re.findall(r"```js\n(.*?)```", README, re.DOTALL)
    snippet = snippet.replace("127.0.0.1:8080", service.url.removeprefix("http://"))
    script = f"""
      new Promise((resolve, reject) => {{
        const token = {json.dumps(make_token())};
        const console = {{ log: (assetId, status, found) => resolve({{ assetId, status, found }}) }};
        {snippet}
        socket.onclose = ({{ code, reason }}) => reject(new Error(code + reason));
        socket.onopen = async () => {{
          const picture = await (await fetch("{{image}}")).blob();
          const form = new FormData();
          form.append("image", picture, "photo.png");
          form.append("category", "lego");
          const headers = {{ Authorization: "Bearer " + token }};
          const reply = await fetch("/api/assets/analyze-queue", {{ method: "POST", body: form, headers }});
          if (reply.status !== 202) reject(new Error(await reply.text()));
        }};
      }})"""
    drawn = "await new Promise(done => document.createElement('canvas').toBlob(done))"
    script = script.replace('await (await fetch("{image}")).blob()', drawn)
    # Any page of the origin will do but the front page, whose policy forbids scripts to connect.
    async with browsing(f"{service.url}/livez") as page:
        heard = await page.evaluate(script)
    assert heard["status"] == "active" == service.asset(heard["assetId"])["status"]
    assert heard["found"]["brand"]["value"] == "Nike"
