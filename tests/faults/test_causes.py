"""How a fault is reported to the operator: type and text of the cause, its place, and no secret."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.certificates import Authority, running_handshake_server
from tests.faults.uploads import upload
from tests.faults.processes import wait_until
from tests.packages import install
from tests.redis_server import RedisServer
from tests.service import AiService, Service

Address = Callable[[Path, str], Any]


# Redis


def refused(folder: Path, redis_url: str) -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"redis://127.0.0.1:{unused.getsockname()[1]}/0"


def wrong_name(folder: Path, redis_url: str) -> str:
    return "redis://unknown.invalid:6379/0"


def wrong_password(folder: Path, redis_url: str) -> str:
    return redis_url.replace("redis://", "redis://app:s3cret@")


@contextmanager
def over_tls(folder: Path, host: str, *, is_trusted: bool) -> Iterator[str]:
    """Yield the address of a server whose certificate names that host.

    is_trusted: the client trusts the authority of the certificate; otherwise it trusts another one.
    """
    authority, other = Authority(folder, "authority"), Authority(folder, "another")
    with running_handshake_server(authority.server_context(host)) as port:
        ca_file = (authority if is_trusted else other).ca_file
        yield f"rediss://:s3cret@127.0.0.1:{port}/0?ssl_ca_certs={ca_file}"


REDIS_FAULTS: dict[str, tuple[Any, str]] = {
    "wrong port": (refused, "ConnectionError: Error 111 connecting to 127.0.0.1:"),
    "wrong name": (wrong_name, "connecting to unknown.invalid:6379. Name or service not known"),
    "wrong password": (wrong_password, "AuthenticationError: "),
    "wrong authority": (("127.0.0.1", False), "unable to get local issuer certificate"),
    "wrong host name": (("redis.example", True), "IP address mismatch"),
}


@pytest.mark.fault("E26")
@pytest.mark.parametrize("fault", REDIS_FAULTS)
def test_unusable_redis_is_reported_with_its_cause(tmp_path: Path, redis_url: str, fault: str) -> None:
    """The log lines of queue and rooms, and /readyz, name the cause; they do not show the password."""
    address, cause = REDIS_FAULTS[fault]
    if isinstance(address, tuple):
        host, is_trusted = address
        with over_tls(tmp_path, host, is_trusted=is_trusted) as url:
            shown = what_is_shown(tmp_path / "data", url)
    else:
        shown = what_is_shown(tmp_path / "data", address(tmp_path, redis_url))
    for where, text in shown.items():
        assert cause in text and "s3cret" not in text, where
    others = [other for name, (_, other) in REDIS_FAULTS.items() if name != fault]
    assert not any(other in text for text in shown.values() for other in others)


def what_is_shown(data_dir: Path, redis_url: str) -> dict[str, str]:
    """Return what a service reports of that Redis, by log event or path."""
    with Service(data_dir, "http://127.0.0.1:9", REDIS_URL=redis_url) as service:
        lines = {event: service.wait_log(event) for event in ("queue_unreachable", "fanout_disconnected")}
        ready = httpx.get(f"{service.url}/readyz")
        assert ready.status_code == 503
        service.kill()
        return {event: line["error"] for event, line in lines.items()} | {"/readyz": ready.text}


@pytest.mark.fault("E26")
def test_silent_redis_is_reported_as_a_timeout(tmp_path: Path) -> None:
    """A Redis that accepts connections and never answers is reported as a timeout, with no other reason."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        shown = what_is_shown(tmp_path, f"redis://:s3cret@127.0.0.1:{silent.getsockname()[1]}/0")
    for where, text in shown.items():
        assert "imeout" in text and "s3cret" not in text, where


@pytest.mark.fault("E26")
def test_readiness_is_as_before_once_redis_is_back(tmp_path: Path) -> None:
    """After the outage the reason is no longer shown."""
    with RedisServer() as redis, Service(tmp_path, "http://127.0.0.1:9", REDIS_URL=redis.url) as service:
        redis.stop()
        service.wait_log("queue_unreachable")
        wait_until(lambda: "Error 111" in httpx.get(f"{service.url}/readyz").text)
        redis.start()
        service.wait_log("queue_reconnected")
        wait_until(lambda: httpx.get(f"{service.url}/readyz").status_code == 200)
        assert "error" not in httpx.get(f"{service.url}/readyz").text


# the AI service


@pytest.mark.fault("E26")
@pytest.mark.parametrize(
    ("reply", "event", "cause"),
    [
        ({"status": 503}, "job_retrying", "Answer: HTTP 503 from HOST: scripted 503"),
        ({"status": 422}, "job_failed", "Answer: HTTP 422 from HOST: scripted 422"),
        ({"status": 429, "headers": {"Retry-After": "1"}}, "job_parked", "Answer: HTTP 429 from HOST: scripted 429"),
        ({"cut": True}, "job_retrying", "ServerDisconnectedError: Server disconnected"),
        ({"body": "no JSON"}, "job_retrying", "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
    ],
    ids=["503", "422", "429", "cut", "garbage"],
)
def test_attempt_that_failed_says_what_the_ai_service_did(
    tmp_path: Path, ai_service: AiService, reply: dict[str, Any], event: str, cause: str
) -> None:
    """The log line names status and host for the operator."""
    ai_service.configure(replies=[reply])
    with Service(tmp_path, ai_service.url) as service:
        upload(service, 1)
        line = service.wait_log(event)
        assert line["cause"] == cause.replace("HOST", ai_service.url.removeprefix("http://"))


BROKEN = """
from pipeline.hooks import hookimpl

class Broken:
    async def analyze(self, request):
        return self.look({"brand": "Nike"})

    def look(self, found):
        return found["model"]

@hookimpl
def register_ai_providers(settings):
    yield "broken", Broken
"""


@pytest.mark.fault("E25")
def test_provider_that_raises_is_logged_once_for_each_attempt(tmp_path: Path) -> None:
    """The log line has plugin, category, job and the trace down to the line of the plugin."""
    packages = install(tmp_path / "packages", broken=BROKEN)
    settings = {"AI_PROVIDER": "broken", "JOB_ATTEMPTS": "2", "BACKOFF_MS": "50"}
    with Service(tmp_path / "data", **packages, **settings) as service:
        (asset_id,) = upload(service, 1, category="camera")
        failed = service.wait_log("job_failed", assetId=asset_id)
        lines = service.find("provider_failed")
        assert [line["attempt"] for line in lines] == [1, 2]
        for line in lines:
            assert (line["plugin"], line["category"], line["level"]) == ("broken", "camera", "warning")
            assert (line["assetId"], line["jobId"]) == (asset_id, failed["jobId"])
            assert (line["error"], line["cause"]) == ("AI service failed", "KeyError: 'model'")
            frame = line["exception"][0]["frames"][-1]
            assert (Path(frame["filename"]).name, frame["name"]) == ("broken.py", "look")
        assert service.asset(asset_id)["aiMetadata"]["error"] == "AI service failed after 2 attempts"
        others = [line for line in service.lines if "exception" in line and line not in lines]
        assert others == [], "once"
