"""Calls of the operators' routes, each reply checked against the contract."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx

from tests.contract.contracts import check_reply
from tests.service import Service

WAIT_SECONDS = 30.0


def call(service: Service, method: str, path: str, role: str | None = "admin") -> tuple[int, Any]:
    """Call a route with a token of this role, check the reply against the contract; return status and data or error."""
    response = httpx.request(method, service.url + path, headers=service.headers("ops-1", role=role), timeout=60)
    check_reply(method, path, response.status_code, response.json(), response.headers)
    body = response.json()
    return response.status_code, body["data"] if body["success"] else body["error"]


def overview(service: Service, role: str = "operator-read") -> dict[str, Any]:
    """Return the overview of all processes."""
    status, data = call(service, "GET", "/api/queue/overview", role)
    assert status == 200
    return dict(data)


def processes(service: Service) -> dict[int, dict[str, Any]]:
    """Return the processes by process id."""
    return {each["pid"]: each for each in call(service, "GET", "/api/processes", "operator-read")[1]["items"]}


def until(ask: Callable[[], Any], condition: Callable[[Any], bool]) -> Any:
    """Ask until the condition is true: a process reports its state every two seconds."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition(answer := ask()):
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)
    return answer
