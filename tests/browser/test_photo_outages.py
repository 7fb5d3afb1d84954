"""The page / in a real Chromium over networks that fail: offline, behind a proxy that drops connections or replies."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser.photo_page import (
    QUEUE,
    act,
    check_looks,
    choose,
    drop,
    every_row,
    photo_page,
    photos,
    until_rows,
    within,
)
from tests.chromium import Page
from tests.factories import make_noise_image
from tests.hostile_proxy import Head, HostileProxy
from tests.service import AiService, Service

UPLOAD = "POST /api/assets/analyze-queue"
LOSE_DATABASE = "IDBDatabase.prototype.transaction = () => { throw new DOMException('lost', 'UnknownError') }"
WAIT_UNTIL_NO_PHOTO_IS_STORED = """new Promise((noneIsLeft) => {
  const opening = indexedDB.open("photo-queue");
  opening.onsuccess = () => {
    const look = () => {
      const counting = opening.result.transaction("unsent").objectStore("unsent").count();
      counting.onsuccess = () => (counting.result ? setTimeout(look, 25) : noneIsLeft());
    };
    look();
  };
})"""
# Answers 503 to requests for /api/about until the page sets `isReady`.
REFUSE_ABOUT = """globalThis.isReady = false;
const ask = fetch;
const refusal = '{"success": false, "error": {"code": "UNAVAILABLE", "message": "not yet"}}';
fetch = (address, options) => !isReady && `${address}`.endsWith("/api/about")
  ? Promise.resolve(new Response(refusal, { status: 503 })) : ask(address, options)"""
RECORD_MOST_UPLOADS_AT_A_TIME = f"""globalThis.most = 0; setInterval(() => {{
  const badges = [...{QUEUE}.querySelectorAll(".list .badge")].map((each) => each.textContent);
  most = Math.max(most, badges.filter((text) => /^Sending(?! again)/.test(text)).length);
}}, 20)"""


class FailingProxy(HostileProxy):
    """A proxy that drops connections.

    keys: the Idempotency-Key of each upload that arrived, in order.
    loses_replies: the service gets the uploads, the client gets no reply.
    drops_every: of this many connections one is broken, alternately before the request and before its reply.
    """

    loses_replies = False
    drops_every = 0

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.keys: list[str] = []
        self.connections = self.dropped = 0

    async def _pass(self, head: Head, reader: Any, writer: Any, *, keeps_upgrade: bool) -> None:
        self.connections += 1
        is_upload = head.line.startswith(UPLOAD)
        if is_upload:
            self.keys.append(head.get("Idempotency-Key"))
        is_dropped = self.drops_every and self.connections % self.drops_every == 0
        if is_dropped:
            self.dropped += 1
        if is_dropped and self.dropped % 2:
            writer.transport.abort()
        elif is_dropped or (is_upload and self.loses_replies):
            await super()._pass(head, reader, _DiscardingWriter(writer), keeps_upgrade=keeps_upgrade)
            writer.transport.abort()
        else:
            await super()._pass(head, reader, writer, keeps_upgrade=keeps_upgrade)


class _DiscardingWriter:
    """A writer that discards what it should send to the client."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.transport = writer.transport

    def write(self, data: bytes) -> None:
        pass

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.gen_test(timeout=120)
async def test_photos_wait_through_an_outage_and_a_reload(tmp_path: Path, ai_service: AiService) -> None:
    """The page says that it is offline and its photos wait; lost replies and a reload create no photo twice.

    The page sends each photo with its key until the service has confirmed it, then deletes the photo from the browser.
    A second tab is closed while it sends: the first tab sends its photo.
    """
    with Service(tmp_path, ai_service.url) as service:
        async with FailingProxy(service.url) as proxy, photo_page(proxy.url) as page:
            # A connection that is being opened succeeds even when the page goes offline meanwhile.
            await page.until(f"{QUEUE}.querySelector('.status').dataset.is === 'connected'")
            await choose_offline(page, *photos(tmp_path / "photos", 3))
            assert proxy.keys == []
            await lose_replies_and_reload(page, proxy)
            assert len(service.get("/api/assets", "ann").json()["data"]["items"]) == 3

            other = await page.open_tab(f"{proxy.url}/")
            proxy.loses_replies = True
            await choose(other, *photos(tmp_path / "photos", 1, first=9))
            await until_rows(page, "rows[0].badge === 'Sending again'")
            proxy.loses_replies = False
            await other.call("Page.navigate", url="about:blank")
            await until_rows(page, "rows.length === 4 && rows.every(({badge}) => badge === 'Done')")
            assert len(set(proxy.keys)) == 4
            assert len(service.get("/api/assets", "ann").json()["data"]["items"]) == 4
            page.problems = [each for each in page.problems if "ERR_" not in each]


async def choose_offline(page: Page, *files: Path) -> None:
    """Choose three photos while the page is offline: they wait, and the page says why."""
    await page.go_offline()
    await page.until_text("You are offline")
    await choose(page, *files)
    shown = await until_rows(page, "rows.length === 3 && rows.every(({badge}) => badge === 'Waiting')")
    assert shown[0]["text"] == "No network. It will be sent when you are online again."
    await check_looks(page)


async def lose_replies_and_reload(page: Page, proxy: FailingProxy) -> None:
    """Go online with a proxy that loses the replies, reload, then let the replies pass: three photos, each one key."""
    proxy.loses_replies = True
    await page.go_offline(False)
    await until_rows(page, "rows.length === 3 && rows.every(({badge}) => badge !== 'Waiting')")
    await until_rows(page, "rows.some(({text}) => text.includes('The service cannot be reached'))")
    keys_before = set(proxy.keys)
    await page.reload()
    await until_rows(page, "rows.length >= 3")
    proxy.loses_replies = False
    await until_rows(page, "rows.length === 3 && rows.every(({badge}) => badge === 'Done')")
    await page.evaluate(WAIT_UNTIL_NO_PHOTO_IS_STORED)
    assert keys_before <= set(proxy.keys) and len(set(proxy.keys)) == 3


@pytest.mark.gen_test(timeout=120)
async def test_browser_without_storage_loses_no_photo(tmp_path: Path, ai_service: AiService) -> None:
    """The page sends photos that the browser cannot store or read back, also after the page was frozen.

    Before the first answer of the service the page says that the service cannot be reached and that photos wait.
    """
    with Service(tmp_path, ai_service.url) as service:
        async with photo_page(service.url) as page:
            await page.block("*analyze-queue*")
            await choose(page, *photos(tmp_path / "photos", 1))
            (row,) = await until_rows(page, "rows[0]?.badge === 'Sending again'")
            await page.evaluate(LOSE_DATABASE)
            await until_rows(page, f"rows[0]?.badge === 'Sending again' && rows[0].text !== {json.dumps(row['text'])}")
            await page.block()
            await until_rows(page, "rows[0]?.badge === 'Done'")

            await page.block("*analyze-queue*")
            await choose(page, *photos(tmp_path / "photos", 2, first=1))
            await page.until_text("This browser has no space to store the photos")
            await until_rows(page, "rows.filter(({badge}) => badge === 'Sending again').length === 2")
            await page.evaluate(f"globalThis.before = {QUEUE}.querySelector('.list .photo')")
            await page.evaluate("for (const name of ['freeze', 'resume']) document.dispatchEvent(new Event(name))")
            await page.until("!before.isConnected")
            await page.block()
            await until_rows(page, "rows.length === 3 && rows.every(({badge}) => badge === 'Done')")

            await page.run_first(f"{REFUSE_ABOUT}; localStorage.removeItem('photo-queue.about ann {service.url}');")
            await page.reload()
            await choose_before_the_first_answer(page, *photos(tmp_path / "photos", 1, first=3))
            page.problems = [each for each in page.problems if "ERR_" not in each]
        assert len(service.get("/api/assets", "ann").json()["data"]["items"]) == 4


async def choose_before_the_first_answer(page: Page, photo: Path) -> None:
    """Choose a photo and files that are no photos before the service answers for the first time, then let it answer."""
    await page.until_text("The service cannot be reached. This page keeps trying.")
    await choose(page, photo)
    await page.until_text("1 photo is waiting: leave this page open.")
    await page.evaluate("document.querySelector('photo-queue').add([new File(['-'], 'none.txt')])")
    await page.evaluate("isReady = true")
    await page.until_text("none.txt is not a photo.")
    # The same message twice is shown once.
    await page.evaluate("document.querySelector('photo-queue').add([new File(['-'], 'none.txt')])")
    await page.evaluate("document.querySelector('photo-queue').add([new File(['-'], 'other.txt')])")
    await page.until_text("other.txt is not a photo.")
    assert (await page.evaluate(f"{QUEUE}.querySelector('.toasts').textContent")).count("none.txt") == 1
    await until_rows(page, "rows.length === 4 && rows.every(({badge}) => badge === 'Done')")


@pytest.mark.gen_test(timeout=120)
async def test_removed_photos_are_not_sent(tmp_path: Path, ai_service: AiService) -> None:
    """A removed photo is not sent, also when the page is closed at once; Undo sends it, also while it is prepared.

    The page takes all photos of a folder that is dropped outside the component. A browser that cannot store photos asks
    before the user leaves a page with photos that were not sent.
    """
    large = tmp_path / "large.png"
    large.write_bytes(make_noise_image(12 * 2**20))
    with Service(tmp_path, ai_service.url) as service:
        async with photo_page(service.url) as page:
            await page.go_offline()
            photos(tmp_path / "photos", 3)
            folder = {"items": [], "files": [str(tmp_path / "photos")], "dragOperationsMask": 1}
            for kind in ("dragEnter", "dragOver", "drop"):
                await page.call("Input.dispatchDragEvent", type=kind, data=folder, x=5, y=5)
            await until_rows(page, "rows.length === 3")
            await page.click(act("Remove"))
            await page.click(within(".undo"))
            await until_rows(page, "rows.length === 3")
            await page.click(act("Remove"))
            await page.until(f"{QUEUE}.querySelectorAll('.list .photo:not([hidden])').length === 2")
            leave = "!dispatchEvent(new Event('beforeunload', { cancelable: true }))"
            await page.until(f"!({leave})")
            await page.go_offline(False)
            await page.reload()
            await until_rows(page, "rows.length === 2 && rows.every(({badge}) => badge === 'Done')")

            await choose(page, large)
            await until_rows(page, "rows[0].badge === 'Preparing'")
            await page.evaluate(f"{act('Remove')}.click(); {within('.undo')}.click()")
            await until_rows(page, "rows.length === 3 && rows[0].text === 'Made smaller to send.'")
            await page.evaluate(LOSE_DATABASE)
            await page.go_offline()
            await choose(page, large)
            await page.until(leave)
            page.problems = [each for each in page.problems if "ERR_" not in each]
        assert len(service.get("/api/assets", "ann").json()["data"]["items"]) == 3


@pytest.mark.gen_test(timeout=120)
async def test_hundred_photos_arrive_through_a_proxy_that_drops_every_tenth_connection(
    tmp_path: Path, ai_service: AiService
) -> None:
    """All photos end, none is analyzed twice, and the list shows each result; three at most are sent at a time."""
    ai_service.configure(replies=[{"status": 422}] * 7)
    with Service(tmp_path, ai_service.url, CONCURRENCY="8") as service:
        async with FailingProxy(service.url) as proxy, photo_page(proxy.url) as page:
            proxy.drops_every = 10
            await page.evaluate(RECORD_MOST_UPLOADS_AT_A_TIME)
            await drop(page, photos(tmp_path / "photos", 100))
            await page.until_text("100 photos · 7 failed", 90)
            shown = await every_row(page)
            badges = [row["badge"] for row in shown.values()]
            assert (badges.count("Done"), badges.count("Failed"), len(badges)) == (93, 7, 100)
            assert 1 <= await page.evaluate("most") <= 3
            assert proxy.dropped >= 10 and len(set(proxy.keys)) == 100 < len(proxy.keys)
            page.problems = [each for each in page.problems if "ERR_" not in each and "WebSocket" not in each]
        assert service.wait_status(completed=93, failed=7)
        assert len(service.get("/api/assets", "ann", limit=100).json()["data"]["items"]) == 100
        assert service.get("/api/assets", "ann", limit=100).json()["data"]["nextCursor"] is None
