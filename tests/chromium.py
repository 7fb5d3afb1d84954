"""A real Chromium that tests use over the DevTools protocol as a person does: with mouse, keyboard and files."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from tests.devtools import ContextGone, DevTools
from tests.requirements import find_program

BROWSER = find_program("chromium", "chromium-browser", "google-chrome")
# tests/clients/install installs axe-core next to this program.
_client = find_program("photo-client-node")
AXE = Path(_client).parent / "photo-clients/node_modules/axe-core/axe.min.js" if _client else None
UNTIL_SECONDS = 30.0
# The number of further checks of a page with violations before they count.
RECHECKS = 4
# A JavaScript function: the visible text of an element.
TEXT = """function text(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.data;
  if (node.nodeType === Node.ELEMENT_NODE && !node.checkVisibility()) return "";
  const inside = [...(node.shadowRoot ?? node).childNodes].map(text).join("");
  return /^(inline|contents)/.test(getComputedStyle(node).display) ? inside : `${inside}\\n`;
}"""
# Code, Windows key code and text of the keys that are not a letter.
KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Tab": ("Tab", 9, ""),
    "Escape": ("Escape", 27, ""),
    " ": ("Space", 32, " "),
    "ArrowDown": ("ArrowDown", 40, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    "End": ("End", 35, ""),
    "Home": ("Home", 36, ""),
}


class Page(DevTools):
    """A tab of the browser. Many methods because each is one thing that a person does or sees."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, browser: Browser) -> None:
        super().__init__(socket)
        self._browser = browser

    async def until(self, condition: str, seconds: float = UNTIL_SECONDS) -> Any:
        """Return the value of a JavaScript expression once it is truthy; the page evaluates it every 25 ms."""
        script = f"""new Promise((resolve) => {{
          const look = () => {{
            let found;
            try {{ found = {condition}; }} catch {{ found = null; }}
            if (found instanceof Promise) throw new Error("the condition is a promise, which is always truthy");
            found ? resolve(found instanceof Node ? true : found) : setTimeout(look, 25);
          }};
          look();
        }})"""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    with suppress(ContextGone):
                        return await self.evaluate(script)
                    await asyncio.sleep(0.01)
        except TimeoutError:
            text = await self.evaluate("document.body.innerText")
            raise AssertionError(f"not true within {seconds:g} s: {condition}\n{self.problems}\n{text}") from None

    async def until_text(self, text: str, seconds: float = UNTIL_SECONDS) -> None:
        """Return once the page shows the text; open shadow trees count."""
        await self.until(f"({TEXT})(document.body).includes({json.dumps(text)})", seconds)

    async def text(self) -> str:
        """Return the visible text of the page, also of open shadow trees."""
        return str(await self.evaluate(f"({TEXT})(document.body)"))

    async def press(self, *keys: str, modifiers: int = 0) -> None:
        """Press keys one after the other.

        modifiers: a sum of 1 Alt, 2 Ctrl, 4 Meta, 8 Shift.
        """
        for key in keys:
            code, number, text = KEYS.get(key, (f"Key{key.upper()}", ord(key[0].upper()), key))
            event = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
            await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
            await self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    async def write(self, text: str) -> None:
        """Type a text into the element that has the focus."""
        await self.call("Input.insertText", text=text)

    async def click(self, element: str) -> None:
        """Click in the middle of an element, once it has the same place twice in a row.

        After a reload the browser scrolls to the earlier position, which moves the element under the pointer.
        element: a JavaScript expression for it.
        """
        click = time.monotonic_ns()
        point = await self.until(f"""(() => {{
          const element = {element};
          element.scrollIntoView({{ block: "center", behavior: "instant" }});
          const {{ x, y, width, height }} = element.getBoundingClientRect();
          const last = globalThis.lastPlace;
          globalThis.lastPlace = `${{x}} ${{y}} ${{width}} ${{height}} {click}`;
          return width && height && last === globalThis.lastPlace && {{ x: x + width / 2, y: y + height / 2 }};
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **point)

    async def choose_files(self, element: str, files: Sequence[Path]) -> None:
        """Choose files in an <input type="file">.

        element: a JavaScript expression for it.
        """
        found = await self.call("Runtime.evaluate", expression=element)
        await self.call(
            "DOM.setFileInputFiles", objectId=found["result"]["objectId"], files=[str(path) for path in files]
        )

    async def resize(self, width: int, height: int, *, is_phone: bool = False) -> None:
        """Set the size of the window in pixels."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=is_phone
        )

    async def prefer(self, **features: str) -> None:
        """Set what the user prefers: scheme="dark", motion="reduce"."""
        names = {"scheme": "prefers-color-scheme", "motion": "prefers-reduced-motion"}
        chosen = [{"name": names[name], "value": value} for name, value in features.items()]
        await self.call("Emulation.setEmulatedMedia", features=chosen)

    async def go_offline(self, is_offline: bool = True) -> None:
        """Disconnect the tab from the network; False reconnects it."""
        await self.call("Network.enable")
        await self.call(
            "Network.emulateNetworkConditions",
            offline=is_offline,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )

    async def block(self, *addresses: str) -> None:
        """Block the tab's requests to these addresses only, patterns like "*/api/about"."""
        await self.call("Network.enable")
        await self.call("Network.setBlockedURLs", urls=addresses)

    async def run_first(self, script: str) -> None:
        """Run JavaScript in every page that is loaded from now on, before the scripts of the page."""
        await self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    async def reload(self) -> None:
        """Reload the page and wait for it."""
        await self.evaluate("window.isOldDocument = true")
        await self.call("Page.reload")
        await self.until("!window.isOldDocument && document.readyState === 'complete'")

    async def screenshot(self, path: Path) -> None:
        """Write a PNG of the visible part of the page."""
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    async def violations(self) -> list[str]:
        """Return the violations that axe-core still finds after several checks.

        After a change of the colour scheme some colours change some frames later.
        """
        violations = await self._violations()
        for _ in range(RECHECKS if violations else 0):
            await self.evaluate("new Promise((passed) => setTimeout(passed, 250))")
            if not (violations := await self._violations()):
                break
        return violations

    async def _violations(self) -> list[str]:
        assert AXE is not None
        # In an isolated world, because the Content-Security-Policy of the page blocks scripts of other origins.
        tree = await self.call("Page.getFrameTree")
        frame = tree["frameTree"]["frame"]["id"]
        world = (await self.call("Page.createIsolatedWorld", frameId=frame))["executionContextId"]
        await self.call("Runtime.evaluate", expression=AXE.read_text(), contextId=world)
        found = await self.call(
            "Runtime.evaluate",
            expression="axe.run().then(({violations}) => violations.map((each) => "
            "`${each.id}: ${each.help}: ${each.nodes.map((node) => node.html + node.failureSummary).join(' | ')}`))",
            contextId=world,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in found, found
        return list(found["result"]["value"])

    async def open_tab(self, url: str) -> Page:
        """Return another tab of the same browser, loaded."""
        return await self._browser.open(url)


class Browser:
    """One Chromium with its own profile."""

    def __init__(self, port: int, session: aiohttp.ClientSession, opened: AsyncExitStack) -> None:
        self._address = f"http://127.0.0.1:{port}"
        self._session = session
        self._opened = opened

    async def first(self, url: str) -> Page:
        """Return the tab that the browser was started with."""
        async with self._session.get(f"{self._address}/json") as response:
            (tab,) = [each for each in await response.json() if each["type"] == "page"]
        return await self._loaded(tab, url)

    async def open(self, url: str) -> Page:
        """Return a new tab."""
        async with self._session.put(f"{self._address}/json/new?{url}") as response:
            tab = await response.json()
        page = await self._loaded(tab, url)
        # A background tab does not always get clicks.
        await page.call("Page.bringToFront")
        return page

    async def _loaded(self, tab: dict[str, Any], url: str) -> Page:
        socket = await self._opened.enter_async_context(
            self._session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)
        )
        page = Page(socket, self)
        self._opened.push_async_callback(page.close)
        for domain in ("Runtime", "Log", "Page", "DOM"):
            await page.call(f"{domain}.enable")
        # A page may remove the fragment from its address as soon as it runs.
        address = json.dumps(url.partition("#")[0])
        await page.until(f"document.readyState === 'complete' && location.href.startsWith({address})")
        return page


@asynccontextmanager
async def browsing(url: str) -> AsyncIterator[Page]:
    """Yield a tab that has loaded the address."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        switches = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        switches += ["--disable-component-update", "--disable-sync", "--remote-debugging-port=0"]
        process = subprocess.Popen(
            [str(BROWSER), *switches, f"--user-data-dir={profile}", url], stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        try:
            port = await asyncio.to_thread(_debugging_port, process)
            async with aiohttp.ClientSession() as session, AsyncExitStack() as opened:
                yield await Browser(port, session, opened).first(url)
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
