"""The console as an operator uses it: is it healthy, who fills the queue, who did what. In a real Chromium."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chromium import AXE, BROWSER, Page, browsing
from tests.factories import make_token
from tests.parts import require
from tests.service import WAIT_SECONDS, AiService, Service

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
CARRY_ON = {"status": 200}


@pytest.fixture(scope="module")
def ai() -> Iterator[AiService]:
    with AiService() as ai_service:
        yield ai_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, ai: AiService) -> Iterator[Service]:
    require(BROWSER is not None, "needs Chromium")
    require(AXE is not None and AXE.exists(), "needs axe-core")
    with Service(tmp_path_factory.mktemp("data"), ai.url, CONCURRENCY="2", BACKOFF_MS="20") as service:
        yield service


@pytest.fixture
def busy(service: Service, ai: AiService) -> Iterator[Service]:
    """Two photos that the AI works on until the test ends, and others that wait: anna has four, ben one."""
    ai.order(held=True)
    for number, user in enumerate(("anna", "anna", "anna", "anna", "ben")):
        assert service.upload(user, headers={"Idempotency-Key": f"{time.time_ns()}-{number}"}).status_code == 202
    service.wait_status(active=2, waiting=3)
    yield service
    ai.order(held=False)
    service.wait_status(active=0, waiting=0, delayed=0)


@asynccontextmanager
async def console(service: Service, path: str = "/console", role: str = "admin") -> AsyncIterator[Page]:
    """Give a tab with the console, opened by a link as the service prints it."""
    async with browsing(f"{service.url}{path}#token={make_token('ops-1', role=role)}") as page:
        await page.until("document.querySelector('#places')")
        yield page


def ask(service: Service, path: str, method: str = "GET", **options: Any) -> Any:
    """Call a route as an admin and return the data."""
    headers = service.headers("ops-1", role="admin")
    response = httpx.request(method, service.url + path, headers=headers, timeout=WAIT_SECONDS, **options)
    assert response.is_success, response.text
    return response.json()["data"]


def find(text: str, selector: str = "button, a") -> str:
    """Return the JavaScript for the shown element of that text or name."""
    names = "(element.getAttribute('aria-label') ?? element.textContent).trim()"
    return f"""[...document.querySelectorAll({json.dumps(selector)})]
      .find((element) => {names} === {json.dumps(text)} && element.checkVisibility())"""


async def check_looks(page: Page) -> None:
    """Hold what is shown against axe in light and dark and on a phone, where nothing may stick out."""
    assert await page.violations() == []
    await page.prefer(scheme="dark")
    assert await page.violations() == []
    await page.resize(320, 640, is_phone=True)
    assert await page.violations() == []
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await page.resize(1280, 900)
    await page.prefer(scheme="light")


@pytest.mark.gen_test(timeout=60)
async def test_overview_shows_health_and_pauses_the_queue(busy: Service) -> None:
    """A first look says that all is well and what waits; a pause is asked for, told, and undone by the message."""
    async with console(busy) as page:
        await page.resize(1280, 900)
        await page.until_text("All is well.")
        assert await page.until(f"{find('Waiting', '.tile-title')}.nextSibling.textContent") == "3"
        assert await page.until(f"{find('Running', '.tile-title')}.parentElement.innerText.includes('2 of 2 slots')")
        await page.until_text("Live")
        await check_looks(page)
        await page.click(find("Pause Photos"))
        await page.press("Escape")
        await page.until("!document.querySelector('dialog')")
        assert not ask(busy, "/api/assets/queue-status")["paused"]
        await page.click(find("Pause Photos"))
        await page.click(find("Pause", "dialog button"))
        await page.until_text("The queue ai-processing is paused.")
        assert ask(busy, "/api/assets/queue-status")["paused"]
        await page.click(find("Undo"))
        await page.until_text("All is well.")
        assert not ask(busy, "/api/assets/queue-status")["paused"]
        assert page.problems == []


@pytest.mark.gen_test(timeout=60)
async def test_overview_tells_of_holds_and_of_an_outage(service: Service, ai: AiService) -> None:
    """A provider that asks for rest is named with its words as text and a countdown; offline, old numbers say so."""
    rest = {"status": 429, "headers": {"Retry-After": "30"}, "body": {"error": {"message": HOSTILE, "code": "RATE"}}}
    ai.order(replies=[rest])
    service.upload("anna", headers={"Idempotency-Key": str(time.time_ns())})
    async with console(service) as page:
        await page.until("/http is not asked for now. Next try in \\d+ s/.test(document.body.innerText)")
        assert await page.evaluate("document.querySelectorAll('img, script:not([src])').length") == 0
        problems = list(page.problems)
        await page.go_offline()
        await page.until_text("The service does not answer. What you see is old.", 40)
        await page.go_offline(False)
        await page.until_text("It works, but one thing needs a look.", 40)
        assert problems == []
