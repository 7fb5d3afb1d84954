"""The page / as a person has it before them: what it shows of each photo, and photos dropped on it."""

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
# Shifts of what a person had not asked for.
SHIFTS = """globalThis.shifts = []; new PerformanceObserver((list) => list.getEntries().forEach((each) =>
  each.hadRecentInput || shifts.push([each.value, ...each.sources.map(({ node, previousRect: from, currentRect: to }) =>
    `${node?.className || node?.nodeName}: ${[from.x, from.y, from.height]} to ${[to.x, to.y, to.height]}`)])))
  .observe({ type: "layout-shift", buffered: true })"""


@asynccontextmanager
async def photo_page(url: str, sub: str = "ann") -> AsyncIterator[Page]:
    """Give the page of a user who has signed in; at the end it must have had nothing to complain of."""
    require(BROWSER is not None, "needs Chromium")
    async with browsing(f"{url}/#token={make_token(sub)}") as page:
        await page.until(f"{QUEUE}.querySelector('[data-view=empty], [data-view=full]')")
        yield page
        assert page.problems == []


def within(selector: str, at: int = 0) -> str:
    """Return JavaScript for the element of the component."""
    return f"[...{QUEUE}.querySelectorAll({json.dumps(selector)})].at({at})"


def act(name: str, at: int = 0) -> str:
    """Return JavaScript for the button of that name, in the list from above."""
    return within(f".photo:not([hidden]) [data-act='{name}']", at)


async def rows(page: Page) -> list[dict[str, Any]]:
    """Return what the list shows of each photo near the screen."""
    return list(await page.evaluate(ROWS))


async def until_rows(page: Page, condition: str) -> list[dict[str, Any]]:
    """Return the rows once they fulfil a condition in JavaScript."""
    try:
        return list(await page.until(f"((rows) => ({condition}) && rows)({ROWS})"))
    except AssertionError:
        raise AssertionError(f"{condition}: {await rows(page)} {page.problems}") from None


async def every_row(page: Page) -> dict[str, dict[str, Any]]:
    """Scroll through the whole list and return all its rows by their ids."""
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
    """Choose files as by the button."""
    await page.choose_files(within("input[type=file]"), files)


async def drop(page: Page, files: Sequence[Path]) -> None:
    """Drop files as by the mouse."""
    data = {"items": [], "files": [str(path) for path in files], "dragOperationsMask": 1}
    box = await page.evaluate(f"(({{x, y}}) => ({{ x: x + 9, y: y + 9 }}))({within('.hole')}.getBoundingClientRect())")
    for kind in ("dragEnter", "dragOver", "drop"):
        await page.call("Input.dispatchDragEvent", type=kind, data=data, **box)


def photos(folder: Path, count: int, *, first: int = 0) -> list[Path]:
    """Return files of so many different photos."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"photo-{number:03}.jpg" for number in range(first, first + count)]
    for number, path in enumerate(paths, first):
        path.write_bytes(make_image(seed=number))
    return paths


async def check_looks(page: Page) -> None:
    """The page has nothing that axe-core complains of, light and dark, and nothing to scroll sideways."""
    for scheme in ("light", "dark"):
        await page.prefer(scheme=scheme, motion="reduce")
        # Its colours are there with the next frame.
        await page.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        if AXE:
            violations = await page.violations()
            assert violations == [], (scheme, violations)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
