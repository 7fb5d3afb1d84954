"""Takes the pictures of docs/pictures/ anew, from a real service: `python -m docs.pictures.screenshots`.

Needs Chromium. The photos are the demo's. The offline AI answers for most; for the category `other` an AI service that
fails at times, so that there is something for operators to see.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

import httpx

from pipeline.demo import pictures
from tests.chromium import Page, browsing
from tests.factories import make_token
from tests.service import AiService, Service

FOLDER = Path(__file__).parent
WIDE, PHONE = (1280, 800), (390, 844)
USERS = ("ada", "grace", "edsger", "barbara")


async def take(service: Service, ai_service: AiService) -> None:
    """Fill the service and take the six pictures."""
    user, admin = make_token("ada"), make_token("maria", role="admin")
    async with browsing(f"{service.url}/#token={user}") as page:
        await fill(page, service, ai_service)
        await shoot(page, "photos", WIDE)
        await shoot(page, "photos-phone", PHONE, scheme="dark")
    async with browsing(f"{service.url}/console#token={admin}") as page:
        await page.until_text("Overview")
        await shoot(page, "console-overview", WIDE)
        listed = httpx.get(f"{service.url}/api/queue/jobs?state=failed", headers={"Authorization": f"Bearer {admin}"})
        (failed, *_) = listed.json()["data"]["items"]
        for name, path in {
            "console-jobs": "/console/jobs",
            "console-failures": "/console/failures",
            "console-job": f"/console/jobs/{failed['jobId']}",
        }.items():
            await page.call("Page.navigate", url=service.url + path)
            await page.until("document.readyState === 'complete'")
            await shoot(page, name, WIDE)


async def fill(page: Page, service: Service, ai_service: AiService) -> None:
    """Upload photos of several users and wait until the page shows the end of each of the first one's."""
    ai_service.configure(replies=[{"status": 500, "times": 12}, {"status": 422, "times": 2}])
    for user in USERS:
        for path, category in pictures():
            service.upload(user, image=path.read_bytes(), category=category)
    service.wait_status(waiting=0, active=0, delayed=0)
    await page.until_text("Nike")


async def shoot(page: Page, name: str, size: tuple[int, int], scheme: str = "light") -> None:
    """Write one picture, once the page has come to rest."""
    await page.resize(*size, is_phone=size is PHONE)
    await page.prefer(scheme=scheme, motion="reduce")
    await page.until("!document.querySelector('[aria-busy=true]') && [...document.images].every((i) => i.complete)")
    await asyncio.sleep(1)  # pictures in shadow trees fade in
    await page.screenshot(FOLDER / f"{name}.png")
    print(json.dumps({"picture": name, "problems": page.problems}))


def main() -> None:
    """Take them all."""
    FOLDER.mkdir(exist_ok=True)
    environment = {"AI_PROVIDER": "local", "AI_PROVIDER_BY_CATEGORY": "other=http", "PREVIEW_PROCESSES": "1"}
    with tempfile.TemporaryDirectory() as folder, AiService() as ai_service:
        with Service(Path(folder), ai_service.url, **environment) as service:
            asyncio.run(take(service, ai_service))


if __name__ == "__main__":
    main()
