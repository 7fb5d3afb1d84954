"""The console as an operator uses it on jobs: find them, see what became of one, act on many. In a real Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.browser.test_console import ask, check_looks, console, find
from tests.chromium import AXE, BROWSER, Page
from tests.constants import BREAKER_FAILURES, NOTIFIER_ATTEMPTS
from tests.fake_receiver import FakeReceiver, running_in_thread
from tests.fake_receiver import Reply as ReceiverReply
from tests.requirements import require
from tests.service import AiService, Service

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
ROWS = "document.querySelectorAll('tr[data-key]')"
DIALOG = "document.querySelector('dialog.bulk')"
SECRET = "whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"


@pytest.fixture(scope="module")
def ai() -> Iterator[AiService]:
    with AiService() as ai_service:
        yield ai_service


@pytest.fixture(scope="module")
def hook() -> Iterator[FakeReceiver]:
    with running_in_thread() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, ai: AiService, hook: FakeReceiver) -> Iterator[Service]:
    require(BROWSER is not None, "needs Chromium")
    require(AXE is not None and AXE.exists(), "needs axe-core")
    webhook = {"PLUGIN_WEBHOOK_URL": hook.url, "PLUGIN_WEBHOOK_SECRET": SECRET, "PLUGIN_WEBHOOK_ALLOW_PRIVATE": "true"}
    notifying = {"NOTIFIERS": "websocket,webhook", NOTIFIER_ATTEMPTS: "1", BREAKER_FAILURES: "1000"} | webhook
    environment = {"CONCURRENCY": "1", "BACKOFF_MS": "20", "JOB_ATTEMPTS": "2"} | notifying
    with Service(tmp_path_factory.mktemp("data"), ai.url, **environment) as service:
        yield service


def send(service: Service, user: str, count: int = 1, category: str = "lego") -> list[str]:
    """Upload photos and return the ids of their assets."""
    ids = []
    for number in range(count):
        reply = service.upload(user, category=category, headers={"Idempotency-Key": f"{user}-{category}-{number}"})
        assert reply.status_code == 202, reply.text
        ids.append(reply.json()["data"]["assetId"])
    return ids


def fail(service: Service, ai: AiService, user: str, count: int, message: str = HOSTILE, **fields: str) -> list[str]:
    """Let photos of the user fail at once, with that reason, and return the ids."""
    refusal = {"status": 422, "body": {"error": {"message": message, "code": "REFUSED"}}, "times": count}
    ai.order(replies=[refusal])
    ids = send(service, user, count, **fields)
    service.wait_status(waiting=0, active=0, delayed=0)
    return ids


@pytest.fixture
def held(service: Service, ai: AiService) -> Iterator[Service]:
    """One photo of holder is with the AI until the test ends: others wait behind it."""
    ai.order(held=True)
    send(service, "holder")
    service.wait_status(active=1)
    yield service
    ai.order(held=False)
    service.wait_status(active=0, waiting=0, delayed=0)


def jobs_of(service: Service, **query: Any) -> list[dict[str, Any]]:
    """Return the jobs that the filter finds."""
    items: list[dict[str, Any]] = ask(service, "/api/queue/jobs", params=query)["items"]
    return items


def delete(service: Service, **which: Any) -> None:
    """Delete these jobs, as another operator does."""
    body = {"action": "delete", **which}
    until = ask(service, "/api/queue/jobs/bulk", "POST", json=body | {"dryRun": True})["until"]
    ask(service, "/api/queue/jobs/bulk", "POST", json=body | {"until": until})


async def go(page: Page, address: str) -> None:
    """Follow a link within the console and wait for its view."""
    await page.evaluate(
        f"""(() => {{ const link = document.createElement("a");
          link.href = {json.dumps(address)}; document.body.append(link); link.click(); link.remove(); }})()"""
    )
    await page.until("!document.querySelector('main [aria-busy=true], main .skeleton')")


async def ask_to_cancel(page: Page, count: str) -> None:
    """Return once the dialog asks whether so many are to be cancelled. count: like "3 jobs"."""
    await page.click(find("Cancel …"))
    await page.until(f"{DIALOG}?.innerText.includes('{count}')")


async def bring_back(page: Page, count: str) -> None:
    """Undo a cancel that has ended, of so many."""
    await page.click(find("Undo", "dialog button"))
    await page.until(f"{DIALOG}?.innerText.includes('Run the cancelled jobs again?')")
    await page.click(find(f"Retry {count}"))
    await until_ended(page, f"{count} queued again")
    await page.press("Escape")


async def until_ended(page: Page, text: str, heading: str = "Done") -> None:
    """Return once the dialog tells that all has been done, or that it was stopped."""
    has_heading = f"{DIALOG}?.querySelector('h2').textContent === {json.dumps(heading)}"
    await page.until(f"{has_heading} && {DIALOG}.innerText.includes({json.dumps(text)})")


@pytest.mark.gen_test(timeout=90)
async def test_jobs_are_filtered_by_the_address(service: Service, ai: AiService) -> None:
    """Filters are in the address and survive reload and back; what comes meanwhile is told and moves nothing."""
    fail(service, ai, "anna", 2)
    fail(service, ai, "anna", 1, category="camera")
    send(service, "ben", 2)
    service.wait_status(waiting=0, active=0)
    async with console(service, "/console/jobs?state=failed&user=anna") as page:
        await page.until(f"{ROWS}.length === 3")
        await page.until("document.querySelector('.tab[aria-current]').textContent === 'Failed 3'")
        await page.until_text("3 jobs match")
        await page.press("/")
        await page.write("alert")
        await page.until("location.search.includes('q=alert')")
        await page.evaluate("document.querySelector('[name=category]').focus()")
        await page.write("camera")
        await page.until(f"{ROWS}.length === 1")
        await page.reload()
        await page.until(f"{ROWS}.length === 1")
        fields = "['q', 'user', 'category'].map((name) => document.querySelector(`[name=${name}]`).value)"
        assert await page.evaluate(fields) == ["alert", "anna", "camera"]
        await page.until("document.querySelector('.tab[aria-current]').textContent === 'Failed 1'")
        await check_looks(page)
        await page.evaluate("history.back()")
        await page.until(f"{ROWS}.length === 3")
        assert await page.evaluate("document.querySelectorAll('main img[src=x], main script').length") == 0

        first = f"{ROWS}[0].dataset.key"
        before = await page.evaluate(first)
        await page.press("j", "j")
        (new,) = fail(service, ai, "anna", 1, category="sneaker")
        await page.until("document.querySelector('.news')?.checkVisibility()")
        assert await page.evaluate("document.querySelector('.news').textContent") == "1 new – show"
        assert await page.evaluate(f"[{ROWS}.length, {first}]") == [3, before]
        assert await page.evaluate(f"document.activeElement === {ROWS}[1]")
        await page.press("r")
        await page.until(f"{first} === {json.dumps(new)}")
        await page.click("document.querySelector('.tab')")
        await page.until("!location.search.includes('state=')")
        await page.press("j", "Enter")
        await page.until(f"location.pathname === '/console/jobs/{new}'")
        assert page.problems == []


@pytest.mark.gen_test(timeout=90)
async def test_failures_are_retried_by_keyboard(service: Service, ai: AiService) -> None:
    """By keyboard alone: the failures, those of one kind, all of them queued again after the count and a sample."""
    fail(service, ai, "carl", 3, message="The photo 17 shows no product")
    async with console(service) as page:
        await page.press("g", "f")
        await page.until_text("shows no product")
        await check_looks(page)
        row = "document.activeElement.innerText?.includes('shows no product')"
        await page.press("j")
        while not await page.evaluate(row):
            await page.press("j")
        await page.press("Enter")
        await page.until(f"{ROWS}.length === 3 && location.search.includes('failure=')")
        await page.press("g", "f")
        await page.until_text("shows no product")
        await page.press("j")
        while not await page.evaluate(row):
            await page.press("j")
        await page.press("t")
        await page.until(f"{DIALOG}?.innerText.includes('3 jobs')")
        assert await page.evaluate(f"{DIALOG}.querySelectorAll('.sample li').length") == 3
        await check_looks(page)
        await page.press("Enter")
        await until_ended(page, "3 jobs queued again")
        assert await page.violations() == []
        await page.press("Enter")
        await page.until("!document.querySelector('dialog')")
        service.wait_status(waiting=0, active=0)
        await page.until("!document.body.innerText.includes('shows no product')")
        assert page.problems == []
    assert {job["state"] for job in jobs_of(service, user="carl")} == {"completed"}


@pytest.mark.gen_test(timeout=90)
async def test_failures_stay_under_the_pointer(service: Service, ai: AiService) -> None:
    """A kind that overtakes another moves no row: the button that has the focus keeps it and does what it did."""
    delete(service, all=True)
    fail(service, ai, "hugo", 2, message="Many fingers")
    fail(service, ai, "hugo", 1, message="Much fog", category="camera")
    reasons = f"[...{ROWS}].map((row) => row.querySelector('.below').textContent)"
    async with console(service, "/console/failures") as page:
        await page.until(f"{ROWS}.length === 2")
        before = await page.evaluate(reasons)
        assert "fingers" in before[0]
        await page.evaluate(f"(window.pressed = {ROWS}[0].querySelector('button')).focus()")
        await page.evaluate(f"window.photo = {ROWS}[1].querySelector('button')")
        fail(service, ai, "hugo", 3, message="Much fog", category="sneaker")
        await again(page)
        await page.until(f"{ROWS}[1].innerText.includes('4')")
        assert await page.evaluate(reasons) == before
        assert await page.evaluate(f"window.photo === {ROWS}[1].querySelector('button')")
        delete(service, filter={"q": "fingers"})
        await again(page)
        await page.until(f"{ROWS}[0].querySelector('.count-cell').innerText.trim() === '0'")
        assert await page.evaluate(reasons) == before
        assert await page.evaluate("document.activeElement === window.pressed")
        await page.reload()
        await page.until(f"{ROWS}.length === 1")
        assert page.problems == []


async def again(page: Page) -> None:
    """Let the page ask at once, as when somebody comes back to its tab."""
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


@pytest.mark.gen_test(timeout=90)
async def test_wrong_addresses_show_the_way_out(service: Service, ai: AiService) -> None:
    """A filter, cursor or id that is none is told in words, with a way to what there is; times stay as they were."""
    fail(service, ai, "ida", 1)
    async with console(service, "/console/jobs?state=gone") as page:
        for query in ("state=gone", "cursor=x", "from=yesterday"):
            await go(page, f"/console/jobs?{query}")
            await page.click(find("Remove the filters"))
            await page.until(f"{ROWS}.length > 0 && !location.search")
        await go(page, "/console/jobs/none")
        await page.until_text("This is not the id of a job.")
        await page.resize(1280, 900)
        assert await page.evaluate("document.querySelector('main .card').offsetWidth") > 800
        await go(page, "/console/jobs?from=2026-01-02T03:04:05.678Z&user=ida")
        await page.until(f"{ROWS}.length > 0")
        await page.press("/")
        await page.write("x")
        await page.until("location.search.includes('q=x')")
        assert "2026-01-02T03%3A04%3A05.678Z" in await page.evaluate("location.search")
        assert [each for each in page.problems if "400" not in each] == []


@pytest.mark.gen_test(timeout=90)
async def test_one_job_tells_its_story(service: Service, ai: AiService, hook: FakeReceiver) -> None:
    """One job: its photo, each attempt with reason and wait, deliveries sent again, logs; retried, then deleted."""
    hook.script(ReceiverReply(503))
    ai.order(replies=[{"status": 503}, {"status": 422, "body": {"error": {"message": HOSTILE}}}])
    (asset,) = send(service, "dora")
    service.wait_status(waiting=0, active=0, delayed=0)
    found = {"brand": {"value": HOSTILE, "confidence": 0.5}, "model": {"value": "M<b>1</b>", "confidence": 1}}
    ai.order(replies=[{"status": 200, "body": found}])
    async with console(service, f"/console/jobs/{asset}") as page:
        await page.until_text("Given up")
        steps = await page.evaluate("[...document.querySelectorAll('.timeline > li')].map((each) => each.innerText)")
        assert ["Sent" in steps[0], "waited" in steps[1], "Attempt 1" in steps[2], "waited" in steps[3]] == [True] * 4
        assert "http" in steps[2] and HOSTILE in steps[4] and "Given up" in steps[-1]
        assert await page.until("document.querySelector('.photo img').naturalWidth") == 64
        await page.until("document.querySelector('.deliveries')?.innerText.includes('HTTP 503')")
        assert asset in await page.evaluate("document.querySelector('[aria-label=\"In the logs\"]').innerText")
        await page.click("document.querySelector('summary')")
        await check_looks(page)
        await page.click("document.querySelector('button.photo')")
        await page.until("document.querySelector('dialog.large-photo img').complete")
        await page.press("Escape")
        await page.until("!document.querySelector('dialog')")
        await page.click(find("Send again"))
        await page.until("document.querySelector('.deliveries').innerText.includes('HTTP 204')")
        await page.click(find("Retry"))
        await page.until_text("Completed")
        await page.until_text("50 % sure")
        assert await page.evaluate("document.querySelector('h1').textContent") == f"{HOSTILE} M<b>1</b>"
        assert await page.evaluate("document.querySelectorAll('main img[src=x], main script').length") == 0
        assert len(await page.evaluate("[...document.querySelectorAll('.timeline .step')].map(() => 1)")) >= 4
        await page.click(find("Delete …"))
        await page.click(find("Delete", "dialog button"))
        await page.until("location.pathname === '/console/jobs'")
        await go(page, f"/console/jobs/{asset}")
        await page.until_text("There is no such job")
        assert [each for each in page.problems if "404" not in each] == []


@pytest.mark.gen_test(timeout=90)
async def test_many_jobs_are_cancelled_and_brought_back(held: Service) -> None:
    """Selected rows and all that match: postponed and resumed, cancelled through an outage and run again by Undo."""
    send(held, "emil", 3)
    async with console(held, "/console/jobs?state=waiting&user=emil") as page:
        await page.until(f"{ROWS}.length === 3")
        await page.press("j", "x", "j", "x")
        await page.until_text("2 selected")
        await page.click(find("Postpone …"))
        await page.until(f"{DIALOG}?.innerText.includes('2 jobs')")
        await page.click(find("Postpone 2 jobs"))
        await until_ended(page, "2 jobs postponed")
        assert len(jobs_of(held, user="emil", state="delayed")) == 2
        await page.click(find("Undo", "dialog button"))
        await until_ended(page, "2 jobs waiting again")
        await page.press("Enter")
        await page.until_text("3 jobs match")

        await page.press("a")
        await page.until_text("All that match: 3 jobs")
        await ask_to_cancel(page, "3 jobs")
        assert page.problems == []
        await page.go_offline()
        await page.press("Enter")
        await page.until(f"{DIALOG}.innerText.includes('It continues automatically')")
        assert len(jobs_of(held, user="emil", state="waiting")) == 3
        await page.go_offline(False)
        await until_ended(page, "3 jobs cancelled")
        assert {job["reason"] for job in jobs_of(held, user="emil")} == {"Cancelled"}
        await bring_back(page, "3 jobs")
        assert len(jobs_of(held, user="emil", state="waiting")) == 3

        # Another operator deletes the first of the sample meanwhile: Undo is about the others all the same.
        await page.until("!document.querySelector('dialog')")
        (photo,) = send(held, "emil", category="other")
        await page.press("r")
        await page.until_text("4 jobs match")
        await page.press("a")
        await ask_to_cancel(page, "4 jobs")
        ask_away = f"{held.url}/api/assets/{photo}"
        assert httpx.delete(ask_away, headers=held.headers("emil")).status_code == 204
        await page.press("Enter")
        await until_ended(page, "3 jobs cancelled")
        await bring_back(page, "3 jobs")

        # Who goes back while it is being done is told how far it came.
        await page.until("!document.querySelector('dialog')")
        await page.until_text("3 jobs match")
        await page.press("a")
        await ask_to_cancel(page, "3 jobs")
        await page.go_offline()
        await page.press("Enter")
        await page.until(f"{DIALOG}.innerText.includes('It continues automatically')")
        await page.evaluate(f"{DIALOG}.close()")
        await page.until_text("Stopped: 0 of 3 jobs cancelled.")
        await page.go_offline(False)
        await page.press("a")

        await page.until_text("3 jobs match")
        await page.until("!document.querySelector('dialog')")
        await page.press("a")
        await page.click(find("Delete …"))
        await page.until(f"{DIALOG}?.innerText.includes('Delete 3 jobs')")
        await page.go_offline()
        await page.click(find("Delete 3 jobs"))
        await page.until(f"{DIALOG}.innerText.includes('It continues automatically')")
        await page.click(find("Stop"))
        await until_ended(page, "0 jobs deleted", "Stopped")
        await page.go_offline(False)
        await page.press("Enter")
        assert len(jobs_of(held, user="emil")) == 3
        await page.go_offline()
        await go(page, "/console/jobs?user=emil")
        await page.until_text("No answer")
        await page.go_offline(False)
        await page.until(f"{ROWS}.length === 3")
        assert [each for each in page.problems if "net::ERR_" not in each] == []


@pytest.mark.gen_test(timeout=90)
async def test_deliveries_are_sent_again(service: Service, hook: FakeReceiver) -> None:
    """Failed deliveries with what the receiver said: one is sent again, then all that have failed."""
    hook.script(*[ReceiverReply(500)] * 3)
    ids = send(service, "finn", 3)
    service.wait_status(waiting=0, active=0)
    async with console(service, "/console/deliveries?state=failed") as page:
        await page.until(f"(document.querySelector('.news')?.click(), {ROWS}.length >= 3)")
        await page.until("document.body.innerText.includes('HTTP 500')")
        await check_looks(page)
        await go(page, f"/console/deliveries?asset={ids[0]}")
        await page.until(f"{ROWS}.length === 1")
        await page.click(find("Send again"))
        await page.until(f"{ROWS}[0].innerText.includes('HTTP 204')")
        await go(page, "/console/deliveries?state=failed")
        await page.click(find("Send all failed again …"))
        await page.until(f"/Send \\d+ deliver/.test({DIALOG}?.innerText)")
        await page.press("Enter")
        await until_ended(page, "queued again")
        await page.press("Enter")
        await page.until("!document.querySelector('dialog')")
        await go(page, f"/console/deliveries?asset={ids[2]}")
        await page.until(f"{ROWS}[0].innerText.includes('HTTP 204')")
        assert page.problems == []


@pytest.mark.gen_test(timeout=90)
async def test_readers_see_jobs_and_change_nothing(service: Service, ai: AiService) -> None:
    """The role operator-read has no button that changes something, and the routes behind them answer 403."""
    (asset,) = fail(service, ai, "gina", 1)
    async with console(service, "/console/jobs", role="operator-read") as page:
        seen = []
        for path in ("jobs", f"jobs/{asset}", "failures", "deliveries"):
            await go(page, f"/console/{path}")
            await page.until("document.querySelector('main tr[data-key], main .timeline')")
            seen += await page.evaluate("[...document.querySelectorAll('main button')].map((each) => each.textContent)")
            assert await page.evaluate("document.querySelectorAll('main [type=checkbox]').length") == 0
        harmless = {"Filters", "Clear filters", "Previous", "Next", "Copy"}
        assert {each for each in seen if each and "new" not in each} <= harmless
        assert page.problems == []
    reader = service.headers("ops-2", role="operator-read")
    for path in (f"jobs/{asset}/retry", f"jobs/{asset}/cancel", "jobs/bulk"):
        body = {"action": "delete", "all": True, "dryRun": True}
        assert httpx.post(f"{service.url}/api/queue/{path}", json=body, headers=reader).status_code == 403
