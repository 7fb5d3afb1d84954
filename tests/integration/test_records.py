"""Charts, busiest users, the audit list and deliveries on a running service; each reply is checked by the contract."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pymongo
import pytest

from pipeline.client import Operator
from tests.constants import NOTIFIER_ATTEMPTS, NOTIFIER_BACKOFF_MS, RECONCILE_SECONDS
from tests.contract.contracts import check_reply
from tests.fake_receiver import FakeReceiver, Reply, running_in_thread
from tests.factories import make_token
from tests.redis_server import RedisServer
from tests.service import WAIT_SECONDS, AiService, Service

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
REFUSED = {"status": 400, "body": {"error": {"message": "No photo", "code": "X"}}}
LISTS = ["/api/queue/charts", "/api/queue/users", "/api/queue/audit", "/api/queue/deliveries"]


@pytest.fixture(scope="module")
def receiver() -> Iterator[FakeReceiver]:
    with running_in_thread() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, ai: AiService, receiver: FakeReceiver) -> Iterator[Service]:
    settings = {
        "NOTIFIERS": "websocket,webhook",
        NOTIFIER_BACKOFF_MS: "20",
        NOTIFIER_ATTEMPTS: "2",
        "PLUGIN_WEBHOOK_URL": f"{receiver.url}/hook",
        "PLUGIN_WEBHOOK_SECRET": SECRET,
        "PLUGIN_WEBHOOK_ALLOW_PRIVATE": "true",
        "BACKOFF_MS": "20",
    }
    with Service(tmp_path_factory.mktemp("data"), ai.url, **settings) as service:
        yield service


def call(service: Service, path: str, method: str = "GET", *, role: str | None = "admin", **options: Any) -> Any:
    """Call a route as an operator and check the reply by the contract; return its data, or the status of an error."""
    options.setdefault("headers", service.headers("ops-1", role=role))
    response = httpx.request(method, service.url + path, timeout=WAIT_SECONDS, **options)
    check_reply(method, path, response.status_code, response.json() if response.content else None, response.headers)
    return response.json()["data"] if response.status_code < 400 else response.status_code


def until(read: Callable[[], Any], is_enough: Callable[[Any], Any]) -> Any:
    """Read until is_enough accepts the result, and return it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_enough(found := read()):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def deliveries(service: Service, **params: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = call(service, "/api/queue/deliveries", params=params)["items"]
    return items


def audit(service: Service, **params: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = call(service, "/api/queue/audit", params=params)["items"]
    return items


@pytest.mark.parametrize("path", LISTS)
def test_lists_are_for_operators(service: Service, path: str) -> None:
    """The lists are shown to readers and admins, not to a user; a wrong query is refused."""
    assert call(service, path, role="operator-read") is not None
    assert call(service, path, role=None) == 403
    assert call(service, path, headers={}) == 401
    wrong = {"window": "2h", "limit": "0", "state": "gone", "cursor": "x", "asset": "1"}
    if path != "/api/queue/users":
        assert call(service, path, params=wrong) == 400


def test_charts_count_jobs_by_what_happened(service: Service, ai: AiService) -> None:
    """A job is counted when it is enqueued, when it ends, and for each attempt that failed; idle steps are 0."""
    ai.configure(replies=[{"status": 503, "times": 1}, REFUSED])
    for _ in range(2):
        service.upload()
        service.wait_status(waiting=0, active=0, delayed=0)
    service.wait_log("job_failed")
    chart = call(service, "/api/queue/charts", params={"window": "24h"})
    assert (len(chart["points"]), chart["stepSeconds"]) == (144, 600)
    sums = {
        name: sum(point[name] for point in chart["points"])
        for name in ("enqueued", "completed", "partial", "failed", "retried")
    }
    assert sums == {"enqueued": 2, "completed": 1, "partial": 0, "failed": 1, "retried": 1}
    busy = [point for point in chart["points"] if point["enqueued"]]
    assert all(point["waitP95Ms"] >= 1 and point["runP95Ms"] >= 1 for point in busy)
    first = chart["points"][0]
    assert (first["enqueued"], first["waitP50Ms"], first["runP50Ms"], first["waiting"]) == (0, None, None, 0)


def test_busiest_users_come_first(service: Service, ai: AiService) -> None:
    """Users are listed by their unfinished jobs, with separate numbers of active and waiting jobs."""
    ai.configure(paused=True)
    for user, count in (("busy-1", 6), ("busy-2", 3)):
        for _ in range(count):
            service.upload(user)
    service.wait_status(active=5)
    found = until(lambda: call(service, "/api/queue/users"), lambda found: found["sampled"] == 9)
    ai.configure(paused=False)
    assert (found["fairness"], found["total"]) == ("fifo", 9)
    assert found["items"] == [
        {"userId": "busy-1", "waiting": 1, "active": 5, "share": 0.6667},
        {"userId": "busy-2", "waiting": 3, "active": 0, "share": 0.3333},
    ]
    service.wait_status(waiting=0, active=0)


def test_deliveries_show_their_state_and_can_be_sent_again(
    service: Service, ai: AiService, receiver: FakeReceiver
) -> None:
    """A delivery is listed with its last state; one that failed and one that was delivered can be sent again."""
    # Events of earlier tests would use up the two scripted replies.
    until(lambda: deliveries(service, state="waiting"), lambda found: not found)
    receiver.script(Reply(500), Reply(500))
    asset_id = service.upload("delivered-1").json()["data"]["assetId"]
    (failed,) = until(lambda: deliveries(service, asset=asset_id, state="failed"), bool)
    assert (failed["attempts"], failed["response"], failed["notifier"]) == (2, None, "webhook")
    assert "HTTP 500" in failed["reason"]
    assert failed in deliveries(service, state="failed", notifier="webhook")
    path = f"/api/queue/deliveries/{failed['deliveryId']}/retry"
    assert call(service, path, "POST", role="operator-read") == 403
    for times in (1, 2):
        # A delivery is acknowledged a moment after it has arrived; until then a retry is a 409.
        answer = until(lambda: call(service, path, "POST"), lambda answer: answer != 409)
        assert answer["jobId"] == failed["deliveryId"]
        delivered = until(lambda: deliveries(service, asset=asset_id)[0], lambda found: found["state"] == "delivered")
        assert (delivered["attempts"], delivered["response"], delivered["reason"]) == (1, "HTTP 204", None)
        sent = [each.headers["Webhook-Id"] for each in receiver.accepted]
        assert sent.count(failed["deliveryId"]) == times
    assert call(service, f"/api/queue/jobs/{asset_id}")["deliveries"] == deliveries(service, asset=asset_id)
    receiver.pause()
    until(lambda: call(service, path, "POST"), lambda answer: answer != 409)
    assert call(service, path, "POST") == 409, "the delivery is not finished"
    receiver.resume()
    until(lambda: deliveries(service, asset=asset_id)[0], lambda found: found["state"] == "delivered")
    assert call(service, f"/api/queue/deliveries/notifications:{'0' * 24}/retry", "POST") == 404


def test_client_of_an_operator_reads_every_list(service: Service) -> None:
    """The Python client yields every page of a list, and can send an event a second time."""

    async def work() -> None:
        async with Operator(service.url, make_token("ops-9", role="admin")) as client:
            assert len((await client.charts("7d"))["points"]) == 168
            assert (await client.busiest_users())["fairness"] == "fifo"
            delivered = [each async for each in client.deliveries(asset_id=None, state="delivered", notifier="webhook")]
            assert len(delivered) > 2 and {each["state"] for each in delivered} == {"delivered"}
            assert (await client.send_again(delivered[0]["deliveryId"]))["jobId"] == delivered[0]["deliveryId"]
            while not [each async for each in client.audit(who="ops-9", action="send delivery again")]:
                await asyncio.sleep(0.02)

    asyncio.run(work())


def test_deliveries_come_page_by_page(service: Service) -> None:
    """Pages of any size show each delivery once, newest first."""
    until(lambda: deliveries(service, state="waiting"), lambda found: not found)
    every = deliveries(service, limit=100)
    assert len(every) > 3
    assert every == sorted(every, key=lambda each: (each["at"], each["deliveryId"]), reverse=True)
    seen: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = call(service, "/api/queue/deliveries", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))
        seen += page["items"]
        cursor = page["nextCursor"]
    assert seen == every


def test_audit_list_names_the_operator_of_each_change(service: Service) -> None:
    """Each change by an operator is an entry, done or refused; a preview and a forbidden call have no entry."""
    asset_id = service.upload("other-1").json()["data"]["assetId"]
    service.wait_status(waiting=0, active=0)
    admin = service.headers("ops-7", role="admin")
    call(service, "/api/queue/pause", "POST", headers=admin | {"X-Request-Id": "r-7"})
    call(service, "/api/queue/resume", "POST", headers=admin)
    call(service, "/api/queue/pause", "POST", role="operator-read")
    call(service, f"/api/assets/{asset_id}/retry", "POST", headers=admin)
    bulk = {"action": "retry", "filter": {"user": "other-1", "state": "failed"}, "dryRun": True}
    preview = call(service, "/api/queue/jobs/bulk", "POST", json=bulk, headers=admin)
    run = {**bulk, "dryRun": False, "until": preview["until"]}
    assert call(service, "/api/queue/jobs/bulk", "POST", json=run, headers=admin)["done"] == 0
    for method, path in (("DELETE", ""), ("POST", "/retry"), ("POST", "/cancel")):
        foreign = admin | {"Sec-Fetch-Site": "cross-site"}
        refused = httpx.request(method, f"{service.url}/api/assets/{asset_id}{path}", headers=foreign)
        check_reply(method, f"/api/assets/{asset_id}{path}", refused.status_code, refused.json(), refused.headers)
        assert refused.status_code == 403
    httpx.delete(f"{service.url}/api/assets/{asset_id}", headers=admin)
    entries = until(lambda: audit(service, who="ops-7"), lambda found: len(found) >= 5)
    shown = [(each["action"], each["target"], each["outcome"]) for each in reversed(entries)]
    assert shown == [
        ("pause queue", "ai-processing", "done"),
        ("resume queue", "ai-processing", "done"),
        ("retry asset", asset_id, "refused"),
        ("retry jobs", "state=failed user=other-1", "done"),
        ("delete asset", asset_id, "done"),
    ]
    assert (entries[-1]["requestId"], entries[-1]["address"]) == ("r-7", "127.0.0.1")
    assert audit(service, who="ops-7", action="pause queue") == entries[-1:]
    page = call(service, "/api/queue/audit", params={"limit": 1, "who": "ops-7"})
    page = call(service, "/api/queue/audit", params={"cursor": page["nextCursor"], "who": "ops-7"})
    assert page["items"] == entries[1:]


def test_charts_add_up_processes_and_survive_a_kill(tmp_path: Path, ai: AiService, mongo_uri: str) -> None:
    """With MongoDB a chart adds up the jobs of two processes, also those of a process that was killed.

    Its changes stay in the audit list. Records that are too old are removed without a request.
    """
    with RedisServer() as redis:
        options = {"REDIS_URL": redis.url, "MONGODB_URI": mongo_uri}
        with Service(tmp_path, ai.url, **options) as first, Service(tmp_path, ai.url, **options) as second:
            for service in (first, second, second):
                service.upload()
            first.wait_status(waiting=0, active=0, completed=3)
            # A request for a chart writes the counts of its process.
            own = call(first, "/api/queue/charts")["points"], call(second, "/api/queue/charts")["points"]
            assert sum(point["enqueued"] for point in own[1]) == 3
            call(first, "/api/queue/resume", "POST")
            until(lambda: len(audit(second)), lambda count: count == 1)
            first.kill()
            assert second.stop() == 0
        with pymongo.MongoClient(mongo_uri) as client:
            records = client.get_default_database()["kept"]
            for kind in ("audit", "delivery", "tally 3600"):
                old = {"kind": kind, "at": datetime(2026, 1, 31, tzinfo=UTC), "data": "{}"}
                records.insert_one({"_id": f"{kind} old"} | old)
            with Service(tmp_path, ai.url, **options | {RECONCILE_SECONDS: "0.2"}) as third:
                until(lambda: records.count_documents({"_id": {"$regex": " old$"}}), lambda count: count == 0)
                points = call(third, "/api/queue/charts", params={"window": "7d"})["points"]
                assert len(points) == 168
                assert [sum(point[name] for point in points) for name in ("enqueued", "completed")] == [3, 3]
                assert [each["action"] for each in audit(third)] == ["resume queue"]
