"""The console as an operator uses it, in a real Chromium: health, processes, users, the audit list and the charts."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pytest

from tests.browser.console_page import HOSTILE, PLUGIN_WITH_ROUTE, ask, check_looks, console, find, until
from tests.chromium import AXE, BROWSER, Page
from tests.factories import make_token
from tests.requirements import require
from tests.service import AiService, Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, ai: AiService) -> Iterator[Service]:
    require(BROWSER is not None, "needs Chromium")
    require(AXE is not None and AXE.exists(), "needs axe-core")
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "bell.py").write_text(PLUGIN_WITH_ROUTE)
    (folder / "shattered.py").write_text(f"raise ValueError({HOSTILE!r})")
    settings = {"PLUGINS_DIR": str(folder), "CONCURRENCY": "2", "BACKOFF_MS": "20"}
    with Service(tmp_path_factory.mktemp("data"), ai.url, **settings) as service:
        yield service


@pytest.fixture
def busy(service: Service, ai: AiService) -> Iterator[Service]:
    """Two photos that the AI works on until the test ends, and others that wait: anna has four, ben one."""
    ai.configure(paused=True)
    for number, user in enumerate(("anna", "anna", "anna", "anna", "ben")):
        assert service.upload(user, headers={"Idempotency-Key": f"{time.time_ns()}-{number}"}).status_code == 202
    service.wait_status(active=2, waiting=3)
    yield service
    ai.configure(paused=False)
    service.wait_status(active=0, waiting=0, delayed=0)


@pytest.mark.gen_test(timeout=60)
async def test_overview_shows_health_and_pauses_the_queue(busy: Service) -> None:
    """The overview shows health and counts; the operator confirms a pause and undoes it by the message that follows."""
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
    """A hidden console closes its socket and requests nothing; when it is shown, it is live at once."""

    def sockets() -> int:
        shown = httpx.get(f"{service.url}/metrics").text
        return sum(int(float(count)) for count in re.findall(r'sockets_open{transport="socket"} (\S+)', shown))

    async with console(service) as page:
        await page.until_text("Live")
        await until(lambda: sockets() == 1)
        other = await page.open_tab(f"{service.url}/livez")
        await page.until("document.visibilityState === 'hidden'")
        await until(lambda: sockets() == 0)
        requests = await page.evaluate("performance.getEntriesByType('resource').length")
        await other.call("Page.close")
        await page.call("Page.bringToFront")
        await page.until_text("Live")
        await until(lambda: sockets() == 1)
        # One request for the overview and one for the charts when the tab is shown; none while it was hidden.
        assert await page.evaluate("performance.getEntriesByType('resource').length") <= requests + 2
        assert page.problems == []


@pytest.mark.gen_test(timeout=60)
async def test_processes_show_their_slots_and_drain(busy: Service) -> None:
    """Each slot shows its job and the start time and links to the job; the operator drains and resumes a process."""
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
        # The source of each plugin, its routes and its error; the console shows a plugin's words as text.
        for text in ("built-in, API 2", "Serves GET /ring (user).", "cannot be used", f"ValueError: {HOSTILE}"):
            await page.until_text(text)
        await page.until_text("answers")
        assert await page.evaluate("document.querySelectorAll('main img, main script').length") == 0
        await check_looks(page)
        assert page.problems == []


@pytest.mark.gen_test(timeout=60)
async def test_users_are_found_and_erased_and_the_audit_lists_it(busy: Service, ai: AiService) -> None:
    """A bar of the chart opens its user's page; an erasure requires the typed name; the address filters the audit."""
    async with console(busy) as page:
        await page.press("g", "u")
        await page.until("document.querySelectorAll('.user-bars li').length === 2")
        bars = await page.evaluate("[...document.querySelectorAll('.user-bars li')].map((item) => item.innerText)")
        assert bars[0].startswith("anna") and "80 %" in bars[0] and bars[1].startswith("ben")
        await check_looks(page)
        await page.press("/")
        await page.write("new-user")
        await page.press("Enter")
        await page.until("document.title === 'new-user · Console'")
        assert await page.evaluate("document.activeElement.textContent") == "new-user"
        await page.evaluate("history.back()")
        await cancel_and_erase_ben(page, busy, ai)
        refused = f"{busy.url}/api/processes/{quote(HOSTILE, safe='')}/drain"
        assert httpx.post(refused, headers=busy.headers("ops-1", role="admin")).status_code == 404
        await check_the_audit(page)
        assert page.problems == []


async def cancel_and_erase_ben(page: Page, service: Service, ai: AiService) -> None:
    """Cancel the one job of ben on his page, then erase him; the AI service answers from then on."""
    await page.click(find("ben"))
    await page.until("document.title.startsWith('ben')")
    await page.until_text("Waiting jobs")
    await check_looks(page)
    await page.click(find("Cancel jobs …"))
    await page.click(find("Cancel 1 job", "dialog button"))
    # Not the progress, which says "0 of 1 job cancelled.".
    await page.until("document.querySelector('.bulk-result')?.textContent === '1 job cancelled.'")
    assert [job["userId"] for job in ask(service, "/api/queue/jobs?state=failed")["items"]] == ["ben"]
    await page.click(find("Close", "dialog button"))
    await page.click(find("Erase …"))
    await page.write("be")
    assert await page.evaluate(f"{find('Erase permanently', 'dialog button')}.disabled")
    await page.write("n")
    await page.press("Enter")
    ai.configure(paused=False)
    await page.until("/Erased|The erasure continues/.test(document.querySelector('.toasts').innerText)")


async def check_the_audit(page: Page) -> None:
    """The audit lists the erasure and the refused call, hostile text as text, and has its filter in the address."""
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


@pytest.mark.gen_test(timeout=60)
async def test_readers_have_no_buttons_and_users_no_console(service: Service) -> None:
    """The role operator-read sees every view without its buttons; a token without a role gets the reason.

    A refusal because of the page's origin, as behind a proxy without PUBLIC_URL, does not name the role.
    """
    async with console(service, role="operator-read") as page:
        await page.until_text("can only view")
        await page.until("document.querySelectorAll('.queue').length > 0")
        buttons = []
        for path in ("", "/processes", "/plugins", "/users", "/users/anna", "/audit"):
            await page.evaluate(f"document.querySelector('.views a').setAttribute('href', '/console{path}')")
            await page.click("document.querySelector('.views a')")
            await page.until("!document.querySelector('main [aria-busy=true], main .skeleton')")
            script = "[...document.querySelectorAll('main button')].map((each) => each.textContent)"
            buttons += await page.evaluate(script)
        assert set(buttons) <= {"Look up", "Clear filters", "Filters", "Try again"}
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
    """Tab reaches the view; `?` lists the keys, Escape closes the list; letters typed into a field run no command."""
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
    """Keys read the numbers of an instant; a table has the same numbers; the address has the window of time."""
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
        labels = f"import({code}).then(({{ multiple }}) => [[30, 90], [0.5, 1.5]].flatMap(([step, last]) =>"
        labels += " [step, last].map((s) => multiple(s * 1000, step * 1000))))"
        assert await page.evaluate(labels) == ["30 s", "90 s", "500 ms", "1.5 s"]
        await page.click("document.querySelector('[name=window][value=\"7d\"]')")
        await page.until("location.search === '?window=7d'")
        await page.until(f"{plot}.getAttribute('aria-valuemax') === '167'")
        await check_looks(page)
        assert page.problems == []


@pytest.mark.gen_test(timeout=60)
async def test_overview_shows_holds_and_an_outage(service: Service, ai: AiService) -> None:
    """A held provider is shown with its reply as text and a countdown; offline, the page marks its numbers as old."""
    error = {"message": HOSTILE, "code": "RATE"}
    ai.configure(replies=[{"status": 429, "headers": {"Retry-After": "30"}, "body": {"error": error}}])
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
