"""The console as an operator uses it: is it healthy, who fills the queue, who did what. In a real Chromium."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.chromium import AXE, BROWSER, Page, browsing
from tests.factories import make_token
from tests.requirements import require
from tests.service import WAIT_SECONDS, AiService, Service

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
# A plugin with a route of its own.
BELL = """
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


@pytest.fixture(scope="module")
def ai() -> Iterator[AiService]:
    with AiService() as ai_service:
        yield ai_service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, ai: AiService) -> Iterator[Service]:
    require(BROWSER is not None, "needs Chromium")
    require(AXE is not None and AXE.exists(), "needs axe-core")
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "bell.py").write_text(BELL)
    (folder / "shattered.py").write_text(f"raise ValueError({HOSTILE!r})")
    settings = {"PLUGINS_DIR": str(folder), "CONCURRENCY": "2", "BACKOFF_MS": "20"}
    with Service(tmp_path_factory.mktemp("data"), ai.url, **settings) as service:
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
    """Return the JavaScript for the shown element of that text or name."""
    names = "(element.getAttribute('aria-label') ?? element.textContent).trim()"
    return f"""[...document.querySelectorAll({json.dumps(selector)})]
      .find((element) => {names} === {json.dumps(text)} && element.checkVisibility())"""


async def check_looks(page: Page) -> None:
    """Hold what is shown against axe, wide and light and then dark and on a phone, where nothing may stick out."""
    assert await page.violations() == []
    await page.prefer(scheme="dark")
    await page.resize(320, 640, is_phone=True)
    assert await page.violations() == []
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await page.resize(1280, 900)
    await page.prefer(scheme="light")


@pytest.mark.gen_test(timeout=60)
async def test_overview_shows_health_and_pauses_the_queue(busy: Service) -> None:
    """A first look says that all is well and what waits; a pause is asked for, told, and undone by the message."""
    async with console(busy) as page:
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
async def test_hidden_tab_stops_the_socket(service: Service) -> None:
    """While another tab is in front nothing is sent; back again, the page is live at once."""

    def sockets() -> int:
        shown = httpx.get(f"{service.url}/metrics").text
        return sum(int(float(count)) for count in re.findall(r'sockets_open{transport="socket"} (\S+)', shown))

    async with console(service) as page:
        await page.until_text("Live")
        await until(lambda: sockets() == 1)
        other = await page.open_tab(f"{service.url}/livez")
        await page.until("document.visibilityState === 'hidden'")
        await until(lambda: sockets() == 0)
        asked = await page.evaluate("performance.getEntriesByType('resource').length")
        await other.call("Page.close")
        await page.call("Page.bringToFront")
        await page.until_text("Live")
        await until(lambda: sockets() == 1)
        # At the return one overview and one reading of the charts; in between nothing.
        assert await page.evaluate("performance.getEntriesByType('resource').length") <= asked + 2
        assert page.problems == []


@pytest.mark.gen_test(timeout=60)
async def test_processes_show_their_slots_and_drain(busy: Service) -> None:
    """Each slot says what it runs since when and leads to the job; drained and resumed on request."""
    async with console(busy, "/console/processes") as page:
        await page.until("document.querySelectorAll('.slots a').length === 2")
        running = await page.evaluate("[...document.querySelectorAll('.slots a')].map((link) => link.pathname)")
        slots = ask(busy, "/api/processes")["items"][0]["slots"]
        assert sorted(path.rpartition("/")[2].replace("%3A", ":") for path in running) == sorted(
            slot["jobId"] for slot in slots
        )
        assert await page.evaluate("document.querySelector('.slots time').title !== ''")
        await check_looks(page)
        await page.click("document.querySelector('.process button')")
        await page.click(find("Drain", "dialog button"))
        await page.until_text("draining")
        assert ask(busy, "/api/processes")["items"][0]["isDraining"]
        await page.click(find("Undo"))
        await page.until("!document.querySelector('.badge.warn')")
        assert not ask(busy, "/api/processes")["items"][0]["isDraining"]
        await page.click(find("Plugins", ".views a span"))
        await page.until_text("healthy")
        await page.until_text("websocket")
        # Where each comes from, what it serves, what is wrong with it, what it took; a plugin's words are only text.
        for text in ("built-in, API 2", "Serves GET /ring (user).", "cannot be used", f"ValueError: {HOSTILE}"):
            await page.until_text(text)
        await page.until_text("answers")
        assert await page.evaluate("document.querySelectorAll('main img, main script').length") == 0
        await check_looks(page)
        assert page.problems == []


@pytest.mark.gen_test(timeout=60)
async def test_users_are_found_and_erased_and_the_audit_tells(busy: Service, ai: AiService) -> None:
    """Who fills the queue leads to that user; erasing takes the typed name; the audit list filters by the address."""
    async with console(busy) as page:
        await page.press("g", "u")
        await page.until("document.querySelectorAll('.user-bars li').length === 2")
        bars = await page.evaluate("[...document.querySelectorAll('.user-bars li')].map((item) => item.innerText)")
        assert bars[0].startswith("anna") and "80 %" in bars[0] and bars[1].startswith("ben")
        await check_looks(page)
        await page.press("/")
        await page.write("nobody-yet")
        await page.press("Enter")
        await page.until("document.title === 'nobody-yet · Console'")
        assert await page.evaluate("document.activeElement.textContent") == "nobody-yet"
        await page.evaluate("history.back()")
        await page.click(find("ben"))
        await page.until("document.title.startsWith('ben')")
        await page.until_text("Waiting jobs")
        await check_looks(page)
        await page.click(find("Cancel jobs …"))
        await page.click(find("Cancel 1 job", "dialog button"))
        # Not the progress, which says "0 of 1 job cancelled.".
        await page.until("document.querySelector('.bulk-result')?.textContent === '1 job cancelled.'")
        assert [job["userId"] for job in ask(busy, "/api/queue/jobs?state=failed")["items"]] == ["ben"]
        await page.click(find("Close", "dialog button"))
        await page.click(find("Erase …"))
        await page.write("be")
        assert await page.evaluate(f"{find('Erase permanently', 'dialog button')}.disabled")
        await page.write("n")
        await page.press("Enter")
        ai.order(held=False)
        await page.until("/Erased|The erasure continues/.test(document.querySelector('.toasts').innerText)")
        refused = f"{busy.url}/api/processes/{quote(HOSTILE, safe='')}/drain"
        assert httpx.post(refused, headers=busy.headers("ops-1", role="admin")).status_code == 404
        await page.press("g", "a")
        await page.until_text("erase user")
        await page.until_text(HOSTILE[:40])
        assert await page.evaluate("document.querySelectorAll('main img, main script').length") == 0
        await page.press("/")
        await page.write("ops-2")
        await page.until("location.search === '?who=ops-2'")
        await page.until_text("Nothing matches.")
        await page.evaluate("history.back()")
        await page.until_text("erase user")
        assert await page.evaluate("location.search + document.querySelector('[name=who]').value") == ""
        await page.evaluate("document.activeElement.blur()")
        await page.press("j")
        assert await page.evaluate("document.activeElement.matches('tr[data-key]')")
        await check_looks(page)
        assert page.problems == []


@pytest.mark.gen_test(timeout=60)
async def test_readers_have_no_buttons_and_users_no_console(service: Service) -> None:
    """operator-read sees every view without its buttons; a token without a role is told why it does not do. What is
    refused because of the page's origin, as behind a proxy without PUBLIC_URL, is not put down to the role.
    """
    async with console(service, role="operator-read") as page:
        await page.until_text("can only view")
        await page.until("document.querySelectorAll('.queue').length > 0")
        seen = []
        for path in ("", "/processes", "/plugins", "/users", "/users/anna", "/audit"):
            await page.evaluate(f"document.querySelector('.views a').setAttribute('href', '/console{path}')")
            await page.click("document.querySelector('.views a')")
            await page.until("!document.querySelector('main [aria-busy=true], main .skeleton')")
            seen += await page.evaluate("[...document.querySelectorAll('main button')].map((each) => each.textContent)")
        assert set(seen) <= {"Look up", "Clear filters", "Filters", "Try again"}
        token = 'JSON.parse(localStorage["pipeline.operator.session"]).token'
        options = f'{{ method: "POST", headers: {{ Authorization: `Bearer ${{{token}}}` }} }}'
        refused = await page.evaluate(f'fetch("/api/queue/pause", {options}).then(({{ status }}) => status)')
        assert refused == 403
        refusals = "[[], [{ field: 'Origin', message: 'Not ours' }]]"
        words = "(details) => wordsOf(new PipelineError('No', 'FORBIDDEN', 403, { details }))"
        imported = f"import('/pages/now/api.js').then(({{ PipelineError, wordsOf }}) => {refusals}.map({words}))"
        assert await page.evaluate(imported) == ["Your role can view this, but not change it.", "Origin: Not ours"]
        await page.click(find("Sign out"))
        await page.until_text("Sign in")
        await page.evaluate("document.querySelector('input').focus()")
        await page.write(make_token("anna"))
        await page.press("Enter")
        await page.until_text("This token gives no access to the console")
        assert await page.violations() == []
        assert [each for each in page.problems if "403" not in each] == []


@pytest.mark.gen_test(timeout=60)
async def test_keys_are_listed_and_leave_writing_alone(service: Service) -> None:
    """Tab reaches the view; `?` lists the keys, Escape closes; letters typed into a field go nowhere else."""
    async with console(service, "/console/audit") as page:
        await page.until_text("Audit")
        await page.press("Tab", "Enter")
        await page.until("document.activeElement.id === 'main'")
        await page.press("?")
        await page.until_text("Go to Users")
        keys = await page.evaluate("[...document.querySelectorAll('dialog dt')].map((each) => each.textContent)")
        assert {"?", "/", "j", "k", "gu"} <= set(keys)
        await page.press("g", "u")
        await page.press("Escape")
        await page.until("!document.querySelector('dialog')")
        await page.press("/")
        await page.press("g", "u", "j")
        assert await page.evaluate("[document.activeElement.value, location.pathname]") == ["guj", "/console/audit"]
        await page.press("Escape", "g", "o")
        await page.until("document.title === 'Overview · Console' && document.activeElement.tagName === 'H1'")
        assert page.problems == []


@pytest.mark.gen_test(timeout=60)
async def test_charts_are_read_by_keyboard_and_as_a_table(service: Service) -> None:
    """Arrow keys tell the numbers of an instant; the table has them too; the window is kept in the address."""
    assert service.upload("carl", headers={"Idempotency-Key": str(time.time_ns())}).status_code == 202
    await until(lambda: sum(each["completed"] for each in ask(service, "/api/queue/charts")["points"]) > 0)
    async with console(service, "/console?window=24h") as page:
        plot = "document.querySelector('[aria-label=\"Finished, over time\"]')"
        await page.until(f"/complete [1-9]/.test({plot}.getAttribute('aria-valuetext'))")
        await page.evaluate(f"{plot}.focus()")
        await page.press("Home")
        assert await page.until(f"{plot}.getAttribute('aria-valuetext')?.endsWith('complete 0, partial 0')")
        assert await page.until("document.querySelectorAll('.chart-tip:not([hidden])').length") == 1
        await page.press("End")
        assert await page.until(f"/complete [1-9]/.test({plot}.getAttribute('aria-valuetext'))")
        await page.click(f"{plot}.closest('figure').querySelector('summary')")
        await page.until(f"{plot}.closest('figure').querySelectorAll('tbody tr').length === 144")
        code = "document.querySelector('script[src$=\"console.js\"]').src.replace('console.js', 'parts/time.js')"
        beside = f"import({code}).then(({{ multiple }}) => [[30, 90], [0.5, 1.5]].flatMap(([step, last]) =>"
        beside += " [step, last].map((s) => multiple(s * 1000, step * 1000))))"
        assert await page.evaluate(beside) == ["30 s", "90 s", "500 ms", "1.5 s"]
        await page.click("document.querySelector('[name=window][value=\"7d\"]')")
        await page.until("location.search === '?window=7d'")
        await page.until(f"{plot}.getAttribute('aria-valuemax') === '167'")
        await check_looks(page)
        assert page.problems == []


@pytest.mark.gen_test(timeout=60)
async def test_overview_tells_of_holds_and_of_an_outage(service: Service, ai: AiService) -> None:
    """A provider that asks for rest is named with its words as text and a countdown; offline, old numbers say so."""
    rest = {"status": 429, "headers": {"Retry-After": "30"}, "body": {"error": {"message": HOSTILE, "code": "RATE"}}}
    ai.order(replies=[rest])
    service.upload("anna", headers={"Idempotency-Key": str(time.time_ns())})
    async with console(service) as page:
        await page.until("/http is not called for now. Next try in \\d+ s/.test(document.body.innerText)")
        await page.until_text("no job can start yet")
        await page.until_text(f"HTTP 429 from {ai.url.removeprefix('http://')}: {HOSTILE}")
        assert await page.evaluate("document.querySelectorAll('main img, main script').length") == 0
        problems = list(page.problems)
        await page.go_offline()
        await page.until_text("The service does not answer. These numbers are old. (This device is offline)")
        charts = "document.querySelector('.charts')"
        await page.evaluate(f"(document.dispatchEvent(new Event('visibilitychange')), {charts}.ariaBusy = 'not yet')")
        await page.until(f"{charts}.ariaBusy === 'false'")
        assert await page.evaluate(f"{charts}.checkVisibility()")
        await page.go_offline(False)
        await page.until_text("Live")
        await page.until_text("The service works, but one thing needs attention.")
        assert problems == []


async def until(is_so: Any) -> None:
    """Return once it is so."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not await asyncio.to_thread(is_so):
            await asyncio.sleep(0.05)
