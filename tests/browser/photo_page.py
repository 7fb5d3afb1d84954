"""The page / in a real Chromium, for its tests: open it, read its list of photos, choose and drop photos."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.chromium import AXE, BROWSER, Page, browsing
from tests.factories import make_image, make_token
from tests.requirements import require

QUEUE = "document.querySelector('photo-queue').shadowRoot"
ROWS = f"""[...{QUEUE}.querySelectorAll('.list .photo:not([hidden])')].map((row) => {{
  const text = (selector) => row.querySelector(selector)?.textContent ?? "";
  const image = row.querySelector(".picture img");
  return {{ id: row.id, title: text(".title"), badge: text(".badge"), text: text(".state-text"),
    values: [...row.querySelectorAll("dd")].map((each) => each.textContent),
    buttons: [...row.querySelectorAll(".buttons button")].map((each) => each.dataset.act),
    picture: image.hidden || !image.naturalWidth ? "" : image.src }};
}})"""
# Records each shift of the layout that no input of the user caused.
RECORD_SHIFTS = """globalThis.shifts = []; new PerformanceObserver((list) => list.getEntries().forEach((each) =>
  each.hadRecentInput || shifts.push([each.value, ...each.sources.map(({ node, previousRect: from, currentRect: to }) =>
    `${node?.className || node?.nodeName}: ${[from.x, from.y, from.height]} to ${[to.x, to.y, to.height]}`)])))
  .observe({ type: "layout-shift", buffered: true })"""


@asynccontextmanager
async def photo_page(url: str, sub: str = "ann") -> AsyncIterator[Page]:
    """Give the page of a signed-in user; at the end its console must have no problem."""
    require(BROWSER is not None, "needs Chromium")
    async with browsing(f"{url}/#token={make_token(sub)}") as page:
        await page.until(f"{QUEUE}.querySelector('[data-view=empty], [data-view=full]')")
        yield page
        assert page.problems == []


def within(selector: str, at: int = 0) -> str:
    """Return JavaScript for an element within the component <photo-queue>. at: its index among those that match."""
    return f"[...{QUEUE}.querySelectorAll({json.dumps(selector)})].at({at})"


def act(name: str, at: int = 0) -> str:
    """Return JavaScript for the button of this action. at: the index of its photo in the list, from the top."""
    return within(f".photo:not([hidden]) [data-act='{name}']", at)


async def rows(page: Page) -> list[dict[str, Any]]:
    """Return what the list shows of each photo that has a row now: those near the screen."""
    return list(await page.evaluate(ROWS))


async def until_rows(page: Page, condition: str) -> list[dict[str, Any]]:
    """Return the rows once a condition in JavaScript about `rows` is true."""
    try:
        return list(await page.until(f"((rows) => ({condition}) && rows)({ROWS})"))
    except AssertionError:
        raise AssertionError(f"{condition}: {await rows(page)} {page.problems}") from None


async def every_row(page: Page) -> dict[str, dict[str, Any]]:
    """Scroll through the list from top to bottom and return all its rows by their ids."""
    return dict(
        await page.evaluate(f"""(async () => {{
          const found = {{}};
          for (let y = 0; y < document.documentElement.scrollHeight; y += 500) {{
            scrollTo(0, y);
            for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
            for (const row of {ROWS}) found[row.id] = row;
          }}
          scrollTo(0, 0);
          return found;
        }})()""")
    )


async def choose(page: Page, *files: Path) -> None:
    """Choose files as the button for files does."""
    await page.choose_files(within("input[type=file]"), files)


async def drop(page: Page, files: Sequence[Path]) -> None:
    """Drop files onto the component as a mouse does."""
    data = {"items": [], "files": [str(path) for path in files], "dragOperationsMask": 1}
    box = await page.evaluate(f"(({{x, y}}) => ({{ x: x + 9, y: y + 9 }}))({within('.hole')}.getBoundingClientRect())")
    for kind in ("dragEnter", "dragOver", "drop"):
        await page.call("Input.dispatchDragEvent", type=kind, data=data, **box)


def photos(folder: Path, count: int, *, first: int = 0) -> list[Path]:
    """Write different photos into the folder and return their paths. first: the number of the first one."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"photo-{number:03}.jpg" for number in range(first, first + count)]
    for number, path in enumerate(paths, first):
        path.write_bytes(make_image(seed=number))
    return paths


async def check_looks(page: Page) -> None:
    """Check the page with axe-core, light and dark, and that it does not scroll sideways."""
    for scheme in ("light", "dark"):
        await page.prefer(scheme=scheme, motion="reduce")
        # The page has the new colours from the next frame on.
        await page.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        if AXE:
            violations = await page.violations()
            assert violations == [], (scheme, violations)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
