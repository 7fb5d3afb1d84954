"""The component <photo-queue> in the page of another application, as clients/js/README.md shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from aiohttp import web

from tests.browser.photo_page import QUEUE, check_looks, choose, photos, until_rows
from tests.chromium import BROWSER, browsing
from tests.factories import make_token
from tests.requirements import require
from tests.scripts import CLIENT
from tests.service import ROOT, AiService, Service


# What pages say of their own texts, and a direction that English words do not have.
SPOIL = """{ document.documentElement.dir = "rtl"; const style = document.createElement("style");
  const body = "text-transform: uppercase; letter-spacing: 3px; white-space: pre";
  style.textContent = `html { font-size: 62.5% } body { ${body} }`;
  document.head.append(style); globalThis.queue = document.querySelector("photo-queue"); }"""
LOOKS = """(() => {
  const find = (selector) => queue.shadowRoot.querySelector(selector);
  const { fontSize, textTransform, letterSpacing, whiteSpace, direction } = getComputedStyle(find(".body"));
  return { height: find("button.primary").offsetHeight, lang: find(".frame").lang,
    text: [fontSize, textTransform, letterSpacing, whiteSpace, direction].join(" ") };
})()"""
PASTE = """(async () => {
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


def page_of_readme() -> str:
    """Return the HTML page of the README."""
    (found,) = re.findall(r"```html\n(.*?)```", (CLIENT / "README.md").read_text(), re.DOTALL)
    assert len(found.strip().splitlines()) <= 10 and found in (ROOT / "docs/client-guide.md").read_text()
    return str(found)


@pytest.mark.gen_test(timeout=120)
async def test_ten_lines_show_the_queue_in_a_page_of_another_origin(tmp_path: Path, ai_service: AiService) -> None:
    """The README's page works as it is: it sends a photo, hears of its end, and its events tell the application."""
    require(BROWSER is not None, "needs Chromium")
    application, service_url = web.Application(), ""

    async def page(_request: web.Request) -> web.Response:
        text = page_of_readme().replace("https://photos.example.com", service_url)
        return web.Response(text=text, content_type="text/html")

    async def token(_request: web.Request) -> web.Response:
        return web.Response(text=make_token("kim"))

    async def nothing(_request: web.Request) -> web.Response:
        return web.Response(status=204)

    application.router.add_get("/", page)
    application.router.add_get("/favicon.ico", nothing)
    application.router.add_get("/my/token", token)
    application.router.add_static("/js", CLIENT)
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
        with Service(tmp_path, ai_service.url, ALLOWED_ORIGINS=origin) as service:
            service_url = service.url
            async with browsing(f"{origin}/") as shown:
                await shown.until(f"{QUEUE}.querySelector('[data-view=empty]')")
                await shown.evaluate(
                    "globalThis.told = []; for (const name of ['photo-accepted', 'photo-finished'])"
                    " document.addEventListener(name, ({ detail }) => told.push([name, detail.assetId]))"
                )
                await choose(shown, *photos(tmp_path / "photos", 1))
                (row,) = await until_rows(shown, "rows[0]?.badge === 'Done'")
                assert row["values"][0] == "Nike sure"
                (asset,) = service.get("/api/assets", "kim").json()["data"]["items"]
                told = [["photo-accepted", asset["id"]], ["photo-finished", asset["id"]]]
                await shown.until("told.length === 2")
                assert await shown.evaluate("told") == told
                assert asset["category"] == "lego"
                await check_looks(shown)
                await shown.resize(390, 844)
                await shown.evaluate(SPOIL)
                await check_looks(shown)
                looks = await shown.evaluate(LOOKS)
                assert looks == {"height": 52, "text": "16px none normal normal ltr", "lang": "en"}
                # What is pasted is sent by one of two; what an editor of the page takes, by none.
                await shown.evaluate("document.querySelector('main').append(queue.cloneNode())")
                await shown.evaluate("document.querySelectorAll('photo-queue')[1].token = queue.token")
                await shown.until("queue.nextSibling.shadowRoot.querySelector('[data-view=full]')")
                await shown.evaluate(PASTE)
                await shown.until("told.filter(([name]) => name === 'photo-finished').length >= 2")
                assert service.get("/api/assets", "kim").json()["data"]["items"][2:] == []
                assert shown.problems == []
    finally:
        await runner.cleanup()
