"""The page / as a user uses it, in a real Chromium: send photos, read results, correct, run again and delete them.

Long because all tests share one started service.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.browser.photo_page import (
    QUEUE,
    RECORD_SHIFTS,
    act,
    check_looks,
    choose,
    drop,
    photo_page,
    photos,
    rows,
    until_rows,
    within,
)
from tests.chromium import Page
from tests.factories import make_image, make_noise_image, make_token
from tests.service import AiService, Service

BROKEN_PHOTO = base64.b64encode(make_image()[:40]).decode()
PASTE_BROKEN_PHOTO = f"""(() => {{
  const clipboardData = new DataTransfer();
  const bytes = Uint8Array.from(atob("{BROKEN_PHOTO}"), (letter) => letter.charCodeAt(0));
  clipboardData.items.add(new File([bytes], "broken.jpg"));
  document.dispatchEvent(new ClipboardEvent("paste", {{ clipboardData }}));
}})()"""
# Three photos are sent at the same time: any of them may be first in line.
IN_LINE = "rows.map(({badge}) => badge).sort().join() === 'Looking,Looking,Place 1'"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, ai: AiService) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("page"), ai.url, PREVIEW_PROCESSES="1", CONCURRENCY="2") as service:
        yield service


@pytest.fixture(autouse=True)
def reset_ai_service(ai: AiService) -> Iterator[None]:
    """After each test the AI service answers again and forgets its replies."""
    yield
    ai.configure(paused=False, clear_replies=True)


def answer(brand: str, model: str, confidence: float = 0.95) -> dict[str, Any]:
    """Return a reply of the AI service. model: "" if the AI cannot see it."""
    seen = {"brand": {"value": brand, "confidence": confidence}, "model": {"value": model, "confidence": 0.5}}
    return {"body": seen}


@pytest.mark.gen_test(timeout=120)
async def test_three_photos_from_choice_to_result(tmp_path: Path, service: Service, ai: AiService) -> None:
    """A new user chooses three photos and reads the state of each one, on a desktop and on phones.

    The rows show the place in line, the result with its picture, and what the AI could not see. A file that is no photo
    is refused at once. The layout shifts only after input of the user. A reload shows the same rows.
    """
    replies = [answer("LEGO", "City 60316"), answer("Nike", ""), {"status": 422}]
    await asyncio.to_thread(ai.configure, replies=replies, paused=True)
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.7 nothing to see")
    async with photo_page(service.url) as page:
        await check_looks(page)
        assert "Photos over 10 MB are made smaller" in await page.text()
        await page.click(within("input[value=lego]"))
        await choose(page, *photos(tmp_path / "first", 3), tmp_path / "notes.pdf")
        await page.until_text("notes.pdf is not a photo")
        await page.evaluate(RECORD_SHIFTS)
        shown = await until_rows(page, IN_LINE)
        assert [row["title"] for row in shown] == ["photo-000.jpg", "photo-001.jpg", "photo-002.jpg"]
        (waiting,) = [row for row in shown if row["badge"] == "Place 1"]
        assert waiting["text"].startswith("Next in line") and waiting["buttons"] == ["Cancel", "Delete"]
        await until_rows(page, "rows.every(({picture}) => picture.startsWith('blob:'))")
        await check_looks(page)
        await asyncio.to_thread(ai.configure, paused=False)
        await until_rows(page, "rows.map(({badge}) => badge).sort().join() === 'Done,Failed,Partly seen'")
        by_badge = {row["badge"]: row for row in await rows(page)}
        assert by_badge["Done"]["values"] == ["LEGO sure", "City 60316 not sure"]
        assert by_badge["Partly seen"]["text"] == "The AI could not see the model. You can fill it in."
        assert by_badge["Failed"]["text"] == "scripted 422."
        shifts = await page.evaluate("shifts")
        assert sum(value for value, *_ in shifts) < 0.01, shifts
        await page.reload()
        after = await until_rows(page, "rows.length === 3 && rows.every(({picture}) => picture.includes('preview'))")
        assert sorted(row["badge"] for row in after) == ["Done", "Failed", "Partly seen"]
        assert await page.evaluate(f"{within('input[value=lego]')}.checked"), "the page remembers the category"
        for width in (390, 320):
            await page.resize(width, 800, is_phone=True)
            await check_looks(page)
            targets = f"[...{QUEUE}.querySelectorAll('button, summary, .option')]"
            heights = f"{targets}.filter((each) => each.checkVisibility()).map((each) => each.offsetHeight)"
            assert min(await page.evaluate(heights)) >= 44


@pytest.mark.gen_test(timeout=120)
async def test_results_are_corrected_run_again_and_deleted(tmp_path: Path, service: Service, ai: AiService) -> None:
    """A retry shows its reason; the user corrects a value, runs a failed photo again, and undoes a deletion.

    The service deletes a photo when the time to undo is over, or earlier when the user leaves the page. The large view
    shows each attempt. A photo shows why it is on hold, and that it was cancelled.
    """
    await asyncio.to_thread(ai.configure, replies=[{"status": 503}, {"status": 422}])
    async with photo_page(service.url, "bea") as page:
        await choose(page, *photos(tmp_path / "one", 1))
        (row,) = await until_rows(page, "rows[0]?.badge === 'Attempt 2' && rows[0].text.startsWith('It starts')")
        assert "The last attempt failed: AI service unavailable" in row["text"]
        await until_rows(page, "rows[0].badge === 'Failed'")
        await page.click(within(".list .picture"))
        await page.until_text("Attempts")
        assert "AI service unavailable" in await page.text() and "Attempt 2" in await page.text()
        await check_looks(page)
        await page.press("Escape")
        await page.click(act("Run again"))
        (row,) = await until_rows(page, "rows[0].badge === 'Done'")
        assert row["values"][:2] == ["Nike sure", "Air Max 90 fairly sure"]

        await correct_the_brand(page)

        await page.click(act("Delete"))
        await page.until_text("1 photo deleted.")
        assert await rows(page) == []
        await page.click(within(".undo"))
        await until_rows(page, "rows.length === 1")
        await page.click(act("Delete"))
        await page.reload()
        await page.until(f"{QUEUE}.querySelector('[data-view=empty]')")
        assert service.get("/api/assets", "bea").json()["data"]["items"] == []

        await asyncio.to_thread(ai.configure, paused=True)
        await pause_resume_and_cancel(page, service, *photos(tmp_path / "two", 1, first=5))
        await asyncio.to_thread(ai.configure, paused=False)


async def correct_the_brand(page: Page) -> None:
    """Correct the brand by keyboard: HTML in it is shown as text, the model and the focus stay."""
    await page.click(act("Correct"))
    await page.press("a", modifiers=2)
    await page.write("Adidas <b>bold</b>")
    await check_looks(page)
    await page.press("Enter")
    (row,) = await until_rows(page, "rows[0].values[0]?.startsWith('Adidas')")
    assert row["values"][0] == "Adidas <b>bold</b> set by you" and row["values"][1] == "Air Max 90 fairly sure"
    assert await page.evaluate(f"{within('.list b')} === undefined")
    focused = f"{QUEUE}.activeElement?.dataset.act"
    assert await page.evaluate(focused) == "Correct", "the focus stays on the button"


async def pause_resume_and_cancel(page: Page, service: Service, photo: Path) -> None:
    """A photo shows that the queue is paused, continues after the pause, and shows that it was cancelled."""
    operator = {"headers": service.headers("boss", role="admin")}
    httpx.post(f"{service.url}/api/queue/pause", **operator).raise_for_status()
    await choose(page, photo)
    (row,) = await until_rows(page, "rows[0]?.badge === 'On hold'")
    assert row["text"] == "The queue is paused. It continues automatically."
    httpx.post(f"{service.url}/api/queue/resume", **operator).raise_for_status()
    await until_rows(page, "rows[0]?.badge === 'Looking'")
    await page.click(act("Cancel"))
    await until_rows(page, "rows[0].badge === 'Cancelled'")


@pytest.mark.gen_test(timeout=120)
async def test_focus_stays_in_its_photo(tmp_path: Path, service: Service, ai: AiService) -> None:
    """A photo that changes does not move the focus out of another photo; a removed button leaves it in its own photo.

    When the photo itself is removed, the focus moves to the next one.
    """
    await asyncio.to_thread(ai.configure, paused=True)
    focused = f"((at) => at && [at.closest('.photo')?.id ?? '', at.dataset.act ?? at.className])({QUEUE}.activeElement)"
    button = "{}.getElementById('{}').querySelector('[data-act={}]').focus()"
    async with photo_page(service.url, "kim") as page:
        await choose(page, *photos(tmp_path / "focus", 3))
        shown = await until_rows(page, IN_LINE)
        (waiting,) = [row["id"] for row in shown if row["badge"] == "Place 1"]
        first, second = [row["id"] for row in shown if row["badge"] == "Looking"]
        await page.evaluate(button.format(QUEUE, waiting, "Delete"))
        assets = service.get("/api/assets", "kim").json()["data"]["items"]
        running = [asset["id"] for asset in assets if asset["progress"]["state"] == "running"]
        httpx.post(f"{service.url}/api/assets/{running[0]}/cancel", headers=service.headers("kim")).raise_for_status()
        shown = await until_rows(page, "rows.filter(({badge}) => badge === 'Cancelled').length === 1")
        assert await page.evaluate(focused) == [waiting, "Delete"]

        (other,) = [row["id"] for row in shown if row["badge"] == "Looking" and row["id"] in (first, second)]
        await page.evaluate(button.format(QUEUE, other, "Cancel"))
        await page.press("Enter")
        await until_rows(page, "rows.filter(({badge}) => badge === 'Cancelled').length === 2")
        assert await page.evaluate(focused) == [other, "picture"]

        top, next_one, _ = (row["id"] for row in shown)
        await page.evaluate(button.format(QUEUE, top, "Delete"))
        await page.press("Enter")
        assert await page.evaluate(focused) == ["", "undo"]
        await page.press("Enter")
        await until_rows(page, "rows.length === 3")
        assert await page.evaluate(focused) == [next_one, "picture"]
        await delete_all(page, service, "kim")


async def delete_all(page: Page, service: Service, user: str) -> None:
    """Delete all photos of the user by the API; the page removes their rows."""
    for asset in service.get("/api/assets", user).json()["data"]["items"]:
        httpx.delete(f"{service.url}/api/assets/{asset['id']}", headers=service.headers(user))
    await until_rows(page, "rows.length === 0")
    page.problems = [each for each in page.problems if "404" not in each]


@pytest.mark.gen_test(timeout=120)
async def test_tabs_show_the_same_and_users_do_not_mix(tmp_path: Path, service: Service, ai: AiService) -> None:
    """Two tabs show each step of a photo that one of them got, and both remove a photo that one of them deletes.

    Signing out asks if photos are not sent yet, and removes them; the next user of the browser sees none of them.
    """
    await asyncio.to_thread(ai.configure, paused=True)
    async with photo_page(service.url, "cem") as page:
        other = await page.open_tab(f"{service.url}/")
        await other.until(f"{QUEUE}.querySelector('[data-view=empty]')")
        await drop(page, photos(tmp_path / "tabs", 3))
        for tab in (page, other):
            await until_rows(tab, IN_LINE)
        await asyncio.to_thread(ai.configure, paused=False)
        for tab in (page, other):
            await until_rows(tab, "rows.length === 3 && rows.every(({badge}) => badge === 'Done')")
        assert len(service.get("/api/assets", "cem").json()["data"]["items"]) == 3
        await page.call("Page.bringToFront")
        await page.click(act("Delete"))
        await page.reload()
        for tab in (page, other):
            await until_rows(tab, "rows.length === 2")

        await page.block("*analyze-queue*")
        await choose(page, *photos(tmp_path / "left", 1, first=7))
        await until_rows(page, "rows[0].badge === 'Sending again'")
        await until_rows(other, "rows.length === 3")
        await page.click("document.querySelector('#person button')")
        await page.until_text("1 photo is not sent yet")
        await check_looks(page)
        await page.click("document.querySelector('dialog .danger')")
        await page.until_text("Open the link")
        await other.until_text("Open the link")
        await check_looks(page)
        # A tab may request the photo that another tab deletes: the browser logs each 404.
        assert [each for each in other.problems if "404" not in each] == []
        ignored = ("ERR_BLOCKED_BY_CLIENT", "404")
        page.problems = [each for each in page.problems if not any(word in each for word in ignored)]
    async with photo_page(service.url, "dan") as page:
        assert await rows(page) == []


@pytest.mark.gen_test(timeout=120)
async def test_new_token_function_continues_or_shows_another_user(tmp_path: Path, service: Service) -> None:
    """A new token function of the same user restarts nothing; one of another user shows the photos of that user.

    Frameworks set a new function each time they render. After a token that the service refuses, the page waits and
    continues with the next token.
    """
    async with photo_page(service.url, "drawn") as page:
        await choose(page, *photos(tmp_path, 1))
        await until_rows(page, "rows[0]?.badge === 'Done'")
        await page.evaluate(f"globalThis.row = {within('.photo:not([hidden])')}; globalThis.calls = 0")
        token = make_token("drawn")
        give = "document.querySelector('photo-queue').token = () => (calls++, '{}')"
        for _ in range(20):
            await page.evaluate(give.format(token))
        await page.until("calls === 1")
        assert await page.evaluate(f"row === {within('.photo:not([hidden])')}")
        await page.evaluate(give.format(make_token("other")))
        await page.until(f"{QUEUE}.querySelector('[data-view=empty]')")
        assert await rows(page) == []

        await page.evaluate("""document.addEventListener("photo-unauthorized", (event) => {
          event.stopPropagation(); // the page would sign out
          globalThis.refused = true;
        }, { capture: true })""")
        await page.evaluate(give.format(make_token("other", expires_in=-60)))
        await page.evaluate("document.dispatchEvent(new Event('freeze')); document.dispatchEvent(new Event('resume'))")
        await page.until("globalThis.refused")
        await choose(page, *photos(tmp_path, 1, first=1))
        await until_rows(page, "rows[0]?.badge === 'Waiting'")
        await page.evaluate(give.format(make_token("other")))
        await until_rows(page, "rows.length === 1 && rows[0].badge === 'Done'")
        page.problems = [each for each in page.problems if "401" not in each]


@pytest.mark.gen_test(timeout=120)
async def test_hostile_texts_stay_texts(tmp_path: Path, service: Service, ai: AiService) -> None:
    """HTML in file names and values is shown as text and never becomes an element."""
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    path = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    path.write_bytes(make_image())
    hostile = {"value": evil, "confidence": 0.9}
    await asyncio.to_thread(ai.configure, replies=[{"body": {"brand": hostile, "model": hostile}}], paused=True)
    async with photo_page(service.url, "eve") as page:
        await choose(page, path)
        (row,) = await until_rows(page, "rows[0]?.badge === 'Looking'")
        assert row["title"] == path.name
        await asyncio.to_thread(ai.configure, paused=False)
        (row,) = await until_rows(page, "rows[0].badge === 'Done'")
        assert row["values"] == [f"{evil} sure", f"{evil} sure"]
        await page.click(within(".list .picture"))
        await page.until_text("Attempts")
        images = f"[...{QUEUE}.querySelectorAll('img')].filter((each) => each.src.endsWith('/x')).length"
        assert await page.evaluate(f"{images} + {QUEUE}.querySelectorAll('script').length") == 0


@pytest.mark.gen_test(timeout=120)
async def test_keyboard_alone_sends_a_photo_and_large_ones_are_made_smaller(
    tmp_path: Path, service: Service, ai: AiService
) -> None:
    """Tab and Enter open the choice of files; a photo over the limit arrives smaller, and its row says so.

    A photo can be pasted. A photo that the service refuses shows the reason and can be removed.
    """
    async with photo_page(service.url, "fay") as page:
        await open_file_choice_by_keyboard(page)
        large = tmp_path / "large.png"
        large.write_bytes(make_noise_image(12 * 2**20))
        await choose(page, large)
        (row,) = await until_rows(page, "rows[0]?.badge === 'Done'")
        assert row["text"] == "Made smaller to send."
        (asset,) = service.get("/api/assets", "fay").json()["data"]["items"]
        original = asset["images"]["original"]
        assert original["contentType"] == "image/jpeg" and original["bytes"] < 10 * 2**20
        assert max(original["width"], original["height"]) <= 4096

        await page.evaluate(PASTE_BROKEN_PHOTO)
        (row, _) = await until_rows(page, "rows[0]?.badge === 'Not sent'")
        assert "image" in row["text"].lower() and row["buttons"] == ["Try again", "Remove"]
        await page.reload()
        await until_rows(page, "rows[0]?.badge === 'Not sent'")
        await page.click(act("Remove"))
        await until_rows(page, "rows.length === 1")
        page.problems = [each for each in page.problems if "status of 400" not in each]


async def open_file_choice_by_keyboard(page: Page) -> None:
    """Reach the button "Choose photos" by Tab and press it by Enter: it opens the choice of files."""
    await page.call("Page.setInterceptFileChooserDialog", enabled=True)
    await page.evaluate("document.querySelector('#main').focus()")
    for _ in range(5):
        await page.press("Tab")
        if await page.evaluate(f"{QUEUE}.activeElement?.textContent") == "Choose photos":
            break
    assert await page.evaluate(f"{QUEUE}.activeElement.matches(':focus-visible')")
    await page.evaluate("globalThis.opened = 0")
    await page.evaluate(f"{within('input[type=file]')}.addEventListener('click', () => opened++)")
    await page.press("Enter")
    await page.until("opened === 1")
