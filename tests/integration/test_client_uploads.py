"""Uploads of the Python client: repeated with one key, and delayed as the service asks."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web

import pipeline.client.access
import pipeline.client.client
from pipeline.client import Client, ClientError
from tests.integration.scripted_service import ScriptedService, accept_and_wait, cut, make_accepted, make_asset_json
from tests.integration.scripted_service import drawn_waits, photo  # noqa: F811

__all__ = ["drawn_waits", "photo"]


@pytest.mark.gen_test(timeout=60)
async def test_upload_is_repeated_with_one_key(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a lost connection, 502, 503 and 429 the photo is sent with the same key; each upload has its own key."""
    monkeypatch.setattr(pipeline.client.client, "REPEAT_SECONDS", (0.01,) * 4)
    progress: list[int] = []
    busy = {"success": False, "error": {"code": "RATE_LIMITED", "message": "Too many photos"}}
    photos: list[bytes] = []

    async def accept(request: web.Request) -> web.Response:
        form = await request.post()
        image = form["image"]
        assert isinstance(image, web.FileField)
        photos.append(image.file.read())
        return make_accepted()

    async with ScriptedService(accept_and_wait) as fake, Client(fake.url, "a token") as client:
        fake.replies += [cut, web.Response(status=502, text="<html>"), web.Response(status=503)]
        fake.replies += [web.json_response(busy, status=429), accept]
        assert (await client.upload(photo, "lego", on_progress=progress.append))["assetId"] == "0" * 24
        fake.replies += [accept]
        await client.upload(photo, "lego")
        fake.replies += [cut, accept]
        await client.upload(photo, "lego", idempotency_key="mine")
        fake.replies += [web.json_response(busy, status=429) for _ in range(5)]
        with pytest.raises(ClientError, match="Too many photos"):
            await client.upload(photo, "lego")
    keys = [request.headers["Idempotency-Key"] for request in fake.api_requests]
    assert sorted(Counter(keys).values()) == [1, 2, 5, 5] and keys[6:8] == ["mine", "mine"]
    assert photos == [photo.read_bytes()] * 3
    assert sum(progress) == photo.stat().st_size and min(progress) < 0


@pytest.mark.fault("O19")
@pytest.mark.gen_test(timeout=60)
async def test_concurrent_refused_uploads_wait_at_the_same_time(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each refused upload waits as long as Retry-After asks; uploads that wait in the client do not wait twice."""
    now, real_sleep = [0.0], asyncio.sleep
    waits: list[float] = []
    refused_at: list[float] = []

    def refuse() -> float:
        refused_at.append(now[0])
        return now[0]

    async def sleep(seconds: float) -> None:
        while len(refused_at) < 3:
            await real_sleep(0)
        now[0] += seconds
        waits.append(seconds)

    async with ScriptedService(accept_and_wait) as fake, Client(fake.url, "a token") as client:
        fake.replies += [web.Response(status=429, headers={"Retry-After": "120"}) for _ in range(3)]
        fake.replies += [make_accepted(), make_accepted()]
        fake.replies += [web.Response(status=429, headers={"Retry-After": "7"}), make_accepted()]
        with monkeypatch.context() as patched:
            patched.setattr(pipeline.client.access, "time", SimpleNamespace(monotonic=refuse))
            patched.setattr(pipeline.client.client, "time", SimpleNamespace(monotonic=lambda: now[0]))
            patched.setattr(asyncio, "sleep", sleep)
            await asyncio.gather(*(client.upload(photo, "lego") for _ in range(3)))
        assert [seconds for seconds in waits if seconds] == [120, 7] and fake.replies == []


@pytest.mark.gen_test(timeout=60)
async def test_refused_waits_are_repeated_at_different_times(
    drawn_waits: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each refusal a random wait is added to Retry-After, from a range that doubles up to 30 s."""
    monkeypatch.setattr(pipeline.client.client, "WAIT_RETRY_SECONDS", 0)
    async with ScriptedService(accept_and_wait) as fake, Client(fake.url, "a token") as client:
        fake.replies += [web.Response(status=429, headers={"Retry-After": "0"}) for _ in range(6)]
        fake.replies += [web.json_response({"success": True, "data": make_asset_json(1)})]
        assert (await client.wait("1"))["id"] == make_asset_json(1)["id"]
    assert drawn_waits == [(0, 2), (0, 4), (0, 8), (0, 16), (0, 30), (0, 30)]


@pytest.mark.gen_test(timeout=60)
async def test_upload_waits_as_long_as_retry_after_asks(photo: Path) -> None:
    """The client waits for Retry-After of a second, but not of an hour; other refusals are not repeated."""
    async with ScriptedService(accept_and_wait) as fake, Client(fake.url, "a token") as client:
        fake.replies += [web.Response(status=503, headers={"Retry-After": "1"}), make_accepted()]
        started_at = time.monotonic()
        await client.upload(photo, "lego")
        assert time.monotonic() - started_at >= 1
        fake.replies += [web.Response(status=429, headers={"Retry-After": "3600"})]
        with pytest.raises(ClientError, match="429"):
            await client.upload(photo, "lego")
        fake.replies += [web.Response(status=500)]
        with pytest.raises(ClientError, match="500"):
            await client.upload(photo, "lego")
        with pytest.raises(ClientError, match="Cannot read"):
            await client.upload(photo.parent / "missing.jpg", "lego")
        assert fake.replies == []
