"""What a person sees on / in a real Chromium, from the first photo to the result, and does about it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.assets.asset import AiMetadata, Asset, AssetStatus
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from tests.browser.photo_page import (
    QUEUE,
    SHIFTS,
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
from tests.factories import make_asset, make_image, make_noise_image, make_token
from tests.service import AiService, Service

# Three are sent at once: any of them may be first in line.
IN_LINE = "rows.map(({badge}) => badge).sort().join() === 'Looking,Looking,Place 1'"


@pytest.fixture(scope="module")
def ai() -> Iterator[AiService]:
    with AiService() as ai_service:
        yield ai_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, ai: AiService) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("page"), ai.url, PREVIEW_PROCESSES="1", CONCURRENCY="2") as service:
        yield service


@pytest.fixture(autouse=True)
def answering(ai: AiService) -> Iterator[None]:
    yield
    ai.order(held=False, forgets=True)


async def order(ai: AiService, **orders: Any) -> None:
    await asyncio.to_thread(lambda: ai.order(**orders))


def answer(brand: str, model: str, confidence: float = 0.95) -> dict[str, Any]:
    """Return a reply of the AI service. model: "" when it cannot see it."""
    seen = {"brand": {"value": brand, "confidence": confidence}, "model": {"value": model, "confidence": 0.5}}
    return {"body": seen}


@pytest.mark.gen_test(timeout=120)
async def test_three_photos_until_the_end(tmp_path: Path, service: Service, ai: AiService) -> None:
    """Who has never read the README chooses three photos and reads what happens to each, on a desk and on phones.

    The empty page invites; places in line, a result with its picture, what the AI could not see; a file that is no
    photo is refused at once. Nothing moves that one has not moved, and all is there again after a reload.
    """
    replies = [answer("LEGO", "City 60316"), answer("Nike", ""), {"status": 422}]
    await order(ai, replies=replies, held=True)
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.7 nothing to see")
    async with photo_page(service.url) as page:
        await check_looks(page)
        assert "Photos over 10 MB are made smaller" in await page.text()
        await page.click(within("input[value=lego]"))
        await choose(page, *photos(tmp_path / "first", 3), tmp_path / "notes.pdf")
        await page.until_text("notes.pdf is not a photo")
        await page.evaluate(SHIFTS)
        shown = await until_rows(page, IN_LINE)
        assert [row["title"] for row in shown] == ["photo-000.jpg", "photo-001.jpg", "photo-002.jpg"]
        (waiting,) = [row for row in shown if row["badge"] == "Place 1"]
        assert waiting["text"].startswith("Next in line") and waiting["buttons"] == ["Cancel", "Delete"]
        await until_rows(page, "rows.every(({picture}) => picture.startsWith('blob:'))")
        await check_looks(page)
        await order(ai, held=False)
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
        assert await page.evaluate(f"{within('input[value=lego]')}.checked"), "the category is remembered"
        for width in (390, 320):
            await page.resize(width, 800, is_phone=True)
            await check_looks(page)
            targets = f"[...{QUEUE}.querySelectorAll('button, summary, .option')]"
            heights = f"{targets}.filter((each) => each.checkVisibility()).map((each) => each.offsetHeight)"
            assert min(await page.evaluate(heights)) >= 44


@pytest.mark.gen_test(timeout=120)
async def test_results_are_corrected_run_again_and_deleted(tmp_path: Path, service: Service, ai: AiService) -> None:
    """A retry shows its reason; a value is corrected in place, a failed photo runs again, a slip is undone.

    What is deleted is gone at the service once the time to undo is over, or when the page is left before that. The
    large view shows each attempt. A photo says why it is on hold, and that it was cancelled.
    """
    await order(ai, replies=[{"status": 503}, {"status": 422}])
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

        await page.click(act("Correct"))
        await page.press("a", modifiers=2)
        await page.write("Adidas <b>bold</b>")
        await check_looks(page)
        await page.press("Enter")
        (row,) = await until_rows(page, "rows[0].values[0]?.startsWith('Adidas')")
        assert row["values"][0] == "Adidas <b>bold</b> set by you" and row["values"][1] == "Air Max 90 fairly sure"
        assert await page.evaluate(f"{within('.list b')} === undefined")
        focused = f"{QUEUE}.activeElement?.dataset.act"
        assert await page.evaluate(focused) == "Correct", "the keyboard goes on where it was"

        await page.click(act("Delete"))
        await page.until_text("1 photo deleted.")
        assert await rows(page) == []
        await page.click(within(".undo"))
        await until_rows(page, "rows.length === 1")
        await page.click(act("Delete"))
        await page.reload()
        await page.until(f"{QUEUE}.querySelector('[data-view=empty]')")
        assert service.get("/api/assets", "bea").json()["data"]["items"] == []

        await order(ai, held=True)
        operator = {"headers": service.headers("boss", role="admin")}
        httpx.post(f"{service.url}/api/queue/pause", **operator).raise_for_status()
        await choose(page, *photos(tmp_path / "two", 1, first=5))
        (row,) = await until_rows(page, "rows[0]?.badge === 'On hold'")
        assert row["text"] == "The queue is paused. It continues automatically."
        httpx.post(f"{service.url}/api/queue/resume", **operator).raise_for_status()
        await until_rows(page, "rows[0]?.badge === 'Looking'")
        await page.click(act("Cancel"))
        await until_rows(page, "rows[0].badge === 'Cancelled'")
        await order(ai, held=False)


@pytest.mark.gen_test(timeout=120)
async def test_focus_stays_where_it_is_worked(tmp_path: Path, service: Service, ai: AiService) -> None:
    """A photo that changes takes the focus from no other one, and a button that goes leaves it in its photo.

    Where the photo itself goes, the focus is on the next one.
    """
    await order(ai, held=True)
    focused = f"((at) => at && [at.closest('.photo')?.id ?? '', at.dataset.act ?? at.className])({QUEUE}.activeElement)"
    async with photo_page(service.url, "kim") as page:
        await choose(page, *photos(tmp_path / "focus", 3))
        shown = await until_rows(page, IN_LINE)
        (waiting,) = [row["id"] for row in shown if row["badge"] == "Place 1"]
        first, second = [row["id"] for row in shown if row["badge"] == "Looking"]
        button = "{}.getElementById('{}').querySelector('[data-act={}]').focus()"
        await page.evaluate(button.format(QUEUE, waiting, "Delete"))
        running = [
            each["id"]
            for each in service.get("/api/assets", "kim").json()["data"]["items"]
            if each["progress"]["state"] == "running"
        ]
        httpx.post(f"{service.url}/api/assets/{running[0]}/cancel", headers=service.headers("kim")).raise_for_status()
        shown = await until_rows(page, "rows.filter(({badge}) => badge === 'Cancelled').length === 1")
        assert await page.evaluate(focused) == [waiting, "Delete"]

        (other,) = [row["id"] for row in shown if row["badge"] == "Looking" and row["id"] in (first, second)]
        await page.evaluate(button.format(QUEUE, other, "Cancel"))
        await page.press("Enter")
        await until_rows(page, "rows.filter(({badge}) => badge === 'Cancelled').length === 2")
        assert await page.evaluate(focused) == [other, "picture"]

        below = [row["id"] for row in shown]
        await page.evaluate(button.format(QUEUE, below[0], "Delete"))
        await page.press("Enter")
        assert await page.evaluate(focused) == ["", "undo"]
        await page.press("Enter")
        await until_rows(page, "rows.length === 3")
        assert await page.evaluate(focused) == [below[1], "picture"]
        gone = service.get("/api/assets", "kim").json()["data"]["items"]
        for asset in gone:
            httpx.delete(f"{service.url}/api/assets/{asset['id']}", headers=service.headers("kim"))
        await until_rows(page, "rows.length === 0")
        page.problems = [each for each in page.problems if "404" not in each]


@pytest.mark.gen_test(timeout=120)
async def test_tabs_show_the_same_and_users_do_not_mix(tmp_path: Path, service: Service, ai: AiService) -> None:
    """A photo dropped in one tab is in the other, step by step; what is deleted in one leaves the other.

    Signing out asks when photos are not sent yet and takes them along; whoever signs in next sees none of them.
    """
    await order(ai, held=True)
    async with photo_page(service.url, "cem") as page:
        other = await page.open_tab(f"{service.url}/")
        await other.until(f"{QUEUE}.querySelector('[data-view=empty]')")
        await drop(page, photos(tmp_path / "tabs", 3))
        for tab in (page, other):
            await until_rows(tab, IN_LINE)
        await order(ai, held=False)
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
        # A tab may look once more at the photo that another one deletes: a browser tells of each 404.
        assert [each for each in other.problems if "404" not in each] == []
        ignored = ("ERR_BLOCKED_BY_CLIENT", "404")
        page.problems = [each for each in page.problems if not any(word in each for word in ignored)]
    async with photo_page(service.url, "dan") as page:
        assert await rows(page) == []


@pytest.mark.gen_test(timeout=120)
async def test_new_token_function_goes_on_or_shows_another_user(tmp_path: Path, service: Service) -> None:
    """Frameworks give a new function with each drawing: nothing begins anew. Another user's one shows theirs.

    After a token that the service does not take, all goes on with the next one.
    """
    async with photo_page(service.url, "drawn") as page:
        await choose(page, *photos(tmp_path, 1))
        await until_rows(page, "rows[0]?.badge === 'Done'")
        await page.evaluate(f"globalThis.row = {within('.photo:not([hidden])')}; globalThis.asked = 0")
        token = make_token("drawn")
        give = "document.querySelector('photo-queue').token = () => (asked++, '{}')"
        for _ in range(20):
            await page.evaluate(give.format(token))
        await page.until("asked === 1")
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
    """HTML in file names, in values and in reasons is shown as it is and never becomes an element."""
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    path = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    path.write_bytes(make_image())
    hostile = {"value": evil, "confidence": 0.9}
    await order(ai, replies=[{"body": {"brand": hostile, "model": hostile}}], held=True)
    async with photo_page(service.url, "eve") as page:
        await choose(page, path)
        (row,) = await until_rows(page, "rows[0]?.badge === 'Looking'")
        assert row["title"] == path.name
        await order(ai, held=False)
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
    """Tab and Enter open the choice of files; a photo over the limit arrives smaller, and says so.

    What the service refuses shows its words, and can be removed; a picture can be pasted.
    """
    async with photo_page(service.url, "fay") as page:
        await page.call("Page.setInterceptFileChooserDialog", enabled=True)
        focus = f"{QUEUE}.activeElement?.textContent"
        await page.evaluate("document.querySelector('#main').focus()")
        for _ in range(5):
            await page.press("Tab")
            if await page.evaluate(focus) == "Choose photos":
                break
        assert await page.evaluate(f"{QUEUE}.activeElement.matches(':focus-visible')")
        await page.evaluate("globalThis.opened = 0")
        await page.evaluate(f"{within('input[type=file]')}.addEventListener('click', () => opened++)")
        await page.press("Enter")
        await page.until("opened === 1")
        large = tmp_path / "large.png"
        large.write_bytes(make_noise_image(12 * 2**20))
        await choose(page, large)
        (row,) = await until_rows(page, "rows[0]?.badge === 'Done'")
        assert row["text"] == "Made smaller to send."
        (asset,) = service.get("/api/assets", "fay").json()["data"]["items"]
        original = asset["images"]["original"]
        assert original["contentType"] == "image/jpeg" and original["bytes"] < 10 * 2**20
        assert max(original["width"], original["height"]) <= 4096

        broken = base64.b64encode(make_image()[:40]).decode()
        await page.evaluate(f"""(() => {{
          const clipboardData = new DataTransfer();
          const bytes = Uint8Array.from(atob("{broken}"), (letter) => letter.charCodeAt(0));
          clipboardData.items.add(new File([bytes], "broken.jpg"));
          document.dispatchEvent(new ClipboardEvent("paste", {{ clipboardData }}));
        }})()""")
        (row, _) = await until_rows(page, "rows[0]?.badge === 'Not sent'")
        assert "image" in row["text"].lower() and row["buttons"] == ["Try again", "Remove"]
        await page.reload()
        await until_rows(page, "rows[0]?.badge === 'Not sent'")
        await page.click(act("Remove"))
        await until_rows(page, "rows.length === 1")
        page.problems = [each for each in page.problems if "status of 400" not in each]


def result(number: int) -> Asset:
    """Return an asset of so many minutes ago; all of them are of the same photo."""
    sure = {"confidence": 0.9}
    said = AiMetadata(brand={"value": "Nike"} | sure, model={"value": f"Model {number}"} | sure)
    at = utc_now() - timedelta(minutes=number)
    asset = make_asset("gus", created_at=at, status=AssetStatus.ACTIVE, ai_metadata=said, finished_at=at)
    return replace(asset, original=replace(asset.original, backend="local", public_id=f"{'0' * 24}/original-0"))


async def seed(data_dir: Path, count: int) -> None:
    """Put so many results into the store, a minute apart; the newest is Model 0."""
    (data_dir / "media" / ("0" * 24)).mkdir(parents=True)
    (data_dir / "media" / ("0" * 24) / "original-0.jpg").write_bytes(make_image())
    store = SqliteAssetStore(data_dir / "assets.sqlite")
    await store.open()
    made = [result(number) for number in range(count)]
    for first in range(0, count, 500):
        await asyncio.gather(*(store.create(asset) for asset in made[first : first + 500]))
    await store.close()


@pytest.mark.gen_test(timeout=120)
async def test_list_of_five_thousand_holds_few_rows(tmp_path: Path) -> None:
    """Whatever its length, the list has only the rows near the screen, and loads the next page when it is scrolled to.

    What comes meanwhile is on top, and a row that is left and seen again is the same.
    """
    await seed(tmp_path, 5000)
    with Service(tmp_path, "http://127.0.0.1:9") as service:
        async with photo_page(service.url, "gus") as page:
            await until_rows(page, "rows[0]?.values[1] === 'Model 0 sure'")
            await page.until_text("50 and more")
            most = await page.evaluate(f"""(async () => {{
              let most = 0;
              const text = () => {within(".counts")}.textContent;
              while (!text().startsWith("5,000 photos")) {{
                scrollTo(0, document.documentElement.scrollHeight);
                await new Promise(requestAnimationFrame);
                most = Math.max(most, {QUEUE}.querySelectorAll(".list .photo").length);
              }}
              return most;
            }})()""")
            assert most <= 200
            last = await until_rows(page, "rows.at(-1)?.values[1] === 'Model 4999 sure'")
            assert await page.evaluate(f"{within('.list .photo', -1)}.ariaPosInSet") == "5000" and len(last) < 200
            await page.evaluate("scrollTo(0, 0)")
            await until_rows(page, "rows[0]?.values[1] === 'Model 0 sure'")
