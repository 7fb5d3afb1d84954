"""The component <photo-queue> in the page of another application, as clients/js/README.md shows it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.browser.photo_page import QUEUE, check_looks, choose, photos, until_rows
from tests.chromium import BROWSER, Page, browsing
from tests.factories import make_token
from tests.requirements import require
from tests.scripts import CLIENT
from tests.service import ROOT, AiService, Service

# Styles that an application may have for its own texts, and a direction of text that English does not have.
STYLE_THE_APPLICATION = """{ document.documentElement.dir = "rtl"; const style = document.createElement("style");
  const body = "text-transform: uppercase; letter-spacing: 3px; white-space: pre";
  style.textContent = `html { font-size: 62.5% } body { ${body} }`;
  document.head.append(style); globalThis.queue = document.querySelector("photo-queue"); }"""
READ_STYLES = """(() => {
  const find = (selector) => queue.shadowRoot.querySelector(selector);
  const { fontSize, textTransform, letterSpacing, whiteSpace, direction } = getComputedStyle(find(".body"));
  return { height: find("button.primary").offsetHeight, lang: find(".frame").lang,
    text: [fontSize, textTransform, letterSpacing, whiteSpace, direction].join(" ") };
})()"""
PASTE_INTO_EDITOR_AND_PAGE = """(async () => {
  const editor = document.createElement("p");
  editor.contentEditable = true;
  document.body.append(editor);
  for (const place of [editor, document.body]) {
    const canvas = new OffscreenCanvas(64, 64);
    canvas.getContext("2d").fillRect(0, 0, place === editor ? 9 : 30, 30);
    const clipboardData = new DataTransfer();
    clipboardData.items.add(new File([await canvas.convertToBlob()], "pasted.png", { type: "image/png" }));
    const options = { clipboardData, bubbles: true, cancelable: true, composed: true };
    place.dispatchEvent(new ClipboardEvent("paste", options));
  }
})()"""
RECORD_EVENTS = """globalThis.received = [];
for (const name of ['photo-accepted', 'photo-finished'])
  document.addEventListener(name, ({ detail }) => received.push([name, detail.assetId]));"""


def page_of_readme() -> str:
    """Return the HTML page of the README."""
    (found,) = re.findall(r"```html\n(.*?)```", (CLIENT / "README.md").read_text(), re.DOTALL)
    assert len(found.strip().splitlines()) <= 10 and found in (ROOT / "docs/client-guide.md").read_text()
    return str(found)


class Application:
    """The server of another application: the README's page, the client and a token. service_url: set it before use."""

    def __init__(self) -> None:
        self.service_url = ""

    async def page(self, _request: web.Request) -> web.Response:
        text = page_of_readme().replace("https://photos.example.com", self.service_url)
        return web.Response(text=text, content_type="text/html")

    async def token(self, _request: web.Request) -> web.Response:
        return web.Response(text=make_token("kim"))

    async def no_icon(self, _request: web.Request) -> web.Response:
        return web.Response(status=204)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve the application and give its origin."""
        application = web.Application()
        application.router.add_get("/", self.page)
        application.router.add_get("/favicon.ico", self.no_icon)
        application.router.add_get("/my/token", self.token)
        application.router.add_static("/js", CLIENT)
        runner = web.AppRunner(application, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


@pytest.mark.gen_test(timeout=120)
async def test_ten_lines_show_the_queue_in_a_page_of_another_origin(tmp_path: Path, ai_service: AiService) -> None:
    """The README's page works unchanged: it sends a photo, shows its result, and its events reach the application."""
    require(BROWSER is not None, "needs Chromium")
    application = Application()
    async with application.serving() as origin:
        with Service(tmp_path, ai_service.url, ALLOWED_ORIGINS=origin) as service:
            application.service_url = service.url
            async with browsing(f"{origin}/") as shown:
                await shown.until(f"{QUEUE}.querySelector('[data-view=empty]')")
                await shown.evaluate(RECORD_EVENTS)
                await choose(shown, *photos(tmp_path / "photos", 1))
                (row,) = await until_rows(shown, "rows[0]?.badge === 'Done'")
                assert row["values"][0] == "Nike sure"
                (asset,) = service.get("/api/assets", "kim").json()["data"]["items"]
                events = [["photo-accepted", asset["id"]], ["photo-finished", asset["id"]]]
                await shown.until("received.length === 2")
                assert await shown.evaluate("received") == events
                assert asset["category"] == "lego"
                await check_looks(shown)
                await check_styles_do_not_enter(shown)
                await paste_with_two_components(shown)
                assert service.get("/api/assets", "kim").json()["data"]["items"][2:] == []
                assert shown.problems == []


async def check_styles_do_not_enter(page: Page) -> None:
    """The styles and the text direction of the application do not change the component."""
    await page.resize(390, 844)
    await page.evaluate(STYLE_THE_APPLICATION)
    await check_looks(page)
    looks = await page.evaluate(READ_STYLES)
    assert looks == {"height": 52, "text": "16px none normal normal ltr", "lang": "en"}


async def paste_with_two_components(page: Page) -> None:
    """With two components in the page, one sends a photo pasted into the page; none sends one pasted into an editor."""
    await page.evaluate("document.querySelector('main').append(queue.cloneNode())")
    await page.evaluate("document.querySelectorAll('photo-queue')[1].token = queue.token")
    await page.until("queue.nextSibling.shadowRoot.querySelector('[data-view=full]')")
    await page.evaluate(PASTE_INTO_EDITOR_AND_PAGE)
    await page.until("received.filter(([name]) => name === 'photo-finished').length >= 2")
