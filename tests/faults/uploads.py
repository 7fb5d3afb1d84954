"""Uploads of fault tests, and what became of the photos."""

from __future__ import annotations

from typing import Any

import httpx

from tests.service import Service


def accept(service: Service, count: int) -> list[str]:
    """Upload so many photos and return their asset ids."""
    replies = [service.upload() for _ in range(count)]
    assert {reply.status_code for reply in replies} == {202}
    return [reply.json()["data"]["assetId"] for reply in replies]


def upload(service: Service, count: int, sub: str = "user-1", **arguments: Any) -> list[str]:
    """Upload so many photos of that user over one connection and return their asset ids."""
    with httpx.Client() as client:
        replies = [service.upload(sub, client=client, **arguments) for _ in range(count)]
    assert {reply.status_code for reply in replies} == {202}
    return [reply.json()["data"]["assetId"] for reply in replies]


def statuses(service: Service, ids: list[str]) -> set[str]:
    """Return the statuses of these assets of the default user."""
    return {service.asset(asset_id)["status"] for asset_id in ids}


def statuses_of(sub: str, service: Service, ids: list[str]) -> set[str]:
    """Return the statuses of these assets of that user."""
    return {service.asset(asset_id, sub)["status"] for asset_id in ids}


def attempts(service: Service, ids: list[str]) -> set[int]:
    """Return the numbers of the attempts that these photos had."""
    return {line["attempt"] for line in service.find("job_claimed") if line["assetId"] in ids}
