"""Helpers for tests of the console in a real Chromium: open it, find its elements, wait for its lists and dialogs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.chromium import Page, browsing
from tests.factories import make_token
from tests.service import WAIT_SECONDS, AiService, Service

# A text that would run a script if the console showed it as HTML.
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
PLUGIN_WITH_ROUTE = """
from pipeline.hooks import PluginReply, hookimpl

API_VERSION = 2

@hookimpl
def job_finished(event):
    pass

@hookimpl
def register_routes(routes):
    routes.add("GET", "/ring", ring)

async def ring(request):
    return PluginReply(204)
"""
ROWS = "document.querySelectorAll('tr[data-key]')"
DIALOG = "document.querySelector('dialog.bulk')"


@asynccontextmanager
async def console(service: Service, path: str = "/console", role: str = "admin") -> AsyncIterator[Page]:
    """Give a tab with the console, opened by a link as the service prints it."""
    async with browsing(f"{service.url}{path}#token={make_token('ops-1', role=role)}") as page:
        await page.resize(1280, 900)
        await page.until("document.querySelector('#views')")
        yield page


def ask(service: Service, path: str, method: str = "GET", **options: Any) -> Any:
    """Call a route as an admin and return the data."""
    headers = service.headers("ops-1", role="admin")
    response = httpx.request(method, service.url + path, headers=headers, timeout=WAIT_SECONDS, **options)
    assert response.is_success, response.text
    return response.json()["data"]


def find(text: str, selector: str = "button, a") -> str:
    """Return JavaScript for the visible element with this text or accessible name."""
    names = "(element.getAttribute('aria-label') ?? element.textContent).trim()"
    return f"""[...document.querySelectorAll({json.dumps(selector)})]
      .find((element) => {names} === {json.dumps(text)} && element.checkVisibility())"""


async def check_looks(page: Page) -> None:
    """Check the page with axe, wide and light, then dark and on a phone, where the page must not scroll sideways."""
    assert await page.violations() == []
    await page.prefer(scheme="dark")
    await page.resize(320, 640, is_phone=True)
    assert await page.violations() == []
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await page.resize(1280, 900)
    await page.prefer(scheme="light")


def send(service: Service, user: str, count: int = 1, category: str = "lego") -> list[str]:
    """Upload photos and return the ids of their assets."""
    ids = []
    for number in range(count):
        reply = service.upload(user, category=category, headers={"Idempotency-Key": f"{user}-{category}-{number}"})
        assert reply.status_code == 202, reply.text
        ids.append(reply.json()["data"]["assetId"])
    return ids


def fail(service: Service, ai: AiService, user: str, count: int, message: str = HOSTILE, **fields: str) -> list[str]:
    """Upload photos that the AI service refuses at once with this message, and return the ids of their assets."""
    refusal = {"status": 422, "body": {"error": {"message": message, "code": "REFUSED"}}, "times": count}
    ai.configure(replies=[refusal])
    ids = send(service, user, count, **fields)
    service.wait_status(waiting=0, active=0, delayed=0)
    return ids


def jobs_of(service: Service, **query: Any) -> list[dict[str, Any]]:
    """Return the jobs that the filter finds."""
    items: list[dict[str, Any]] = ask(service, "/api/queue/jobs", params=query)["items"]
    return items


def delete(service: Service, **selection: Any) -> None:
    """Delete the selected jobs, as another operator does."""
    body = {"action": "delete", **selection}
    until = ask(service, "/api/queue/jobs/bulk", "POST", json=body | {"dryRun": True})["until"]
    ask(service, "/api/queue/jobs/bulk", "POST", json=body | {"until": until})


async def go(page: Page, address: str) -> None:
    """Follow a link within the console and wait for its view."""
    await page.evaluate(
        f"""(() => {{ const link = document.createElement("a");
          link.href = {json.dumps(address)}; document.body.append(link); link.click(); link.remove(); }})()"""
    )
    await page.until("!document.querySelector('main [aria-busy=true], main .skeleton')")


async def refresh(page: Page) -> None:
    """Make the page read its data at once, as it does when the user comes back to its tab."""
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


async def ask_to_cancel(page: Page, count: str) -> None:
    """Open the dialog to cancel jobs and return once it names this count, for example "3 jobs"."""
    await page.click(find("Cancel …"))
    await page.until(f"{DIALOG}?.innerText.includes('{count}')")


async def undo_cancel(page: Page, count: str) -> None:
    """Undo a cancellation that has ended. count: of the cancelled jobs, for example "3 jobs"."""
    await page.click(find("Undo", "dialog button"))
    await page.until(f"{DIALOG}?.innerText.includes('Run the cancelled jobs again?')")
    await page.click(find(f"Retry {count}"))
    await until_ended(page, f"{count} queued again")
    await page.press("Escape")


async def until_ended(page: Page, text: str, heading: str = "Done") -> None:
    """Return once the dialog shows this text under a heading that says the action is done or stopped."""
    has_heading = f"{DIALOG}?.querySelector('h2').textContent === {json.dumps(heading)}"
    await page.until(f"{has_heading} && {DIALOG}.innerText.includes({json.dumps(text)})")


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition is true; a thread checks it every 50 ms."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)
