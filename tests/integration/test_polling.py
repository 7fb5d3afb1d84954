"""Long polls on a real process: they wait until there is a result, and end in time without one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest

from pipeline.handlers.polling import Polling, preferred_wait
from pipeline.metrics import Metrics
from pipeline.rooms.rooms import Rooms
from pipeline.settings import Settings
from pipeline.usecases.admission import Admission
from tests.contract.contracts import check_reply
from tests.factories import SECRET
from tests.slowdown import slowdown
from tests.service import WAIT_SECONDS, AiService, Service


@pytest.fixture
def ai_service() -> Iterator[AiService]:
    """An AI service that answers only after `configure(paused=False)`."""
    with AiService(paused=True) as ai_service:
        yield ai_service


@pytest.fixture
def service(tmp_path: Path, ai_service: AiService) -> Iterator[Service]:
    """The service with that AI service."""
    with Service(tmp_path, ai_service.url, MAX_SOCKETS_PER_USER="5") as service:
        yield service
        ai_service.configure(paused=False)  # the service waits for running jobs when it stops


@contextmanager
def started(call: Callable[[], httpx.Response]) -> Iterator[Future[httpx.Response]]:
    """Run the call in a thread; yield its future."""
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(call)


def polls(service: Service) -> int:
    """Return the number of polls that wait in the process."""
    for line in httpx.get(f"{service.url}/metrics").text.splitlines():
        if line.startswith('pipeline_sockets_open{transport="poll"}'):
            return int(float(line.split()[-1]))
    raise AssertionError("no such series")


def wait_polls(service: Service, count: int) -> None:
    """Wait until this number of polls waits in the process."""
    deadline = time.monotonic() + WAIT_SECONDS
    while polls(service) != count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def now(service: Service) -> str:
    """Return the time of the service."""
    text: str = service.get("/api/assets").json()["data"]["serverTime"]
    return text


def data(reply: httpx.Response, path: str = "") -> dict[str, Any]:
    """Check a reply against the contract and return its data."""
    check_reply(reply.request.method, path or reply.request.url.path, reply.status_code, reply.json(), reply.headers)
    found: dict[str, Any] = reply.json()["data"]
    return found


def test_poll_for_an_asset_answers_when_it_is_finished(service: Service, ai_service: AiService) -> None:
    """The poll waits until the asset is finished. A poll for a finished asset is answered at once."""
    asset_id = data(service.upload())["assetId"]
    with started(lambda: service.get(f"/api/assets/{asset_id}", wait=50)) as reply:
        wait_polls(service, 1)
        assert data(service.get(f"/api/assets/{asset_id}"))["status"] == "processing"
        ai_service.configure(paused=False)
        assert data(reply.result())["status"] == "active"
    assert data(service.get(f"/api/assets/{asset_id}", wait=50))["status"] == "active"
    wait_polls(service, 0)


def test_poll_for_finished_assets_returns_them_and_the_next_cursor(service: Service, ai_service: AiService) -> None:
    """No asset is lost when each poll begins at the serverTime of the reply before."""
    since = now(service)
    with started(lambda: service.get("/api/assets", finishedSince=since, wait=50)) as reply:
        wait_polls(service, 1)
        first = data(service.upload())["assetId"]
        ai_service.configure(paused=False)
        page = data(reply.result())
    assert [each["id"] for each in page["items"]] == [first]
    assert since < page["serverTime"] and page["items"][0]["finishedAt"] <= page["serverTime"]
    assert data(service.get("/api/assets", finishedSince=since, wait=50))["items"] == page["items"]


def test_poll_without_a_result_is_answered_when_its_time_is_over(service: Service) -> None:
    """The reply has the current state. It arrives after the time of the poll, not sooner and not much later."""
    asset_id = data(service.upload())["assetId"]
    began_at = time.monotonic()
    assert data(service.get("/api/assets", finishedSince=now(service), wait=1))["items"] == []
    assert data(service.get(f"/api/assets/{asset_id}", wait=1))["status"] == "processing"
    assert 2 <= time.monotonic() - began_at < 10 * slowdown()


def test_poll_sees_only_the_assets_of_its_user(service: Service, ai_service: AiService) -> None:
    """A poll for another user's asset is a 404 at once, and another user's result does not end a poll."""
    asset_id = data(service.upload())["assetId"]
    assert service.get(f"/api/assets/{asset_id}", "user-2", wait=50).status_code == 404
    with started(lambda: service.get("/api/assets", "user-2", finishedSince=now(service), wait=2)) as reply:
        wait_polls(service, 1)
        ai_service.configure(paused=False)
        assert data(reply.result())["items"] == []


def test_invalid_wait_is_refused(service: Service) -> None:
    """A wait of more than 60 s, a wait that is no number, and a wait for a list without finishedSince are a 400."""
    asset, finished = "/api/assets/65b9f0a4c2d1e3f4a5b6c7d8?", "/api/assets?finishedSince=2026-01-01T00:00:00Z&"
    cases = [(asset, wait) for wait in ("61", "-1", "1.5", "", "9" * 5000)]
    for path, wait in [*cases, (finished, "61"), ("/api/assets?limit=5&", "1")]:
        reply = httpx.get(f"{service.url}{path}wait={wait}", headers=service.headers())
        check_reply("GET", path, reply.status_code, reply.json(), reply.headers)
        assert (reply.status_code, reply.json()["error"]["details"][0]["field"]) == (400, "wait")


def test_upload_may_wait_for_its_result(service: Service, ai_service: AiService) -> None:
    """With `Prefer: wait` the 202 contains the finished asset. When the time is over, it has the receipt only."""
    reply = service.upload(headers={"Prefer": "wait=1"})
    assert "asset" not in data(reply) and reply.headers["Preference-Applied"] == "wait=1"
    ai_service.configure(paused=False)
    reply = service.upload(headers={"Prefer": "respond-async, WAIT=50"})
    receipt = data(reply)
    assert (receipt["asset"]["id"], receipt["asset"]["status"]) == (receipt["assetId"], "active")
    assert "Preference-Applied" not in service.upload(headers={"Prefer": "wait=soon"}).headers


def test_poll_ends_when_its_client_disconnects(service: Service) -> None:
    """No poll is left in the process after the client has closed its connection."""
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(
            f"{service.url}/api/assets",
            params={"finishedSince": now(service), "wait": 50},
            headers=service.headers(),
            timeout=1,
        )
    wait_polls(service, 0)


def test_too_many_polls_of_a_user_end_the_oldest_ones(service: Service, ai_service: AiService) -> None:
    """The oldest polls are answered with 429 and Retry-After. The newest ones get the result."""
    since = now(service)
    with ThreadPoolExecutor(30) as threads:
        replies = []
        for _ in range(30):
            replies.append(threads.submit(service.get, "/api/assets", finishedSince=since, wait=50))
        wait_polls(service, 5)
        service.upload()
        ai_service.configure(paused=False)
        answers = [reply.result() for reply in replies]
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 25
    refused = next(answer for answer in answers if answer.status_code == 429)
    check_reply("GET", "/api/assets", 429, refused.json(), refused.headers)
    wait_polls(service, 0)


def test_polls_do_not_delay_the_end_of_a_process(service: Service, ai_service: AiService) -> None:
    """Polls and waiting uploads are answered at once with the current state, and their connections are closed."""
    asset_id = data(service.upload())["assetId"]
    with (
        started(lambda: service.get(f"/api/assets/{asset_id}", wait=50)) as one,
        started(lambda: service.get("/api/assets", finishedSince=now(service), wait=50)) as two,
        started(lambda: service.upload(headers={"Prefer": "wait=50"})) as upload,
    ):
        wait_polls(service, 3)
        began_at = time.monotonic()
        stopping = threading.Thread(target=service.stop)
        stopping.start()
        assert data(one.result())["status"] == "processing"
        assert data(two.result())["items"] == []
        assert data(upload.result(), "/api/assets/analyze-queue")["status"] == "processing"
        assert time.monotonic() - began_at < 2 * slowdown()
        assert one.result().headers["Connection"] == "close"
        ai_service.configure(paused=False)  # the service waits for the running job
        stopping.join()


@pytest.mark.gen_test
async def test_poll_reads_a_last_time_when_its_time_is_over() -> None:
    """Another process, whose event does not arrive here, may have finished the asset."""
    settings, metrics = Settings(jwt_secret=SECRET), Metrics()
    rooms = Rooms(max_frames=1, max_bytes=1000, metrics=metrics)
    polling = Polling(Admission(rooms, Mock(), settings))
    reads = [0, 0, 1]

    async def read() -> int:
        return reads.pop(0)

    assert await polling.until(read, bool, user_id="user-1", seconds=0.05) == 1
    assert (reads, rooms.connections, rooms.names()) == ([], set(), [])


@pytest.mark.gen_test
async def test_poll_whose_client_has_disconnected_before_does_not_wait() -> None:
    """The client of an upload with `Prefer: wait` may disconnect while its photo is stored."""
    rooms = Rooms(max_frames=1, max_bytes=1000, metrics=Metrics())
    polling = Polling(Admission(rooms, Mock(), Settings(jwt_secret=SECRET)))
    polling.abandon()

    async def read() -> int:
        return 0

    assert await polling.until(read, bool, user_id="user-1", seconds=60) == 0
    assert (rooms.connections, rooms.names()) == (set(), [])


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("", None),
        ("wait=10", 10),
        ('wait="10"', 10),
        ("Wait = 10", 10),
        ("return=minimal, wait=10", 10),
        ("respond-async;foo=bar, wait=10; x=y, wait=20", 10),
        ("wait=100", 60),
        ("wait=0", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait", None),
        ("await=10", None),
        ("x;wait=10", None),
        ("wait=" + "9" * 5000, None),
        (",;=\"" * 2000, None),
    ],
)
def test_prefer_header_is_read_as_its_rfc_requires(header: str, seconds: int | None) -> None:
    """The first `wait` counts. A header that cannot be parsed is no preference."""
    assert preferred_wait(header) == seconds
