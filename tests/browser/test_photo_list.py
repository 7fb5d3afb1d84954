"""The list of photos on / in a real Chromium when a user has thousands of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.assets.asset import AiMetadata, Asset, AssetStatus
from pipeline.assets.sqlite import SqliteAssetStore
from pipeline.clock import utc_now
from tests.browser.photo_page import QUEUE, photo_page, until_rows, within
from tests.factories import make_asset, make_image
from tests.service import Service

# Returns the largest number of rows that the document had at a time.
SCROLL_TO_THE_END = f"""(async () => {{
  let most = 0;
  const text = () => {within(".counts")}.textContent;
  while (!text().startsWith("5,000 photos")) {{
    scrollTo(0, document.documentElement.scrollHeight);
    await new Promise(requestAnimationFrame);
    most = Math.max(most, {QUEUE}.querySelectorAll(".list .photo").length);
  }}
  return most;
}})()"""


def analyzed_asset(number: int) -> Asset:
    """Return an asset that the service finished this many minutes ago; all assets have the same image."""
    sure = {"confidence": 0.9}
    metadata = AiMetadata(brand={"value": "Nike"} | sure, model={"value": f"Model {number}"} | sure)
    at = utc_now() - timedelta(minutes=number)
    asset = make_asset("gus", created_at=at, status=AssetStatus.ACTIVE, ai_metadata=metadata, finished_at=at)
    return replace(asset, original=replace(asset.original, backend="local", public_id=f"{'0' * 24}/original-0"))


async def store_assets(data_dir: Path, count: int) -> None:
    """Store assets with a result, one for each minute; the newest is Model 0."""
    (data_dir / "media" / ("0" * 24)).mkdir(parents=True)
    (data_dir / "media" / ("0" * 24) / "original-0.jpg").write_bytes(make_image())
    store = SqliteAssetStore(data_dir / "assets.sqlite")
    await store.open()
    assets = [analyzed_asset(number) for number in range(count)]
    for first in range(0, count, 500):
        await asyncio.gather(*(store.create(asset) for asset in assets[first : first + 500]))
    await store.close()


@pytest.mark.gen_test(timeout=120)
async def test_list_of_five_thousand_photos_has_few_rows(tmp_path: Path) -> None:
    """A list of any length has rows only for the photos near the screen, and loads the next page when scrolled to it.

    The first row is the same after scrolling to the end and back.
    """
    await store_assets(tmp_path, 5000)
    with Service(tmp_path, "http://127.0.0.1:9") as service:
        async with photo_page(service.url, "gus") as page:
            await until_rows(page, "rows[0]?.values[1] === 'Model 0 sure'")
            await page.until_text("50 and more")
            assert await page.evaluate(SCROLL_TO_THE_END) <= 200
            last = await until_rows(page, "rows.at(-1)?.values[1] === 'Model 4999 sure'")
            assert await page.evaluate(f"{within('.list .photo', -1)}.ariaPosInSet") == "5000" and len(last) < 200
            await page.evaluate("scrollTo(0, 0)")
            await until_rows(page, "rows[0]?.values[1] === 'Model 0 sure'")
