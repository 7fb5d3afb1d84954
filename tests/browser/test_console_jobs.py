"""The console as an operator uses it for jobs, in a real Chromium: find jobs, read one, change many, send deliveries.

Long because all tests share one started service and one receiver of webhooks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.browser.console_page import (
    DIALOG,
    HOSTILE,
    ROWS,
    ask_to_cancel,
    check_looks,
    console,
    delete,
    fail,
    find,
    go,
    jobs_of,
    refresh,
    send,
    undo_cancel,
    until_ended,
)
from tests.chromium import AXE, BROWSER, Page
from tests.constants import BREAKER_FAILURES, NOTIFIER_ATTEMPTS
from tests.fake_receiver import FakeReceiver, running_in_thread
from tests.fake_receiver import Reply as ReceiverReply
from tests.requirements import require
from tests.service import AiService, Service

SECRET = "whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"


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


@pytest.fixture
def busy(service: Service, ai: AiService) -> Iterator[Service]:
    """The AI service works on one photo of the user holder until the test ends; the other photos wait."""
    ai.configure(paused=True)
    send(service, "holder")
    service.wait_status(active=1)
    yield service
    ai.configure(paused=False)
    service.wait_status(active=0, waiting=0, delayed=0)


@pytest.mark.gen_test(timeout=90)
async def test_jobs_are_filtered_by_the_address(service: Service, ai: AiService) -> None:
    """The address has the filters, through reload and back; a job that comes meanwhile is counted and moves no row."""
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
        await check_new_job_moves_no_row(page, service, ai)
        assert page.problems == []


async def check_new_job_moves_no_row(page: Page, service: Service, ai: AiService) -> None:
    """A new failed job shows as a count; the key `r` shows its row, and its row opens its page."""
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


@pytest.mark.gen_test(timeout=90)
async def test_failures_are_retried_by_keyboard(service: Service, ai: AiService) -> None:
    """The keyboard alone opens the failures of one kind, and queues them again after the count and a sample."""
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
    """A kind of failure whose count passes another one's moves no row; the focused button stays the same button."""
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
        await refresh(page)
        await page.until(f"{ROWS}[1].innerText.includes('4')")
        assert await page.evaluate(reasons) == before
        assert await page.evaluate(f"window.photo === {ROWS}[1].querySelector('button')")
        delete(service, filter={"q": "fingers"})
        await refresh(page)
        await page.until(f"{ROWS}[0].querySelector('.count-cell').innerText.trim() === '0'")
        assert await page.evaluate(reasons) == before
        assert await page.evaluate("document.activeElement === window.pressed")
        await page.reload()
        await page.until(f"{ROWS}.length === 1")
        assert page.problems == []


@pytest.mark.gen_test(timeout=90)
async def test_wrong_addresses_show_the_way_out(service: Service, ai: AiService) -> None:
    """The page explains an invalid filter, cursor or id and links to valid ones; it does not round times."""
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
async def test_job_page_shows_attempts_deliveries_and_logs(service: Service, ai: AiService, hook: FakeReceiver) -> None:
    """The page of a job shows its photo, attempts, deliveries and logs; the operator retries it, then deletes it."""
    hook.script(ReceiverReply(503))
    ai.configure(replies=[{"status": 503}, {"status": 422, "body": {"error": {"message": HOSTILE}}}])
    (asset,) = send(service, "dora")
    service.wait_status(waiting=0, active=0, delayed=0)
    found = {"brand": {"value": HOSTILE, "confidence": 0.5}, "model": {"value": "M<b>1</b>", "confidence": 1}}
    ai.configure(replies=[{"status": 200, "body": found}])
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
async def test_many_jobs_are_cancelled_and_run_again(busy: Service) -> None:
    """Selected jobs are postponed and resumed; all that match are cancelled through an outage; Undo runs them again."""
    send(busy, "emil", 3)
    async with console(busy, "/console/jobs?state=waiting&user=emil") as page:
        await page.until(f"{ROWS}.length === 3")
        await postpone_two_and_undo(page, busy)
        await cancel_offline_and_undo(page, busy)
        await page.until("!document.querySelector('dialog')")
        await undo_after_another_operator_deleted_one(page, busy)
        await page.until("!document.querySelector('dialog')")
        await close_the_dialog_of_a_cancellation(page)
        await page.until_text("3 jobs match")
        await page.until("!document.querySelector('dialog')")
        await stop_a_deletion(page)
        assert len(jobs_of(busy, user="emil")) == 3
        await page.go_offline()
        await go(page, "/console/jobs?user=emil")
        await page.until_text("No answer")
        await page.go_offline(False)
        await page.until(f"{ROWS}.length === 3")
        assert [each for each in page.problems if "net::ERR_" not in each] == []


async def postpone_two_and_undo(page: Page, service: Service) -> None:
    """Select two of three jobs, postpone them and undo it."""
    await page.press("j", "x", "j", "x")
    await page.until_text("2 selected")
    await page.click(find("Postpone …"))
    await page.until(f"{DIALOG}?.innerText.includes('2 jobs')")
    await page.click(find("Postpone 2 jobs"))
    await until_ended(page, "2 jobs postponed")
    assert len(jobs_of(service, user="emil", state="delayed")) == 2
    await page.click(find("Undo", "dialog button"))
    await until_ended(page, "2 jobs waiting again")
    await page.press("Enter")
    await page.until_text("3 jobs match")


async def start_offline(page: Page) -> None:
    """Start the action of the dialog while the page is offline, and return once the dialog says that it continues."""
    await page.go_offline()
    await page.press("Enter")
    await page.until(f"{DIALOG}.innerText.includes('It continues automatically')")


async def cancel_offline_and_undo(page: Page, service: Service) -> None:
    """A cancellation that starts offline continues online; Undo runs the three jobs again."""
    await page.press("a")
    await page.until_text("All that match: 3 jobs")
    await ask_to_cancel(page, "3 jobs")
    assert page.problems == []
    await start_offline(page)
    assert len(jobs_of(service, user="emil", state="waiting")) == 3
    await page.go_offline(False)
    await until_ended(page, "3 jobs cancelled")
    assert {job["reason"] for job in jobs_of(service, user="emil")} == {"Cancelled"}
    await undo_cancel(page, "3 jobs")
    assert len(jobs_of(service, user="emil", state="waiting")) == 3


async def undo_after_another_operator_deleted_one(page: Page, service: Service) -> None:
    """The first job of the sample is deleted before the cancellation starts: Undo is about the other three."""
    (photo,) = send(service, "emil", category="other")
    await page.press("r")
    await page.until_text("4 jobs match")
    await page.press("a")
    await ask_to_cancel(page, "4 jobs")
    address = f"{service.url}/api/assets/{photo}"
    assert httpx.delete(address, headers=service.headers("emil")).status_code == 204
    await page.press("Enter")
    await until_ended(page, "3 jobs cancelled")
    await undo_cancel(page, "3 jobs")


async def close_the_dialog_of_a_cancellation(page: Page) -> None:
    """Closing the dialog stops the cancellation, and the page says how many jobs were cancelled."""
    await page.until_text("3 jobs match")
    await page.press("a")
    await ask_to_cancel(page, "3 jobs")
    await start_offline(page)
    await page.evaluate(f"{DIALOG}.close()")
    await page.until_text("Stopped: 0 of 3 jobs cancelled.")
    await page.go_offline(False)
    await page.press("a")


async def stop_a_deletion(page: Page) -> None:
    """The button Stop ends a deletion that waits for the network before it deletes a job."""
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


@pytest.mark.gen_test(timeout=90)
async def test_deliveries_are_sent_again(service: Service, hook: FakeReceiver) -> None:
    """Failed deliveries show the receiver's reply; the operator sends one again, then all that failed."""
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
    """The role operator-read has no button that changes data, and the routes of such buttons answer 403."""
    (asset,) = fail(service, ai, "gina", 1)
    async with console(service, "/console/jobs", role="operator-read") as page:
        buttons = []
        for path in ("jobs", f"jobs/{asset}", "failures", "deliveries"):
            await go(page, f"/console/{path}")
            await page.until("document.querySelector('main tr[data-key], main .timeline')")
            script = "[...document.querySelectorAll('main button')].map((each) => each.textContent)"
            buttons += await page.evaluate(script)
            assert await page.evaluate("document.querySelectorAll('main [type=checkbox]').length") == 0
        harmless = {"Filters", "Clear filters", "Previous", "Next", "Copy"}
        assert {each for each in buttons if each and "new" not in each} <= harmless
        assert page.problems == []
    reader = service.headers("ops-2", role="operator-read")
    for path in (f"jobs/{asset}/retry", f"jobs/{asset}/cancel", "jobs/bulk"):
        body = {"action": "delete", "all": True, "dryRun": True}
        assert httpx.post(f"{service.url}/api/queue/{path}", json=body, headers=reader).status_code == 403
