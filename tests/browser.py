"""A real Chromium, driven over the DevTools protocol."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """A tab."""

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
