"""JavaScript with the client of clients/js and a record of the events of the client, in a real Node or Chromium."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.chromium import BROWSER, Page, browsing
from tests.requirements import find_program, require

CLIENT = Path(__file__).parents[1] / "clients" / "js"


def find_node() -> str | None:
    """Return the path of Node, None without Node or with one before version 22."""
    path = find_program("node")
    version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout if path else ""
    number = re.match(r"v(\d+)", version)
    return path if number and int(number[1]) >= 22 else None


NODE = find_node()
WAIT_SECONDS = 20.0

# The first part of every script: the client, and a record of its events.
HARNESS = """
import { PipelineClient } from "BASE/pipeline-client.js";
const events = [];
let wake = () => {};
const shown = (detail) => detail instanceof Error ? { ...detail, name: detail.name, message: detail.message } : detail;
const say = (name, detail) => { events.push([name, shown(detail)]); wake(); };
const all = (name) => events.filter(([each]) => each === name).map(([, detail]) => detail);
async function received(name, count = 1) {
  while (all(name).length < count) await new Promise((resolve) => (wake = resolve));
  return all(name)[count - 1];
}
function start(options) {
  globalThis.client = new PipelineClient(options);
  for (const name of ["asset_processed", "connected", "disconnected", "error", "transport"]) {
    client.on(name, (detail) => say(name, detail));
  }
  return client.connect();
}
const failure = (promise) => promise.then(() => null, shown);
Object.assign(globalThis, { PipelineClient, say, all, received, start, failure });
"""
NODE_DRIVER = """
import readline from "node:readline";
const AsyncFunction = (async () => {}).constructor;
for await (const line of readline.createInterface({ input: process.stdin })) {
  const answer = (reply) => console.log(JSON.stringify(reply));
  new AsyncFunction(JSON.parse(line))().then((value) => answer({ value }), ({ stack }) => answer({ stack }));
}
"""
FASTER = "const real = setTimeout; globalThis.setTimeout = (then, ms, ...more) => real(then, ms / 20, ...more);"
CHROMIUM_PAGE = """<!doctype html><script type="module">
addEventListener("unhandledrejection", ({ reason }) => events.push(["unhandled", String(reason)]));
addEventListener("error", ({ message }) => events.push(["unhandled", message]));
HARNESS</script>"""


class Script:
    """JavaScript with the harness around it, in Node or in a page."""

    async def run(self, code: str) -> Any:
        """Run the body of an async function and return its JSON value."""
        async with asyncio.timeout(WAIT_SECONDS):
            return await self._run(code)

    async def received(self, name: str, count: int = 1) -> Any:
        """Return the count-th event of that name, waiting for it."""
        return await self.run(f"return received({name!r}, {count})")

    async def all(self, name: str) -> list[Any]:
        """Return the events of that name so far."""
        found: list[Any] = await self.run(f"return all({name!r})")
        return found

    async def _run(self, code: str) -> Any:
        raise NotImplementedError


class NodeScript(Script):
    """JavaScript in Node.

    process: ends by itself when its input has ended and the client has no timer and no connection.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def _run(self, code: str) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(code).encode() + b"\n")
        line = await self.process.stdout.readline()
        assert line, "Node has ended"
        reply = json.loads(line)
        assert "stack" not in reply, reply["stack"]
        return reply.get("value")

    async def exit_code(self) -> int:
        """Close the input of the process and return its exit code; every timer of the client lasts longer than this."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await asyncio.wait_for(self.process.wait(), 8)


class ChromiumScript(Script):
    """JavaScript in a page of Chromium."""

    def __init__(self, page: Page) -> None:
        self.page = page

    async def _run(self, code: str) -> Any:
        return await self.page.evaluate(f"(async () => {{ {code} }})()")


@asynccontextmanager
async def node() -> AsyncIterator[NodeScript]:
    """Yield a script in Node; when the client is closed, Node must end by itself with exit code 0."""
    require(NODE is not None, "needs Node 22 or newer")
    code = HARNESS.replace("BASE", ".") + NODE_DRIVER
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(
        str(NODE), "--input-type=module", "--eval", code, cwd=CLIENT, limit=1 << 24, **pipes
    )
    script = NodeScript(process)
    try:
        yield script
        if process.returncode is None and not process.stdin.is_closing():
            await script.run("globalThis.client?.close()")
            assert await script.exit_code() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def chromium(url: str) -> AsyncIterator[ChromiumScript]:
    """Yield a script in a page of that address; at the end the page may have no unhandled error."""
    require(BROWSER is not None, "needs Chromium")
    async with browsing(url) as page:
        script = ChromiumScript(page)
        yield script
        assert await script.all("unhandled") == []


def photo(image: bytes) -> str:
    """Return a JavaScript expression for the image."""
    encoded = base64.b64encode(image).decode()
    return f'new Blob([Uint8Array.from(atob("{encoded}"), (letter) => letter.charCodeAt(0))])'
