"""How a user signs in and out on the page for photos and on the console, in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.auth import make_token as sign
from pipeline.settings import Settings
from tests.chromium import BROWSER, Page, browsing
from tests.factories import SECRET, make_token
from tests.requirements import require
from tests.service import Service

STORED_SESSION = "localStorage.getItem('pipeline.user.session')"
# The clock of the device is an hour ahead; what the page checks every minute it checks every 100 ms.
CLOCK_AN_HOUR_AHEAD = """const real = Date, every = setInterval, now = () => real.now() + 3600_000;
globalThis.Date = class extends real { constructor(...at) { super(...(at.length ? at : [now()])); } static now = now; };
globalThis.setInterval = (act, ms) => every(act, ms === 60_000 ? 100 : ms);"""
NO_STORAGE = """Object.defineProperty(globalThis, "localStorage", {
  get() { throw new DOMException("denied", "SecurityError") },
});"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    require(BROWSER is not None, "needs Chromium")
    with Service(tmp_path, "http://127.0.0.1:9") as service:
        yield service


def link_token(sub: str = "ann", role: str | None = None, seconds: float = 600) -> str:
    """Return a token as a link to the page has it."""
    return sign(Settings(jwt_secret=SECRET), sub, role, seconds, is_of_page=True)


async def go(page: Page, url: str) -> None:
    """Open the address in a new document, as a click on a link does."""
    await page.evaluate("window.isOfBefore = true")
    await page.call("Page.navigate", url="about:blank")
    await page.call("Page.navigate", url=url)
    await page.until("!window.isOfBefore && location.href !== 'about:blank' && document.readyState === 'complete'")


async def go_with(page: Page, script: str, url: str) -> None:
    """Open the address and run this script before those of the page."""
    await page.run_first(script)
    await go(page, url)


@pytest.mark.gen_test(timeout=90)
async def test_link_signs_in_once_and_for_all_tabs(service: Service) -> None:
    """A link creates a session for all tabs; the session outlives the link and ends when one tab signs out.

    The link leaves no token in the address. An expired link changes no session; without a session the page says that
    the link is no longer valid.
    """
    link = f"{service.url}/#token={link_token()}"
    async with browsing(link) as page:
        await page.until_text("Sign out")
        assert await page.evaluate("location.href") == f"{service.url}/"
        assert link_token().split(".")[1] not in await page.evaluate(STORED_SESSION)
        await go(page, f"{service.url}/#token={link_token(seconds=-60)}")
        await page.until_text("Sign out")
        tab = await page.open_tab(f"{service.url}/")
        await tab.until_text("Sign out")
        await tab.click("[...document.querySelectorAll('button')].find((each) => each.textContent === 'Sign out')")
        await tab.until_text("Sign in")
        await page.until_text("Sign in")
        assert await page.evaluate(STORED_SESSION) is None
        # The browser logs each refused request.
        assert [each for each in page.problems if "401" not in each] == [] == tab.problems
        await go(page, f"{service.url}/#token={link_token(seconds=-60)}")
        await page.until_text("This link is no longer valid.")
        # A token pasted into the address of the open page loads no new document.
        await page.evaluate(f"location.hash = 'token={link_token('ben')}'")
        await page.until_text("Sign out")
        assert await page.evaluate("location.href") == f"{service.url}/"
        await go(page, f"{service.url}/console")
        await page.evaluate(f"location.hash = 'token={link_token('ops', 'operator-read')}'")
        await page.until("document.title === 'Overview · Console'")
        assert await page.evaluate("location.href") == f"{service.url}/console"


@pytest.mark.gen_test(timeout=90)
async def test_signing_out_works_without_a_network(service: Service) -> None:
    """Signing out offline removes the user's photos from the screen; the form to sign in appears with the network."""
    async with browsing(f"{service.url}/#token={link_token()}") as page:
        await page.until_text("Choose photos")
        await page.go_offline()
        await page.click("document.querySelector('#person button')")
        await page.until_text("The service cannot be reached.")
        assert await page.evaluate("document.querySelector('photo-queue')") is None
        await page.go_offline(False)
        await page.until("document.querySelector('input[name=token]')")
        assert [each for each in page.problems if "INTERNET_DISCONNECTED" not in each] == []


@pytest.mark.gen_test(timeout=90)
async def test_pasted_token_signs_in(service: Service) -> None:
    """A user signs in by keyboard alone; the page explains why it refuses an invalid token or one without the role."""
    async with browsing(f"{service.url}/console") as page:
        await page.until("document.querySelector('input[name=token]')")
        # The page names this interpreter: the environment that `make demo` creates has no other way to start.
        await page.until_text(".venv/bin/python run.py link --console")
        for token, words in {
            "nonsense": "The service does not accept this token.",
            make_token(): "it needs the role admin or operator-read",
            make_token(role="operator-read"): "Overview",
        }.items():
            await page.evaluate("document.querySelector('input[name=token]').select()")
            await page.write(token)
            await page.press("Enter")
            await page.until_text(words)
        assert "can make changes" not in await page.text()


@pytest.mark.gen_test(timeout=90)
async def test_login_page_gets_the_address_to_return_to(tmp_path: Path) -> None:
    """With LOGIN_URL the page links to it with the address to return to; a return with a token signs in."""
    require(BROWSER is not None, "needs Chromium")
    with Service(tmp_path, "http://127.0.0.1:9", LOGIN_URL="https://login.example.com/in?app=1") as service:
        async with browsing(f"{service.url}/") as page:
            link = await page.until("document.querySelector('a[href*=login]')?.href")
            back = f"{service.url}/".replace(":", "%3A").replace("/", "%2F")
            assert link == f"https://login.example.com/in?app=1&return_to={back}"
            await go(page, f"{service.url}/#token={make_token()}")
            await page.until_text("Sign out")


@pytest.mark.gen_test(timeout=90)
async def test_session_ends_at_the_time_of_the_service(service: Service) -> None:
    """A device whose clock is an hour ahead stays signed in; the page says when the session has ended.

    A page that the browser restores from memory notices that another tab signed out. While the service cannot be
    reached the page says when the user can sign in.
    """
    async with browsing("about:blank") as page:
        await go_with(page, CLOCK_AN_HOUR_AHEAD, f"{service.url}/#token={make_token(expires_in=1800)}")
        asked = "performance.getEntriesByType('resource').filter(({name}) => /session$/.test(name))"
        await page.until(f"{asked}.length > 3")
        await page.until_text("Sign out")
        await page.reload()
        await page.until_text("Sign out")
        await page.evaluate(f"{STORED_SESSION.replace('getItem', 'removeItem')}")
        await page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
        await page.until_text("You are signed out.")
        assert page.problems == []

        await page.block("*/api/about")
        await go(page, f"{service.url}/#token={make_token(expires_in=2)}")
        await page.until_text("The service cannot be reached. You can sign in when it answers.")
        await page.block()
        await page.until_text("Your sign-in has expired. Photos that were not sent yet are kept.")
        assert [each for each in page.problems if "401" not in each and "ERR_" not in each] == []


@pytest.mark.gen_test(timeout=90)
async def test_browser_without_storage_signs_in_for_the_page(service: Service) -> None:
    """In a browser without storage a link signs in for this page, and the user can sign out."""
    async with browsing("about:blank") as page:
        await go_with(page, NO_STORAGE, f"{service.url}/#token={make_token()}")
        await page.until_text("Sign out")
        await page.click("[...document.querySelectorAll('button')].find((each) => each.textContent === 'Sign out')")
        await page.until_text("You are signed out.")
        assert page.problems == []
